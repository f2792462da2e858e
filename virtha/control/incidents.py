"""The record of incidents (X4): looking at it, and keeping it bounded. It is written by ``incident_log``."""

from collections.abc import Iterable

from msgspec.structs import replace

from virtha.control.events import past_host_id, past_vm_id
from virtha.control.hold_reasons import as_seen
from virtha.control.incident_fold import (
    RECOVERING,
    Moment,
    closed,
    fold_vm,
    host_over,
    id_of,
    may_close,
    vm_entries,
)
from virtha.control.incident_views import IncidentSummary, IncidentView, summary_of, view_of
from virtha.control.known_settings import EVENT_RETENTION, setting_values
from virtha.control.names import check_limit, is_id, page_of, the_cluster
from virtha.control.requests import IncidentQuery
from virtha.control.views import Page
from virtha.engine.records import HostRecord
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.incident import HostIncident, IncidentEntry, VmPath
from virtha.ports.leaders import Leaders
from virtha.store.engine import find_host_records, find_vm_records
from virtha.store.incidents import (
    IncidentFilter,
    count_paths,
    find_incident,
    incidents_before,
    paths_of,
    prune_incidents,
    save_incidents,
    save_paths,
)
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import vm_names

INCIDENTS_MAX = 20_000
"""Closed ones above it go, the oldest first, whatever their age."""
LOOKED_AT_MAX = 500
"""Open ones in one look for such as nobody will end any more."""


class Incidents:
    def __init__(self, store: Store, leaders: Leaders) -> None:
        self._store = store
        self._leaders = leaders

    async def list(self, query: IncidentQuery) -> Page[IncidentSummary]:
        """Newest first."""
        limit = check_limit(query.limit)
        number = _number(query.after)
        async with self._store.read() as tx:
            wanted = await _filter(tx, query)
            rows, more = page_of(await incidents_before(tx, wanted, number, limit + 1), limit)
            counted = await count_paths(tx, [row.incident.id for row in rows])
            return Page(
                items=tuple(summary_of(row.incident, counted[row.incident.id]) for row in rows),
                revision=await tx.revision_now(),
                next=str(rows[-1].number) if more else None,
            )

    async def get(self, incident_id: str) -> IncidentView:
        """Raises InvalidInput (no id), NotFound."""
        wanted = incident_id.lower()
        if not is_id(wanted):
            raise InvalidInput(
                f"'{incident_id[:64]}' is no id of an incident",
                field="id",
                allowed=("a UUID as 'virtha incident list' shows it",),
                fix="'virtha incident list' shows the ids; 'virtha incident list --host HOST' those of a host",
            )
        async with self._store.read() as tx:
            found = await find_incident(tx, wanted)
            if found is None:
                raise NotFound(
                    f"there is no incident {wanted}",
                    fix="'virtha incident list' shows those that are kept (event.retention)",
                )
            paths = await paths_of(tx, found.id)
        open_now = found.closed is None and found.host_end is None
        engine = as_seen(self._leaders.explain_host(found.host_id)) if open_now else ()
        of_vms = {
            path.vm_id: as_seen(self._leaders.explain_vm(path.vm_id)) for path in paths if path.open
        }
        return view_of(found, paths, engine=engine, of_vms=of_vms)

    async def prune(self) -> int:
        """Forget what is older than the setting for events says, or too many; end what nobody will end any more. The server
        calls it at intervals. Returns how many were forgotten."""
        async with self._store.write() as tx:
            await _end_forsaken(tx)
            keep_ms = (await setting_values(tx)).get(EVENT_RETENTION)
            before_ms = tx.clock.wall_ms() - keep_ms
            return await prune_incidents(tx, closed_before_ms=before_ms, most=INCIDENTS_MAX)


async def _filter(tx: Transaction, query: IncidentQuery) -> IncidentFilter:
    cluster = query.cluster
    return IncidentFilter(
        cluster_id=None
        if cluster is None
        else (await the_cluster(tx, cluster, field="cluster")).id,
        host_id=None if query.host is None else await past_host_id(tx, query.host),
        vm_id=None if query.vm is None else await past_vm_id(tx, query.vm),
        open=query.open,
    )


def _number(after: str | None) -> int | None:
    if after is None:
        return None
    if not (after.isascii() and after.isdecimal()) or len(after) > 18:
        raise InvalidInput(
            f"'{after[:64]}' is no cursor", field="after", fix="use 'next' of a list"
        )
    return int(after)


async def _end_forsaken(tx: WriteTransaction) -> None:
    """What was ended where no leader wrote: VMs that were deleted while nobody led, hosts that a restored database has in
    another state. Only the wall clock says when."""
    rows = await incidents_before(tx, IncidentFilter(open=True), None, LOOKED_AT_MAX)
    records = await find_host_records(tx, {row.incident.host_id for row in rows})
    for row in rows:
        found = row.incident
        moment = Moment(at=tx.clock.wall_ms(), clock_ms=found.opened_ms)
        if found.host_end is None and not _stands(found, records.get(found.host_id)):
            found = _by_wall(host_over(found, moment, "incident.ended"), row.incident)
            found = replace(found, host_end_ms=None)
        paths = await _settled(tx, found, moment)
        if may_close(found) and not any(path.open for path in paths):
            before = found
            found = replace(_by_wall(closed(found, moment), before), closed_ms=None)
        if found != row.incident:
            await save_incidents(tx, (found,), new=())


def _stands(found: HostIncident, record: HostRecord | None) -> bool:
    """The engine's own incident is on record still."""
    incident = record.incident if record is not None else None
    return incident is not None and id_of(found.host_id, incident.boot, incident.number) == found.id


def _by_wall(found: HostIncident, before: HostIncident) -> HostIncident:
    """Its new entries are of no cluster time that anybody knows."""
    kept = len(before.entries)
    return replace(found, entries=(*found.entries[:kept], *_walled(found.entries[kept:])))


def _walled(entries: Iterable[IncidentEntry]) -> tuple[IncidentEntry, ...]:
    return tuple(replace(one, clock_ms=None) for one in entries)


async def _settled(tx: WriteTransaction, found: HostIncident, moment: Moment) -> tuple[VmPath, ...]:
    """Its VMs, those ended that the engine is done with."""
    paths = await paths_of(tx, found.id)
    waiting = {path.vm_id for path in paths if path.open}
    if not waiting:
        return paths
    records = await find_vm_records(tx, waiting)
    there = await vm_names(tx, waiting)
    ended: dict[str, VmPath] = {}
    for path in paths:
        record = records.get(path.vm_id) if path.vm_id in there else None
        if path.open and (record is None or record.stage not in RECOVERING):
            entries = _walled(vm_entries(moment, path, found.host, None, record, ()))
            ended[path.vm_id] = fold_vm(path, entries)
    await save_paths(tx, ended.values(), new=())
    return tuple(ended.get(path.vm_id, path) for path in paths)
