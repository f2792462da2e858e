"""A guest that writes numbered records to its disk, one after the other, until it is told to end.

Begun from outside in a guest that runs, on the disk that it booted from, at any pace: for moves and takeovers. What has to be told of and
kept over boots and deaths is another program's, which the guest begins itself (``guest_files.WRITER``, read by ``record_ledger.py``).
"""

from virtha.lab import guest
from virtha.lab.guest_files import BOOT_COUNTER_SECTOR
from virtha.lab.story import Story

FIRST = BOOT_COUNTER_SECTOR + 64
"""Where the image has nothing."""
SLOTS = 4_096
MARK = "record-"
ENOUGH = "/tmp/enough"  # noqa: S108 - the guest's own, which has nothing else
_END_S = 400.0


def begin_writing(story: Story, vm: str, *, after: int = 0, pause_s: float = 0.0) -> None:
    """Each record is on the disk before the next is begun. ``after``: the last that is there."""
    pause = f"sleep {pause_s}; " if pause_s else ""
    writer = (
        f"i={after}; while [ ! -e {ENOUGH} ]; do i=$((i+1)); "
        f"printf '%-512s' {MARK}$i | dd of=/dev/vda bs=512 seek=$(({FIRST}+i%{SLOTS})) conv=fsync 2>/dev/null; "
        f"echo $i > /tmp/last; {pause}done"
    )
    guest.begin(story.lab.host_of(vm), vm, writer)


def end_writing(story: Story, vm: str) -> None:
    """After the record that it is at."""
    guest.execute(story.lab.host_of(vm), vm, f"touch {ENOUGH}", timeout_s=_END_S)
