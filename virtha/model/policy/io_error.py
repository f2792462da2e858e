"""VMs that QEMU paused on an I/O error of a disk (S6): how often and how long their host tries."""

from typing import Annotated, ClassVar

from virtha.model.policy.field import Section, count, duration, grown_ms
from virtha.model.policy.rule import Read, Rule, one, relation
from virtha.model.time import format_duration_ms


def _limit_never_reached(read: Read) -> str | None:
    total, window = read("io_error.delays_total_ms"), read("io_error.window_ms")
    if total < window:
        return None
    return (
        f"the delays of {read('io_error.resumes_max')} resumes add up to {format_duration_ms(total)}, "
        f"not less than the window of {format_duration_ms(window)}"
    )


_RULES = (
    relation(
        one("io_error.delay_ms"),
        one("io_error.delay_ms_max"),
        strict=False,
        why="the first delay would be longer than the longest",
        fix="lower io_error.delay or raise io_error.delay_max",
    ),
    relation(
        one("io_error.delay_ms"),
        one("io_error.kill_after_ms"),
        strict=False,
        why="a VM would be ended before its host had once tried to let it go on",
        fix="lower io_error.delay or raise io_error.kill_after",
    ),
    Rule(
        fields=(
            "io_error.window_ms",
            "io_error.resumes_max",
            "io_error.delay_ms",
            "io_error.delay_growth",
            "io_error.delay_ms_max",
        ),
        says="the delays of io_error.resumes_max resumes add up to less than io_error.window",
        # Otherwise the oldest try leaves the window before the last is due.
        why="the limit could never be reached: a VM whose disk fails each time would be resumed for ever",
        fix="lengthen io_error.window, or lower io_error.delay_max or io_error.resumes_max",
        broken=_limit_never_reached,
    ),
)


class IoErrorPolicy(Section, frozen=True, kw_only=True):
    """How a host resumes a VM that an I/O error paused, where the VM's ``on_io_error`` is ``auto_resume`` or ``kill``,
    and when the engine has one ended, where it is ``kill``.

    Resume n (from 1) waits ``min(delay_ms * delay_growth ** (n - 1), delay_ms_max)`` after the pause, then for the
    storage of all its disks to answer; resumes older than ``window_ms`` no longer count. At ``resumes_max`` inside
    the window it stays paused and somebody is told.
    """

    NAME: ClassVar[str] = "io_error"
    RULES: ClassVar[tuple[Rule, ...]] = _RULES

    check_interval_ms: Annotated[
        int,
        duration(
            500,
            600_000,
            "How often the storage of a paused VM's disks is looked at, until it answers.",
            source="ours; each look reads each disk and writes one block per storage domain",
        ),
    ] = 2_000
    delay_ms: Annotated[
        int,
        duration(
            0,
            3_600_000,
            "Wait after the pause before the first resume.",
            source="ours; an error that is over at once costs no more than that",
        ),
    ] = 1_000
    delay_growth: Annotated[
        int, count(1, 10, "Each further wait is this many times the one before.", source="ours")
    ] = 3
    delay_ms_max: Annotated[
        int, duration(0, 3_600_000, "The longest wait before a resume.", source="ours")
    ] = 60_000
    resumes_max: Annotated[
        int,
        count(
            1,
            1_000,
            "Resumes of one VM inside the window; after that it stays paused and somebody is told.",
            source="ours, as restart.restarts_max: a disk that fails each time must not spin",
        ),
    ] = 5
    window_ms: Annotated[
        int,
        duration(
            1_000,
            86_400_000,
            "Resumes older than this no longer count.",
            source="as restart.window: long enough for all delays to fit in",
        ),
    ] = 600_000

    kill_after_ms: Annotated[
        int,
        duration(
            2_000,
            86_400_000,
            "How long a VM whose on_io_error is 'kill' stays paused before it is ended, to be started on a host whose "
            "storage works.",
            source="ours: a storage server or a path to it that fails over is back by then, and its guests lose nothing",
        ),
    ] = 60_000

    def delay_before_ms(self, attempt: int) -> int:
        """The wait before resume ``attempt`` (1 = first) inside the present window."""
        assert attempt >= 1
        return grown_ms(self.delay_ms, self.delay_growth, attempt - 1, self.delay_ms_max)

    @property
    def delays_total_ms(self) -> int:
        return sum(self.delay_before_ms(attempt) for attempt in range(1, self.resumes_max + 1))
