"""Passwords: argon2id, hashed in threads, a few at a time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from virtha.model.errors import InvalidInput, Unavailable

T = TypeVar("T")
PASSWORD_LENGTH_MIN = 10
"""Length is what counts (NIST SP 800-63B asks for 8 at least, and for no rules of composition)."""
PASSWORD_LENGTH_MAX = 1_024
HASHES_AT_ONCE = 2
"""Each takes 64 MiB: unbounded, sign-ins alone could take the server's memory."""
HASH_WAIT_S = 20.0


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
