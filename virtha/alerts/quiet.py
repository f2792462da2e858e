"""Quiet hours. Pure: how far a zone is from UTC is asked of whoever knows (``Offset``)."""

import re
from collections.abc import Callable

from virtha.model.errors import InvalidInput
from virtha.model.routing import QuietHours, Weekday

Offset = Callable[[str, int], int]
"""(zone, UTC milliseconds) into milliseconds that its clocks are ahead of UTC then."""
MINUTE_MS = 60_000
DAY_MS = 86_400_000
WINDOWS_MAX = 20
_EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")
_DAYS = tuple(Weekday)


def quiet_until(windows: tuple[QuietHours, ...], now: int, offset: Offset) -> int | None:
    """When the quiet hours end that ``now`` is in, by the clocks of then; None: it is in none. Of several the last end."""
    ends = [end for one in windows if (end := _end_of(one, now, offset)) is not None]
    return max(ends, default=None)


def _end_of(window: QuietHours, now: int, offset: Offset) -> int | None:
    local = now + offset(window.zone, now)
    begins_ms, ends_ms = _span(window)
    today = local // DAY_MS
    for day in (today, today - 1):
        start, end = day * DAY_MS + begins_ms, day * DAY_MS + ends_ms
        if _weekday(day) in window.days and start <= local < end:
            return _moment(window.zone, end, now + (end - local), now, offset)
    return None


def _moment(zone: str, local: int, nearly: int, now: int, offset: Offset) -> int:
    """When clocks there show ``local``, which is after ``now``; ``nearly``: were they not set meanwhile. An hour that they leave
    out ends when it would have ended."""
    moment = local - offset(zone, nearly)
    return moment if moment > now and moment + offset(zone, moment) == local else nearly


def _span(window: QuietHours) -> tuple[int, int]:
    """From the midnight of the day on which it begins."""
    begins_ms, ends_ms = minutes(window.begins) * MINUTE_MS, minutes(window.ends) * MINUTE_MS
    return begins_ms, ends_ms if ends_ms > begins_ms else ends_ms + DAY_MS


def _weekday(day: int) -> Weekday:
    return _DAYS[(day + _EPOCH_WEEKDAY) % 7]


def minutes(text: str) -> int:
    """``HH:MM`` since midnight; checked before."""
    hours, _, rest = text.partition(":")
    return int(hours) * 60 + int(rest)


def check_quiet(windows: tuple[QuietHours, ...], known_zone: Callable[[str], bool]) -> None:
    """Raises InvalidInput (field ``quiet[…].…``), also where nothing is left of the week."""
    if len(windows) > WINDOWS_MAX:
        raise InvalidInput(
            f"has {len(windows)} spans", field="quiet", allowed=(f"at most {WINDOWS_MAX}",)
        )
    for number, one in enumerate(windows):
        field = f"quiet[{number}]"
        for name, text in (("begins", one.begins), ("ends", one.ends)):
            if not _TIME.fullmatch(text):
                raise InvalidInput(
                    f"'{text[:20]}' is no time of day",
                    field=f"{field}.{name}",
                    allowed=("00:00 to 24:00",),
                    fix="write for example 22:00",
                )
        if one.begins in (one.ends, "24:00"):
            raise InvalidInput(
                f"begins at {one.begins} and ends at {one.ends}",
                field=f"{field}.ends",
                fix="for whole days write 00:00 and 24:00",
            )
        if not one.days:
            raise InvalidInput("names no day", field=f"{field}.days", allowed=_DAYS)
        if not known_zone(one.zone):
            raise InvalidInput(
                f"there is no time zone '{one.zone[:50]}'",
                field=f"{field}.zone",
                fix="write for example Europe/Berlin or UTC",
            )
    if windows and not _leaves_any(windows):
        raise InvalidInput(
            "cover the whole week: nothing below alert would ever be told",
            field="quiet",
            fix="leave a time to tell, or ask for --severity alert",
        )


def _leaves_any(windows: tuple[QuietHours, ...]) -> bool:
    """Of one zone; with several it takes their clocks to be the same."""
    week = [True] * (7 * 24 * 60)
    for one in windows:
        begins_ms, ends_ms = _span(one)
        for day in one.days:
            first = _DAYS.index(day) * 24 * 60
            for minute in range(begins_ms // MINUTE_MS, ends_ms // MINUTE_MS):
                week[(first + minute) % len(week)] = False
    return any(week)
