"""What a cluster's leader reads before it begins, what it is told of changes, and what it writes, all under its term and timeline.

The engine's records, what follows for hosts and VMs, its events and what hosts may forget are one transaction.
"""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import structlog

from virtha.alerts.subject import INCIDENT_OVER
from virtha.control.copies import copies_on
from virtha.control.effects import Dispatcher, Effects
from virtha.control.engine_nouns import engine_host, engine_vm, probed_at, written_disks
from virtha.control.engine_power import led_devices, power_levels
from virtha.control.fence_operations import follow_fences
from virtha.control.hellos import HelloBook
from virtha.control.history import message_of, severity_of
from virtha.control.incident_log import (
    NOTHING_OBSERVED,
    Followed,
    Observed,
    follow_incidents,
)
from virtha.control.mirror import mirrored
from virtha.control.own_machine import OwnMachine
from virtha.control.power_results import engine_event
from virtha.control.vm_moves import end_forgotten, follow_moves
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.events import (
    CopyGranted,
    DropHost,
    DropVm,
    Intent,
    Notice,
    PowerTested,
    SaveCluster,
    SaveHost,
    SaveVm,
)
from virtha.engine.records import ClusterRecord, EngineRecords, HostRecord, VmRecord
from virtha.model.ceph import CephSight
from virtha.model.errors import NotFound, Unavailable
from virtha.model.event import Event
from virtha.model.evidence import IdentityMatch, ProbeAddress, WatchedDisk
from virtha.model.facts import Fact
from virtha.model.ids import (
    BootId,
    ClusterId,
    HostId,
    IncidentId,
    Revision,
    StorageDomainId,
    VmId,
)
from virtha.model.incident import HostIncident
from virtha.model.policy import Policy
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import PossibleCopy
from virtha.store.changed import (
    adopted_on,
    all_host_ids,
    all_vm_ids,
    ceph_sights,
    counts,
    hosts_changed,
    usable_storage,
    vms_changed,
)
from virtha.store.clusters import all_clusters, find_cluster
from virtha.store.engine import (
    RecordRows,
    drop_grant,
    engine_records,
    find_vm_record,
    grants_of,
    save_cluster_record,
    save_intent,
)
from virtha.store.events import add_event
from virtha.store.hosts import HostRow, hosts_of_cluster, save_fact_acknowledged
from virtha.store.installations import Lead, the_installation
from virtha.store.power import PowerMark, power_mark, power_tests_of
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import VmRow, find_vm, save_vm_status, vms_of_cluster

log = structlog.get_logger("virtha.control.leading")
_RECORDED = SaveHost | SaveVm | DropHost | DropVm
"""Intents that may be about an incident."""


class LedHost(Value, frozen=True, kw_only=True):
    """A host as its cluster's leader needs it."""

    cluster_id: ClusterId
    host: EngineHost
    gate_in_force: bool
    libvirt_connected: bool
    storage_domains: frozenset[StorageDomainId]
    """Usable from there, by its own word."""
    acknowledged: int
    """The last of its facts that it may forget."""
    ceph: dict[StorageDomainId, CephSight] = {}
    """How it is seen by the clusters of its domains on Ceph, by its agent's word; perhaps that of a former boot."""
    probed_at: tuple[ProbeAddress, ...] = ()
    """Where its guardian answers its neighbours, by its agent's word."""


class LedVm(Value, frozen=True, kw_only=True):
    cluster_id: ClusterId
    vm: EngineVm
    disks: tuple[WatchedDisk, ...] | None = None
    """Those that it may write. None: as they were, for all that is known here."""


class Changes(Value, frozen=True, kw_only=True):
    """What concerns leaders and has changed since a revision."""

    revision: Revision
    power: PowerMark
    timeline: str
    hold: str | None
    policies: dict[ClusterId, Policy]
    """Of all clusters that there are."""
    hosts: tuple[LedHost, ...]
    vms: tuple[LedVm, ...]
    gone_hosts: frozenset[HostId]
    gone_vms: frozenset[VmId]


