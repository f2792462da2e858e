"""Adopting: what is read, what is patched, that nothing else is lost, and that it can be undone."""

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from domain_cases import SCRATCH, STORE, host, vm
from hypothesis import given
from hypothesis import strategies as st

from virtha.domainxml.adopt import managed_vm_id, patch_domain, read_domain, unpatch_domain
from virtha.domainxml.elements import NAMESPACE
from virtha.domainxml.host_defaults import HostDefaults, Rng
from virtha.domainxml.xmltree import parse_domain, written
from virtha.model.errors import InvalidInput
from virtha.model.machine import MachineType
from virtha.model.vm import DiskFormat, Vm
from virtha.model.watchdog import parse_watchdog

NAMES = ("virt-install-q35", "old-pc", "tight")
HOST = host(rng=Rng())


def canonical(xml: str) -> str:
    """Blanks between elements don't count; prefixes, order and everything else do."""
    return ElementTree.canonicalize(xml, strip_text=True, with_comments=True)


def leaves(xml: str, without: set[str]) -> set[tuple[str, str, str]]:
    return {
        (item.tag, repr(item.attrib), item.text or "")
        for item in ElementTree.fromstring(xml).iter()
        if len(item) == 0 and item.tag not in without
    }


def adopted(adoptable: Path, name: str, defaults: HostDefaults = HOST) -> tuple[str, Vm]:
    xml = (adoptable / f"{name}.xml").read_text()
    reading = read_domain(xml, defaults)
    assert reading.vm is not None, reading.obstacles
    return xml, reading.vm


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.req("A8")
def test_reading_and_writing_changes_nothing(adoptable: Path, name: str) -> None:
    xml = (adoptable / f"{name}.xml").read_text()
    again = written(parse_domain(xml))
    assert canonical(again) == canonical(xml)
    # Also what canonical form leaves out: CDATA, comments outside the root, prefixes.
    for kept in ("<![CDATA[a < b]]>", "WARNING: THIS IS", "qemu:commandline", "a&#10;b&#9;c"):
        assert (kept in again) == (kept in xml)


@pytest.mark.req("A8", "W1")
def test_a_virt_install_domain_is_read(adoptable: Path) -> None:
    reading = read_domain((adoptable / "virt-install-q35.xml").read_text(), HOST)
    found = reading.vm
    assert found is not None
    assert reading.obstacles == ()
    assert found.id == "6f1c2b52-8f43-4a8c-9a5e-0000000000a1"
    assert (found.name, found.machine, found.vcpus) == ("shop db", MachineType.Q35, 4)
    assert found.memory_bytes == 4 << 30
    assert found.description == 'kept by "Ann" <ann@example.org>\nsecond line'
    assert found.watchdog is None
    assert found.adopted
    assert [
        (disk.name, disk.storage_domain_id, disk.path, disk.format, disk.bus)
        for disk in found.disks
    ] == [
        ("vda", STORE, "vms/shop.qcow2", DiskFormat.QCOW2, "virtio"),
        ("vdb", SCRATCH, "shop-log.img", DiskFormat.RAW, "virtio"),
    ]
    assert [(nic.bridge, nic.mac) for nic in found.nics] == [("br0", "52:54:00:aa:bb:01")]
    for part in (
        "disk vda: cache mode 'default'",
        "disk vdb is shareable",
        "disk vdc: a block source is on no storage domain",
        "cdrom sda: /home/ann/debian.iso",
        "network 'default'",
        "passed through",
        "TPM",
        "UEFI variables",
    ):
        assert any(part in warning for warning in reading.warnings), (part, reading.warnings)
    assert read_domain((adoptable / "virt-install-q35.xml").read_text(), HOST) == reading


@pytest.mark.req("A8", "W1")
def test_an_old_domain_is_read_with_its_card(adoptable: Path) -> None:
    _, found = adopted(adoptable, "old-pc")
    assert found.machine is MachineType.PC
    assert found.watchdog == parse_watchdog("ib700:poweroff")
    assert found.disks[0].bus == "ide"


QEMU_DRIVE = (
    "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<q:arg value='-drive'/><q:arg value='driver=rbd,pool=vms,image=web1'/></q:commandline>"
)


