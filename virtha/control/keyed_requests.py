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
    save_kept_answer,
)
from virtha.store.store import Store, WriteTransaction, with_each_write

log = structlog.get_logger("virtha.control")
T = TypeVar("T")
FIELD = "Idempotency-Key"
KEPT_MS = 86_400_000
"""A day: whoever repeats a request does so within minutes."""


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
                "it was carried out, and the server ended before it had answered",
                code="problem.key.answer_lost",
                field=FIELD,
                fix="look for what it made; it is not made again under this key",
            )
        return found.answer

    async def carry_out(
        self, request: Asked, work: Awaitable[T], answer_of: Callable[[T], KeptAnswer]
    ) -> T:
        """``work``, and its answer kept. Raises what ``work`` raises before its first write: nothing is remembered then."""
        entered = over = False

        async def enter(tx: WriteTransaction) -> None:
            nonlocal entered
            if entered or over:  # over: what goes on behind it is no part of it
                return
            await drop_keyed_requests(tx, self._forgotten_before())
            if await find_keyed_request(tx, request.id) is not None:
                _is_under_way()  # by another of this key, which came to its write before us
            at = tx.clock.wall_ms()
            await add_keyed_request(
                tx, KeyedRequest(id=request.id, fingerprint=request.fingerprint, at=at)
            )
            entered = True

        self._under_way.add(request.id)
        try:
            with with_each_write(enter):
                done = await work
            over = True
            if entered:
                await self._keep(request, answer_of(done))
            return done
        finally:
            self._under_way.discard(request.id)

    async def _keep(self, request: Asked, answer: KeptAnswer) -> None:
        """Not being able to must not turn what was done into an error."""
        try:
            async with self._store.write() as tx:
                await save_kept_answer(tx, request.id, answer)
        except VirthaError as error:
            log.warning("the answer to a keyed request can't be kept", error=str(error))

    async def prune(self) -> int:
        async with self._store.write() as tx:
            return await drop_keyed_requests(tx, self._forgotten_before())

    def _forgotten_before(self) -> UtcMillis:
        return UtcMillis(self._store.clock.wall_ms() - KEPT_MS)


def _is_under_way() -> NoReturn:
    raise Conflict(
        "a request with this key is being carried out",
        code="problem.key.under_way",
        field=FIELD,
        fix="repeat it in a moment to see its answer",
    )
