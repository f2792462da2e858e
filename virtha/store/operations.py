"""Operations, their plans, and the orders that hosts have not answered yet."""

import msgspec
from sqlalchemy import ColumnElement, delete, select

from virtha.model.ids import HostId, OperationId
from virtha.model.operation import Operation
from virtha.model.orders import Order
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import decode, encode, put
from virtha.store.schema import host_order, operation
from virtha.store.store import Transaction, WriteTransaction


class OperationRow(Value, frozen=True, kw_only=True):
    operation: Operation
    plan: str
    """JSON of the use cases' own."""
    foreign: str | None
    number: int


class OrderRow(Value, frozen=True, kw_only=True):
    order: Order
    host_id: HostId
    created: UtcMillis


async def _rows(
    tx: Transaction, *where: ColumnElement[bool], limit: int | None = None
) -> tuple[OperationRow, ...]:
    rows = await tx.connection.execute(
        select(operation).where(*where).order_by(operation.c.number.desc()).limit(limit)
    )
    return tuple(
        OperationRow(
            operation=decode(Operation, row.body),
            plan=row.plan,
            foreign=row.foreign_domains,
            number=row.number,
        )
        for row in rows
    )


async def find_operation(tx: Transaction, operation_id: str) -> OperationRow | None:
    return next(iter(await _rows(tx, operation.c.id == operation_id)), None)


async def open_operations_of(tx: Transaction, subject: str) -> tuple[OperationRow, ...]:
    return await _rows(tx, operation.c.subject == subject, operation.c.open.is_(True))


class OperationFilter(Value, frozen=True, kw_only=True):
    subject: str | None = None
    kind: str | None = None
    open: bool | None = None


async def operations_before(
    tx: Transaction, wanted: OperationFilter, number: int | None, limit: int | None
) -> tuple[OperationRow, ...]:
    """Newest first, below ``number``."""
    where: list[ColumnElement[bool]] = []
    if number is not None:
        where.append(operation.c.number < number)
    if wanted.subject is not None:
        where.append(operation.c.subject == wanted.subject)
    if wanted.kind is not None:
        where.append(operation.c.kind == wanted.kind)
    if wanted.open is not None:
        where.append(operation.c.open.is_(wanted.open))
    return await _rows(tx, *where, limit=limit)


async def save_operation(
    tx: WriteTransaction, value: Operation, plan: str, foreign: str | None = None
) -> Operation:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    values = {
        "kind": saved.kind,
        "subject": saved.subject,
        "open": not saved.is_over,
        "body": encode(saved),
        "plan": plan,
        "foreign_domains": foreign,
        "revision": saved.revision,
    }
    known = await tx.connection.scalar(select(operation.c.id).where(operation.c.id == saved.id))
    if known is None:
        # Its own number: several operations may begin in one transaction.
        values["number"] = tx.next_revision()
    await put(tx, operation, {"id": saved.id}, values)
    return saved


async def save_order(tx: WriteTransaction, host_id: HostId, order: Order) -> None:
    await put(
        tx,
        host_order,
        {"operation_id": order.operation_id, "step": order.step},
        {
            "host_id": host_id,
            "body": encode(order),
            "created": tx.clock.wall_ms(),
            "number": tx.next_revision(),
        },
    )


async def drop_order(tx: WriteTransaction, operation_id: OperationId, step: int) -> None:
    await tx.connection.execute(
        delete(host_order).where(
            host_order.c.operation_id == operation_id, host_order.c.step == step
        )
    )


async def _orders(tx: Transaction, *where: ColumnElement[bool]) -> tuple[OrderRow, ...]:
    rows = await tx.connection.execute(
        select(host_order).where(*where).order_by(host_order.c.number)
    )
    return tuple(
        OrderRow(
            order=decode(Order, row.body),
            host_id=HostId(row.host_id),
            created=UtcMillis(row.created),
        )
        for row in rows
    )


async def unanswered_orders(tx: Transaction, host_id: HostId) -> tuple[OrderRow, ...]:
    """In the order in which they were given."""
    return await _orders(tx, host_order.c.host_id == host_id)


async def all_unanswered_orders(tx: Transaction) -> tuple[OrderRow, ...]:
    return await _orders(tx)


async def find_order(tx: Transaction, operation_id: str, step: int) -> OrderRow | None:
    rows = await _orders(tx, host_order.c.operation_id == operation_id, host_order.c.step == step)
    return next(iter(rows), None)
