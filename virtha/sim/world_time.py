"""How a world's time shows on clocks."""

from virtha.model.time import Millis

WALL_EPOCH_MS = 1_800_000_000_000
"""What wall clocks add to the world's time."""


def cluster_time(now_ms: int) -> Millis:
    """M4: of the database, which goes on whoever leads."""
    return Millis(WALL_EPOCH_MS + now_ms)
