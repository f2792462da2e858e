"""Time as whole milliseconds, with its own types, and durations as people write them.

``Millis`` counts on some monotonic clock (the pure rooms get it as ``now``); ``UtcMillis`` is
milliseconds since 1970 UTC and serves display and storage only, never an order of events.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NewType

from virtha.model.errors import InvalidInput

Millis = NewType("Millis", int)
UtcMillis = NewType("UtcMillis", int)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_LAST_MS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_TIME_FIX = "write for example 2026-01-31T12:00:00Z"


def parse_duration_ms(text: str, *, field: str) -> int:
    """Read ``1.5s``, ``200ms``, ``10m`` or ``1h30m`` as milliseconds.

    Raises InvalidInput naming ``field`` when the text is no duration or is finer than 1 ms.
    """
    cleaned = text.strip().replace(" ", "")
    parts = _DURATION.findall(cleaned)
    if not parts or "".join(number + unit for number, unit in parts) != cleaned:
        raise InvalidInput(
            f"'{text}' is not a duration",
            field=field,
            allowed=("a number with a unit: ms, s, m, h or d",),
            fix="write for example 1.5s, 200ms, 10m or 1h30m",
        )
    total = sum(Decimal(number) * _UNIT_MS[unit] for number, unit in parts)
    if total != int(total):
        raise InvalidInput(
            f"'{text}' is finer than a millisecond", field=field, fix="use whole milliseconds"
        )
    return int(total)


def format_duration_ms(duration_ms: int) -> str:
    """Write milliseconds the way ``parse_duration_ms`` reads them: 1500 -> ``1.5s``."""
    if duration_ms < 1_000:
        return f"{duration_ms}ms"
    for unit in ("d", "h", "m"):
        if duration_ms % _UNIT_MS[unit] == 0:
            return f"{duration_ms // _UNIT_MS[unit]}{unit}"
    seconds, rest_ms = divmod(duration_ms, 1_000)
    return f"{seconds}.{rest_ms:03d}".rstrip("0").rstrip(".") + "s" if rest_ms else f"{seconds}s"


def format_utc(moment: UtcMillis | int) -> str:
    """RFC 3339 with milliseconds and Z, as the API shows time. Moments beyond the years 1 to 9999, which
    only a broken clock has, are shown as the nearest one."""
    stamp = _EPOCH + timedelta(milliseconds=min(max(int(moment), _FIRST_MS), _LAST_MS))
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_utc(text: str, *, field: str) -> UtcMillis:
    """Read RFC 3339 (``2026-01-31T12:00:00Z``, any zone). Raises InvalidInput naming ``field``, also
    when the zone is missing: it would be a guess."""
    try:
        stamp = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidInput(f"'{text}' is not a time", field=field, fix=_TIME_FIX) from None
    if stamp.tzinfo is None:
        raise InvalidInput(f"'{text}' does not say its time zone", field=field, fix=_TIME_FIX)
    return UtcMillis((stamp - _EPOCH) // timedelta(milliseconds=1))