class Takeover(Value, frozen=True, kw_only=True):
    """All that a leader has of those before it."""

    policy: Policy
    records: EngineRecords
    clock: Millis
    """Cluster time of the last write (M4); 0: there was none."""
    granted: tuple[CopyGranted, ...]
    """Copies that those records know nothing of, to be told before anything is decided."""
    tests: tuple[PowerTested, ...]
    """Of power devices, that were kept and that those records know nothing of: who led died between. To be told when that
    boot beats."""


class Leading:
    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        hellos: HelloBook,
        own: OwnMachine = OwnMachine(),
    ) -> None:
        """``own``: the machine that this server runs on, whose host is never fenced by us (J4)."""
        self._store = store
        self._own = own
        self._dispatcher = dispatcher
        self._hellos = hellos

    # Before and beside

    async def lead(self) -> Lead:
        """Whose it is now."""
        async with self._store.read() as tx:
            return (await the_installation(tx)).lead

    async def moved_beyond(self, revision: Revision) -> None:
        """Waits until something has changed since."""
        await self._store.changes.beyond(revision)

    async def changes(
        self,
        since: Revision,
        *,
        hosts: Collection[HostId],
        vms: Collection[VmId],
        power: PowerMark = PowerMark(),
    ) -> Changes:
        """``hosts``, ``vms``: those that are known already. ``power``: how their devices stood then."""
        async with self._store.read() as tx:
            installation = await the_installation(tx)
            changed = await vms_changed(tx, since)
            adopted = [row.vm.id for row in changed if row.vm.adopted]
            devices = await power_mark(tx)
            # Rarely changed; a cluster's concern all of its hosts, and what is removed leaves no revision.
            hosts_since = since if devices == power else Revision(0)
            led_hosts = await _led_hosts(
                tx,
                await hosts_changed(tx, hosts_since, adopted),
                installation.timeline,
                self._own,
            )
            there = await counts(tx)
            known_hosts = {one.host.host_id for one in led_hosts} | set(hosts)
            known_vms = {row.vm.id for row in changed} | set(vms)
            host_ids = await all_host_ids(tx) if there[0] != len(known_hosts) else known_hosts
            vm_ids = await all_vm_ids(tx) if there[1] != len(known_vms) else known_vms
            return Changes(
                revision=await tx.revision_now(),
                power=devices,
                timeline=installation.timeline,
                hold=installation.installation.hold,
                policies={one.id: one.policy for one in await all_clusters(tx)},
                hosts=led_hosts,
                vms=tuple(
                    LedVm(
                        cluster_id=row.vm.cluster_id,
                        vm=engine_vm(row.vm, row.status),
                        disks=written_disks(row.vm),
                    )
                    for row in changed
                ),
                gone_hosts=frozenset(known_hosts - host_ids),
                gone_vms=frozenset(known_vms - vm_ids),
            )

    def made_after(self, host_id: HostId, timeline: str, fact: Fact) -> bool:
        """See ``HelloBook.made_after``."""
        return self._hellos.made_after(host_id, timeline, fact)

    async def take_over(self, cluster_id: ClusterId, lead: Lead) -> Takeover | None:
        """None: the lead is over. Raises NotFound (no such cluster), Failed (a record can't be read), Unavailable."""
        async with self._store.write() as tx:
            if (await the_installation(tx)).lead != lead:
                return None
            cluster = await find_cluster(tx, cluster_id)
            if cluster is None:
                raise NotFound(f"there is no cluster {cluster_id}")
            rows = await engine_records(tx, cluster_id)
            hosts = await hosts_of_cluster(tx, cluster_id)
            vms = await vms_of_cluster(tx, cluster_id)
            # What no leader has written yet stands as the use cases know it, from now on in a record.
            new_hosts, new_vms = _unwritten_hosts(rows, hosts), _unwritten_vms(rows, vms)
            for host_record in new_hosts:
                await save_intent(tx, cluster_id, SaveHost(record=host_record))
            for vm_record in new_vms:
                await save_intent(tx, cluster_id, SaveVm(record=vm_record))
            there = {row.vm.id for row in vms}
            tests = await _untold_tests(tx, hosts, (*rows.hosts, *new_hosts))
            await end_forgotten(tx, {one.vm_id: one for one in (*rows.vms, *new_vms)})
            for gone in rows.vms:
                if gone.vm_id not in there:
                    await save_intent(tx, cluster_id, DropVm(vm_id=gone.vm_id))
        kept = [record for record in rows.vms if record.vm_id in there]
        record = rows.cluster or ClusterRecord(term=lead.term)
        records = EngineRecords(
            cluster=record.led_in(lead.term),
            hosts=tuple(sorted((*rows.hosts, *new_hosts), key=lambda one: one.host_id)),
            vms=tuple(sorted((*kept, *new_vms), key=lambda one: one.vm_id)),
        )
        return Takeover(
            policy=cluster.policy,
            records=records,
            clock=rows.clock,
            granted=(*rows.granted, *_unknown_copies(rows, hosts, vms)),
            tests=tests,
        )

    # Under term and timeline

    async def holds(self, lead: Lead) -> bool:
        return await self.lead() == lead

    async def write(
        self,
        cluster_id: ClusterId,
        lead: Lead,
        *,
        intents: Sequence[Intent],
        notices: Sequence[Notice],
        receipts: Mapping[HostId, int],
        told: Iterable[CopyGranted],
        clock: Millis,
        observed: Observed = NOTHING_OBSERVED,
    ) -> bool:
        """False: the lead is over, and nothing was written. ``told``: copies by people's orders that ``intents`` are made
        in the knowledge of. ``clock``: cluster time now. ``observed``: for the record of incidents. Raises Unavailable:
        nothing was written, to be tried again."""
        effects = Effects()
        async with self._store.write() as tx:
            if (await the_installation(tx)).lead != lead:
                return False
            if await find_cluster(tx, cluster_id) is None:
                return True  # deleted, so it has no hosts or VMs; its leader is about to end
            for granted in told:
                await drop_grant(tx, granted)
            await follow_fences(tx, intents)
            kept = await _keep_record(tx, cluster_id, intents, notices, clock, observed)
            cluster: ClusterRecord | None = None
            saved: dict[VmId, tuple[VmRecord | None, VmRecord]] = {}
            for intent in intents:
                if isinstance(intent, SaveCluster):
                    cluster = intent.record
                    continue
                if isinstance(intent, SaveVm):
                    before = await find_vm_record(tx, intent.record.vm_id)
                    saved[intent.record.vm_id] = (before, intent.record)
                    await self._mirror(tx, effects, before, intent.record)
                await save_intent(tx, cluster_id, intent)
            await save_cluster_record(tx, cluster_id, cluster, clock)
            for notice, incident in zip(notices, kept.about, strict=True):
                await _tell(tx, cluster_id, notice, incident)
            for over in kept.over:
                await _tell(tx, over.cluster_id, _notice_of_end(over), over.id)
            await follow_moves(tx, notices, saved)
            await _acknowledge(tx, receipts)
        # What is written stands: a host that does not get its settings now gets them with the next change, or its hello.
        with contextlib.suppress(Unavailable):
            await self._dispatcher.carry_out(effects)
        return True

    async def acknowledge(self, lead: Lead, receipts: Mapping[HostId, int]) -> bool:
        """Of turns that had nothing to write: those hosts may forget that much. As ``write``."""
        async with self._store.write() as tx:
            if (await the_installation(tx)).lead != lead:
                return False
            await _acknowledge(tx, receipts)
            return True

    async def _mirror(
        self, tx: WriteTransaction, effects: Effects, before: VmRecord | None, record: VmRecord
    ) -> None:
        row = await find_vm(tx, record.vm_id)
        if row is None:
            return  # deleted: the engine is about to be told
        ordered = {
            one.host_id
            for one in await grants_of(tx, record.vm_id)
            if any(
                one.incarnation == copy.incarnation for copy in copies_on(row.status, one.host_id)
            )
        }
        now = tx.clock.wall_ms()
        changed = mirrored(row.status, before, record, ordered=ordered, now=now)
        if changed == row.status:
            return
        # Of a host that does not answer no more may be claimed than before.
        same = (changed.state, changed.host_id) == (row.status.state, row.status.host_id)
        await save_vm_status(tx, changed, shown=row.shown if same else None)
        effects.configure(row.vm.cluster_id)


