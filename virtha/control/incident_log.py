"""Keeps the record of incidents (X4) in the leader's own transactions: it is made of the very intents and notices that are
written there, so it says neither more nor less than they do, and outlives server and leader as they do.

Costs a few statements per write, however many hosts fell; nothing at all for a write that is about no failure.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from virtha.control.incident_fold import (
    AGENT_ANSWERS,
    HOST_ENDS,
    RECOVERING,
    VMS_MAX,
    Moment,
    awaits_answer,
    closed,
    fold_host,
    fold_vm,
    host_entries,
    host_over,
    hosts_of_loss,
    id_of,
    may_close,
    opened,
    path_of,
    rebooted,
    vm_entries,
)
from virtha.engine.events import DropHost, DropVm, Intent, Notice, SaveHost, SaveVm
from virtha.engine.records import HostRecord, Incident, VmRecord, VmStage
from virtha.model.event import Event
from virtha.model.ids import BootId, ClusterId, HostId, IncidentId, VmId
from virtha.model.incident import HostIncident, IncidentEntry, Sighting, VmPath
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import Reason
from virtha.store.engine import find_host_records, find_vm_records
from virtha.store.events import last_of_hosts
from virtha.store.hosts import host_names
from virtha.store.incidents import (
    incidents_by_id,
    newest_path,
    open_incidents_of,
    paths_of_vms,
    save_incidents,
    save_paths,
    with_open_paths,
)
from virtha.store.store import WriteTransaction
from virtha.store.vms import vm_names

SUSPECTED = "host.suspected"
REBOOTED = "host.rebooted_unseen"
JUDGED = frozenset({"host.judged_dead", "host.removed_unproven"})
_LAST = HOST_ENDS | {"host.proven_dead"}
"""What follows from the record's change of the same step stands after it."""


class Sight(Value, frozen=True, kw_only=True):
    """Who saw a host, and why it was judged."""

    seen: tuple[Sighting, ...] = ()
    reasons: tuple[Reason, ...] = ()


class SentOrder(Value, frozen=True, kw_only=True):
    """An order was handed to a power device."""

    host_id: HostId
    entry: IncidentEntry


class Observed(Value, frozen=True, kw_only=True):
    """What only the leader's memory knows of the hosts that a write is about. A leader that died takes it along: it is told
    beside what was decided, and nothing rests on it."""

    sights: dict[HostId, Sight] = {}
    sent: tuple[SentOrder, ...] = ()


NOTHING_OBSERVED = Observed()


class Followed(Value, frozen=True, kw_only=True):
    """``about``: the incident that each notice is about. ``over``: those that closed, to be told after all that was told of
    them."""

    about: tuple[IncidentId | None, ...]
    over: tuple[HostIncident, ...] = ()


async def follow_incidents(
    tx: WriteTransaction,
    cluster_id: ClusterId,
    *,
    intents: Sequence[Intent],
    notices: Sequence[Notice],
    clock: Millis,
    observed: Observed = NOTHING_OBSERVED,
) -> Followed:
    """To be called before ``intents`` are written: it looks at what they change."""
    write = _Write(tx, cluster_id, Moment(at=tx.clock.wall_ms(), clock_ms=int(clock)), observed)
    await write.hosts(intents, notices)
    await write.vms(intents, notices)
    over = await write.close_and_save()
    return Followed(about=tuple(write.about(notice) for notice in notices), over=over)


async def agent_answered(tx: WriteTransaction, event: Event) -> None:
    """A guest agent's first answer after a recovery ends its VM's path."""
    if event.vm_id is None:
        return
    path = await newest_path(tx, event.vm_id)
    if path is None or not awaits_answer(path, event.host_id, event.at):
        return
    entry = IncidentEntry(
        code=AGENT_ANSWERS, at=event.at, host_id=event.host_id, fields=event.fields
    )
    await save_paths(tx, (fold_vm(path, (entry,)),), new=())


