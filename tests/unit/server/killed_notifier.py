"""A notifier as a process of its own, that kills itself between a receiver's acceptance and its record.

    python killed_notifier.py DIRECTORY KILL_AT

What was accepted is appended to DIRECTORY/accepted, one id a line, synced: that is the receiver. KILL_AT 0: to
the end.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from notified_world import open_notified
from played_receivers import ACCEPTED, Answer

from virtha.model.notification import Message


async def main(directory: Path, kill_at: int) -> None:
    accepted = os.open(directory / "accepted", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    count = 0

    def take(message: Message) -> Answer:
        nonlocal count
        count += 1
        os.write(accepted, f"{message.delivery_id} {message.event.fields['reason']}\n".encode())
        os.fsync(accepted)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return ACCEPTED

    async with open_notified(directory) as world:
        world.messengers.answer = take
        async with world.notifying():
            await world.until(lambda: _nothing_pending(world))


async def _nothing_pending(world: object) -> bool:
    states = await world.states()
    return bool(states) and "pending" not in states


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
