"""A VM's whole life by the command line, each step seen from inside the guest."""

import json
from pathlib import Path

import pytest
from moving_guest import last_record, records

from virtha.lab import guest
from virtha.lab.guest_files import BOOT_COUNTER_SECTOR
from virtha.lab.node import wait_until
from virtha.lab.records import begin_writing, end_writing
from virtha.lab.story import Story
from virtha.model.errors import Failed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1_500)]
VM = "life1"
PATIENCE_S = 400.0
"""For what a guest must do; a machine that runs other things takes its share."""
SECTOR = BOOT_COUNTER_SECTOR + 8
MARKED = f"skip={SECTOR} bs=512 count=1 iflag=direct 2>/dev/null"


class Life:
    """The words of an administrator, and what the guest says to them."""

    def __init__(self, story: Story) -> None:
        self.story = story

    def virtha(self, *words: str) -> str:
        return self.story.lab.virtha(*words, timeout_s=PATIENCE_S)

    def shown(self, *words: str) -> str:
        return str(json.dumps(json.loads(self.virtha(*words, "-o", "json"))))

    def inside(self, command: str) -> str:
        host = self.story.lab.host_of(VM)
        return guest.execute(host, VM, command, timeout_s=PATIENCE_S).strip()

    def uptime_s(self) -> float:
        return float(self.inside("cat /proc/uptime").split()[0])

    def start(self) -> None:
        self.virtha("vm", "start", VM, "--timeout", "5m")
        self.awake()

    def awake(self) -> None:
        host = self.story.wait_running(VM)
        guest.wait_for_agent(host, VM, timeout_s=PATIENCE_S)

    def shut_down(self) -> None:
        self.virtha("vm", "shutdown", VM, "--timeout", "5m")
        self.story.wait_state(VM, "down", timeout_s=PATIENCE_S)

    def until_inside(self, command: str, expected: str) -> None:
        wait_until(
            lambda: self.inside(command) == expected,
            f"'{command}' is {expected}",
            timeout_s=PATIENCE_S,
            pause_s=0.2,
        )

    def mark(self, device: str, letter: str) -> None:
        text = f"printf '%512s' '' | tr ' ' {letter}"
        self.inside(f"{text} | dd of={device} bs=512 seek={SECTOR} conv=fsync 2>/dev/null")
        assert self.marked(device) == letter * 2

    def marked(self, device: str) -> str:
        """First and last letter of what was written."""
        text = self.inside(f"dd if={device} {MARKED}")
        return text[:1] + text[-1:]

    def files(self, directory: str) -> list[Path]:
        host = self.story.lab.host("h1")
        return sorted(host.path_inside(f"{host.storage}/{directory}").glob("*/*"))


@pytest.mark.req("W5", "G1", "G4", "G6")
def test_a_vm_lives_from_template_to_deletion(story: Story) -> None:
    life = Life(story)
    _made_from_a_template(life)
    _edited(life)
    _devices_plugged(life)
    _moved_under_load(life)
    _snapshots_while_it_runs(life)
    _snapshot_gone_back_to(life)
    _deleted(life)


def _made_from_a_template(life: Life) -> None:
    origin = ("--memory", "128MiB", "--watchdog", "i6300esb:none", "--nic", "bridge=br0")
    life.virtha("vm", "create", "origin1", "--image", "tiny", *origin)
    life.virtha("template", "create", "gold1", "--from", "origin1")
    assert "i6300esb" in life.shown("template", "show", "gold1")
    life.virtha("vm", "create", VM, "--template", "gold1", "--start", "--timeout", "5m")
    life.awake()
    assert life.inside("cat /sys/class/watchdog/watchdog0/identity") == "i6300ESB timer"
    assert life.inside("cat /run/boots") == "1", "of its own disk: the template never ran"


def _edited(life: Life) -> None:
    kib = int(life.inside("grep MemTotal /proc/meminfo").split()[1])
    life.virtha("vm", "edit", VM, "--vcpus", "2", "--memory", "192MiB")
    shown = life.shown("vm", "show", VM)
    assert '"field": "vcpus", "running": 1, "wanted": 2' in shown
    assert life.inside("nproc") == "1", "it waits for the next start"
    life.shut_down()
    life.start()
    assert life.inside("nproc") == "2"
    more = int(life.inside("grep MemTotal /proc/meminfo").split()[1]) - kib
    assert 48 << 10 < more <= 64 << 10
    assert '"pending": []' in life.shown("vm", "show", VM)


