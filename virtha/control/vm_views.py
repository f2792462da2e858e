"""VMs as they are shown: record, status and names joined, reasons rendered, protection computed."""

from collections.abc import Iterable
from typing import NamedTuple

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
from virtha.store import schema
from virtha.store.body import bodies_with_ids
from virtha.store.hosts import HostRow, hosts_with_ids
from virtha.store.installations import the_installation
from virtha.store.store import Store, Transaction
from virtha.store.vms import VmRow

CLUSTERS_KEPT_MAX = 64


class Around(NamedTuple):
    """Of one cluster."""

    cluster: Cluster
    surroundings: Surroundings


class Landscape:
    """Each cluster with its surroundings, kept until the installation's revision moves: beats don't move it,
    so that lists that are asked for every few seconds cost one read.

    Whoever sees a cluster sees all of it (``store/reach.py``), and one that isn't seen is asked for by nobody: what was read for one
    is what another would have read.
    """

    def __init__(self) -> None:
        self._kept: dict[ClusterId, tuple[Revision, Around]] = {}

    async def of(self, tx: Transaction, cluster_id: ClusterId, revision: Revision) -> Around:
        """``revision``: where the installation is, as ``tx`` sees it. ``tx`` must see the cluster."""
        kept = self._kept.get(cluster_id)
        if kept is not None and kept[0] == revision:
            return kept[1]
        (cluster,) = await bodies_with_ids(tx, schema.cluster, Cluster, (cluster_id,))
        around = Around(cluster, await read_surroundings(tx, cluster_id))
        while cluster_id not in self._kept and len(self._kept) >= CLUSTERS_KEPT_MAX:
            self._kept.pop(next(iter(self._kept)))
        self._kept[cluster_id] = (revision, around)
        return around


class VmViews:
    def __init__(self, store: Store, links: HostLinks, leaders: Leaders) -> None:
        self._landscape = Landscape()
        self._leaders = leaders
        self._now = store.clock.monotonic_ms
        self._links = links

    async def make(self, tx: Transaction, rows: Iterable[VmRow]) -> tuple[VmView, ...]:
        rows = tuple(rows)
        wanted: set[HostId] = {host_id for row in rows for host_id in row.status.holders}
        wanted |= {row.status.host_id for row in rows if row.status.host_id is not None}
        hosts = await hosts_with_ids(tx, wanted)
        installation = await the_installation(tx)
        hold = installation.installation.hold
        views = []
        for row in rows:
            around = await self._landscape.of(tx, row.vm.cluster_id, installation.revision)
            views.append(self._view(row, hosts, around.cluster, hold, around.surroundings))
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
