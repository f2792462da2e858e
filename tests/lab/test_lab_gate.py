"""The start gate on real libvirt, with the agent stopped: what must be refused is, and says why."""

import re
import time

import pytest

from virtha.lab import faults, guest
from virtha.lab.node import Node, wait_until
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
REFUSED = "vm.start_refused"


def xml_of(host: Node, name: str) -> str:
    return host.run_checked(["virsh", "dumpxml", "--inactive", name])


def define(host: Node, xml: str) -> None:
    path = "/run/lab-domain.xml"
    host.path_inside(path).write_text(xml)
    host.run_checked(["virsh", "define", path])


def refused_start(host: Node, name: str) -> str:
    """`virsh start` must fail; what it says."""
    done = host.run(["virsh", "start", name])
    assert done.returncode != 0, f"{name} was started on {host.name}: {done.stdout}"
    assert host.qemu_of(name) is None
    return done.stderr


def wait_refusals(story: Story, hosts: set[str], after: int, *, name: str) -> None:
    """Until each of these hosts has told that its gate refused that domain; by the host's history, where
    also those are that belong to no VM."""

    def told() -> set[str]:
        return {
            host
            for host in hosts
            for event in story.api.events(host=host, code="vm.start_refused", after=after)
            if event["fields"]["vm"] == name
        }

    wait_until(
        lambda: told() == hosts,
        f"the refusals of {name} on {', '.join(sorted(hosts))} are in the history",
        timeout_s=60.0,
        pause_s=0.1,
    )


def autostarts(host: Node, name: str) -> bool:
    found = re.search(r"Autostart: *(\w+)", host.run_checked(["virsh", "dominfo", name]))
    assert found is not None
    return found.group(1) == "enable"


@pytest.mark.req("F9", "X1")
def test_virsh_start_of_a_managed_vm_is_refused_on_every_host(story: Story) -> None:
    story.create_vm("mine", host="h1")
    began = story.revision()
    h1, h2 = story.lab.host("h1"), story.lab.host("h2")
    xml = xml_of(h1, "mine")
    for name in ("h1", "h2"):
        faults.kill_agent(story.lab, name)
    # On the wrong host, while it runs elsewhere: libvirt there knows nothing of the other copy.
    define(h2, xml)
    message = refused_start(h2, "mine")
    assert "gate.refused" in message
    assert "virtha vm start" in message
    # Without our mark, under another name and id, by its disk alone.
    stranger = re.sub(r"<metadata.*?</metadata>", "", xml, flags=re.DOTALL)
    stranger = re.sub(r"<uuid>.*?</uuid>", "", stranger)
    stranger = re.sub(r"<mac address=.*?/>", "", stranger)
    define(h2, stranger.replace("<name>mine</name>", "<name>stranger</name>"))
    assert "gate.refused.disk" in refused_start(h2, "stranger")
    assert story.lab.copies_of("mine") == ["h1"]
    # On the right host too, once it is down: the grant was for one start.
    h1.run_checked(["virsh", "destroy", "mine"])
    for _ in range(5):
        assert "gate.refused" in refused_start(h1, "mine")
    # Nobody heard of it while the agents were away; now everybody does.
    for name in ("h1", "h2"):
        faults.start_agent(story.lab, name)
    wait_refusals(story, {"h1", "h2"}, began, name="mine")
    wait_refusals(story, {"h2"}, began, name="stranger")
    told = {event["fields"]["host"]: event for event in story.events("mine", began, REFUSED)}
    assert told["h1"]["fields"]["count"] == 5, "five tries are one entry"
    assert told["h2"]["fields"]["code"] == "gate.refused.no_grant"
    assert told["h2"]["severity"] == "warning"
    assert "virtha vm start mine" in told["h2"]["message"]
    assert not story.events("mine", began, "host.gate.*")
    h2.run_checked(["virsh", "undefine", "mine"])
    h2.run_checked(["virsh", "undefine", "stranger"])