@pytest.mark.parametrize(
    ("old", "new", "obstacle"),
    [
        ("type='qemu'", "type='xen'", "no QEMU domain"),
        ("q35", "microvm", "machine type 'microvm'"),
        ("<memory>65536", "<memory unit='furlong'>1", "memory can't be read"),
        ("<memory>65536", "<memory>lots", "memory can't be read"),
        ("<name>tight</name>", "", "no name"),
        ("0000000000c3", "zz", "no UUID"),
        (">hvm<", ">exe<", "fully virtualised"),
        ("<memory>", "<vcpu>none</vcpu><memory>", "number of processors"),
        ("<memory>", QEMU_DRIVE + "<memory>", "-drive opens a disk that virtha can't see"),
    ],
)
@pytest.mark.req("A8")
def test_what_can_not_be_adopted_says_why(
    adoptable: Path, old: str, new: str, obstacle: str
) -> None:
    xml = (adoptable / "tight.xml").read_text()
    assert old in xml
    reading = read_domain(xml.replace(old, new), HOST)
    assert reading.vm is None
    assert any(obstacle in text for text in reading.obstacles), reading.obstacles


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "<domain",
        "<network/>",
        "\ud800",
        "<!DOCTYPE d [<!ENTITY e 'x'>]><domain>&e;</domain>",
        "<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>",
        "<domain>" + "<a>" * 200 + "</a>" * 200 + "</domain>",
        "<domain>" + " " * (5 << 20) + "</domain>",
    ],
)
@pytest.mark.req("A8")
def test_what_is_no_domain_is_refused(bad: str) -> None:
    for call in (
        lambda: read_domain(bad, HOST),
        lambda: managed_vm_id(bad),
        lambda: patch_domain(bad, vm(), HOST),
        lambda: unpatch_domain(bad, "<domain/>"),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == "xml"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("card", [None, "i6300esb:reset"])
@pytest.mark.req("A3", "A4", "A8", "W1")
def test_patching_adds_protects_and_loses_nothing(
    adoptable: Path, name: str, card: str | None
) -> None:
    xml, found = adopted(adoptable, name)
    wanted = (
        found if card is None else msgspec.structs.replace(found, watchdog=parse_watchdog(card))
    )
    patched = patch_domain(xml, wanted, HOST)
    root = ElementTree.fromstring(patched.xml)
    channels = root.findall("./devices/channel/target[@name='org.qemu.guest_agent.0']")
    assert len(channels) == 1
    assert len(root.findall("./devices/panic")) == 1
    assert len(root.findall("./devices/rng")) == 1
    assert [root.findtext(tag) for tag in ("on_poweroff", "on_reboot", "on_crash")] == [
        "destroy",
        "restart",
        "destroy",
    ]
    cards = [item.attrib for item in root.findall("./devices/watchdog")]
    expected = wanted.watchdog
    assert cards == ([{"model": expected.model, "action": expected.action}] if expected else [])
    assert managed_vm_id(patched.xml) == found.id
    # Every element that was there is still there, but for what was changed by name.
    changed = {"on_poweroff", "on_reboot", "on_crash", "watchdog", "devices"}
    assert leaves(xml, changed) <= leaves(patched.xml, changed)
    again = patch_domain(patched.xml, wanted, HOST)
    assert again.changes == ()
    assert again.xml == patched.xml


@pytest.mark.req("A8")
def test_changes_are_told_in_words(adoptable: Path) -> None:
    xml, found = adopted(adoptable, "virt-install-q35")
    wanted = msgspec.structs.replace(found, watchdog=parse_watchdog("i6300esb:reset"))
    assert patch_domain(xml, wanted, HOST).changes == (
        "on_crash restart -> destroy",
        "channel org.qemu.guest_agent.0 for the guest agent added",
        "panic device added",
        "random number generator added",
        "watchdog card: i6300esb:reset",
        f"serial console logged to /var/lib/virtha/agent/serial/{found.id}.log",
        "marked as managed by virtha",
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.req("A8")
def test_giving_back_restores_the_original(adoptable: Path, name: str) -> None:
    xml, found = adopted(adoptable, name)
    wanted = msgspec.structs.replace(found, watchdog=parse_watchdog("i6300esb:dump"))
    patched = patch_domain(xml, wanted, HOST)
    restored = unpatch_domain(patched.xml, xml)
    assert canonical(restored.xml) == canonical(xml)
    assert restored.changes[-1] == "virtha's mark removed"
    assert unpatch_domain(restored.xml, xml).changes == ()


@pytest.mark.req("A8")
def test_giving_back_keeps_what_others_changed_since(adoptable: Path) -> None:
    xml, found = adopted(adoptable, "virt-install-q35", host())
    patched = patch_domain(xml, found, host()).xml
    edited = (
        patched.replace("<on_crash>destroy", "<on_crash>preserve")
        .replace("Database", "Data base")
        .replace("</devices>", "<rng model='virtio'><backend model='random'/></rng></devices>")
    )
    restored = unpatch_domain(edited, xml).xml
    assert "<on_crash>preserve" in restored
    assert "Data base" in restored
    # Ours was off at adoption, so this generator is somebody else's.
    assert "<rng model='virtio'>" in restored
    assert NAMESPACE not in restored


@pytest.mark.req("A8")
def test_libvirts_own_additions_for_ours_go_too(adoptable: Path) -> None:
    xml, found = adopted(adoptable, "tight")
    patched = patch_domain(xml, found, HOST).xml
    defined = patched.replace("<channel", "<controller type='virtio-serial' index='0'/><channel", 1)
    assert canonical(unpatch_domain(defined, xml).xml) == canonical(xml)
    # With another user of that controller it stays.
    shared = defined.replace(
        "<panic",
        "<channel type='spicevmc'><target type='virtio' name='x'/></channel><panic",
        1,
    )
    assert "virtio-serial" in unpatch_domain(shared, xml).xml


@pytest.mark.req("A8", "W1")
def test_later_edits_reach_an_adopted_domain(adoptable: Path) -> None:
    xml, found = adopted(adoptable, "virt-install-q35")
    patched = patch_domain(xml, found, HOST).xml
    edited = msgspec.structs.replace(
        found,
        memory_bytes=2 << 30,
        vcpus=8,
        description="new & better",
        watchdog=parse_watchdog("i6300esb:pause"),
    )
    result = patch_domain(patched, edited, HOST)
    assert result.changes == (
        "memory 4GiB -> 2GiB",
        "processors 4 -> 8",
        "description changed",
        "watchdog card: i6300esb:pause",
    )
    again = read_domain(result.xml, HOST).vm
    assert again == edited
    bare = patch_domain(result.xml, msgspec.structs.replace(edited, watchdog=None), HOST)
    assert bare.changes == ("watchdog card: none",)
    assert "<watchdog" not in bare.xml


@pytest.mark.req("W1", "W2")
def test_q35s_built_in_card_stays_and_agrees(adoptable: Path) -> None:
    xml = (adoptable / "tight.xml").read_text()
    newer = xml.replace("<devices/>", "<devices><watchdog model='itco' action='reset'/></devices>")
    reading = read_domain(newer, HOST)
    assert reading.vm is not None
    assert reading.vm.watchdog == parse_watchdog("itco:reset")
    wanted = msgspec.structs.replace(reading.vm, watchdog=parse_watchdog("i6300esb:pause"))
    patched = patch_domain(newer, wanted, HOST).xml
    cards = [dict(item.attrib) for item in ElementTree.fromstring(patched).iter("watchdog")]
    assert cards == [
        {"model": "itco", "action": "pause"},
        {"model": "i6300esb", "action": "pause"},
    ]
    assert read_domain(patched, HOST).vm == wanted


@pytest.mark.req("A8")
def test_another_vms_definition_is_refused(adoptable: Path) -> None:
    xml, _ = adopted(adoptable, "tight")
    with pytest.raises(InvalidInput, match="another VM"):
        patch_domain(xml, vm(), HOST)


_TEXT = st.text(
    alphabet=st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufffe\uffff")
)


@given(_TEXT, _TEXT, st.text(alphabet="\t\n\r '\"<&>x"))
@pytest.mark.req("A8")
def test_any_foreign_text_survives(text: str, comment: str, value: str) -> None:
    root = ElementTree.fromstring(
        "<domain type='qemu'><name>n</name><uuid>6f1c2b52-8f43-4a8c-9a5e-0000000000c3</uuid>"
        "<memory>65536</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
    extra = ElementTree.SubElement(root, "{urn:x}extra", {"{urn:y}a": value})
    extra.text = text
    extra.append(ElementTree.Comment(comment.replace("-", "")))
    xml = ElementTree.tostring(root, encoding="unicode")
    found = read_domain(xml, HOST).vm
    assert found is not None
    patched = patch_domain(xml, found, HOST)
    after = ElementTree.fromstring(patched.xml).find("{urn:x}extra")
    assert after is not None
    expected = ElementTree.fromstring(xml).find("{urn:x}extra")
    assert expected is not None
    assert (after.text, after.attrib) == (expected.text, expected.attrib)
    assert canonical(unpatch_domain(patched.xml, xml).xml) == canonical(xml)
