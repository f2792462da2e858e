"""A snapshot on real hosts: what the guest writes after it is gone when the VM goes back."""

import subprocess
from pathlib import Path

import pytest

from virtha.lab import guest
from virtha.lab.guest_files import BOOT_COUNTER_SECTOR
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(900)]
SECTOR = BOOT_COUNTER_SECTOR + 8
PATIENCE_S = 400.0
WRITE = f"printf '%512s' '' | tr ' ' W | dd of=/dev/vda bs=512 seek={SECTOR} conv=fsync 2>&1"


def _disk(story: Story) -> Path:
    path = story.api.vm("snap1")["vm"]["disks"][0]["path"]
    host = story.lab.host("h1")
    return host.path_inside(f"{host.storage}/{path}")


def _holds(story: Story, letter: str) -> bool:
    command = f"read -P {ord(letter)} {SECTOR * 512} 512"
    done = subprocess.run(
        ["qemu-io", "-r", "-c", command, str(_disk(story))], check=True, capture_output=True
    )
    return b"verification failed" not in done.stdout


@pytest.mark.req("G1", "G4")
def test_what_was_written_after_a_snapshot_is_gone_after_a_revert(story: Story) -> None:
    story.create_vm("snap1", watchdog="i6300esb:none", start=False)
    command = f"write -P {ord('T')} {SECTOR * 512} 512"
    subprocess.run(["qemu-io", "-c", command, str(_disk(story))], check=True, capture_output=True)
    path = "/v1/vms/snap1/snapshots"
    story.api.operate(path, {"name": "before"}, timeout_s=PATIENCE_S)
    story.start_vm("snap1", host="h2")
    guest.wait_for_agent(story.lab.host_of("snap1"), "snap1", timeout_s=PATIENCE_S)
    guest.execute(story.lab.host_of("snap1"), "snap1", WRITE, timeout_s=PATIENCE_S)
    live = story.api.request("POST", f"{path}/before/revert", json={})
    assert live.json()["code"] == "problem.vm.state"
    story.api.operate("/v1/vms/snap1/power-off")
    story.wait_state("snap1", "down")
    assert _holds(story, "W")
    story.api.operate(f"{path}/before/revert", {}, timeout_s=PATIENCE_S)
    assert _holds(story, "T")
    story.start_vm("snap1", host="h2")
    guest.wait_for_agent(story.lab.host_of("snap1"), "snap1", timeout_s=PATIENCE_S)
    story.api.operate("/v1/vms/snap1/power-off")
    story.wait_state("snap1", "down")
    gone = story.api.finish(story.api.request("DELETE", f"{path}/before").json())
    assert gone["state"] == "done"
    assert story.api.get(path)["items"] == []
    story.delete_vm("snap1")
