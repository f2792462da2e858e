"""Templates on real hosts: the card goes in and comes out, full and thin disks boot, nothing of one shows in another."""

import pytest

from virtha.lab import guest
from virtha.lab.guest_files import BOOT_COUNTER_SECTOR
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
MARK = "made-for-the-template"
SECTOR = BOOT_COUNTER_SECTOR + 8


def _mark(story: Story, name: str, text: str) -> None:
    """Durable on the guest's own disk, where its image has nothing."""
    write = f"printf '%-512s' {text} | dd of=/dev/vda bs=512 seek={SECTOR} conv=fsync 2>/dev/null"
    guest.execute(story.lab.host_of(name), name, write)
    assert _marked(story, name) == text


def _marked(story: Story, name: str) -> str:
    read = f"dd if=/dev/vda bs=512 skip={SECTOR} count=1 iflag=direct 2>/dev/null"
    return guest.execute(story.lab.host_of(name), name, read).strip(" \n\0")


def _stop(story: Story, name: str) -> None:
    story.api.operate(f"/v1/vms/{name}/power-off")
    story.wait_state(name, "down")


@pytest.mark.req("W5")
def test_a_vm_with_its_watchdog_becomes_a_template_and_vms_again(story: Story) -> None:
    story.create_vm("origin1", host="h1", watchdog="i6300esb:poweroff")
    story.wait_agent("origin1")
    running = story.api.request("POST", "/v1/templates", json={"name": "gold", "vm": "origin1"})
    assert running.status_code >= 400
    assert running.json()["code"] == "problem.vm.state"
    _mark(story, "origin1", MARK)
    _stop(story, "origin1")
    story.api.operate("/v1/templates", {"name": "gold", "vm": "origin1"})
    template = story.api.get("/v1/templates/gold")["template"]
    assert template["state"] == "ready"
    for name, thin in (("full1", False), ("thin1", True)):
        story.api.operate("/v1/templates/gold/vms", {"name": name, "thin": thin})
        # Another host than the one that made its disk: what it needs is found from everywhere.
        story.start_vm(name, host="h2")
        story.wait_agent(name)
        assert _marked(story, name) == MARK
        xml = story.lab.host_of(name).run_checked(["virsh", "dumpxml", name])
        assert "model='i6300esb' action='poweroff'" in xml
        _mark(story, name, f"written-by-{name}")
    assert story.api.get("/v1/templates/gold")["used_by"] == ["thin1"]
    refused = story.api.request("DELETE", "/v1/templates/gold")
    assert refused.json()["code"] == "problem.template.in_use"
    story.start_vm("origin1", host="h1")
    story.wait_agent("origin1")
    assert _marked(story, "origin1") == MARK, "what copies write is theirs"
    for name in ("thin1", "full1", "origin1"):
        story.delete_vm(name)
    gone = story.api.finish(story.api.request("DELETE", "/v1/templates/gold").json())
    assert gone["state"] == "done"
    storage = story.lab.host("h1").path_inside(f"{story.lab.host('h1').storage}/templates")
    assert not list(storage.glob("*"))
