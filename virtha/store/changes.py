"""Wakes whoever follows the installation's revision, after a commit and without polling."""

import asyncio

from virtha.model.ids import Revision


class Changes:
    """Holds no queue: a waiter learns that something is new and reads it from the store, so that a
    slow one costs nothing and misses nothing."""

    def __init__(self, revision: Revision) -> None:
        self._revision = revision
        self._moved = asyncio.Event()

    @property
    def revision(self) -> Revision:
        """The newest committed one."""
        return self._revision

    def announce(self, revision: Revision) -> None:
        assert revision > self._revision, "commit order is revision order"
        self._revision = revision
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def beyond(self, revision: Revision) -> Revision:
        """Wait until the installation is past ``revision``; returns where it is."""
        while self._revision <= revision:
            await self._moved.wait()
        return self._revision
