"""What there is of the records that a guest wrote (virtha/lab/records.py) while it was moved."""

import time

from virtha.lab import guest
from virtha.lab.api import Json
from virtha.lab.node import wait_until
from virtha.lab.records import FIRST, MARK, SLOTS, begin_writing
from virtha.lab.story import Story
from virtha.model.errors import Unavailable
from virtha.model.value import Value

PATIENCE_S = 400.0
GENTLE_S = 0.2
"""A writer without a pause touches more memory than goes through slowly: such a move never comes to its end."""
SLOW_MIB_S = 3
"""A guest of 128 MiB has touched some 60: time enough for something to break in the middle."""


class Records(Value, frozen=True, kw_only=True):
    last: int | None
    """The newest that the writer says it wrote; None: no writer runs there, the guest booted since."""
    newest: int
    """On the disk."""
    lost: frozenset[int]
    """Should be on the disk, and are not."""

    @property
    def is_older_than_its_disk(self) -> bool:
        """Its memory is from before something that it wrote: a copy went on that another had overtaken."""
        return self.last is not None and self.newest > self.last + 1


def read(story: Story, vm: str, command: str) -> str:
    """What a command says that changes nothing in the guest, so that it can be given again: libvirt waits 5 s for a guest's
    answer, and one that writes as fast as it can on a loaded machine has been slower."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return guest.execute(story.lab.host_of(vm), vm, command, timeout_s=PATIENCE_S)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def last_record(story: Story, vm: str) -> int | None:
    """As the guest says; None: its writer does not run."""
    command = "cat /tmp/last 2>/dev/null || echo none"
    deadline = time.monotonic() + PATIENCE_S
    # Empty for a moment at each record.
    while not (text := read(story, vm, command).strip()):
        assert time.monotonic() < deadline
    return None if text == "none" else int(text)


def records(story: Story, vm: str) -> Records:
    before = last_record(story, vm)
    command = (
        f"dd if=/dev/vda bs=512 skip={FIRST} count={SLOTS} iflag=direct 2>/dev/null "
        "| tr -s ' \\0' '\\n'"
    )
    found = read(story, vm, command)
    # The image has words and numbers of its own there.
    there = {int(word.removeprefix(MARK)) for word in found.split() if word.startswith(MARK)}
    newest = max(there, default=0)
    # What was written while we looked may be newer, so what is judged is what was told before.
    judged = newest if before is None else before
    # It goes on writing while we look, hundreds on a loaded machine: what a later one took the slot of is not to be there.
    oldest = max(1, newest - SLOTS + 1)
    assert oldest <= judged, "it wrote over all that was to be looked at"
    wanted = range(oldest, judged + 1)
    return Records(last=last_record(story, vm), newest=newest, lost=frozenset(set(wanted) - there))


def slowly(story: Story, vm: str) -> Json:
    """A move from h1 to h2 that has begun to copy."""
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


def writing_vm(story: Story, vm: str, *, pause_s: float = 0.0) -> None:
    """Up on h1, and writing."""
    story.create_vm(vm, watchdog="i6300esb:none", start=False)
    story.start_vm(vm, host="h1")
    guest.wait_for_agent(story.lab.host("h1"), vm, timeout_s=PATIENCE_S)
    begin_writing(story, vm, pause_s=pause_s)
    wait_until(
        lambda: (last_record(story, vm) or 0) > 0, f"{vm} writes", timeout_s=60.0, pause_s=0.2
    )
