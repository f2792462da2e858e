"""The sentinel's local restarts: whether, how often, how soon (rule G5)."""

from typing import Annotated, ClassVar

from virtha.model.policy.field import Section, choice, count, duration, grown_ms
from virtha.model.policy.rule import Read, Rule, one, relation
from virtha.model.time import format_duration_ms


def _limit_never_reached(read: Read) -> str | None:
    total, window = read("restart.delays_total_ms"), read("restart.window_ms")
    most = read("restart.restarts_max")
    if not most or total < window:
        return None
    return (
        f"the delays of {most} restarts add up to {format_duration_ms(total)}, "
        f"not less than the window of {format_duration_ms(window)}"
    )


_RULES = (
    relation(
        one("restart.delay_ms"),
        one("restart.delay_ms_max"),
        strict=False,
        why="the first delay would be longer than the longest",
        fix="lower restart.delay or raise restart.delay_max",
    ),
    Rule(
        fields=(
            "restart.window_ms",
            "restart.restarts_max",
            "restart.delay_ms",
            "restart.delay_growth",
            "restart.delay_ms_max",
        ),
        says="the delays of restart.restarts_max restarts add up to less than restart.window",
        # Otherwise the oldest attempt leaves the window before the last is due.
        why="the limit could never be reached",
        fix="lengthen restart.window, or lower restart.delay_max or restart.restarts_max",
        broken=_limit_never_reached,
        when=("restart.enabled", True),
    ),
)


class RestartPolicy(Section, frozen=True, kw_only=True):
    """How the sentinel restarts an HA VM on its own host.

    The first attempt is immediate. Attempt n (from 2) waits
    ``min(delay_ms * delay_growth ** (n - 2), delay_ms_max)``; attempts older than ``window_ms``
    no longer count. At ``restarts_max`` inside the window the VM stays down and somebody is told.
    """

    NAME: ClassVar[str] = "restart"
    RULES: ClassVar[tuple[Rule, ...]] = _RULES

    enabled: Annotated[
        bool,
        choice("Restart an HA VM on its own host when it ends unasked.", source="rule G5"),
    ] = True
    restarts_max: Annotated[
        int,
        count(
            0,
            1_000,
            "Restarts of one VM inside the window; after that it stays down and somebody is told. "
            "0: never.",
            source="systemd's start limit (5); vSphere's VM monitoring has 3",
        ),
    ] = 5
    window_ms: Annotated[
        int,
        duration(
            1_000,
            86_400_000,
            "Restarts older than this no longer count.",
            source="long enough for all delays of the five restarts to fit in",
        ),
    ] = 600_000
    delay_ms: Annotated[
        int,
        duration(
            0,
            3_600_000,
            "Wait before the second restart; the first comes at once.",
            source="a crash at start-up must not spin",
        ),
    ] = 1_000
    delay_growth: Annotated[
        int, count(1, 10, "Each further wait is this many times the one before.", source="ours")
    ] = 3
    delay_ms_max: Annotated[
        int, duration(0, 3_600_000, "The longest wait between two restarts.", source="ours")
    ] = 60_000
    after_crash: Annotated[
        bool, choice("Restart after QEMU crashed or was killed.", source="requirement A8")
    ] = True
    after_panic: Annotated[
        bool, choice("Restart after the guest's kernel panicked.", source="requirement W12")
    ] = True
    after_watchdog_poweroff: Annotated[
        bool,
        choice("Restart after the guest's watchdog powered it off.", source="requirement W6"),
    ] = True
    after_guest_shutdown: Annotated[
        bool,
        choice(
            "Restart after a shutdown from inside the guest, which mostly is meant.", source="ours"
        ),
    ] = False
    reset_loop_count: Annotated[
        int,
        count(
            2,
            1_000,
            "This many watchdog firings inside the window are a reset loop: told once.",
            source="vSphere's VM monitoring gives up after 3",
        ),
    ] = 3
    reset_loop_window_ms: Annotated[
        int,
        duration(
            1_000,
            86_400_000,
            "Firings older than this no longer count as a loop.",
            source="three boots of a slow guest",
        ),
    ] = 300_000

    def delay_before_ms(self, attempt: int) -> int:
        """The wait before attempt ``attempt`` (1 = first) inside the present window."""
        assert attempt >= 1
        if attempt == 1:
            return 0
        return grown_ms(self.delay_ms, self.delay_growth, attempt - 2, self.delay_ms_max)

    @property
    def delays_total_ms(self) -> int:
        return sum(self.delay_before_ms(attempt) for attempt in range(1, self.restarts_max + 1))