async def _led_hosts(
    tx: Transaction, rows: Sequence[HostRow], timeline: str, own: OwnMachine
) -> tuple[LedHost, ...]:
    ids = [row.host.id for row in rows]
    usable = await usable_storage(tx, ids)
    sights = await ceph_sights(tx, ids)
    adopted = await adopted_on(tx, ids)
    power = await power_levels(tx, {row.host.id: row.host.cluster_id for row in rows})
    return tuple(
        LedHost(
            cluster_id=row.host.cluster_id,
            host=engine_host(
                row,
                timeline=timeline,
                defined=adopted.get(row.host.id, ()),
                power=power.get(row.host.id, ()),
                own=own,
            ),
            gate_in_force=row.status.capabilities.gate_in_force,
            libvirt_connected=row.status.capabilities.libvirt_connected,
            storage_domains=usable.get(row.host.id, frozenset()),
            ceph=sights.get(row.host.id, {}),
            acknowledged=row.fact_acknowledged,
            probed_at=probed_at(row.status),
        )
        for row in rows
    )


def _unwritten_hosts(rows: RecordRows, hosts: Sequence[HostRow]) -> list[HostRecord]:
    """Last seen in the boot that the use cases know: another one ends it (P4)."""
    known = {record.host_id for record in rows.hosts}
    return [
        HostRecord(host_id=row.host.id, boot=row.status.boot)
        for row in hosts
        if row.host.id not in known and row.status.boot is not None
    ]


