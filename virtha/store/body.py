"""Records as JSON text, and upserts without a dialect of their own."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Table, insert, select, update

from virtha.model.errors import Failed
from virtha.model.value import Value
from virtha.store.store import Transaction, WriteTransaction

T = TypeVar("T")
Key = TypeVar("Key", str, int)
UNKNOWN_RECORD = "problem.record.unknown"
"""A record can't be read: asked again it can't be either."""


def encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def decode(wanted: type[T], text: str) -> T:
    """Raises Failed (`problem.record.unknown`), which names the record: a later version wrote a word that this one does
    not know, or somebody else wrote."""
    try:
        return msgspec.json.decode(text, type=wanted)
    except msgspec.DecodeError as error:
        raise Failed(
            f"the record of {_named(wanted, text)} holds what this version can't read: {error}",
            code=UNKNOWN_RECORD,
            fix="run the version that wrote it, or a newer one; or restore a backup",
        ) from None


class Unreadable(Value, frozen=True, kw_only=True):
    """A record that this version can't read: of what kind, how it is called there, and why."""

    kind: str
    name: str
    why: str


def decode_each(
    wanted: type[T], rows: Iterable[tuple[str, str]]
) -> tuple[tuple[T, ...], tuple[Unreadable, ...]]:
    """``rows``: how each is called, and its text. For readers whom one bad record must not keep from all others."""
    found: list[T] = []
    unreadable: list[Unreadable] = []
    for name, text in rows:
        try:
            found.append(decode(wanted, text))
        except Failed as error:
            kind = wanted.__name__.lower()
            unreadable.append(Unreadable(kind=kind, name=name, why=error.message))
    return tuple(found), tuple(unreadable)


def _named(wanted: type[Any], text: str) -> str:
    kind = wanted.__name__.lower()
    try:
        said = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return f"a {kind}"
    name = (said.get("name") or said.get("id")) if isinstance(said, dict) else None
    return f"{kind} {name}" if name else f"a {kind}"


async def put(
    tx: WriteTransaction, table: Table, keys: dict[str, Any], values: dict[str, Any]
) -> None:
    """Update the row of ``keys``, or insert it: there is one writer, so nothing comes between."""
    where: list[ColumnElement[bool]] = [table.c[name] == value for name, value in keys.items()]
    done = await tx.connection.execute(update(table).where(*where).values(**values))
    if done.rowcount == 0:
        await tx.connection.execute(insert(table).values(**keys, **values))


async def bodies_with_ids(
    tx: Transaction, table: Table, wanted: type[T], ids: Sequence[str]
) -> tuple[T, ...]:
    """Those that there are, in the order of ``ids``."""
    found: dict[str, str] = {}
    for some in in_parts(ids):
        rows = await tx.connection.execute(
            select(table.c.id, table.c.body).where(table.c.id.in_(some))
        )
        found |= {row.id: row.body for row in rows}
    return tuple(decode(wanted, found[one]) for one in ids if one in found)


def in_parts(ids: Collection[Key]) -> list[list[Key]]:
    """Both databases bound the number of parameters."""
    wanted = sorted(ids)
    return [wanted[start : start + 500] for start in range(0, len(wanted), 500)]
