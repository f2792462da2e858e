"""Pages of VMs are read in the order of an index, for whoever asks: nothing is sorted, and nobody else's VMs are walked through."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from virtha.model.ids import ClusterId
from virtha.model.time import Millis, UtcMillis
from virtha.store import open_store
from virtha.store.reach import Reach, seeing
from virtha.store.vms import VmFilter, vms_after

EAST, WEST = ClusterId("east"), ClusterId("west")
OF_ONE = "USING INDEX ix_vm_cluster_id_name (cluster_id=? AND name>?)"
OF_ALL = "(name>?)"


class StillClock:
    def monotonic_ms(self) -> Millis:
        return Millis(1)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(1)


@pytest.mark.parametrize(
    ("reach", "cluster_id", "index"),
    [
        (None, None, OF_ALL),
        (None, EAST, OF_ONE),
        (frozenset({EAST}), None, OF_ONE),
        (frozenset({EAST}), EAST, OF_ONE),
        # Not by one's own cluster: of another one's there is nothing to see.
        (frozenset({EAST}), WEST, OF_ONE),
        (frozenset({EAST, WEST}), None, OF_ALL),
        (frozenset({EAST, WEST}), EAST, OF_ONE),
        (frozenset(), None, OF_ALL),
    ],
)
def test_a_page_of_vms_is_found_by_index(
    fresh_database: Callable[[Path], None],
    tmp_path: Path,
    reach: Reach | None,
    cluster_id: ClusterId | None,
    index: str,
) -> None:
    fresh_database(tmp_path)
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_more: Any) -> None:
        if statement.startswith("SELECT vm.body"):
            asked.append((statement, values))

    async def plan() -> list[str]:
        store = await open_store(f"sqlite:///{tmp_path}/virtha.db", clock=StillClock())
        try:
            with seeing(reach):
                async with store.read() as tx:
                    assert await vms_after(tx, VmFilter(cluster_id=cluster_id), "a", 50) == ()
                    ((statement, values),) = asked
                    wanted = f"EXPLAIN QUERY PLAN {statement}"
                    return [row[3] for row in await tx.connection.exec_driver_sql(wanted, values)]
        finally:
            await store.close()

    event.listen(Engine, "before_cursor_execute", note)
    try:
        steps = asyncio.run(plan())
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert index in steps[0]
    assert not any("ORDER BY" in step for step in steps)
