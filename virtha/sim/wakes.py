"""A checker: the engine doesn't ask to be woken again and again for nothing, as a time that it never gets past makes it do."""

from virtha.engine.events import Decision
from virtha.model.time import Millis

SOON_MS = 5
"""What is due already is asked for at the next millisecond."""
IDLE_MAX = 10
"""Hosts and VMs that have something due each at a moment of their own make a few."""


class BusyWake(AssertionError):
    """On a server this is a processor that never rests."""


class Wakes:
    """Told of each step of one engine. It costs two comparisons while something comes."""

    def __init__(self) -> None:
        self._idle = 0
        """Steps in a row into which nothing came, out of which nothing did, and that asked for the next one at once."""

    def stepped(self, now: Millis, decision: Decision, *, came: bool) -> None:
        """``came``: events, or a receipt. Raises BusyWake. Notices alone are nothing that is done."""
        if came or decision.commands or decision.intents:
            self._idle = 0
            return
        soon = decision.wake_at is not None and decision.wake_at - now <= SOON_MS
        self._idle = self._idle + 1 if soon else 0
        if self._idle > IDLE_MAX:
            raise BusyWake(f"{self._idle} wakes in a row by {now}, and nothing came or was done")
