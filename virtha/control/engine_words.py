"""A person's word to the engine that leads a cluster: it decides in its next turn, and who asked waits for what comes of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from virtha.engine.events import EngineEvent
from virtha.model.errors import Unavailable
from virtha.model.ids import ClusterId
from virtha.ports.leaders import Leaders

ANSWER_DEADLINE_S = 10.0
LOOK_EVERY_S = 0.05
T = TypeVar("T")


def say(leaders: Leaders, cluster_id: ClusterId, event: EngineEvent) -> None:
    """Raises Unavailable: nobody heard it."""
    if not leaders.offer(cluster_id, event):
        raise Unavailable("nobody leads this cluster at this moment", fix="try again in a moment")


async def until(look: Callable[[], Awaitable[T | None]], *, fix: str) -> T:
    """What ``look`` finds. The engine's records move no revision, so they are looked at again and again.

    Raises Unavailable, with ``fix``: nothing came of it in time.
    """
    try:
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            while True:
                found = await look()
                if found is not None:
                    return found
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        raise Unavailable(
            "the engine did not answer in time; what you asked may still be done", fix=fix
        ) from None
