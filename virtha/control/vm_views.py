"""VMs as they are shown: record, status and names joined, reasons rendered, protection computed."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from virtha.control.hold_reasons import as_seen
from virtha.control.launch import Surroundings, fits_elsewhere, read_surroundings
from virtha.control.pending import pending_changes
from virtha.control.protection import protection_of, texts
from virtha.control.views import VmView
from virtha.model.event import Event
from virtha.model.host import Cluster, HostState
from virtha.model.ids import ClusterId, HostId, Revision
from virtha.model.vm import Reason
from virtha.ports.hosts import HostLinks
from virtha.ports.leaders import Leaders
from virtha.store.clusters import all_clusters
from virtha.store.hosts import HostRow, hosts_with_ids
from virtha.store.installations import the_installation
from virtha.store.reach import Reach, reach_now
from virtha.store.store import Store, Transaction
from virtha.store.vms import VmRow

K = TypeVar("K")
V = TypeVar("V")
CLUSTERS_KEPT_MAX = 64


class Landscape:
    """Each cluster's surroundings, kept until the installation's revision moves: beats don't move it,
    so that lists that are asked for every few seconds cost one read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # By what its reader sees: what was read for one who sees a part is not all there is, and what was read for others is not for them.
        self._kept: dict[tuple[Reach | None, ClusterId], tuple[Revision, Surroundings]] = {}
        self._clusters: dict[Reach | None, tuple[Revision, dict[ClusterId, Cluster]]] = {}

    async def clusters(self, tx: Transaction, revision: Revision) -> dict[ClusterId, Cluster]:
        """``revision``: where the installation is, as ``tx`` sees it."""
        kept = self._clusters.get(reach_now())
        if kept is None or kept[0] != revision:
            kept = (revision, {one.id: one for one in await all_clusters(tx)})
            _keep(self._clusters, reach_now(), kept)
        return kept[1]

    async def of(self, tx: Transaction, cluster_id: ClusterId, revision: Revision) -> Surroundings:
        key = (reach_now(), cluster_id)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == revision:
            return kept[1]
        surroundings = await read_surroundings(tx, cluster_id)
        _keep(self._kept, key, (revision, surroundings))
        return surroundings


def _keep(there: dict[K, V], key: K, value: V) -> None:
    while key not in there and len(there) >= CLUSTERS_KEPT_MAX:
        there.pop(next(iter(there)))
    there[key] = value


class VmViews:
    def __init__(self, store: Store, links: HostLinks, leaders: Leaders) -> None:
        self._landscape = Landscape(store)
        self._leaders = leaders
        self._now = store.clock.monotonic_ms
        self._links = links

    async def make(self, tx: Transaction, rows: Iterable[VmRow]) -> tuple[VmView, ...]:
        rows = tuple(rows)
        wanted: set[HostId] = {host_id for row in rows for host_id in row.status.holders}
        wanted |= {row.status.host_id for row in rows if row.status.host_id is not None}
        hosts = await hosts_with_ids(tx, wanted)
        installation = await the_installation(tx)
        clusters = await self._landscape.clusters(tx, installation.revision)
        hold = installation.installation.hold
        views = []
        for row in rows:
            surroundings = await self._landscape.of(tx, row.vm.cluster_id, installation.revision)
            cluster = clusters[row.vm.cluster_id]
            views.append(self._view(row, hosts, cluster, hold, surroundings))
        return tuple(views)

    async def make_one(
        self, tx: Transaction, row: VmRow, last_events: tuple[Event, ...] = ()
    ) -> VmView:
        (view,) = await self.make(tx, (row,))
        return msgspec.structs.replace(view, last_events=last_events)

    def _view(
        self,
        row: VmRow,
        hosts: dict[HostId, HostRow],
        cluster: Cluster,
        hold: str | None,
        surroundings: Surroundings,
    ) -> VmView:
        host = hosts.get(row.status.host_id) if row.status.host_id is not None else None
        protection = protection_of(
            row,
            host,
            cluster,
            hold=hold,
            other_host_fits=self._other_host_fits(row, surroundings),
        )
        reasons = _reasons(row, host)
        engine = as_seen(self._leaders.explain_vm(row.vm.id))
        status = msgspec.structs.replace(row.status, state=row.shown, reasons=reasons)
        return VmView(
            vm=row.vm,
            status=status,
            host_name=host.host.name if host is not None else None,
            cluster_name=cluster.name,
            holder_names=tuple(sorted(hosts[host_id].host.name for host_id in row.status.holders)),
            protection=protection,
            pending=pending_changes(row),
            reason_text=texts(reasons),
            protection_text=texts(protection),
            engine=engine,
            engine_text=texts(engine),
        )

    def _other_host_fits(self, row: VmRow, surroundings: Surroundings) -> bool:
        if not row.vm.ha or row.vm.adopted:
            return False  # an adopted VM's XML is on one host only
        return fits_elsewhere(row, surroundings, self._links, self._now())


def _reasons(row: VmRow, host: HostRow | None) -> tuple[Reason, ...]:
    """What its host said, and what stands between us and knowing it is still so."""
    reasons = row.status.reasons
    if not reasons and not row.status.incarnation:
        reasons = (Reason(code="vm.down.never_started"),)
    if host is None or not row.status.holders:
        return reasons
    fields: dict[str, str | int | bool | None] = {"host": host.host.name}
    match host.status.state:
        case HostState.UNREACHABLE:
            return (Reason(code="protection.host_unreachable", fields=fields), *reasons)
        case HostState.AGENT_DOWN:
            return (Reason(code="protection.agent_down", fields=fields), *reasons)
    return reasons
