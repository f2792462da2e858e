"""Passwords: argon2id, hashed in threads, a few at a time; and a brake on guessing."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from virtha.model.errors import InvalidInput, Unauthenticated, Unavailable, VirthaError
from virtha.model.time import Millis, format_duration_ms
from virtha.ports.clock import Clock

T = TypeVar("T")
PASSWORD_LENGTH_MIN = 10
"""Length is what counts (NIST SP 800-63B asks for 8 at least, and for no rules of composition)."""
PASSWORD_LENGTH_MAX = 1_024
HASHES_AT_ONCE = 2
"""Each takes 64 MiB: unbounded, sign-ins alone could take the server's memory."""
HASH_WAIT_S = 20.0
FAILURES_MAX = 5
"""Of one name from one address."""
FAILURES_OF_NAME_MAX = 30
"""Of one name from all addresses: who has many must not get more guesses by them. Above what people mistype, for it locks out
whoever bears the name."""
FAILURE_WINDOW_MS = 60_000
KEYS_KEPT_MAX = 10_000
BrakeKey = tuple[str, str | None]
"""Name, and address; None: from all of them."""


def check_password(password: str) -> str:
    if not PASSWORD_LENGTH_MIN <= len(password) <= PASSWORD_LENGTH_MAX:
        raise InvalidInput(
            f"has {len(password)} characters",
            field="password",
            allowed=(f"{PASSWORD_LENGTH_MIN} to {PASSWORD_LENGTH_MAX}",),
            fix="choose a longer one" if len(password) < PASSWORD_LENGTH_MIN else "",
        )
    return password


class Passwords:
    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turns = asyncio.Semaphore(HASHES_AT_ONCE)
        self._of_nobody: str | None = None

    async def hash(self, password: str) -> str:
        return await self._in_thread(self._hasher.hash, password)

    async def matches(self, password: str, password_hash: str | None) -> bool:
        """``password_hash`` None: no such user. It takes as long, so that nobody learns names from it."""
        if self._of_nobody is None:
            self._of_nobody = await self.hash("nobody has this password")
        known = password_hash if password_hash is not None else self._of_nobody
        verified = await self._in_thread(self._verify, known, password)
        return verified and password_hash is not None

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _in_thread(self, call: Callable[..., T], *arguments: str) -> T:
        try:
            async with asyncio.timeout(HASH_WAIT_S):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("too many sign-ins at once", fix="try again") from None
        try:
            return await asyncio.to_thread(call, *arguments)
        finally:
            self._turns.release()


class SignInBrake:
    """Tries per (name, address), and per name from wherever they come, in bounded memory: the longest unused is forgotten first.

    A try counts from before its password is looked at: however many come at once, no more than the limit are looked at.
    """

    def __init__(self) -> None:
        self._tries: OrderedDict[BrakeKey, list[Millis]] = OrderedDict()
        self._under_way: Counter[BrakeKey] = Counter()
        self._ended = asyncio.Event()
        """Set when one that is under way ends, and followed by another."""
        self._told: dict[BrakeKey, Millis] = {}
        """Lock-outs that were told, and until when each is."""

    @asynccontextmanager
    async def turn(self, name: str, address: str, clock: Clock) -> AsyncIterator[Millis]:
        """One try; gives the moment at which it began. It waits for those under way that may yet succeed: who knows the password may
        sign in many times at once. A VirthaError within it: no password was looked at, it doesn't count.

        Raises Unauthenticated (`problem.sign_in.limited`)."""
        while (wait_ms := self._wait_ms(name, address, now := clock.monotonic_ms())) > 0:
            if not any(self._under_way[key] for key, _ in _limits(name, address)):
                raise _limited(wait_ms)
            await self._ended.wait()
        keys = [key for key, _ in _limits(name, address)]
        self._count(name, address, now)
        self._under_way.update(keys)
        try:
            yield now
        except VirthaError:
            self._take_back(name, address, now)
            raise
        finally:
            self._under_way -= Counter(keys)
            self._ended.set()
            self._ended = asyncio.Event()

    def succeeded(self, name: str, address: str, began: Millis) -> None:
        """Forgets what came from there. What came from elsewhere is not the doing of who knows the password."""
        self._take_back(name, address, began)
        self._tries.pop((name, address), None)

    def failed(self, name: str, address: str, now: Millis) -> bool:
        """Whether that was the last try for now, and nobody was told yet."""
        self._told = {key: until for key, until in self._told.items() if until > now}
        shut = [key for key, most in _limits(name, address) if self._left_ms(key, most, now) > 0]
        new = [key for key in shut if key not in self._told]
        self._told |= {key: Millis(now + FAILURE_WINDOW_MS) for key in new}
        return bool(new)

    def lift(self, name: str) -> None:
        """As if nobody had tried that name."""
        for kept in (self._tries, self._told):
            for key in [key for key in kept if key[0] == name]:
                del kept[key]

    def _count(self, name: str, address: str, now: Millis) -> None:
        for key, most in _limits(name, address):
            self._tries[key] = [*self._recent(key, now), now][-most:]
            self._tries.move_to_end(key)
        while len(self._tries) > KEYS_KEPT_MAX:
            self._tries.popitem(last=False)

    def _take_back(self, name: str, address: str, began: Millis) -> None:
        for key, _ in _limits(name, address):
            if began in (tries := self._tries.get(key, [])):
                tries.remove(began)

    def _wait_ms(self, name: str, address: str, now: Millis) -> int:
        """0: the next try may be made."""
        return max(self._left_ms(key, most, now) for key, most in _limits(name, address))

    def _left_ms(self, key: BrakeKey, most: int, now: Millis) -> int:
        recent = self._recent(key, now)
        return recent[0] + FAILURE_WINDOW_MS - now if len(recent) >= most else 0

    def _recent(self, key: BrakeKey, now: Millis) -> list[Millis]:
        return [at for at in self._tries.get(key, ()) if now - at < FAILURE_WINDOW_MS]


def _limits(name: str, address: str) -> tuple[tuple[BrakeKey, int], ...]:
    return ((name, address), FAILURES_MAX), ((name, None), FAILURES_OF_NAME_MAX)


def _limited(wait_ms: int) -> Unauthenticated:
    return Unauthenticated(
        "too many failed sign-ins",
        code="problem.sign_in.limited",
        fix=f"try again in {format_duration_ms(max(wait_ms, 1_000) // 1_000 * 1_000)}, "
        "or have an administrator end it: 'virtha user unlock NAME'",
    )
