"""Templates on real hosts: the card goes in and comes out, full and thin disks boot, nothing of one shows in another."""

import subprocess
from pathlib import Path

import pytest

from virtha.lab import guest
from virtha.lab.guest_files import BOOT_COUNTER_SECTOR
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(900)]
SECTOR = BOOT_COUNTER_SECTOR + 8
"""Where the image has nothing."""
PATIENCE_S = 400.0
READ = f"dd if=/dev/vda bs=512 skip={SECTOR} count=1 iflag=direct 2>/dev/null"


def _disk(story: Story, name: str) -> Path:
    path = story.api.vm(name)["vm"]["disks"][0]["path"]
    host = story.lab.host("h1")
    return host.path_inside(f"{host.storage}/{path}")


def _marked(story: Story, name: str) -> str:
    """What the guest reads, first and last."""
    text = guest.execute(story.lab.host_of(name), name, READ, timeout_s=PATIENCE_S)
    return text.strip()[:1] + text.strip()[-1:]


def _mark(story: Story, name: str, letter: str) -> None:
    write = f"printf '%512s' '' | tr ' ' {letter} | dd of=/dev/vda bs=512 seek={SECTOR} conv=fsync"
    guest.execute(story.lab.host_of(name), name, f"{write} 2>/dev/null", timeout_s=PATIENCE_S)
    assert _marked(story, name) == letter * 2


@pytest.mark.req("W5")
def test_a_vm_with_its_watchdog_becomes_a_template_and_vms_again(story: Story) -> None:
    # Its card does nothing when it fires: a guest that is slow to boot is not what this is about.
    story.create_vm("origin1", watchdog="i6300esb:none", start=False)
    command = f"write -P {ord('T')} {SECTOR * 512} 512"
    subprocess.run(
        ["qemu-io", "-c", command, str(_disk(story, "origin1"))], check=True, capture_output=True
    )
    story.api.operate("/v1/templates", {"name": "gold", "vm": "origin1"}, timeout_s=PATIENCE_S)
    template = story.api.get("/v1/templates/gold")["template"]
    assert template["state"] == "ready"
    assert template["watchdog"] == {"model": "i6300esb", "action": "none"}
    names = ("full1", "thin1")
    for name in names:
        body = {"name": name, "thin": name == "thin1"}
        story.api.operate("/v1/templates/gold/vms", body, timeout_s=PATIENCE_S)
        # Another host than the one that made its disk, maybe: what it needs is found from everywhere.
        story.start_vm(name, host="h2")
    running = story.api.request("POST", "/v1/templates", json={"name": "live", "vm": "full1"})
    assert running.json()["code"] == "problem.vm.state"
    for name in names:
        host = story.lab.host_of(name)
        guest.wait_for_agent(host, name, timeout_s=PATIENCE_S)
        assert _marked(story, name) == "TT"
        assert "model='i6300esb' action='none'" in host.run_checked(["virsh", "dumpxml", name])
        cards = guest.execute(host, name, "ls /sys/class/watchdog", timeout_s=PATIENCE_S)
        assert "watchdog0" in cards
    _mark(story, "thin1", "U")
    assert _marked(story, "full1") == "TT", "what a thin disk writes is its own"
    assert story.api.get("/v1/templates/gold")["used_by"] == ["thin1"]
    refused = story.api.request("DELETE", "/v1/templates/gold")
    assert refused.json()["code"] == "problem.template.in_use"
    for name in ("thin1", "full1", "origin1"):
        story.delete_vm(name)
    gone = story.api.finish(story.api.request("DELETE", "/v1/templates/gold").json())
    assert gone["state"] == "done"
    host = story.lab.host("h1")
    assert not list(host.path_inside(f"{host.storage}/templates").glob("*"))
