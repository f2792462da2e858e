"""Quiet times: hours of the week in which no power order goes out."""

import re
from collections.abc import Iterable
from enum import StrEnum

from virtha.model.errors import InvalidInput
from virtha.model.time import format_duration_ms
from virtha.model.value import Value

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
_EPOCH_DAY = 3
"""1 January 1970 was a Thursday: the fourth day of a week that begins on Monday."""
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class Weekday(StrEnum):
    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


class QuietTime(Value, frozen=True, kw_only=True):
    """From ``begin`` (``22:00``, UTC) for ``length_ms`` (1 minute to 7 days) on ``days``; no days means
    every day. May run past midnight and past the week's end. UTC, because a change to summer time
    would otherwise make an hour quiet that nobody meant."""

    days: tuple[Weekday, ...] = ()
    begin: str
    length_ms: int

    def __post_init__(self) -> None:
        if _CLOCK.fullmatch(self.begin) is None:
            raise InvalidInput(
                f"'{self.begin}' is no time of day",
                field="fencing.quiet_times",
                allowed=("00:00 to 23:59, UTC",),
            )
        if not 60_000 <= self.length_ms <= WEEK_MS:
            raise InvalidInput(
                f"a length of {format_duration_ms(self.length_ms)} is out of range",
                field="fencing.quiet_times",
                allowed=("1m to 7d",),
            )

    def __str__(self) -> str:
        days = "every day" if not self.days else ", ".join(self.days)
        return f"{days} {self.begin} for {format_duration_ms(self.length_ms)}"

    def intervals(self) -> list[tuple[int, int]]:
        """(begin, end) in milliseconds since Monday 00:00 UTC; what passes the week's end is split."""
        hours, minutes = (int(part) for part in self.begin.split(":"))
        found = []
        for day in self.days or tuple(Weekday):
            begin = list(Weekday).index(day) * DAY_MS + (hours * 60 + minutes) * 60_000
            end = begin + self.length_ms
            found.append((begin, min(end, WEEK_MS)))
            if end > WEEK_MS:
                found.append((0, end - WEEK_MS))
        return found


def merged(times: Iterable[QuietTime]) -> list[tuple[int, int]]:
    """All intervals of the week, in order, overlapping and touching ones as one."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(each for time in times for each in time.intervals()):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def quiet_until_ms(times: Iterable[QuietTime], at_ms: int) -> int | None:
    """When the quiet time that holds at ``at_ms`` ends; None: it isn't quiet. ``at_ms`` is
    milliseconds since 1970 UTC, as cluster time is (M4)."""
    week = merged(times)
    here = (at_ms + _EPOCH_DAY * DAY_MS) % WEEK_MS
    for begin, end in week:
        if begin <= here < end:
            # Over the week's end it goes on with the first interval of the next.
            further = week[0][1] if end == WEEK_MS and week[0][0] == 0 else 0
            return at_ms + (end - here) + further
    return None
