"""A brake on guessing: who failed too often, as whom or from where, waits."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, IPv6Network, ip_address

from virtha.model.errors import Unauthenticated, VirthaError
from virtha.model.time import Millis, format_duration_ms
from virtha.ports.clock import Clock

FAILURES_MAX = 5
"""Of one name from one place; where names are not known yet, of one place."""
FAILURES_OF_NAME_MAX = 30
"""Of one name from all places: who has many must not get more guesses by them. Above what people mistype, for it locks out
whoever bears the name."""
FAILURES_OF_PLACE_MAX = 60
"""From one place, over all names: who tries one common password with each of them. Above what an office mistypes behind one
address."""
FAILURE_WINDOW_MS = 60_000
KEYS_KEPT_MAX = 10_000
PLACE_BITS = 64
"""Of an IPv6 address: in the rest each machine chooses its own (RFC 4291, section 2.5.1), anew for each try if it likes."""
BrakeKey = tuple[str | None, str | None]
"""Name, and place; None: all of them."""
Limits = tuple[tuple[BrakeKey, int], ...]


def place_of(address: str) -> str:
    """What counts as one place: an IPv4 address, however it is written, or a network of IPv6."""
    try:
        known = ip_address(address)
    except ValueError:
        return address  # the Unix socket
    if not isinstance(known, IPv6Address):
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(IPv6Network((int(known), PLACE_BITS), strict=False))


class SignInBrake:
    """Tries per (name, place), per name and per place, in bounded memory: the longest unused is forgotten first.

    A try counts from before its password is looked at: however many come at once, no more than the limit are looked at.
    ``name`` None: nobody knows yet whose sign-in it is; then only places count. Addresses are those of requests.
    """

    def __init__(self) -> None:
        self._tries: OrderedDict[BrakeKey, list[Millis]] = OrderedDict()
        self._under_way: Counter[BrakeKey] = Counter()
        self._ended = asyncio.Event()
        """Set when one that is under way ends, and followed by another."""
        self._told: dict[BrakeKey, Millis] = {}
        """Lock-outs that were told, and until when each is."""

    @asynccontextmanager
    async def turn(self, name: str | None, address: str, clock: Clock) -> AsyncIterator[Millis]:
        """One try; gives the moment at which it began. It waits for those under way that may yet succeed: who knows the password may
        sign in many times at once. A VirthaError within it: no password was looked at, it doesn't count.

        Raises Unauthenticated (`problem.sign_in.limited`)."""
        limits = _limits(name, address)
        while (longest := self._longest(limits, now := clock.monotonic_ms()))[0] > 0:
            wait_ms, shut = longest
            if not self._under_way[shut]:
                raise _limited(wait_ms, shut)
            await self._ended.wait()
        keys = [key for key, _ in limits]
        self._count(limits, now)
        self._under_way.update(keys)
        try:
            yield now
        except VirthaError:
            self._take_back(limits, now)
            raise
        finally:
            self._under_way -= Counter(keys)
            self._ended.set()
            self._ended = asyncio.Event()

    def succeeded(self, name: str | None, address: str, began: Millis) -> None:
        """Forgets who failed as that name there. What came from elsewhere, or as others, is not the doing of who knows the password."""
        limits = _limits(name, address)
        self._take_back(limits, began)
        self._tries.pop(limits[0][0], None)

    def failed(self, name: str | None, address: str, now: Millis) -> tuple[BrakeKey, ...]:
        """Whose last try for now that was, of which nobody was told yet."""
        self._told = {key: until for key, until in self._told.items() if until > now}
        limits = _limits(name, address)
        shut = [key for key, most in limits if self._left_ms(key, most, now) > 0]
        new = tuple(key for key in shut if key not in self._told)
        self._told |= {key: Millis(now + FAILURE_WINDOW_MS) for key in new}
        return new

    def lift(self, name: str) -> None:
        """As if nobody had tried that name."""
        for kept in (self._tries, self._told):
            for key in [key for key in kept if key[0] == name]:
                del kept[key]

    def _count(self, limits: Limits, now: Millis) -> None:
        for key, most in limits:
            self._tries[key] = [*self._recent(key, now), now][-most:]
            self._tries.move_to_end(key)
        while len(self._tries) > KEYS_KEPT_MAX:
            self._tries.popitem(last=False)

    def _take_back(self, limits: Limits, began: Millis) -> None:
        for key, _ in limits:
            if began in (tries := self._tries.get(key, [])):
                tries.remove(began)

    def _longest(self, limits: Limits, now: Millis) -> tuple[int, BrakeKey]:
        """For how many ms the next try must wait, and by which limit; 0: it may be made."""
        left = [(self._left_ms(key, most, now), key) for key, most in limits]
        return max(left, key=lambda one: one[0])

    def _left_ms(self, key: BrakeKey, most: int, now: Millis) -> int:
        recent = self._recent(key, now)
        return recent[0] + FAILURE_WINDOW_MS - now if len(recent) >= most else 0

    def _recent(self, key: BrakeKey, now: Millis) -> list[Millis]:
        return [at for at in self._tries.get(key, ()) if now - at < FAILURE_WINDOW_MS]


def _limits(name: str | None, address: str) -> Limits:
    """First the one that a success forgets."""
    place = place_of(address)
    if name is None:
        return (((None, place), FAILURES_MAX),)
    return (
        ((name, place), FAILURES_MAX),
        ((name, None), FAILURES_OF_NAME_MAX),
        ((None, place), FAILURES_OF_PLACE_MAX),
    )


def _limited(wait_ms: int, key: BrakeKey) -> Unauthenticated:
    """With what helps: an administrator can lift what is about a name, of which there is none yet in a provider's sign-in."""
    wait = f"try again in {format_duration_ms(max(wait_ms, 1_000) // 1_000 * 1_000)}"
    name, place = key
    return Unauthenticated(
        "too many failed sign-ins"
        if name is not None
        else f"too many failed sign-ins from {place}",
        code="problem.sign_in.limited",
        fix=wait
        if name is None
        else f"{wait}, or have an administrator end it: 'virtha user unlock NAME'",
    )
