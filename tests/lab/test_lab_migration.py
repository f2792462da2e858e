"""Live migration between real hosts: by TLS, under disk writes, to and fro. No record is lost, nothing runs twice."""

import os
import threading
import time

import pytest
from moving_guest import GENTLE_S, PATIENCE_S, records, slowly, writing_vm

from virtha.lab.disk_witnesses import DiskWitnesses
from virtha.lab.node import wait_until
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1_800)]
MOVES = int(os.environ.get("VIRTHA_LAB_MOVES", "2"))


class RunsOnce:
    """Looks all the time: at how many hosts does libvirt say that it runs?"""

    def __init__(self, story: Story, vm: str) -> None:
        self._hosts = story.lab.hosts
        self._vm = vm
        self._over = threading.Event()
        self.looks = 0
        self.twice: list[str] = []
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "RunsOnce":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _look(self) -> None:
        while not self._over.is_set():
            # The second answer is younger: who runs in the first may have stopped by then, so it is asked again.
            states = [
                host.run(["virsh", "-q", "domstate", self._vm]).stdout.strip()
                for host in (*self._hosts, self._hosts[0])
            ]
            self.looks += 1
            if states.count("running") == 3:
                self.twice.append(", ".join(states))


@pytest.mark.req("L6")
def test_a_vm_moves_to_and_fro_under_writes(story: Story) -> None:
    writing_vm(story, "mover1")
    seen, took = 0, []
    path = story.api.vm("mover1")["vm"]["disks"][0]["path"]
    with (
        RunsOnce(story, "mover1") as witness,
        DiskWitnesses(story.lab, {"mover1": path}) as disks,
    ):
        for number in range(MOVES):
            target = ("h2", "h1")[number % 2]
            began = time.monotonic()
            operation = story.api.operate(
                "/v1/vms/mover1/migrate", {"host": target}, timeout_s=PATIENCE_S
            )
            took.append(time.monotonic() - began)
            assert operation["state"] == "done", operation
            assert story.lab.host_of("mover1").name == target
            assert story.lab.copies_of("mover1") == [target]
            found = records(story, "mover1")
            assert not found.lost, f"after move {number + 1}"
            assert found.last is not None
            assert found.last > seen, "it goes on writing"
            assert not found.is_older_than_its_disk
            seen = found.last
    disk = disks.of["mover1"]
    assert (witness.twice, disk.twice, disks.error) == ([], [], None)
    assert witness.looks > MOVES
    # Each wrote until the next one did, and never again before its turn.
    assert disk.writers == [("h1", "h2")[number % 2] for number in range(MOVES + 1)]
    took.sort()
    print(
        f"{MOVES} moves: median {took[len(took) // 2]:.1f} s, worst {took[-1]:.1f} s, {seen} records"
    )


@pytest.mark.bad_input("host that can't take a move", story=True)
def test_moves_that_make_no_sense_are_refused_with_their_fix(story: Story) -> None:
    story.create_vm("mover2", watchdog="i6300esb:none", start=False)
    down = story.api.request("POST", "/v1/vms/mover2/migrate", json={"host": "h2"})
    assert (down.status_code, down.json()["code"]) == (422, "problem.vm.state")
    story.start_vm("mover2", host="h1")
    for body, field in (
        ({"host": "h1"}, "host"),
        ({"host": "h9"}, "host"),
        ({"host": "h2", "bandwidth_mib_s": 0}, "bandwidth_mib_s"),
    ):
        refused = story.api.request("POST", "/v1/vms/mover2/migrate", json=body)
        assert refused.json()["field"] == field, refused.text
    assert story.lab.host_of("mover2").name == "h1"


@pytest.mark.long
def test_a_move_is_called_off_and_shows_how_far_it_came(story: Story) -> None:
    writing_vm(story, "mover3", pause_s=GENTLE_S)
    operation = slowly(story, "mover3")

    def shows() -> bool:
        return bool(story.api.get(f"/v1/operations/{operation['id']}")["progress"])

    wait_until(shows, "progress", timeout_s=60.0)
    story.api.post("/v1/vms/mover3/cancel-migration")
    ended = story.api.finish(operation, timeout_s=PATIENCE_S)
    assert (ended["state"], ended["code"]) == ("cancelled", "migration.ended.cancelled")
    assert story.lab.copies_of("mover3") == ["h1"]
    found = records(story, "mover3")
    assert found.last
    assert not found.lost


@pytest.mark.long
@pytest.mark.req("G6")
def test_a_vm_that_moves_is_powered_off(story: Story) -> None:
    """Both its hosts are told, each with what it has: the copy that runs is ended, nothing comes in, and that is "done"."""
    writing_vm(story, "mover5", pause_s=GENTLE_S)
    moving = slowly(story, "mover5")
    off = story.api.operate("/v1/vms/mover5/power-off", timeout_s=PATIENCE_S)
    assert (off["state"], off["code"]) == ("done", None), off
    story.wait_state("mover5", "down", timeout_s=60.0)
    assert story.api.finish(moving, timeout_s=PATIENCE_S)["state"] == "failed"
    assert story.lab.copies_of("mover5") == []
    assert story.api.vm("mover5")["holder_names"] == []
    # Nothing of it is left that would be in the way: it starts where it was to go.
    story.start_vm("mover5", host="h2")
    assert story.wait_running("mover5").name == "h2"
