"""The engine: decides for one cluster, on the server that leads it. Pure.

Each step folds all events into the state, looks at the hosts and VMs that changed or are due, then hands out the
records that changed and the commands that follow from them. So the undisturbed case, a restart of the server and a
change of leader take one path: the records are read, and the next look goes on from there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from virtha.engine.cut_removed import (
    plan_removed_cuts,
    removed_cuts_found,
    removed_cuts_look_at,
)
from virtha.engine.cutting import StorageFenced, StorageOpened
from virtha.engine.device_readings import power_read, power_tested
from virtha.engine.drain import move_asked, moves_wanted, plan_moves
from virtha.engine.early import facts_of_begun
from virtha.engine.events import (
    BeatSeen,
    BrakeLifted,
    CopyGranted,
    CopyReleased,
    DeathConfirmed,
    Decision,
    DisksWatched,
    DropHost,
    DropVm,
    EngineEvent,
    GatewayLost,
    HoldChanged,
    HostConfigured,
    HostRemoved,
    HostSurveyed,
    Intent,
    KillEnded,
    LeaseRenewed,
    LibvirtAnswered,
    MaintenanceChanged,
    MigrationEnded,
    MoveAsked,
    MoveCancelled,
    NeighbourAnswered,
    PolicyChanged,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ProofFound,
    QuarantineLifted,
    ReferenceAnswered,
    SaveCluster,
    SaveHost,
    SaveVm,
    SessionChanged,
    SlotChanged,
    Stalled,
    StartEnded,
    StorageCompared,
    VmConfigured,
    VmRemoved,
    VmSeen,
    WaiverOver,
)
from virtha.engine.evidence import (
    beat_seen,
    disks_watched,
    gateway_lost,
    libvirt_answered,
    neighbour_answered,
    slot_changed,
    stalled,
)
from virtha.engine.fencing import power_ordered
from virtha.engine.holders import copy_granted
from virtha.engine.incident import domains_of, proven
from virtha.engine.invariants import check
from virtha.engine.inventory import (
    hold_changed,
    host_configured,
    maintenance_changed,
    policy_changed,
    vm_configured,
    vm_removed,
)
from virtha.engine.io_kill import kill_ended, kills_wanted, note_pause, plan_kills
from virtha.engine.machine import Verdict
from virtha.engine.migration import (
    ask_after_session,
    migration_ended,
    move_answered,
    move_cancelled,
)
from virtha.engine.move_answer import MoveAnswered
from virtha.engine.not_shared import storage_compared
from virtha.engine.operator import brake_lifted, death_confirmed
from virtha.engine.outage import tell_outages_over
from virtha.engine.permits import brake_looks_at, watch_brake
from virtha.engine.records import EngineRecords, HostRecord, VmStage
from virtha.engine.recovery import (
    copy_released,
    look_at_vm,
    plan_recoveries,
    quarantine_lifted,
    start_ended,
)
from virtha.engine.removal import (
    hold_fast,
    host_removed,
    is_removed,
    keep,
    node_of,
    removed_while_nobody_led,
)
from virtha.engine.seen import vm_seen
from virtha.engine.snapshot import EngineSnapshot, cluster_of, take_snapshot
from virtha.engine.state import Cluster
from virtha.engine.storage_fence import storage_fenced, storage_opened
from virtha.engine.waiver import (
    session_told,
    storage_looks_at,
    surveyed,
    waiver_over,
    watch_storage,
)
from virtha.engine.watch import look_at, reasons_of
from virtha.model.ids import HostId, StorageDomainId, VmId
from virtha.model.policy import Policy
from virtha.model.time import Millis
from virtha.model.vm import Reason


class Engine:
    """One per cluster and term. ``records``: all of a former leader's. Invariants: see ``invariants``."""

    def __init__(self, *, policy: Policy, records: EngineRecords, now: Millis) -> None:
        self._cluster = Cluster(policy=policy, records=records, now=now)

    @classmethod
    def resumed(cls, snapshot: EngineSnapshot) -> "Engine":
        """In the middle of a term, for a replay: it goes on exactly as the one that ``snapshot`` was taken of."""
        engine = cls.__new__(cls)
        engine._cluster = cluster_of(snapshot)
        return engine

    def snapshot(self) -> EngineSnapshot:
        """All that it remembers, between two steps."""
        return take_snapshot(self._cluster)

    def step(self, now: Millis, events: Sequence[EngineEvent]) -> Decision:
        """``now``: cluster time, never earlier than before. Costs what changed, not what there is."""
        cluster = self._cluster
        cluster.begin(now)
        for event in events:
            if type(event) is BeatSeen:
                beat_seen(cluster, event)
            else:
                self._fold(event)
        if cluster.begun:
            for fact in facts_of_begun(cluster):
                self._fold(fact)
        if cluster.fresh:
            removed_while_nobody_led(cluster)
            removed_cuts_found(cluster)
        cluster.collect_due()
        # While nobody is absent and every host sees its storage, which is nearly always, there is nothing to watch.
        if cluster.storage_told or cluster.storage_out:
            watch_storage(cluster)
        self._watch_brake()
        while cluster.dirty_hosts:
            dirty, cluster.dirty_hosts = cluster.dirty_hosts, set()
            for host_id in sorted(dirty):
                node = cluster.hosts.get(host_id)
                if node is not None:
                    look_at(cluster, node)
            self._watch_brake()
        if cluster.outages_ending:
            tell_outages_over(cluster)
        if cluster.cut_removed:
            plan_removed_cuts(cluster)
        self._plan_vms()
        intents = self._intents()
        commands = cluster.ordered_commands()
        if intents or commands:
            check(cluster, intents, commands)
        return Decision(
            intents=intents,
            commands=commands,
            notices=tuple(cluster.notices),
            wake_at=self._wake_at(),
        )

    # Answers (X1)

    def verdict(self, host_id: HostId) -> Verdict | None:
        node = self._cluster.hosts.get(host_id)
        return None if node is None else node.verdict

    @property
    def stall_ms(self) -> int:
        """Whoever leads and did nothing for so long observes anew (J1)."""
        return self._cluster.policy.detection.stall_ms

    def stage(self, vm_id: VmId) -> VmStage | None:
        node = self._cluster.vms.get(vm_id)
        return None if node is None else node.record.stage

    def explain_host(self, host_id: HostId) -> tuple[Reason, ...]:
        """Why it is as it is and what is awaited; empty too of one that this leader was not told of yet."""
        node = self._cluster.hosts.get(host_id)
        return () if node is None else reasons_of(self._cluster, node)

    def explain_vm(self, vm_id: VmId) -> tuple[Reason, ...]:
        """Why it is not where it should be; empty when nothing is wrong, or this leader was not told of it yet."""
        node = self._cluster.vms.get(vm_id)
        return () if node is None else node.reasons

    def records(self) -> EngineRecords:
        """What a new leader would read: all hosts and VMs, sorted."""
        cluster = self._cluster
        return EngineRecords(
            cluster=cluster.record,
            hosts=(
                *(cluster.hosts[key].record for key in sorted(cluster.hosts)),
                *(cluster.kept_hosts[key] for key in sorted(cluster.kept_hosts)),
            ),
            vms=(
                *(cluster.vms[key].record for key in sorted(cluster.vms)),
                *(cluster.kept_vms[key] for key in sorted(cluster.kept_vms)),
            ),
        )

    # For the lease desk: as it is now, which may be ahead of what is written

    def host_records(self) -> Iterator[HostRecord]:
        """Of all hosts, also of those that were removed."""
        cluster = self._cluster
        for node in cluster.hosts.values():
            yield node.record
        yield from cluster.kept_hosts.values()

    def host_record(self, host_id: HostId) -> HostRecord | None:
        node = self._cluster.hosts.get(host_id)
        return node.record if node is not None else self._cluster.kept_hosts.get(host_id)

    def domains_held_on(self, host_id: HostId) -> frozenset[StorageDomainId]:
        """Where copies that it may hold have disks (P2)."""
        vms = self._cluster.vms_held_by(host_id)
        return frozenset[StorageDomainId]().union(*(domains_of(vm) for vm in vms))

    # Fold

    def _fold(self, event: EngineEvent) -> None:
        cluster = self._cluster
        handler = _HANDLERS[type(event)]
        handler(cluster, event)

    def _watch_brake(self) -> None:
        if self._cluster.absent or self._cluster.record.brake is not None:
            watch_brake(self._cluster)

    def _plan_vms(self) -> None:
        cluster = self._cluster
        # A look may change the VM once more; a plan orders starts, which are then looked at.
        while cluster.dirty_vms or (
            cluster.plan_wanted
            and (cluster.ready or moves_wanted(cluster) or kills_wanted(cluster))
        ):
            dirty, cluster.dirty_vms = cluster.dirty_vms, set()
            for vm_id in sorted(dirty):
                node = cluster.vms.get(vm_id)
                if node is not None:
                    note_pause(cluster, node)
                    look_at_vm(cluster, node)
            if not cluster.dirty_vms and cluster.plan_wanted:
                cluster.plan_wanted = False
                plan_recoveries(cluster)
                plan_moves(cluster)
                plan_kills(cluster)

    # What changed

    def _intents(self) -> tuple[Intent, ...]:
        cluster = self._cluster
        intents: list[Intent] = [DropHost(host_id=one) for one in cluster.dropped_hosts]
        intents += [DropVm(vm_id=one) for one in cluster.dropped_vms]
        if cluster.record is not cluster.saved_record and cluster.record != cluster.saved_record:
            cluster.saved_record = cluster.record
            intents.append(SaveCluster(record=cluster.record))
        for host_id in sorted(cluster.changed_hosts):
            host = cluster.hosts.get(host_id)
            if host is not None and host.record is not host.saved and host.record != host.saved:
                host.saved = host.record
                intents.append(SaveHost(record=host.record))
        intents += [
            SaveHost(record=cluster.kept_hosts[one])
            for one in sorted(cluster.changed_kept)
            if one in cluster.kept_hosts
        ]
        for vm_id in sorted(cluster.changed_vms):
            vm = cluster.vms.get(vm_id)
            if vm is not None and vm.record != vm.saved:
                vm.saved = vm.record
                intents.append(SaveVm(record=vm.record))
        cluster.changed_hosts.clear()
        cluster.changed_kept.clear()
        cluster.changed_vms.clear()
        return tuple(intents)

    def _wake_at(self) -> Millis | None:
        cluster = self._cluster
        moments = [cluster.wake_at()]
        storage = storage_looks_at(cluster) if cluster.storage_out else None
        if storage is not None:
            moments.append(Millis(max(storage, cluster.now + 1)))
        removed = removed_cuts_look_at(cluster)
        if removed is not None:
            moments.append(removed)
        brake = brake_looks_at(cluster)
        if brake is not None:
            moments.append(Millis(max(brake, cluster.now + 1)))
        known = [moment for moment in moments if moment is not None]
        assert all(moment > cluster.now for moment in known), f"due already: {known}"
        return min(known) if known else None