@pytest.mark.req("F9")
def test_autostart_after_a_reboot_of_the_host_is_refused(story: Story) -> None:
    story.create_vm("auto", host="h2")
    h2 = story.lab.host("h2")
    assert not autostarts(h2, "auto")
    faults.kill_agent(story.lab, "h2")
    began = story.revision()
    h2.run_checked(["virsh", "autostart", "auto"])
    faults.kill_host(story.lab, "h2")
    # The agent stays away during this boot: the gate must do without it.
    h2 = faults.press_power(story.lab, "h2", ["storage", "virtlogd", "libvirtd"])
    h2.wait_ready()
    log = h2.logs / "libvirtd.log"
    wait_until(
        lambda: "gate.refused" in log.read_text(errors="replace"),
        "libvirtd logs that its autostart was refused",
        timeout_s=60.0,
    )
    assert h2.qemu_of("auto") is None
    assert story.lab.copies_of("auto") == []
    for service in ("guardian", "agent"):
        h2.start_service(service)
    refused = story.wait_event("auto", REFUSED, after=began)
    assert refused["fields"]["host"] == "h2"
    assert refused["fields"]["code"].startswith("gate.refused.")


@pytest.mark.req("F9")
def test_a_managed_save_image_is_not_restored(story: Story) -> None:
    story.create_vm("saved", host="h1")
    story.wait_agent("saved")
    h1 = story.lab.host("h1")
    faults.kill_agent(story.lab, "h1")
    h1.run_checked(["virsh", "managedsave", "saved"], timeout_s=90)
    began = story.revision()
    message = refused_start(h1, "saved")
    assert "gate.refused" in message
    faults.start_agent(story.lab, "h1")
    refused = story.wait_event("saved", REFUSED, after=began)
    assert refused["fields"]["host"] == "h1"
    assert refused["fields"]["reason"] in message
    h1.run_checked(["virsh", "managedsave-remove", "saved"])


@pytest.mark.req("A8")
def test_an_existing_domain_is_adopted_as_it_is(story: Story) -> None:
    h1 = story.lab.host("h1")
    disk = f"{h1.storage}/old1.qcow2"
    h1.run_checked(["cp", f"{h1.storage}/images/tiny.qcow2", disk])
    kind = story.lab.state.accelerator
    define(
        h1,
        f"""<domain type='{kind}'><name>old1</name><title>kept as it is</title>
        <memory unit='MiB'>128</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
        <on_crash>restart</on_crash>
        <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
        <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
        <watchdog model='i6300esb' action='reset'/></devices></domain>""",
    )
    h1.run_checked(["virsh", "autostart", "old1"])
    # The dry run changes nothing and says what it would change.
    before = xml_of(h1, "old1")
    story.api.operate("/v1/hosts/h1/adopt", {"names": ["old1"], "ha": True, "dry_run": True})
    assert xml_of(h1, "old1") == before
    story.api.operate("/v1/hosts/h1/adopt", {"names": ["old1"], "ha": True})
    view = story.api.vm("old1")
    assert view["vm"]["adopted"] is True
    assert not autostarts(h1, "old1")
    assert "kept as it is" in xml_of(h1, "old1")
    assert "gate.refused" in refused_start(h1, "old1")
    # From here on it is protected as any other.
    story.start_vm("old1", host="h1")
    story.wait_agent("old1")
    revision = story.revision()
    faults.kill_qemu(story.lab, "old1")
    story.wait_event("old1", "vm.restarted", after=revision)
    # Given back, it keeps running and its autostart is as it was.
    story.api.operate("/v1/vms/old1/release")
    assert h1.qemu_of("old1") is not None
    assert autostarts(h1, "old1")
    h1.run_checked(["virsh", "destroy", "old1"])
    h1.run_checked(["virsh", "undefine", "old1"])
    h1.run_checked(["rm", disk])


@pytest.mark.req("A3")
def test_the_guest_has_what_the_product_gives_each_vm(story: Story) -> None:
    """Channel, random numbers, panic device: seen from inside the guest."""
    story.create_vm("inside")
    story.wait_agent("inside")
    host = story.lab.host_of("inside")
    text = guest.execute(
        host,
        "inside",
        "cat /sys/class/misc/hw_random/rng_current; ls /dev/virtio-ports; "
        "cat /sys/class/watchdog/watchdog0/identity; ls /sys/bus/acpi/devices | grep QEMU0001",
    )
    assert "virtio_rng" in text
    assert "org.qemu.guest_agent.0" in text
    assert "i6300ESB" in text
    assert "QEMU0001" in text
    begin = time.monotonic()
    story.api.operate("/v1/vms/inside/reboot")
    wait_until(
        lambda: guest.agent_answers(host, "inside") and story.look("inside").boots == 2,
        "the guest has rebooted",
        timeout_s=120.0,
        pause_s=0.3,
    )
    assert time.monotonic() - begin < 120.0
