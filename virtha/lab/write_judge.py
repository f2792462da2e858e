"""The lab's oracle of two writers: no copy of a VM writes once a newer one has written (safety.md, section 6).

A copy is one QEMU process. All lab hosts share one kernel, so that it says which of two copies is newer: each start of a VM,
and each arrival of one that moves, is a new incarnation and a new process, and the kernel's clock says when that began. Nothing here asks
the product, whose word about incarnations is what is on trial.
"""

from virtha.model.value import Value


class Copy(Value, frozen=True, kw_only=True):
    """One QEMU process."""

    host: str
    pid: int
    start_ticks: int
    """Clock ticks from the machine's boot to its beginning."""

    def is_older_than(self, other: "Copy") -> bool:
        """Of two of the same tick that with the lower id is taken for the older."""
        return (self.start_ticks, self.pid) < (other.start_ticks, other.pid)

    def __str__(self) -> str:
        return f"{self.host} {self.pid}@{self.start_ticks}"


class Write(Value, frozen=True, kw_only=True):
    """``at_ms``: this machine's clock since its boot. ``copy`` None: the host wrote, and none of its QEMUs can have."""

    at_ms: int
    vm: str
    disk: str
    host: str
    copy: Copy | None

    def __str__(self) -> str:
        return f"{self.at_ms} {self.vm} {self.disk} {self.copy or f'{self.host} nobody'}"


class Violation(Value, frozen=True, kw_only=True):
    """``newer``: the first write of the copy that had superseded the writer; None: nobody's write."""

    write: Write
    newer: Write | None = None

    def __str__(self) -> str:
        if self.newer is None:
            return f"written by no copy: {self.write}"
        return f"written by a superseded copy: {self.write}; newer: {self.newer}"


class WriteJudge:
    """Told of each write in the order in which the kernel did them."""

    def __init__(self) -> None:
        self.writes = 0
        self.violations: list[Violation] = []
        self._newest: dict[str, Write] = {}

    def saw(self, write: Write) -> Violation | None:
        self.writes += 1
        newest = self._newest.get(write.vm)
        if write.copy is None:
            return self._condemn(Violation(write=write))
        if newest is None or newest.copy is None or newest.copy.is_older_than(write.copy):
            self._newest[write.vm] = write
            return None
        if newest.copy == write.copy:
            return None
        return self._condemn(Violation(write=write, newer=newest))

    def _condemn(self, violation: Violation) -> Violation:
        self.violations.append(violation)
        return violation