def _proof_found(cluster: Cluster, event: ProofFound) -> None:
    host_id = event.proof.host_id
    node = cluster.hosts.get(host_id)
    if node is not None:
        proven(cluster, node, event.proof)
        cluster.touch(node)
    elif is_removed(cluster, host_id):
        node = node_of(cluster, host_id)
        proven(cluster, node, event.proof)
        keep(cluster, node)
        hold_fast(cluster, node)


def _session_changed(cluster: Cluster, event: SessionChanged) -> None:
    session_told(cluster, event)
    ask_after_session(cluster, event)


def _reference_answered(cluster: Cluster, event: ReferenceAnswered) -> None:
    cluster.reference, cluster.reference_ms = event.reached, cluster.now


def _lease_renewed(cluster: Cluster, event: LeaseRenewed) -> None:
    cluster.lease_until_ms = event.until_ms


def _stalled(cluster: Cluster, event: Stalled) -> None:
    stalled(cluster)


_HANDLERS: dict[type, Callable[[Cluster, Any], None]] = {
    HostConfigured: host_configured,
    HostRemoved: host_removed,
    VmConfigured: vm_configured,
    VmRemoved: vm_removed,
    PolicyChanged: policy_changed,
    HoldChanged: hold_changed,
    SessionChanged: _session_changed,
    HostSurveyed: surveyed,
    LibvirtAnswered: libvirt_answered,
    VmSeen: vm_seen,
    CopyGranted: copy_granted,
    CopyReleased: copy_released,
    NeighbourAnswered: neighbour_answered,
    DisksWatched: disks_watched,
    SlotChanged: slot_changed,
    StorageCompared: storage_compared,
    ReferenceAnswered: _reference_answered,
    PowerRead: power_read,
    PowerOrdered: power_ordered,
    PowerTested: power_tested,
    ProofFound: _proof_found,
    StorageFenced: storage_fenced,
    StorageOpened: storage_opened,
    WaiverOver: waiver_over,
    StartEnded: start_ended,
    KillEnded: kill_ended,
    MigrationEnded: migration_ended,
    MoveAnswered: move_answered,
    DeathConfirmed: death_confirmed,
    MaintenanceChanged: maintenance_changed,
    MoveAsked: move_asked,
    MoveCancelled: move_cancelled,
    QuarantineLifted: quarantine_lifted,
    BrakeLifted: brake_lifted,
    LeaseRenewed: _lease_renewed,
    GatewayLost: gateway_lost,
    Stalled: _stalled,
}
"""Every event but the beat, which has its own short way."""
