"""What was carried out under a key that its sender chose."""

from sqlalchemy import delete, insert, select, update

from virtha.model.kept_answer import KeptAnswer
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import decode, encode
from virtha.store.schema import keyed_request
from virtha.store.store import Transaction, WriteTransaction


class KeyedRequest(Value, frozen=True, kw_only=True):
    id: str
    fingerprint: str
    """Of what was asked for."""
    at: UtcMillis
    answer: KeptAnswer | None = None
    """None: it was carried out, and is not answered yet."""


async def find_keyed_request(tx: Transaction, request_id: str) -> KeyedRequest | None:
    found = await tx.connection.execute(
        select(keyed_request).where(keyed_request.c.id == request_id)
    )
    row = found.one_or_none()
    if row is None:
        return None
    return KeyedRequest(
        id=row.id,
        fingerprint=row.fingerprint,
        at=UtcMillis(row.at),
        answer=decode(KeptAnswer, row.answer) if row.answer is not None else None,
    )


async def add_keyed_request(tx: WriteTransaction, value: KeyedRequest) -> None:
    """Moves no revision: nobody is shown it."""
    await tx.connection.execute(
        insert(keyed_request).values(id=value.id, fingerprint=value.fingerprint, at=value.at)
    )


async def save_kept_answer(tx: WriteTransaction, request_id: str, answer: KeptAnswer) -> None:
    await tx.connection.execute(
        update(keyed_request).where(keyed_request.c.id == request_id).values(answer=encode(answer))
    )


async def drop_keyed_requests(tx: WriteTransaction, before: UtcMillis) -> int:
    """How many."""
    gone = await tx.connection.execute(delete(keyed_request).where(keyed_request.c.at < before))
    return gone.rowcount


async def keyed_request_at(tx: Transaction, place: int) -> UtcMillis | None:
    """When the one was carried out that comes behind ``place`` newer ones; None: there are not so many."""
    newest_first = select(keyed_request.c.at).order_by(keyed_request.c.at.desc())
    found = await tx.connection.scalar(newest_first.offset(place).limit(1))
    return UtcMillis(found) if found is not None else None