def _devices_plugged(life: Life) -> None:
    life.virtha("vm", "disk", "add", VM, "--size", "64MiB", "--name", "data")
    life.until_inside("cat /sys/block/vdb/size", str((64 << 20) // 512))
    before = set(life.inside("cat /sys/class/net/*/address").split())
    life.virtha("vm", "nic", "add", VM, "br0")
    nics = json.loads(life.virtha("vm", "nic", "list", VM, "-o", "json"))
    (mac,) = {nic["mac"] for nic in nics} - before
    life.until_inside(f"grep -l {mac} /sys/class/net/*/address", "/sys/class/net/eth1/address")
    life.virtha("vm", "disk", "resize", VM, "data", "128MiB")
    life.until_inside("cat /sys/block/vdb/size", str((128 << 20) // 512))
    with pytest.raises(Failed, match="can't be made smaller"):
        life.virtha("vm", "disk", "resize", VM, "data", "64MiB")
    assert life.inside("cat /run/boots") == "2", "none of it was a restart"


def _moved_under_load(life: Life) -> None:
    """With what was plugged in since it started."""
    story, source = life.story, life.story.lab.host_of(VM)
    target = next(host.name for host in story.lab.hosts if host.name != source.name)
    begin_writing(story, VM)
    wait_until(lambda: (last_record(story, VM) or 0) > 0, f"{VM} writes", timeout_s=PATIENCE_S)
    before_s, before = life.uptime_s(), last_record(story, VM)
    with pytest.raises(Failed, match=f"{source.name}"):
        life.virtha("vm", "migrate", VM, "--to", source.name)
    life.virtha("vm", "migrate", VM, "--to", target, "--timeout", "5m")
    assert f'"host_name": "{target}"' in life.shown("vm", "show", VM)
    assert story.lab.copies_of(VM) == [target]
    found = records(story, VM)
    assert (found.lost, found.is_older_than_its_disk) == (frozenset(), False)
    assert found.last is not None and before is not None and found.last > before
    end_writing(story, VM)
    assert life.inside("cat /run/boots") == "2", "it was no restart"
    assert life.uptime_s() > before_s
    assert life.inside("cat /sys/class/watchdog/watchdog0/identity") == "i6300ESB timer"
    assert life.inside("cat /sys/block/vdb/size") == str((128 << 20) // 512)
    assert life.inside("ls /sys/class/net").split().count("eth1") == 1
    assert '"pending": []' in life.shown("vm", "show", VM)


def _snapshots_while_it_runs(life: Life) -> None:
    life.virtha("vm", "snapshot", "create", VM, "live")
    life.virtha("vm", "snapshot", "create", VM, "pulled", "--crash-consistent")
    found = json.loads(life.virtha("vm", "snapshot", "list", VM, "-o", "json"))
    assert {one["name"]: one["frozen"] for one in found} == {"live": True, "pulled": False}
    life.mark("/dev/vdb", "L")  # it is not frozen any more
    with pytest.raises(Failed, match="its disks must stand still"):
        life.virtha("vm", "snapshot", "revert", VM, "live", "--yes")
    for name in ("live", "pulled"):
        life.virtha("vm", "snapshot", "delete", VM, name, "--yes")
    assert json.loads(life.virtha("vm", "snapshot", "list", VM, "-o", "json")) == []


def _snapshot_gone_back_to(life: Life) -> None:
    for device in ("/dev/vda", "/dev/vdb"):
        life.mark(device, "T")
    life.shut_down()
    life.virtha("vm", "snapshot", "create", VM, "before", "--timeout", "5m")
    life.start()
    for device in ("/dev/vda", "/dev/vdb"):
        life.mark(device, "W")
    assert life.inside("cat /run/boots") == "3"
    life.shut_down()
    life.virtha("vm", "snapshot", "revert", VM, "before", "--yes", "--timeout", "5m")
    life.virtha("vm", "disk", "list", VM)
    life.start()
    assert [life.marked(device) for device in ("/dev/vda", "/dev/vdb")] == ["TT", "TT"]
    assert life.inside("cat /run/boots") == "3", "the third boot never was"
    assert life.inside("cat /sys/class/watchdog/watchdog0/identity") == "i6300ESB timer"
    life.shut_down()
    life.virtha("vm", "snapshot", "delete", VM, "before", "--yes", "--timeout", "5m")


def _deleted(life: Life) -> None:
    life.virtha("vm", "disk", "resize", VM, "data", "192MiB", "--timeout", "5m")
    vm_id = life.story.api.vm(VM)["vm"]["id"]
    ours = [path for path in life.files("vms") if path.parent.name == vm_id]
    assert len(ours) == 2
    life.virtha("vm", "delete", VM, "--delete-data", "--yes")
    left = [path for path in life.files("vms") if path.parent.name == vm_id]
    assert left == []
    life.virtha("vm", "delete", "origin1", "--yes")
    assert len(life.files("vms")) == 1, "nobody said that its data should go"
    life.virtha("template", "delete", "gold1", "--yes")
    assert life.files("templates") == []
    for path in life.files("vms"):
        path.unlink()
