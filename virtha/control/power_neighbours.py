"""Which hosts may be asked about another one's power device: the others of its cluster that are up."""

from collections.abc import Awaitable, Callable

from virtha.model.host import HostState
from virtha.model.ids import HostId
from virtha.store.hosts import find_host, hosts_of_cluster
from virtha.store.store import Store


def neighbours_of(store: Store, host_id: HostId) -> Callable[[], Awaitable[tuple[HostId, ...]]]:
    async def among() -> tuple[HostId, ...]:
        async with store.read() as tx:
            row = await find_host(tx, host_id)
            rows = await hosts_of_cluster(tx, row.host.cluster_id) if row is not None else ()
        return tuple(
            one.host.id
            for one in rows
            if one.host.id != host_id and one.status.state is HostState.UP
        )

    return among
