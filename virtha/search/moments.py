"""Days and times of a search, as milliseconds."""

from datetime import date, timedelta
from typing import NamedTuple, assert_never

from virtha.model.time import UtcMillis
from virtha.search.tree import Ago, Day, DayName, Instant, Moment, NamedDay

DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)
_WEEKDAYS = tuple(DayName)[2:]
"""As Python counts them: Monday is 0."""


class Span(NamedTuple):
    """From ``start`` to before ``end``."""

    start: int
    end: int


def resolve(moment: Moment, now: UtcMillis) -> Span:
    """A day is all of it, anything else one millisecond. ``now``: the server's wall clock."""
    match moment:
        case Instant():
            return Span(moment.at, moment.at + 1)
        case Ago():
            start = now - moment.duration_ms
            return Span(start, start + 1)
        case Day():
            return _span((date.fromisoformat(moment.date) - _EPOCH).days)
        case NamedDay():
            return _span(_named(moment.name, now // DAY_MS))
        case _:
            assert_never(moment)


def _span(day: int) -> Span:
    return Span(day * DAY_MS, (day + 1) * DAY_MS)


def _named(name: DayName, today: int) -> int:
    """Days since 1970."""
    if name is DayName.TODAY:
        return today
    if name is DayName.YESTERDAY:
        return today - 1
    present = (_EPOCH + timedelta(days=today)).weekday()
    back = (present - _WEEKDAYS.index(name)) % 7
    return today - (back or 7)
