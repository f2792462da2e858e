"""How whoever makes an attempt waits until nothing of it goes on any more."""

import asyncio
from contextlib import suppress
from typing import Any


async def wait_out(attempt: "asyncio.Future[Any]") -> None:
    """Until it has ended, however often whoever waits is cancelled meanwhile: what was cut short would free its device while
    the former attempt still runs, or leave that running (J7). For attempts that end by themselves in bounded time. Its
    result is nobody's here; the caller raises on what it was cancelled for."""
    while not attempt.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({attempt})


def cancel_once(attempt: "asyncio.Task[Any]") -> None:
    """For all who want it ended: a second cancel would interrupt the end of what its driver has begun."""
    if not attempt.done() and not attempt.cancelling():
        attempt.cancel()


async def give_up(attempt: "asyncio.Task[Any]") -> None:
    cancel_once(attempt)
    await wait_out(attempt)
