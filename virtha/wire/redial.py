"""When a host dials again after a session or an attempt that failed."""

BACKOFF_FIRST_MS = 200
BACKOFF_SHORT_MS = 1_000
"""The longest delay within ``SHORT_OUTAGE_MS``: a server that was only restarted has its hosts back, and
their facts, within two seconds."""
SHORT_OUTAGE_MS = 60_000
BACKOFF_MAX_MS = 5_000
SESSION_GOOD_MS = 10_000
"""A session that lived this long was a good one: the next attempt comes at once."""


def redial_delay_ms(
    failures: int, *, outage_ms: int, last_code: str | None, chance: float
) -> float:
    """``failures``: attempts since the last good session. ``last_code``: what ended the last one.

    ``chance`` in [0, 1) makes it 50 to 150 % of the delay, so that a server's return is no stampede.
    """
    longest_ms = BACKOFF_SHORT_MS if outage_ms < SHORT_OUTAGE_MS else BACKOFF_MAX_MS
    delay_ms = min(BACKOFF_FIRST_MS * 2 ** min(failures - 1, 10), longest_ms) if failures else 0
    if last_code == "wire.closed.replaced":
        # A second process with our identity took over; fighting back would never end.
        delay_ms = BACKOFF_MAX_MS
    return delay_ms * (0.5 + chance)