def _unwritten_vms(rows: RecordRows, vms: Sequence[VmRow]) -> list[VmRecord]:
    """Held by whom the use cases know."""
    known = {record.vm_id for record in rows.vms}
    return [
        VmRecord(
            vm_id=row.vm.id,
            incarnation=row.status.incarnation,
            copies=tuple(_copies(row, row.status.holders)),
        )
        for row in vms
        if row.vm.id not in known and row.status.holders
    ]


def _copies(row: VmRow, holders: Iterable[HostId]) -> list[PossibleCopy]:
    """Adopted ones, and such as were held before starts were kept one by one, have no copy that names them."""
    copies: list[PossibleCopy] = []
    for host_id in holders:
        held = copies_on(row.status, host_id)
        copies += [
            PossibleCopy(host_id=host_id, incarnation=copy.incarnation, boot=copy.boot)
            for copy in held
        ] or [PossibleCopy(host_id=host_id, incarnation=row.status.incarnation)]
    return copies


def _unknown_copies(
    rows: RecordRows, hosts: Sequence[HostRow], vms: Sequence[VmRow]
) -> list[CopyGranted]:
    """What the use cases recorded and no write of the engine knows: whatever a host was held to have, it may have (G1). Also
    beside what it is known to have, for that may end by its next boot (P4)."""
    records = {record.vm_id: record for record in rows.vms}
    boots = {row.host.id: row.status.boot for row in hosts}
    found: list[CopyGranted] = []
    for row in vms:
        record = records.get(row.vm.id)
        if record is None:
            continue
        known = {(copy.host_id, copy.incarnation) for copy in record.copies}
        held = {copy.host_id for copy in record.copies}
        for copy in _copies(row, row.status.holders):
            if (copy.host_id, copy.incarnation) in known:
                continue
            if copy.host_id in held and not copies_on(row.status, copy.host_id):
                continue  # no start that it names: it stands for whatever the engine knows there
            granted = CopyGranted(
                host_id=copy.host_id,
                boot=copy.boot or boots.get(copy.host_id) or BootId(""),
                vm_id=row.vm.id,
                incarnation=copy.incarnation,
            )
            if granted not in rows.granted:
                found.append(granted)
    return found


