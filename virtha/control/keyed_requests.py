"""Requests that are carried out once, however often they are sent: their sender gives each a key of its own.

That it was carried out is written in the very transaction that carries it out, its answer right after that. So it is never
done twice; a server that dies between the two leaves a request of which only the answer is unknown, and says so.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import structlog

from virtha.control.views import Caller
from virtha.model.errors import Conflict, Refused, VirthaError
from virtha.model.kept_answer import KeptAnswer
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.keyed_requests import (
    KeyedRequest,
    add_keyed_request,
    drop_keyed_requests,
    find_keyed_request,
    keyed_request_at,
    save_kept_answer,
)
from virtha.store.store import Store, WriteTransaction, with_each_write

log = structlog.get_logger("virtha.control")
T = TypeVar("T")
FIELD = "Idempotency-Key"
KEPT_MS = 86_400_000
"""A day: whoever repeats a request does so within minutes."""
KEPT_MAX = 200_000
"""With their answers some 500 MB: more than two a second, all day long."""


class Asked(Value, frozen=True, kw_only=True):
    """A request as it is remembered. The key itself is not kept: it keeps what was asked for from being guessed."""

    id: str
    fingerprint: str


def asked(caller: Caller, key: str, said: bytes) -> Asked:
    """``said``: all that the request asks for. Keys are each user's own."""
    who = caller.user_id or caller.name
    return Asked(
        id=hashlib.sha256(f"{who}\0{key}".encode()).hexdigest(),
        fingerprint=hmac.new(key.encode(), said, hashlib.sha256).hexdigest(),
    )


class KeyedRequests:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: set[str] = set()

    async def answer_to(self, request: Asked) -> KeptAnswer | None:
        """What it was answered; None: it was not carried out yet.

        Raises Refused (`problem.key.reused`), Conflict (`problem.key.under_way`, `problem.key.answer_lost`).
        """
        if request.id in self._under_way:
            _is_under_way()
        async with self._store.read() as tx:
            found = await find_keyed_request(tx, request.id)
        if found is None or found.at < self._forgotten_before():
            return None
        if found.fingerprint != request.fingerprint:
            raise Refused(
                "this key came with another request",
                code="problem.key.reused",
                field=FIELD,
                fix="give each request a key of its own; the same one only to repeat it unchanged",
            )
        if found.answer is None:
            raise Conflict(
                "it was carried out, and the server ended or failed before its answer was kept",
                code="problem.key.answer_lost",
                field=FIELD,
                fix="look for what it made; it is not made again under this key",
            )
        return found.answer

    async def carry_out(
        self,
        request: Asked,
        work: Awaitable[T],
        *,
        answer_of: Callable[[T], KeptAnswer],
        refusal_of: Callable[[VirthaError], KeptAnswer],
    ) -> T:
        """``work``, and its answer kept. Raises what ``work`` raises: before its first write nothing is remembered, after that
        the refusal is its answer."""
        entry = _Entry(request, self._forgotten_before())
        self._under_way.add(request.id)
        try:
            with with_each_write(entry):
                done = await work
            entry.over = True
            await self._keep(entry, answer_of(done))
            return done
        except VirthaError as error:
            entry.over = True
            if entry.entered:
                await self._keep(entry, refusal_of(error))
            raise
        finally:
            entry.over = True
            self._under_way.discard(request.id)

    async def _keep(self, entry: "_Entry", answer: KeptAnswer) -> None:
        """Not being able to must not turn what was done into an error."""
        request = entry.request
        try:
            async with self._store.write() as tx:
                if not entry.entered:  # there was nothing to change, and later there might be
                    await entry.write_down(tx)
                await save_kept_answer(tx, request.id, answer)
        except VirthaError as error:
            log.warning("the answer to a keyed request can't be kept", error=str(error))

    async def prune(self) -> int:
        """Forget what is older than a day, or too many. The server calls it at intervals. Returns how many were forgotten."""
        async with self._store.write() as tx:
            before = self._forgotten_before()
            one_too_many = await keyed_request_at(tx, KEPT_MAX)
            if one_too_many is not None:
                before = max(before, UtcMillis(one_too_many + 1))
            return await drop_keyed_requests(tx, before)

    def _forgotten_before(self) -> UtcMillis:
        return UtcMillis(self._store.clock.wall_ms() - KEPT_MS)


class _Entry:
    """A request's way into the database: with the first of its writes that is committed."""

    def __init__(self, request: Asked, forgotten_before: UtcMillis) -> None:
        self.request = request
        self.entered = False
        """It is in the database."""
        self.over = False
        """What is still written in its name goes on behind it, and is no part of it."""
        self._forgotten_before = forgotten_before
        self._written = False

    async def accompany(self, tx: WriteTransaction) -> None:
        self._written = False
        if not (self.entered or self.over):
            await self.write_down(tx)
            self._written = True

    def committed(self) -> None:
        self.entered = self.entered or self._written

    async def write_down(self, tx: WriteTransaction) -> None:
        """Raises Conflict where another of the same key came before us."""
        await drop_keyed_requests(tx, self._forgotten_before)
        if await find_keyed_request(tx, self.request.id) is not None:
            _is_under_way()
        asked_for = KeyedRequest(
            id=self.request.id, fingerprint=self.request.fingerprint, at=tx.clock.wall_ms()
        )
        await add_keyed_request(tx, asked_for)


def _is_under_way() -> NoReturn:
    raise Conflict(
        "a request with this key is being carried out",
        code="problem.key.under_way",
        field=FIELD,
        fix="repeat it in a moment to see its answer",
    )
