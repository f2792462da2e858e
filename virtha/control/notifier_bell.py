"""Wakes the notifier for what no new event announces: a retry, a changed receiver, a test that got through."""

import asyncio

from virtha.model.ids import ReceiverId


class NotifierBell:
    """Holds a set, no queue: a receiver that was named twice is looked at once."""

    def __init__(self) -> None:
        self._named: set[ReceiverId] = set()
        self._rung = asyncio.Event()

    def hurry(self, receiver_id: ReceiverId) -> None:
        """Look at this receiver's messages now, even if it is taken for away."""
        self._named.add(receiver_id)
        self._rung.set()

    async def rung(self) -> frozenset[ReceiverId]:
        """Waits until somebody is named, and forgets them."""
        await self._rung.wait()
        self._rung.clear()
        named, self._named = frozenset(self._named), set()
        return named
