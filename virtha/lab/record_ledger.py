"""Numbered records: what a guest acknowledged outside of itself must be on its disk for ever.

The guest's writer (``guest_files.WRITER``) puts record N into sector N of its records' disk, waits until it is on the disk, and then says
so on its serial port. Who wrote it is in both, as a word that each run of the writer draws for itself: a number that another copy wrote
anew is lost, not kept.
"""

import re
from collections.abc import Iterator, Mapping

from virtha.model.value import Value

SECTOR = 512
MARK = b"virtha-records"
"""In sector 0: a guest that finds it begins to write."""
_ACKNOWLEDGED = re.compile(rb"(?:^|[\r\n])ack ([0-9]+) ([0-9a-f]{8}) ok[\r\n]")
_RECORD = re.compile(rb"record ([0-9]+) ([0-9a-f]{8}) *\Z")


def acknowledged(text: bytes) -> dict[int, str]:
    """Number -> writer, of all whole lines. A line that was cut, or that another one ran into, tells nothing."""
    # Each line's end may be the next one's beginning.
    lines = text.replace(b"\n", b"\n\n")
    return {int(found[1]): found[2].decode() for found in _ACKNOWLEDGED.finditer(lines)}


def records(disk: bytes) -> Iterator[tuple[int, str]]:
    """(Number, writer) of each sector of a records' disk that has the record that belongs there."""
    for number in range(1, len(disk) // SECTOR):
        sector = disk[number * SECTOR : (number + 1) * SECTOR]
        found = _RECORD.match(sector)
        if found is not None and int(found[1]) == number:
            yield number, found[2].decode()


class LostRecord(Value, frozen=True, kw_only=True):
    number: int
    writer: str
    """Who acknowledged it."""
    found: str | None
    """Whose is there instead; None: nobody's."""


class Ledger:
    """Of one VM."""

    def __init__(self) -> None:
        self.told: dict[int, str] = {}
        self.contradictions: list[LostRecord] = []
        """Numbers that two writers acknowledged: the first one's record was overwritten, or was never seen by the second."""

    @property
    def newest(self) -> int:
        return max(self.told, default=0)

    def note(self, told: Mapping[int, str]) -> None:
        for number, writer in told.items():
            before = self.told.setdefault(number, writer)
            if before != writer:
                lost = LostRecord(number=number, writer=before, found=writer)
                self.contradictions.append(lost)


def lost(told: Mapping[int, str], disk: bytes) -> list[LostRecord]:
    """What was acknowledged and is not there as it was, of a disk that was read after ``told`` was."""
    there = dict(records(disk))
    return [
        LostRecord(number=number, writer=writer, found=there.get(number))
        for number, writer in sorted(told.items())
        if there.get(number) != writer
    ]
