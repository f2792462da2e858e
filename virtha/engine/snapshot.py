"""All that an engine remembers between two steps, as one value, and an engine made from it again.

Records alone are what a *new leader* begins from: it has heard nobody yet. A segment of the journal begins in the
middle of a term, so it needs the evidence too; an engine made from a snapshot decides exactly what the one it was
taken from would have decided. What can be told from the rest (who is present, which VMs are ready, how full hosts are)
is not stored but found again.
"""

from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from virtha.engine.capacity import TargetHost
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.cutting import Asking, CutRemoved
from virtha.engine.early import subject_of
from virtha.engine.events import HostSurveyed, MigrationWord, VmSeen
from virtha.engine.inventory import list_drain
from virtha.engine.machine import Verdict
from virtha.engine.records import (
    ClusterRecord,
    EngineRecords,
    HostRecord,
    OrderId,
    VmRecord,
)
from virtha.engine.state import ABSENT, Cluster, HostNode, VmNode, held
from virtha.model.evidence import Answer, PowerState, ProcessKind
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, VmId
from virtha.model.policy import Policy
from virtha.model.power import PowerDeviceId
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import Reason, VmState


class NeighbourWord(Value, frozen=True, kw_only=True):
    """What one witness last said over one network, and when."""

    witness: HostId
    network: str
    answer: Answer
    at_ms: Millis


