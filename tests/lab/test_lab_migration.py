"""Live migration between real hosts: by TLS, under disk writes, to and fro. No record is lost, nothing runs twice."""

import os
import threading
import time

import pytest

from virtha.lab import guest
from virtha.lab.api import Json
from virtha.lab.guest_files import BOOT_COUNTER_SECTOR
from virtha.lab.node import wait_until
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1_800)]
FIRST = BOOT_COUNTER_SECTOR + 64
"""Where the image has nothing."""
PATIENCE_S = 400.0
MOVES = int(os.environ.get("VIRTHA_LAB_MOVES", "2"))
WRITER = (
    "i=0; while [ $i -lt 40000 ]; do i=$((i+1)); "
    f"printf '%-512d' $i | dd of=/dev/vda bs=512 seek=$(({FIRST}+i%4096)) conv=fsync 2>/dev/null; "
    "echo $i > /tmp/last; done"
)
"""Each record is on the disk before the next is begun."""


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
        self._thread.join(30)

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


def records(story: Story, vm: str) -> tuple[int, set[int]]:
    """(the last that the guest says it wrote, those on its disk that should be there and are not)."""
    host = story.lab.host_of(vm)
    last = int(guest.execute(host, vm, "cat /tmp/last", timeout_s=PATIENCE_S).strip())
    first = max(1, last - 4_000)
    command = f"dd if=/dev/vda bs=512 skip={FIRST} count=4096 iflag=direct 2>/dev/null | tr -s ' \\0' '\\n'"
    found = set(guest.execute(host, vm, command, timeout_s=PATIENCE_S).split())
    return last, {number for number in range(first, last + 1) if str(number) not in found}


@pytest.mark.req("L6")
def test_a_vm_moves_to_and_fro_under_writes(story: Story) -> None:
    story.create_vm("mover1", watchdog="i6300esb:none", start=False)
    story.start_vm("mover1", host="h1")
    guest.wait_for_agent(story.lab.host("h1"), "mover1", timeout_s=PATIENCE_S)
    guest.begin(story.lab.host("h1"), "mover1", WRITER)
    seen, took = 0, []
    with RunsOnce(story, "mover1") as witness:
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
            last, lost = records(story, "mover1")
            assert not lost, f"after move {number + 1}"
            assert last > seen, "it goes on writing"
            seen = last
    assert witness.twice == []
    assert witness.looks > MOVES
    took.sort()
    print(
        f"{MOVES} moves: median {took[len(took) // 2]:.1f} s, worst {took[-1]:.1f} s, {seen} records"
    )


@pytest.mark.bad_input
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


SLOW_MIB_S = 2
"""A guest of 128 MiB has touched some 60: time enough for something to break in the middle."""


def _slowly(story: Story, vm: str) -> Json:
    """A move to h2 that has begun to copy."""
    operation = story.api.post(
        f"/v1/vms/{vm}/migrate", {"host": "h2", "bandwidth_mib_s": SLOW_MIB_S}
    )
    source = story.lab.host("h1")

    def copies() -> bool:
        seen = story.api.get(f"/v1/operations/{operation['id']}")
        assert not seen["ended"], seen
        return "Memory remaining" in source.run(["virsh", "domjobinfo", vm]).stdout

    wait_until(copies, f"{vm} is on its way", timeout_s=60.0)
    return operation


def _moving_vm(story: Story, vm: str) -> None:
    story.create_vm(vm, watchdog="i6300esb:none", start=False)
    story.start_vm(vm, host="h1")
    guest.wait_for_agent(story.lab.host("h1"), vm, timeout_s=PATIENCE_S)
    guest.begin(story.lab.host("h1"), vm, WRITER)


@pytest.mark.long
def test_a_move_is_called_off_and_shows_how_far_it_came(story: Story) -> None:
    _moving_vm(story, "mover3")
    operation = _slowly(story, "mover3")

    def shows() -> bool:
        return bool(story.api.get(f"/v1/operations/{operation['id']}")["progress"])

    wait_until(shows, "progress", timeout_s=60.0)
    story.api.post("/v1/vms/mover3/cancel-migration")
    ended = story.api.finish(operation, timeout_s=PATIENCE_S)
    assert (ended["state"], ended["code"]) == ("cancelled", "migration.ended.cancelled")
    assert story.lab.copies_of("mover3") == ["h1"]
    last, lost = records(story, "mover3")
    assert last
    assert not lost
