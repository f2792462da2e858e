"""The domains that virtha makes: golden texts, escapes, and what is refused."""

import subprocess
from xml.etree import ElementTree

import msgspec
import pytest
from domain_cases import CASES, CEPH, GOLDEN, OPEN_CEPH, POOLS, STORE, disk, host, vm
from hypothesis import given
from hypothesis import strategies as st

from virtha.domainxml.adopt import managed_vm_id, read_domain
from virtha.domainxml.build import build_domain, disk_path
from virtha.domainxml.host_defaults import Cpu, CpuMode
from virtha.model.errors import InvalidInput, Refused
from virtha.model.machine import MachineType
from virtha.model.watchdog import WatchdogAction, WatchdogModel, parse_watchdog


@pytest.mark.parametrize("name", CASES)
@pytest.mark.req("W2", "W10", "A3", "A4", "A6")
def test_golden(name: str, rewrite: bool) -> None:
    golden = GOLDEN / f"{name}.xml"
    built = build_domain(*CASES[name])
    if rewrite:
        golden.write_text(built)
    assert built == golden.read_text()
    assert managed_vm_id(built) == CASES[name][0].id


def test_no_golden_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.lab
@pytest.mark.parametrize("name", CASES)
def test_goldens_fit_libvirts_schema(name: str) -> None:
    checked = subprocess.run(
        ["virt-xml-validate", str(GOLDEN / f"{name}.xml"), "domain"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("model", ["i6300esb", "ib700"])
@pytest.mark.parametrize("action", list(WatchdogAction))
@pytest.mark.req("W1", "W2")
def test_every_action_of_a_card_is_written(model: str, action: WatchdogAction) -> None:
    built = build_domain(vm(watchdog=parse_watchdog(f"{model}:{action}")), host())
    cards = ElementTree.fromstring(built).findall("./devices/watchdog")
    assert [card.attrib for card in cards] == [{"model": model, "action": action}]


@pytest.mark.req("W10")
def test_the_vms_own_card_wins_over_the_hosts() -> None:
    defaults = host(watchdog=parse_watchdog("i6300esb:pause"))
    for machine_vm, expected in (
        (vm(), "i6300esb"),
        (vm(watchdog=parse_watchdog("ib700:reset")), "ib700"),
    ):
        root = ElementTree.fromstring(build_domain(machine_vm, defaults))
        assert [card.get("model") for card in root.findall("./devices/watchdog")] == [expected]
    s390 = vm(architecture="s390x", machine=MachineType.S390_CCW)
    assert "<watchdog" not in build_domain(s390, defaults)
    assert WatchdogModel.I6300ESB in build_domain(vm(), defaults)


@pytest.mark.parametrize(
    ("cpu", "domain_type", "mode", "model"),
    [
        (Cpu(), "kvm", "host-model", None),
        (Cpu(), "qemu", None, None),
        (Cpu(mode=CpuMode.HOST_PASSTHROUGH), "kvm", "host-passthrough", None),
        (Cpu(mode=CpuMode.HOST_PASSTHROUGH), "qemu", "maximum", None),
        (Cpu(mode=CpuMode.HOST_MODEL), "qemu", "maximum", None),
        (Cpu(model="Nehalem"), "kvm", "custom", "Nehalem"),
        (Cpu(mode=CpuMode.CUSTOM, model="Nehalem"), "qemu", "custom", "Nehalem"),
        (Cpu(features=("aes",)), "qemu", "maximum", None),
    ],
)
@pytest.mark.req("A6")
def test_processor_modes(cpu: Cpu, domain_type: str, mode: str | None, model: str | None) -> None:
    built = build_domain(vm(), host(cpu=cpu, domain_type=domain_type))
    root = ElementTree.fromstring(built)
    element = root.find("cpu")
    assert (element.get("mode") if element is not None else None) == mode
    assert root.findtext("cpu/model") == model
    assert [feature.attrib for feature in root.findall("cpu/feature")] == [
        {"policy": "require", "name": name} for name in cpu.features
    ]


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        ({"path": "../other/x.qcow2"}, "disks.disk1.path", "inside"),
        ({"path": "/etc/passwd"}, "disks.disk1.path", "inside"),
        ({"path": "a//b"}, "disks.disk1.path", "inside"),
        ({"path": "a/./b"}, "disks.disk1.path", "inside"),
        ({"path": ""}, "disks.disk1.path", "inside"),
        ({"storage_domain_id": "nowhere"}, "disks.disk1.storage_domain_id", "not known"),
        ({"bus": "ide"}, "disks.disk1.bus", "no ide bus"),
        ({"bus": "floppy"}, "disks.disk1.bus", "no floppy bus"),
    ],
)
@pytest.mark.req("A8")
def test_disks_that_do_not_fit_are_refused(
    changes: dict[str, object], field: str, word: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_domain(vm(disks=(disk(1, **changes),)), host())
    assert caught.value.field == field
    assert word in caught.value.message


@pytest.mark.req("A8")
def test_disks_are_named_past_the_alphabet() -> None:
    built = build_domain(vm(disks=tuple(disk(number) for number in range(28))), host())
    targets = [item.get("dev") for item in ElementTree.fromstring(built).iter("target")]
    assert targets[:28] == [f"vd{chr(97 + index)}" for index in range(26)] + ["vdaa", "vdab"]


HOSTILE = "</name><x a='\"&]]>\x00\x1b\ud800\ufffe\r\n\u2028\U0001f600"


@pytest.mark.req("A8")
def test_no_text_can_break_out_of_its_element() -> None:
    hostile_vm = vm(name=HOSTILE, description=HOSTILE, disks=(disk(1, path=f"a{HOSTILE[7:]}"),))
    hostile_host = host(
        serial_directory=HOSTILE, cpu=Cpu(features=(HOSTILE,)), storage_paths={STORE: HOSTILE}
    )
    plain = ElementTree.fromstring(
        build_domain(vm(description="d", disks=(disk(1),)), host(cpu=Cpu(features=("aes",))))
    )
    root = ElementTree.fromstring(build_domain(hostile_vm, hostile_host))
    assert [item.tag for item in root.iter()] == [item.tag for item in plain.iter()]
    name = root.findtext("name")
    assert name is not None
    assert name.startswith("</name><x a='\"&]]>\ufffd\ufffd\ufffd\ufffd")


@given(st.text(), st.text())
@pytest.mark.req("A8")
def test_any_text_gives_well_formed_xml(name: str, description: str) -> None:
    root = ElementTree.fromstring(build_domain(vm(name=name, description=description), host()))
    assert root.find("name") is not None
    assert (root.find("description") is not None) == bool(description)


@pytest.mark.req("F3", "A8")
def test_images_of_a_pool_are_read_back_as_they_were_built() -> None:
    wanted, defaults = CASES["ceph"]
    found = read_domain(build_domain(wanted, defaults), defaults).vm
    assert found is not None
    assert [(one.storage_domain_id, one.path) for one in found.disks] == [
        (CEPH, "web1-root"),
        (OPEN_CEPH, "web1.data"),
    ]
    # The same names in another cluster are other images.
    moved = {CEPH: msgspec.structs.replace(POOLS[CEPH], monitors=("10.9.9.9",))}
    reading = read_domain(build_domain(wanted, defaults), host(ceph_pools=moved))
    assert reading.vm is not None
    assert reading.vm.disks == ()
    assert any("rbd:vms/web1-root is on no storage domain" in one for one in reading.warnings)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["", "a/b", "a@snap", "a:id=admin", "-a", "a b"])
def test_what_is_no_image_is_refused(name: str) -> None:
    wrong = vm(disks=(disk(1, storage_domain_id=CEPH, path=name),))
    with pytest.raises(InvalidInput, match="is no name of an image") as refused:
        build_domain(wrong, host(ceph_pools=POOLS))
    assert refused.value.field == "disks.disk1.path"


def test_an_image_has_no_path() -> None:
    with pytest.raises(Refused, match="no file"):
        disk_path(disk(1, storage_domain_id=CEPH, path="a"), host(ceph_pools=POOLS))
