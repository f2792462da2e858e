"""A notifier as a process of its own, on time that runs a hundred times as fast, while a receiver is away.

    python outage_notifier.py DIRECTORY FROM_S UNTIL_S KILL_S

Receiver ``mail1`` is away until second UNTIL_S, ``hook1`` is always there. Every ten seconds something happens, up to
second EVENTS_S. At KILL_S (0: never) the process kills itself between an acceptance of ``hook1`` and its record. Each
message that goes out is a line of DIRECTORY/told: receiver, what it said, message id, the event's number.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from notified_world import NotifiedWorld, open_notified
from played_receivers import ACCEPTED, AWAY, Answer

from virtha.alerts import schedule
from virtha.model.notification import Message
from virtha.model.time import Millis, UtcMillis
from virtha.server import notifier as notifier_module

FACTOR = 100
EVENT_EVERY_S = 10
EVENTS_S = 320
BEGAN_MS = 1_700_000_000_000


class FastClock:
    """Stands still until it is started."""

    def __init__(self, from_s: int) -> None:
        self._from_ms = from_s * 1_000
        self._began: float | None = None

    def start(self) -> None:
        self._began = time.monotonic()

    def now_s(self) -> float:
        return self.monotonic_ms() / 1_000

    def monotonic_ms(self) -> Millis:
        gone_s = 0.0 if self._began is None else time.monotonic() - self._began
        return Millis(int(self._from_ms + gone_s * FACTOR * 1_000))

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(BEGAN_MS + self.monotonic_ms())


def hasten() -> None:
    """What the notifier waits, in the time of the story."""
    # Whole milliseconds for people; here a hundredth of them.
    notifier_module.away_ms = lambda failures: schedule.away_ms(failures) / FACTOR
    notifier_module.LOOK_S_MAX /= FACTOR
    notifier_module.ROUTE_STEP_S /= FACTOR


async def main(directory: Path, from_s: int, until_s: int, kill_s: int) -> None:
    hasten()
    clock = FastClock(from_s)
    told = os.open(directory / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def take(message: Message) -> Answer:
        receiver = "mail1" if message.address is not None else "hook1"
        there = receiver == "hook1" or clock.now_s() >= until_s
        said = "accepted" if there else "away"
        line = f"{receiver} {said} {message.delivery_id} {message.event.fields['reason']}\n"
        os.write(told, line.encode())
        os.fsync(told)
        if receiver == "hook1" and kill_s and clock.now_s() >= kill_s:
            os.kill(os.getpid(), signal.SIGKILL)
        return ACCEPTED if there else AWAY

    async with open_notified(directory, clock) as world:
        if from_s == 0:
            await world.add_mail()
            await world.add_webhook()
            await world.subscribe("mail1")
            await world.subscribe("hook1")
        world.messengers.answer = take
        clock.start()
        async with world.notifying():
            await _let_happen(world, clock)
            await world.until(lambda: _all_sent(world))


async def _let_happen(world: NotifiedWorld, clock: FastClock) -> None:
    """From where the process before was killed."""
    happened = len(await world.events("hold.set"))
    for second in range(happened * EVENT_EVERY_S, EVENTS_S + 1, EVENT_EVERY_S):
        await asyncio.sleep(max(0.0, second - clock.now_s()) / FACTOR)
        await world.happen(1, reason=f"{second}")


async def _all_sent(world: NotifiedWorld) -> bool:
    """Each event's message to each of the two receivers: what just happened may not have become messages yet."""
    states = await world.states()
    return len(states) == 2 * len(await world.events("hold.set")) and set(states) == {"sent"}


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