class HostState(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One host. Fields that ``HostNode`` has too mean what they mean there."""

    config: EngineHost
    record: HostRecord
    unsaved: bool = False
    """The record changed since it was last handed out; then ``saved`` is what was."""
    saved: HostRecord | None = None
    target: TargetHost | None = None
    """As placement last saw it."""
    fallen_ms: Millis | None = None
    awaited: bool = False
    dirty: bool = False
    sessions: dict[ProcessKind, BootId] = {}
    sign_ms: Millis | None = None
    agent_alive: bool = False
    broken_ms: Millis | None = None
    observe_from_ms: Millis = Millis(0)
    off_since: dict[PowerDeviceId, Millis] = {}
    neighbours: tuple[NeighbourWord, ...] = ()
    disks_changed_ms: Millis | None = None
    quiet_rounds: int = 0
    rounds_asked: int = 0
    reader_rounds: int = 0
    blind: bool = False
    round: int = 0
    newcomers: tuple[HostId, ...] = ()
    newcomer_round: int = 0
    investigated: bool = False
    asked_ms: Millis | None = None
    slot_ms: Millis | None = None
    named_ms: Millis | None = None
    witnessed_ms: Millis | None = None
    poison_sent: bool = False
    power_accepted: OrderId | None = None
    """In journals from before the record itself said so (``FenceStep.ON_TAKEN``)."""
    power: dict[PowerDeviceId, tuple[PowerState, Millis]] = {}
    power_asked_ms: Millis | None = None
    sent: OrderId | None = None
    sent_ms: Millis | None = None
    just_ordered: bool = False
    contradicted: bool = False
    cutting: Asking = Asking()
    survey: HostSurveyed | None = None
    early: tuple[VmSeen | HostSurveyed, ...] = ()
    untold: bool = False
    libvirt_answers: bool = True
    leaving_ms: Millis | None = None
    verdict: Verdict = Verdict.UNKNOWN
    verdict_ms: Millis = Millis(0)
    reasons: tuple[Reason, ...] = ()
    due_ms: Millis | None = None
    withheld: tuple[str, Millis] | None = None


class VmNodeState(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One VM. Fields that ``VmNode`` has too mean what they mean there."""

    config: EngineVm
    record: VmRecord
    unsaved: bool = False
    saved: VmRecord | None = None
    starting_on: tuple[HostId, ...] = ()
    """Hosts that count it among their starts in flight."""
    dirty: bool = False
    state: VmState = VmState.UNKNOWN
    state_host: HostId | None = None
    sent: OrderId | None = None
    unanswered: HostId | None = None
    asked_words: tuple[MigrationWord | None, ...] = ()
    asked_ms: Millis | None = None
    half: VmSeen | None = None
    stands: VmSeen | None = None
    io_error: bool = False
    no_room: bool = False
    paused_ms: Millis | None = None
    fits_ms: Millis | None = None
    kill_sent_ms: Millis | None = None
    kill_answer: str | None = None
    seen: dict[HostId, tuple[Incarnation, VmState]] = {}
    blocked_told: str | None = None
    guest_agent: bool | None = None
    reasons: tuple[Reason, ...] = ()
    due_ms: Millis | None = None


class EngineSnapshot(Value, frozen=True, kw_only=True):
    """``now``: of the last step, or of the engine's making. Hosts and VMs in the engine's own order."""

    now: Millis
    policy: Policy
    cluster: ClusterRecord
    cluster_saved: bool
    hold: str | None
    began_ms: Millis
    lease_until_ms: int
    reference: bool | None
    reference_ms: Millis | None = None
    paced_ms: Millis = Millis(0)
    storage_out: dict[StorageDomainId, Millis | None] = {}
    not_shared: dict[StorageDomainId, tuple[HostId, HostId]] = {}
    steady_since_ms: Millis | None = None
    questions: int
    plan_wanted: bool
    fresh: bool = False
    cut_removed: dict[HostId, CutRemoved] = {}
    hosts: tuple[HostState, ...]
    vms: tuple[VmNodeState, ...]
    kept_hosts: tuple[HostRecord, ...]
    """Recorded, but not configured yet in this term."""
    kept_vms: tuple[VmRecord, ...]

    @property
    def records(self) -> EngineRecords:
        """What the leader's store holds at this point, as far as the engine knows."""
        return EngineRecords(
            cluster=self.cluster,
            hosts=(*(host.record for host in self.hosts), *self.kept_hosts),
            vms=(*(vm.record for vm in self.vms), *self.kept_vms),
        )


_HOST_PLAIN = tuple(
    name
    for name in HostState.__struct_fields__
    if name in HostNode.__slots__
    and name not in ("saved", "neighbours", "newcomers", "sessions", "power", "off_since", "early")
)
_VM_PLAIN = tuple(
    name
    for name in VmNodeState.__struct_fields__
    if name in VmNode.__slots__ and name not in ("saved", "seen")
)
_vm_plain = attrgetter(*_VM_PLAIN)


def take_snapshot(cluster: Cluster) -> EngineSnapshot:
    """Between two steps only. Costs what there is: once per segment of the journal, not per step."""
    assert not cluster.changed_hosts and not cluster.changed_vms, "a snapshot in mid-step"
    starts = _starts(cluster)
    cluster.all_take_up()
    return EngineSnapshot(
        now=cluster.now,
        policy=cluster.policy,
        cluster=cluster.record,
        cluster_saved=cluster.saved_record == cluster.record,
        hold=cluster.hold,
        began_ms=cluster.began_ms,
        lease_until_ms=cluster.lease_until_ms,
        reference=cluster.reference,
        reference_ms=cluster.reference_ms,
        paced_ms=cluster.paced_ms,
        storage_out=dict(cluster.storage_out),
        not_shared=dict(cluster.not_shared),
        steady_since_ms=cluster.steady_since_ms,
        questions=cluster.questions,
        plan_wanted=cluster.plan_wanted,
        fresh=cluster.fresh,
        cut_removed=dict(cluster.cut_removed),
        hosts=tuple(_host_state(cluster, node) for node in cluster.hosts.values()),
        vms=tuple(
            [_vm_state(cluster, node, starts.get(key, ())) for key, node in cluster.vms.items()]
        ),
        kept_hosts=tuple(cluster.kept_hosts.values()),
        kept_vms=tuple(cluster.kept_vms.values()),
    )


def _host_state(cluster: Cluster, node: HostNode) -> HostState:
    plain: dict[str, Any] = {name: getattr(node, name) for name in _HOST_PLAIN}
    unsaved = node.saved != node.record
    return HostState(
        **plain,
        unsaved=unsaved,
        saved=node.saved if unsaved else None,
        target=cluster.capacity.target(node.id),
        fallen_ms=cluster.fallen_ms.get(node.id),
        awaited=node.id in cluster.awaited,
        dirty=node.id in cluster.dirty_hosts,
        sessions=dict(node.sessions),
        power=dict(node.power),
        off_since=dict(node.off_since),
        newcomers=tuple(sorted(node.newcomers)),
        early=tuple(node.early.values()),
        just_ordered=node.id in cluster.just_ordered,
        neighbours=tuple(
            NeighbourWord(witness=witness, network=network, answer=answer, at_ms=at_ms)
            for (witness, network), (answer, at_ms) in node.neighbours.items()
        ),
    )


def _vm_state(cluster: Cluster, node: VmNode, starting_on: tuple[HostId, ...]) -> VmNodeState:
    record, saved = node.record, node.saved
    unsaved = saved is not record and saved != record
    return VmNodeState(
        **dict(zip(_VM_PLAIN, _vm_plain(node), strict=True)),
        unsaved=unsaved,
        saved=saved if unsaved else None,
        dirty=node.id in cluster.dirty_vms,
        seen=node.seen.copy(),
        starting_on=starting_on,
    )


def _starts(cluster: Cluster) -> dict[VmId, tuple[HostId, ...]]:
    """Which hosts count which VMs among their starts in flight."""
    found: dict[VmId, tuple[HostId, ...]] = {}
    for host_id in sorted(cluster.capacity.ledgers):
        for vm_id in cluster.capacity.ledgers[host_id].starting:
            found[vm_id] = (*found.get(vm_id, ()), host_id)
    return found


def cluster_of(snapshot: EngineSnapshot) -> Cluster:
    """The memory that the snapshot was taken from."""
    kept = EngineRecords(cluster=snapshot.cluster, hosts=snapshot.kept_hosts, vms=snapshot.kept_vms)
    cluster = Cluster(policy=snapshot.policy, records=kept, now=snapshot.now)
    cluster.saved_record = snapshot.cluster if snapshot.cluster_saved else None
    if snapshot.hold is not None and snapshot.cluster.hold is None:
        # A segment of a version whose records did not keep it.
        cluster.record = replace(cluster.record, hold=snapshot.hold)
    cluster.began_ms = snapshot.began_ms
    cluster.lease_until_ms = snapshot.lease_until_ms
    cluster.reference = snapshot.reference
    cluster.reference_ms = snapshot.reference_ms
    cluster.paced_ms = snapshot.paced_ms
    cluster.storage_out = dict(snapshot.storage_out)
    cluster.not_shared = dict(snapshot.not_shared)
    cluster.steady_since_ms = snapshot.steady_since_ms
    cluster.questions = snapshot.questions
    cluster.fresh = snapshot.fresh
    cluster.cut_removed = dict(snapshot.cut_removed)
    for host in snapshot.hosts:
        _restore_host(cluster, host)
    for vm in snapshot.vms:
        _restore_vm(cluster, vm)
    cluster.plan_wanted = snapshot.plan_wanted
    return cluster


def _restore_host(cluster: Cluster, state: HostState) -> None:
    node = HostNode(state.config, state.record, cluster.now)
    for name in _HOST_PLAIN:
        setattr(node, name, getattr(state, name))
    node.saved = state.saved if state.unsaved else state.record
    node.sessions = dict(state.sessions)
    node.power = dict(state.power)
    node.off_since = dict(state.off_since)
    node.newcomers = set(state.newcomers)
    node.early = {subject_of(event): event for event in state.early}
    node.neighbours = {
        (word.witness, word.network): (word.answer, word.at_ms) for word in state.neighbours
    }
    cluster.hosts[node.id] = node
    cluster.list_host(node)
    list_drain(cluster, node)
    if state.target is not None:
        cluster.capacity.host_changed(state.target)
    if node.verdict in ABSENT:
        cluster.absent.add(node.id)
    if state.fallen_ms is not None:
        cluster.fallen_ms[node.id] = state.fallen_ms
    if state.awaited:
        cluster.awaited.add(node.id)
    if state.dirty:
        cluster.dirty_hosts.add(node.id)
    if state.just_ordered:
        cluster.just_ordered.add(node.id)
    if state.due_ms is not None:
        node.due_ms = None
        cluster.wake_host(node, state.due_ms)


def _restore_vm(cluster: Cluster, state: VmNodeState) -> None:
    node = VmNode(state.config, state.record)
    for name in _VM_PLAIN:
        setattr(node, name, getattr(state, name))
    node.saved = state.saved if state.unsaved else state.record
    node.seen = dict(state.seen)
    cluster.vms[node.id] = node
    for copy in node.record.copies:
        cluster.vms_on.setdefault(copy.host_id, set()).add(node.id)
        starting = copy.host_id in state.starting_on
        cluster.capacity.vm_started(copy.host_id, held(node.config), in_flight=starting)
    cluster.index_vm(node)
    if state.dirty:
        cluster.dirty_vms.add(node.id)
    if state.due_ms is not None:
        node.due_ms = None
        cluster.wake_vm(node, state.due_ms)