class _Write:
    def __init__(
        self, tx: WriteTransaction, cluster_id: ClusterId, moment: Moment, observed: Observed
    ) -> None:
        self._tx = tx
        self._cluster_id = cluster_id
        self._moment = moment
        self._sights = observed.sights
        self._sent: dict[HostId, list[IncidentEntry]] = defaultdict(list)
        for order in observed.sent:
            self._sent[order.host_id].append(order.entry)
        self._incidents: dict[IncidentId, HostIncident] = {}
        self._suspicions: dict[HostId, Event] = {}
        """Of the hosts whose incident begins: the last that was told."""
        self._new: set[IncidentId] = set()
        self._changed: set[IncidentId] = set()
        self._unlinked: set[IncidentId] = set()
        """Of hosts that rebooted: none, if no VM was lost with them."""
        self._of_host: dict[tuple[HostId, int], IncidentId] = {}
        self._of_vm: dict[VmId, IncidentId] = {}
        self._paths: dict[tuple[IncidentId, VmId], VmPath] = {}
        self._new_paths: set[tuple[IncidentId, VmId]] = set()

    def about(self, notice: Notice) -> IncidentId | None:
        if notice.vm_id is not None:
            return self._of_vm.get(notice.vm_id)
        if notice.host_id is None or notice.incident is None:
            return None
        return self._of_host.get((notice.host_id, notice.incident))

    # Hosts

    async def hosts(self, intents: Sequence[Intent], notices: Sequence[Notice]) -> None:
        after: dict[HostId, HostRecord | None] = {}
        for intent in intents:
            if isinstance(intent, SaveHost):
                after[intent.record.host_id] = intent.record
            elif isinstance(intent, DropHost):
                after[intent.host_id] = None
        told: dict[HostId, list[Notice]] = defaultdict(list)
        for notice in notices:
            if notice.host_id is not None and notice.vm_id is None:
                told[notice.host_id].append(notice)
        spoken_of = {one for one, some in told.items() if any(n.incident is not None for n in some)}
        if not after and not spoken_of:
            return
        before = await find_host_records(self._tx, after.keys() | spoken_of)
        concerned = [
            host_id
            for host_id in sorted(after.keys() | spoken_of)
            if _incident_of(before.get(host_id)) is not None
            or _incident_of(after.get(host_id)) is not None
            or any(one.code == REBOOTED for one in told[host_id])
        ]
        if not concerned:
            return
        await self._load(concerned, before, after)
        names = await host_names(self._tx, concerned)
        for host_id in concerned:
            was = before.get(host_id)
            record = after.get(host_id, was)
            name = _name_of(record, told[host_id]) or names.get(host_id, host_id)
            self._host(host_id, name, was, record, told[host_id])

    async def _load(
        self,
        concerned: Sequence[HostId],
        before: Mapping[HostId, HostRecord],
        after: Mapping[HostId, HostRecord | None],
    ) -> None:
        wanted = set[IncidentId]()
        for host_id in concerned:
            for record in (before.get(host_id), after.get(host_id)):
                incident = _incident_of(record)
                if incident is not None:
                    wanted.add(id_of(host_id, incident.boot, incident.number))
        self._incidents |= await incidents_by_id(self._tx, wanted)
        opening = {
            host_id
            for host_id in concerned
            for incident in (_incident_of(after.get(host_id)),)
            if incident is not None
            and id_of(host_id, incident.boot, incident.number) not in self._incidents
        }
        self._suspicions = await last_of_hosts(self._tx, opening, SUSPECTED)

    def _host(
        self,
        host_id: HostId,
        name: str,
        before: HostRecord | None,
        after: HostRecord | None,
        told: Sequence[Notice],
    ) -> None:
        was, now = _incident_of(before), _incident_of(after)
        if was is not None and (now is None or not _same(was, now)):
            self._host_over(host_id, was, told, gone=after is None)
        if now is not None:
            self._goes_on(host_id, name, was, now, told)
        elif was is None and before is not None and before.boot is not None:
            self._rebooted(host_id, name, before.boot, told)

    def _rebooted(self, host_id: HostId, name: str, boot: BootId, told: Sequence[Notice]) -> None:
        """Nothing, unless that is what was told. It counts once a VM is found to have been lost by that."""
        if any(one.code == REBOOTED for one in told):
            found = rebooted(self._moment, self._cluster_id, host_id, name, boot)
            self._unlinked.add(found.id)
            self._new.add(found.id)
            self._put(fold_host(found, [self._entry(one) for one in told]))

    def _host_over(
        self, host_id: HostId, was: Incident, told: Sequence[Notice], *, gone: bool
    ) -> None:
        incident_id = id_of(host_id, was.boot, was.number)
        self._of_host[host_id, was.number] = incident_id
        found = self._incidents.get(incident_id)
        if found is None:
            return  # it began before there were such records
        mine = [one for one in told if one.incident == was.number]
        found = fold_host(found, [self._entry(one) for one in mine])
        ends = [one.code for one in mine if one.code in HOST_ENDS]
        code = "incident.host_removed" if gone else "incident.ended"
        self._put(host_over(found, self._moment, ends[-1] if ends else code))

    def _goes_on(
        self,
        host_id: HostId,
        name: str,
        was: Incident | None,
        now: Incident,
        told: Sequence[Notice],
    ) -> None:
        incident_id = id_of(host_id, now.boot, now.number)
        self._of_host[host_id, now.number] = incident_id
        found = self._incidents.get(incident_id)
        mine = [one for one in told if one.incident == now.number]
        entries: list[IncidentEntry] = []
        if found is None:
            found = opened(self._moment, self._cluster_id, host_id, name, now)
            self._new.add(found.id)
            entries += self._suspected(found)
            mine = [one for one in told if one.code == SUSPECTED] + mine
            if not any(one.code in JUDGED for one in mine):
                entries.append(self._moment.entry("incident.opened", host=name))
        entries += [self._entry(one) for one in mine if one.code not in _LAST]
        entries += self._sent[host_id]
        before = was if was is not None and _same(was, now) else None
        entries += host_entries(self._moment, name, before, now)
        entries += [self._entry(one) for one in mine if one.code in _LAST]
        if entries or found.id in self._new:
            self._put(fold_host(found, entries))

    def _suspected(self, found: HostIncident) -> list[IncidentEntry]:
        """When it was told, by whoever led then; the log has it by the wall clock alone."""
        event = self._suspicions.get(found.host_id)
        silent_ms = found.opened_ms - found.silent_since_ms
        if event is None or event.at < found.opened - silent_ms:
            return []
        return [IncidentEntry(code=event.code, at=event.at, fields=event.fields)]

    def _entry(self, notice: Notice) -> IncidentEntry:
        entry = IncidentEntry(
            code=notice.code,
            at=self._moment.at,
            clock_ms=self._moment.clock_ms,
            host_id=notice.host_id,
            fields=notice.fields,
        )
        sight = None
        if notice.code in JUDGED and notice.host_id is not None:
            sight = self._sights.get(notice.host_id)
        if sight is not None:
            entry = replace(entry, seen=sight.seen, reasons=sight.reasons)
        return entry

    def _put(self, found: HostIncident) -> None:
        self._incidents[found.id] = found
        self._changed.add(found.id)

    # VMs

    async def vms(self, intents: Sequence[Intent], notices: Sequence[Notice]) -> None:
        after: dict[VmId, VmRecord | None] = {}
        for intent in intents:
            if isinstance(intent, SaveVm):
                after[intent.record.vm_id] = intent.record
            elif isinstance(intent, DropVm):
                after[intent.vm_id] = None
        told: dict[VmId, list[IncidentEntry]] = defaultdict(list)
        for notice in notices:
            if notice.vm_id is not None:
                told[notice.vm_id].append(self._entry(notice))
        if not after and not told:
            return
        for path in await paths_of_vms(self._tx, after.keys() | told.keys(), only_open=True):
            self._paths[path.incident_id, path.vm_id] = path
        recovering = {
            vm_id
            for vm_id, record in after.items()
            if record is not None and record.stage in RECOVERING
        }
        concerned = recovering | {vm_id for _, vm_id in self._paths}
        if not concerned:
            return
        before = await find_vm_records(self._tx, concerned)
        await self._link(recovering, before, after)
        missing = {one for one, _ in self._paths} - self._incidents.keys()
        self._incidents |= await incidents_by_id(self._tx, missing)
        for key, path in sorted(self._paths.items()):
            was = before.get(path.vm_id)
            host = self._incidents[path.incident_id].host
            now = after.get(path.vm_id, was)
            entries = vm_entries(self._moment, path, host, was, now, told[path.vm_id])
            self._paths[key] = fold_vm(path, entries)
            self._of_vm[path.vm_id] = path.incident_id

    async def _link(
        self,
        recovering: Collection[VmId],
        before: Mapping[VmId, VmRecord],
        after: Mapping[VmId, VmRecord | None],
    ) -> None:
        """To the incidents of the hosts that they were lost with."""
        lost: dict[VmId, set[HostId]] = {}
        for vm_id in sorted(recovering):
            record = after[vm_id]
            if record is not None and _is_lost_now(before.get(vm_id), record):
                lost[vm_id] = {host for host, _ in hosts_of_loss(before.get(vm_id), record)}
        if not lost:
            return
        hosts = set[HostId]().union(*lost.values())
        for found in (await open_incidents_of(self._tx, hosts)).values():
            self._incidents.setdefault(found.id, found)
        by_host: dict[HostId, list[HostIncident]] = defaultdict(list)
        for found in self._incidents.values():
            by_host[found.host_id].append(found)
        names = await vm_names(self._tx, lost.keys())
        known = {
            (path.incident_id, path.vm_id): path
            for path in await paths_of_vms(self._tx, lost.keys(), only_open=False)
        }
        for vm_id in lost:
            record = after[vm_id]
            assert record is not None
            former = _proven_hosts(before.get(vm_id))
            ids = {
                found.id
                for host_id, boot in hosts_of_loss(before.get(vm_id), record)
                for found in by_host[host_id]
                if found.closed is None and boot in (None, found.boot)
            }
            for incident_id in sorted(ids):
                key = (incident_id, vm_id)
                again = self._incidents[incident_id].host_id in former
                self._enter(key, names.get(vm_id, vm_id), known.get(key), again=again)

    def _enter(
        self, key: tuple[IncidentId, VmId], name: str, known: VmPath | None, *, again: bool
    ) -> None:
        """``again``: it was lost in that incident before, and is lost anew on its way back."""
        if key in self._paths:
            return
        if known is not None:
            self._paths[key] = known
            return
        found = self._incidents[key[0]]
        if found.vms >= VMS_MAX:
            if not again:
                self._put(replace(found, vms_left_out=found.vms_left_out + 1))
            return
        self._unlinked.discard(found.id)
        self._put(replace(found, vms=found.vms + 1))
        self._paths[key] = path_of(found, key[1], name)
        self._new_paths.add(key)

    # The end

    async def close_and_save(self) -> tuple[HostIncident, ...]:
        """Those that are over."""
        gone = self._unlinked
        await save_incidents(
            self._tx,
            [self._incidents[one] for one in sorted(self._changed - gone)],
            new=self._new - gone,
        )
        await save_paths(
            self._tx,
            [path for _, path in sorted(self._paths.items())],
            new=self._new_paths,
        )
        concerned = (self._changed | {one for one, _ in self._paths}) - gone
        ending = {one for one in concerned if may_close(self._incidents[one])}
        if not ending:
            return ()
        ending -= await with_open_paths(self._tx, ending)
        done = tuple(closed(self._incidents[one], self._moment) for one in sorted(ending))
        await save_incidents(self._tx, done, new=())
        return done


def _incident_of(record: HostRecord | None) -> Incident | None:
    return record.incident if record is not None else None


def _same(one: Incident, other: Incident) -> bool:
    return (one.number, one.boot) == (other.number, other.boot)


def _name_of(record: HostRecord | None, told: Sequence[Notice]) -> str | None:
    if record is not None and record.name is not None:
        return record.name
    names = (one.fields.get("host") for one in told)
    return next((str(name) for name in names if name is not None), None)


def _proven_hosts(before: VmRecord | None) -> set[HostId]:
    """With which it was lost before this write, as far as it is on its way back from there."""
    if before is None or before.stage not in RECOVERING:
        return set()
    return {proof.host_id for proof in before.proofs}


def _is_lost_now(before: VmRecord | None, after: VmRecord) -> bool:
    if before is None or before.stage not in RECOVERING:
        return True
    return after.stage is VmStage.LOST and before.stage is not VmStage.LOST
