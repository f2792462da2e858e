"""Whether another machine answers (J4): one attempt by TCP, and what the name of such an address stands for.

A refusal is an answer: whoever refused was reached, and reaching it is all that is asked. Silence, no route and "unreachable", which
routers say of others, are none. An address of this machine answers also when nothing else does, so it never counts.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, NamedTuple

from virtha.model.time import format_duration_ms
from virtha.ports.clock import Clock

LOOK_UP_AGAIN_MS = 60_000
AFTER_FAILURE_MS = 5_000
PLACES_MAX = 4
"""Of one name; more are left out."""
OWN = "that is this machine itself"


class Place(NamedTuple):
    """What a socket connects to."""

    family: int
    address: tuple[Any, ...]


LookUp = Callable[[str, int], list[Place]]
"""Raises OSError. May take as long as the system's resolver does."""


def look_up(host: str, port: int) -> list[Place]:
    return _places(host, port, flags=0)


def _places(host: str, port: int, *, flags: int) -> list[Place]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [Place(int(one[0]), one[4]) for one in found]


def is_of_this_machine(place: Place) -> bool:
    """By the source that the kernel would take: of its own addresses, the same one."""
    target = str(place.address[0])
    address = ip_address(target.partition("%")[0])
    if address.is_loopback or address.is_unspecified:
        return True
    try:
        with socket.socket(place.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
            asked.connect(
                place.address
            )  # of a datagram socket: it chooses the way and sends nothing
            return str(asked.getsockname()[0]) == target
    except OSError:
        return False  # there is no way at all


async def why_unreached(
    place: Place, *, deadline_ms: int, is_own: Callable[[Place], bool] = is_of_this_machine
) -> str:
    """One attempt; never raises. Empty: it was reached."""
    if is_own(place):
        return OWN
    try:
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
        with socket.socket(place.family, kind) as connection:
            connection.setblocking(False)
            async with asyncio.timeout(deadline_ms / 1_000):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(connection, place.address)
    except ConnectionRefusedError:
        return ""
    except TimeoutError:
        return f"no answer within {format_duration_ms(deadline_ms)}"
    except OSError as error:
        return error.strerror or str(error)
    return ""


class ReferenceAddress:
    """One that is configured. A name is looked up in a thread of its own, anew from time to time, and what was found last counts meanwhile:
    a resolver that hangs holds up nothing, not even this process's end, and gets no second question."""

    def __init__(
        self, text: str, host: str, port: int, *, clock: Clock, look_up: LookUp = look_up
    ) -> None:
        """``text``: how people call it."""
        self.text = text
        self.why = "its name is being looked up"
        """There is no place for it."""
        self._host = host
        self._port = port
        self._clock = clock
        self._look_up = look_up
        self._looking = False
        self._again_at = int(clock.monotonic_ms())
        self._found: tuple[Place, ...] = ()
        self._is_name = False
        try:
            self._found = tuple(_places(host, port, flags=socket.AI_NUMERICHOST))
        except OSError:
            self._is_name = True  # or of an interface that is not there yet

    def places(self) -> tuple[Place, ...]:
        """What is known by now; never waits."""
        if self._is_name and not self._looking and self._clock.monotonic_ms() >= self._again_at:
            self._looking = True
            name = f"virtha-name-{self._host}"
            threading.Thread(target=self._find, name=name, daemon=True).start()
        return self._found

    def _find(self) -> None:
        """In its thread."""
        again_ms = AFTER_FAILURE_MS
        try:
            self._found = tuple(self._look_up(self._host, self._port)[:PLACES_MAX])
            again_ms = LOOK_UP_AGAIN_MS
        except (OSError, UnicodeError) as error:
            self.why = f"its name: {getattr(error, 'strerror', None) or error}"
        finally:
            self._again_at = self._clock.monotonic_ms() + again_ms
            self._looking = False
