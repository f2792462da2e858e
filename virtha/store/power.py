"""Power devices of clusters and hosts, their sealed secrets, and their last tests."""

from collections.abc import Collection, Mapping

import msgspec
from sqlalchemy import Column, delete, func, select

from virtha.model.ids import ClusterId, HostId, Revision
from virtha.model.power_settings import PowerRecord, PowerTest
from virtha.model.value import Value
from virtha.store.body import decode, encode, put
from virtha.store.schema import power_device, power_test
from virtha.store.store import Transaction, WriteTransaction

_IN_ONE = 500
"""Both databases bound the number of parameters."""


class PowerMark(Value, frozen=True, kw_only=True):
    """Differs whenever any device's settings were added, changed or removed: an addition or a change raises the newest
    revision, unless it was removed again, and a removal lowers the count."""

    devices: int = 0
    newest: Revision = Revision(0)


class PowerRow(Value, frozen=True, kw_only=True):
    """``sealed``: its secrets as ``control/secret_box.py`` wrote them; None: it has none."""

    record: PowerRecord
    sealed: str | None = None


_ROWS = select(power_device.c.body, power_device.c.sealed).order_by(power_device.c.name)


def _row(body: str, sealed: str | None) -> PowerRow:
    return PowerRow(record=decode(PowerRecord, body), sealed=sealed)


async def power_of_cluster(tx: Transaction, cluster_id: ClusterId) -> tuple[PowerRow, ...]:
    rows = await tx.connection.execute(_ROWS.where(power_device.c.cluster_id == cluster_id))
    return tuple(_row(*row) for row in rows)


async def power_of_host(tx: Transaction, host_id: HostId) -> tuple[PowerRow, ...]:
    rows = await tx.connection.execute(_ROWS.where(power_device.c.host_id == host_id))
    return tuple(_row(*row) for row in rows)


async def power_of_all_hosts(tx: Transaction) -> tuple[PowerRow, ...]:
    rows = await tx.connection.execute(_ROWS.where(power_device.c.host_id.is_not(None)))
    return tuple(_row(*row) for row in rows)


async def power_of_hosts(tx: Transaction, host_ids: Collection[HostId]) -> tuple[PowerRow, ...]:
    return await _rows_of(tx, power_device.c.host_id, host_ids)


async def power_of_clusters(
    tx: Transaction, cluster_ids: Collection[ClusterId]
) -> tuple[PowerRow, ...]:
    return await _rows_of(tx, power_device.c.cluster_id, cluster_ids)


async def _rows_of(
    tx: Transaction, column: Column[str], ids: Collection[str]
) -> tuple[PowerRow, ...]:
    wanted, found = sorted(ids), list[PowerRow]()
    for start in range(0, len(wanted), _IN_ONE):
        part = wanted[start : start + _IN_ONE]
        found += [_row(*row) for row in await tx.connection.execute(_ROWS.where(column.in_(part)))]
    return tuple(found)


async def power_mark(tx: Transaction) -> PowerMark:
    counted = await tx.connection.execute(
        select(func.count(), func.max(power_device.c.revision)).select_from(power_device)
    )
    devices, newest = counted.one()
    return PowerMark(devices=int(devices), newest=Revision(newest or 0))


async def save_power(tx: WriteTransaction, value: PowerRecord, sealed: str | None) -> PowerRecord:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await put(
        tx,
        power_device,
        {"id": saved.id},
        {
            "cluster_id": saved.cluster_id,
            "host_id": saved.host_id,
            "name": saved.name,
            "body": encode(saved),
            "sealed": sealed,
            "revision": saved.revision,
        },
    )
    return saved


async def drop_power(tx: WriteTransaction, record: PowerRecord) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(power_device).where(power_device.c.id == record.id))
    if record.host_id is not None:
        await drop_power_test(tx, record.host_id, record.name)


async def save_power_test(
    tx: WriteTransaction, host_id: HostId, device: str, value: PowerTest
) -> None:
    """Without a revision: the event beside it has one."""
    await put(tx, power_test, {"host_id": host_id, "device": device}, {"body": encode(value)})


async def drop_power_test(tx: WriteTransaction, host_id: HostId, device: str) -> None:
    await tx.connection.execute(
        delete(power_test).where(power_test.c.host_id == host_id, power_test.c.device == device)
    )


async def power_tests(tx: Transaction, host_id: HostId) -> Mapping[str, PowerTest]:
    """By device."""
    rows = await tx.connection.execute(
        select(power_test.c.device, power_test.c.body).where(power_test.c.host_id == host_id)
    )
    return {row.device: decode(PowerTest, row.body) for row in rows}


async def power_tests_of(
    tx: Transaction, host_ids: Collection[HostId]
) -> Mapping[tuple[HostId, str], PowerTest]:
    """By host and device."""
    wanted, found = sorted(host_ids), dict[tuple[HostId, str], PowerTest]()
    for start in range(0, len(wanted), _IN_ONE):
        part = wanted[start : start + _IN_ONE]
        rows = await tx.connection.execute(
            select(power_test.c.host_id, power_test.c.device, power_test.c.body).where(
                power_test.c.host_id.in_(part)
            )
        )
        found |= {(HostId(row[0]), row[1]): decode(PowerTest, row[2]) for row in rows}
    return found


async def sealed_power_count(tx: Transaction) -> int:
    """How many have secrets."""
    counted = await tx.connection.scalar(
        select(func.count()).select_from(power_device).where(power_device.c.sealed.is_not(None))
    )
    return int(counted or 0)


async def sealed_power(tx: Transaction, limit: int) -> tuple[PowerRow, ...]:
    rows = await tx.connection.execute(_ROWS.where(power_device.c.sealed.is_not(None)).limit(limit))
    return tuple(_row(*row) for row in rows)
