"""Waiting for what another side does: for a condition, never for a time."""

import asyncio
from collections.abc import Callable

WAIT_S = 60


async def until(condition: Callable[[], bool]) -> None:
    """Raises TimeoutError when it does not come about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)