async def _untold_tests(
    tx: Transaction, rows: Sequence[HostRow], records: Iterable[HostRecord]
) -> tuple[PowerTested, ...]:
    """Of the boots that are there, and of settings that still hold. None clears a device that has named another machine,
    or was caught in a lie, since: only a new test does."""
    known = {record.host_id: record for record in records}
    hosts = {row.host.id: row for row in rows}
    tests = await power_tests_of(tx, hosts.keys())
    devices = await led_devices(
        tx, {host_id: row.host.cluster_id for host_id, row in hosts.items()}
    )
    found: list[PowerTested] = []
    for host_id, there in devices.items():
        record = known.get(host_id, HostRecord(host_id=host_id))
        for one in there:
            test = tests.get((host_id, one.name))
            event = engine_event(host_id, one.name, test) if test is not None else None
            if event is None or event.device != one.id or event.boot != hosts[host_id].status.boot:
                continue
            another = event.identity is IdentityMatch.MISMATCH
            news = another or event.passed is not (event.device in record.tested_devices)
            since = (*record.foreign_devices, *record.disproved_devices)
            if news and event.device not in since:
                found.append(event)
    return tuple(found)


async def _keep_record(
    tx: WriteTransaction,
    cluster_id: ClusterId,
    intents: Sequence[Intent],
    notices: Sequence[Notice],
    clock: Millis,
    observed: Observed,
) -> Followed:
    """No recovery waits for its record: where that can't be kept, it is left as it was, and the log says so."""
    if not notices and not any(isinstance(one, _RECORDED) for one in intents):
        return Followed(about=())
    try:
        async with tx.apart():
            return await follow_incidents(
                tx, cluster_id, intents=intents, notices=notices, clock=clock, observed=observed
            )
    except Unavailable:
        raise  # locked, or no room: nothing else can be written either
    except Exception:  # a broken record of what was is no reason to leave VMs down
        log.exception("the record of an incident can't be kept", cluster=cluster_id)
        return Followed(about=(None,) * len(notices))


def _notice_of_end(one: HostIncident) -> Notice:
    """Routes tell by it that all is well again (ADR 21), so it comes after what was told of it, the last VM's start too."""
    return Notice(
        code=INCIDENT_OVER,
        host_id=one.host_id,
        fields={
            "host": one.host,
            "vms": one.vms + one.vms_left_out,
            "after_ms": max(0, (one.closed_ms or one.opened_ms) - one.silent_since_ms),
        },
    )


async def _tell(
    tx: WriteTransaction, cluster_id: ClusterId, notice: Notice, incident: IncidentId | None
) -> None:
    fields = dict(notice.fields)
    if incident is not None:
        fields.setdefault("incident_id", incident)
    if notice.incident is not None:
        fields.setdefault("incident", notice.incident)
    await add_event(
        tx,
        Event(
            code=notice.code,
            severity=severity_of(notice.code),
            message=message_of(notice.code, fields),
            fields=fields,
            cluster_id=cluster_id,
            host_id=notice.host_id,
            vm_id=notice.vm_id,
        ),
    )


async def _acknowledge(tx: WriteTransaction, receipts: Mapping[HostId, int]) -> None:
    for host_id in sorted(receipts):
        await save_fact_acknowledged(tx, host_id, receipts[host_id])
