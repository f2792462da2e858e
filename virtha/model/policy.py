"""The operator's policy as a typed document; its relations are checked when it is built.

Only the restart section exists so far; every duration is in milliseconds.
"""

from virtha.model.errors import InvalidInput
from virtha.model.time import format_duration_ms
from virtha.model.value import Value


def _in_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{value} is out of range", field=field, allowed=(f"{low} to {high}",))


class RestartPolicy(Value, frozen=True, kw_only=True):
    """How the sentinel restarts an HA VM on its own host.

    The first attempt is immediate. Attempt n (from 2) waits
    ``min(delay_ms * delay_growth ** (n - 2), delay_ms_max)``; attempts older than ``window_ms``
    no longer count. At ``restarts_max`` inside the window the VM stays down and somebody is told.
    Defaults after vSphere's medium VM monitoring (3 per window) and systemd's start limit.
    """

    enabled: bool = True
    restarts_max: int = 5
    window_ms: int = 600_000
    delay_ms: int = 1_000
    delay_growth: int = 3
    delay_ms_max: int = 60_000
    after_crash: bool = True
    after_panic: bool = True
    after_watchdog_poweroff: bool = True
    after_guest_shutdown: bool = False
    reset_loop_count: int = 3
    """This many watchdog firings inside ``reset_loop_window_ms`` are a reset loop: told once."""
    reset_loop_window_ms: int = 300_000

    def __post_init__(self) -> None:
        _in_range("restart.restarts_max", self.restarts_max, 0, 1_000)
        _in_range("restart.window_ms", self.window_ms, 1_000, 86_400_000)
        _in_range("restart.delay_ms", self.delay_ms, 0, 3_600_000)
        _in_range("restart.delay_growth", self.delay_growth, 1, 10)
        _in_range("restart.delay_ms_max", self.delay_ms_max, 0, 3_600_000)
        _in_range("restart.reset_loop_count", self.reset_loop_count, 2, 1_000)
        _in_range("restart.reset_loop_window_ms", self.reset_loop_window_ms, 1_000, 86_400_000)
        if self.delay_ms > self.delay_ms_max:
            raise InvalidInput(
                f"the first delay {format_duration_ms(self.delay_ms)} is longer than the longest "
                f"{format_duration_ms(self.delay_ms_max)}",
                field="restart.delay_ms",
                fix="lower delay_ms or raise delay_ms_max",
            )
        if (
            self.enabled
            and self.restarts_max
            and (total := self._delays_total_ms()) >= self.window_ms
        ):
            # Otherwise the oldest attempt leaves the window before the last is due, and the limit never bites.
            raise InvalidInput(
                f"the delays of {self.restarts_max} restarts add up to {format_duration_ms(total)}, "
                f"not less than the window of {format_duration_ms(self.window_ms)}: "
                "the limit could never be reached",
                field="restart.window_ms",
                fix="lengthen window_ms, or lower delay_ms_max or restarts_max",
            )

    def delay_before_ms(self, attempt: int) -> int:
        """The wait before attempt ``attempt`` (1 = first) inside the present window."""
        assert attempt >= 1
        if attempt == 1:
            return 0
        exponent = min(
            attempt - 2, 40
        )  # growth^40 is past any delay_ms_max; keeps the number small
        return int(min(self.delay_ms * self.delay_growth**exponent, self.delay_ms_max))

    def _delays_total_ms(self) -> int:
        return sum(self.delay_before_ms(attempt) for attempt in range(1, self.restarts_max + 1))


class Policy(Value, frozen=True, kw_only=True):
    """One cluster's policy."""

    restart: RestartPolicy = RestartPolicy()
