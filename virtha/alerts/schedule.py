"""When a message is tried again. Pure: what is asked is a count, what is answered milliseconds."""

LATER_FIRST_MS = 5_000
LATER_MAX_MS = 300_000
"""Greylisting servers want between one and five minutes."""
AWAY_FIRST_MS = 1_000
AWAY_MAX_MS = 60_000
"""So that all that waited arrives soon after an outage."""
HANGS_MAX = 3
"""A message that was cut off at the deadline this often in a row waits by itself, in case that it is the
message: until then the receiver is taken for away, and nothing overtakes."""


def later_ms(attempts: int) -> int:
    """How long one message waits after its ``attempts``-th attempt (from 1) was put off."""
    return _doubled(LATER_FIRST_MS, attempts, LATER_MAX_MS)


def away_ms(failures: int) -> int:
    """How long a receiver is left alone after ``failures`` (from 1) in a row."""
    return _doubled(AWAY_FIRST_MS, failures, AWAY_MAX_MS)


def _doubled(first_ms: int, count: int, max_ms: int) -> int:
    assert count >= 1, count
    # Capped before it is raised: a count of some thousands would make a number of some thousands of bits.
    return min(first_ms << min(count - 1, 32), max_ms)
