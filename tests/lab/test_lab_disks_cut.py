"""What is done to a VM's disks, with agents and server killed in the midst: it ends whole, or as if it had never begun."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.lab import wait_hosts, wait_storage
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(900)]
VM = "cut1"
MIB = 1 << 20
DISKS = 6
PATIENCE_S = 300.0
DELAYS_S = (0.0, 0.03, 0.1, 0.3)
"""From the order to the kill."""


def _storage(story: Story) -> Path:
    host = story.lab.host("h1")
    return host.path_inside(host.storage)


def _make(story: Story) -> str:
    disks = [{"size_bytes": 4 * MIB, "name": f"disk{number}"} for number in range(DISKS)]
    body: Json = {"name": VM, "memory_bytes": 128 * MIB, "disks": disks}
    return str(story.api.operate("/v1/vms", body, timeout_s=PATIENCE_S)["subject"])


def _kill_all(story: Story, delay_s: float, *, server: bool) -> None:
    """Every agent, and perhaps the server; they come back."""
    time.sleep(delay_s)
    for host in story.lab.hosts:
        faults.kill_agent(story.lab, host.name)
    if server:
        faults.kill_server(story.lab)
        faults.start_server_again(story.lab)
    for host in story.lab.hosts:
        faults.start_agent(story.lab, host.name)


def _ended(story: Story, begun: Json) -> Json:
    """Of a host that was killed the server may tell the end before its next agent is there for the next order."""
    ended = story.api.finish(begun, timeout_s=PATIENCE_S)
    wait_hosts(story.lab)
    wait_storage(story.lab)
    return ended


@pytest.mark.req("G1")
@pytest.mark.parametrize("server", [False, True])
def test_a_deletion_cut_by_kill_9_ends_clean(story: Story, server: bool) -> None:
    for delay_s in DELAYS_S:
        vm_id = _make(story)
        params = {"delete_data": "true"}
        begun = story.api.request("DELETE", f"/v1/vms/{VM}", params=params).json()
        _kill_all(story, delay_s, server=server)
        ended = _ended(story, begun)
        if ended["state"] != "done":
            story.delete_vm(VM)
        storage = _storage(story)
        assert not (storage / "vms" / vm_id).exists(), ended
        assert not (storage / ".virtha" / "vms" / f"{vm_id}.json").exists()
        assert story.api.request("GET", f"/v1/vms/{VM}").status_code == 404
        for host in story.lab.hosts:
            assert VM not in host.run_checked(["virsh", "list", "--all", "--name"]).split()


@pytest.mark.req("G1", "G4")
@pytest.mark.parametrize("server", [False, True])
def test_a_disk_that_grows_is_as_large_as_its_record_says(story: Story, server: bool) -> None:
    vm_id = _make(story)
    path = _storage(story) / "vms" / vm_id / "disk0.qcow2"
    for number, delay_s in enumerate(DELAYS_S):
        size_bytes = (8 + number) * MIB
        resize = f"/v1/vms/{VM}/disks/disk0/resize"
        ended = _ended(story, _cut(story, resize, size_bytes, delay_s, server=server))
        if ended["state"] != "done":
            story.wait_state(VM, "down")
            story.api.operate(resize, {"size_bytes": size_bytes}, timeout_s=PATIENCE_S)
        told = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", path], capture_output=True, check=True
        )
        assert json.loads(told.stdout)["virtual-size"] == size_bytes
        assert story.api.vm(VM)["vm"]["disks"][0]["size_bytes"] == size_bytes
    story.wait_state(VM, "down")
    story.delete_vm(VM)


def _cut(story: Story, path: str, size_bytes: int, delay_s: float, *, server: bool) -> Json:
    begun = story.api.post(path, {"size_bytes": size_bytes})
    _kill_all(story, delay_s, server=server)
    return begun


def test_a_vm_that_is_being_made_is_taken_back_and_nothing_is_left(story: Story) -> None:
    """Its storage stands still meanwhile, so that it is in the midst of the copy."""
    for host in story.lab.hosts:
        faults.stall_storage(story.lab, host.name)
    try:
        body: Json = {"name": VM, "memory_bytes": 128 * MIB, "image": "tiny", "start": True}
        begun = story.api.post("/v1/vms", body)
        time.sleep(
            1.0
        )  # until its host is at the copy, of which it tells nothing while that stands still
        cancelled = story.api.post(f"/v1/operations/{begun['id']}/cancel")
        assert not cancelled.get("ended"), "its host has not said yet that it stopped"
    finally:
        for host in story.lab.hosts:
            faults.resume_storage(story.lab, host.name)
    ended = _ended(story, begun)
    assert ended["state"] == "cancelled", ended
    assert story.api.request("GET", f"/v1/vms/{VM}").status_code == 404
    assert not list((_storage(story) / "vms" / begun["subject"]).glob("*"))
    again = story.api.request("POST", f"/v1/operations/{begun['id']}/cancel")
    assert again.json()["code"] == "problem.operation.cancel"
