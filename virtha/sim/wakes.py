"""A checker: the engine doesn't ask to be woken again and again for nothing, as a time that it never gets past makes it do."""

from collections.abc import Callable

from virtha.engine.events import Decision
from virtha.model.time import Millis

SOON_MS = 5
"""What is due already is asked for at the next millisecond."""
IDLE_MAX = 10
"""In a row. Hosts and VMs that have something due each at a moment of their own make a few."""
MINUTE_MS = 60_000
IDLE_PER_HOST = 300
"""Steps for which nothing came within a minute, for each host and one more: five a second. Stories have up to ninety."""


class BusyWake(AssertionError):
    """On a server this is a processor that never rests."""


class Wakes:
    """Told of each step of one engine, of a cluster of so many ``hosts`` by then. It costs two comparisons while something comes."""

    def __init__(self, *, hosts: Callable[[], int]) -> None:
        self._hosts = hosts
        self._idle = 0
        """Steps in a row into which nothing came, out of which nothing did, and that asked for the next one at once."""
        self._minute = 0
        self._woken = 0
        """Steps of this minute into which nothing came: a slower circle, in which something may be done each time."""

    def stepped(self, now: Millis, decision: Decision, *, came: bool) -> None:
        """``came``: events, or a receipt. Raises BusyWake. Notices alone are nothing that is done."""
        if not came:
            self._count(now)
        if came or decision.commands or decision.intents:
            self._idle = 0
            return
        soon = decision.wake_at is not None and decision.wake_at - now <= SOON_MS
        self._idle = self._idle + 1 if soon else 0
        if self._idle > IDLE_MAX:
            raise BusyWake(f"{self._idle} wakes in a row by {now}, and nothing came or was done")

    def _count(self, now: Millis) -> None:
        minute = now // MINUTE_MS
        if minute != self._minute:
            self._minute, self._woken = minute, 0
        self._woken += 1
        if self._woken > IDLE_PER_HOST * (1 + self._hosts()):
            raise BusyWake(f"the engine woke itself {self._woken} times within a minute")
