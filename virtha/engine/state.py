"""What the engine holds in memory between steps, and what one step has to say so far.

Nothing here scans all hosts or all VMs: a step touches those that changed (``touch``) or are due (``due``).
"""

import heapq
from typing import Any, TypeVar

from msgspec.structs import replace

from virtha.engine.capacity import Capacity, HeldVm
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.cutting import Asking, CutRemoved
from virtha.engine.events import Command, HostSurveyed, MigrationWord, MoveAsked, Notice, VmSeen
from virtha.engine.lanes import lane_of
from virtha.engine.machine import Verdict, VmTrigger, next_stage
from virtha.engine.records import (
    ClusterRecord,
    EngineRecords,
    HostRecord,
    OrderId,
    VmRecord,
    VmStage,
)
from virtha.engine.ring import Ring, Rings
from virtha.model.evidence import Answer, PowerState, ProcessKind
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, VmId
from virtha.model.policy import Policy
from virtha.model.power import PowerDeviceId
from virtha.model.time import Millis
from virtha.model.value import Scalar
from virtha.model.vm import Reason, VmState

ABSENT = frozenset({Verdict.SUSPECT, Verdict.DEAD_UNPROVEN, Verdict.DEAD_PROVEN})
"""Counted by the brake (J5)."""
UNSETTLED = frozenset({VmStage.LOST, VmStage.READY, VmStage.STARTING, VmStage.CANCELLING})
"""A recovery of it is under way."""


class HostNode:
    """One host: its record, and the evidence about it, all of it by the engine's own clock."""

    __slots__ = (
        "agent_alive",
        "asked_ms",
        "blind",
        "broken_ms",
        "config",
        "contradicted",
        "cutting",
        "disks_changed_ms",
        "due_ms",
        "early",
        "investigated",
        "leaving_ms",
        "libvirt_answers",
        "named_ms",
        "neighbours",
        "newcomer_round",
        "newcomers",
        "observe_from_ms",
        "off_since",
        "poison_sent",
        "power",
        "power_asked_ms",
        "quiet_rounds",
        "reader_rounds",
        "reasons",
        "record",
        "round",
        "rounds_asked",
        "saved",
        "sent",
        "sent_ms",
        "sessions",
        "sign_ms",
        "slot_ms",
        "survey",
        "untold",
        "verdict",
        "verdict_ms",
        "withheld",
        "witnessed_ms",
    )

    def __init__(self, config: EngineHost, record: HostRecord, now: Millis) -> None:
        self.config = config
        self.record = record
        self.saved: HostRecord | None = None
        self.sessions: dict[ProcessKind, BootId] = {}
        self.sign_ms: Millis | None = None
        """Last direct sign of life in this term: a beat or a session."""
        self.agent_alive = False
        self.broken_ms: Millis | None = None
        self.observe_from_ms: Millis = now
        self.neighbours: dict[tuple[HostId, str], tuple[Answer, Millis]] = {}
        self.disks_changed_ms: Millis | None = None
        self.quiet_rounds = 0
        self.rounds_asked = 0
        """In this suspicion; ``quiet_rounds`` of them came back without a change, in ``reader_rounds`` somebody read its disks."""
        self.reader_rounds = 0
        self.blind = False
        """Nobody could be asked to read its disks, so soon after we began that this may change by itself (J3)."""
        self.round = 0
        self.newcomers: set[HostId] = set()
        """Hosts that came within reach since it fell silent: each may see what none of the others could."""
        self.newcomer_round = 0
        """The round in which the last of them came."""
        self.investigated = False
        """Witnesses are being asked about it."""
        self.asked_ms: Millis | None = None
        self.named_ms: Millis | None = None
        """When a slot or a neighbour's answer last named the present boot."""
        self.slot_ms: Millis | None = None
        self.witnessed_ms: Millis | None = None
        """Last authenticated answer of this boot to any neighbour (J2)."""
        self.poison_sent = False
        """By this process; a recorded poison that was not is sent (again)."""
        self.power: dict[PowerDeviceId, tuple[PowerState, Millis]] = {}
        self.off_since: dict[PowerDeviceId, Millis] = {}
        """Of devices whose last readings were all *off*: the first of them."""
        self.power_asked_ms: Millis | None = None
        self.sent: OrderId | None = None
        """The power order that this process has sent: another one in the record is sent (again)."""
        self.sent_ms: Millis | None = None
        """When that went out: not before it was written, which may take long."""
        self.contradicted = False
        """A sign of a boot that was proven dead was told."""
        self.cutting = Asking()
        self.survey: HostSurveyed | None = None
        self.early: dict[str, VmSeen | HostSurveyed] = {}
        """Facts of a boot that has not begun, by VM; the survey's key is empty."""
        self.untold = config.untold
        """It may run what restored records have lost: its silence doesn't do, only proof that it is dead does (M2). How far
        it is with telling is in its record."""
        self.libvirt_answers = True
        self.leaving_ms: Millis | None = None
        """When it last gave a VM back because it is being shut down."""
        self.verdict = Verdict.UNKNOWN
        self.verdict_ms: Millis = now
        self.reasons: tuple[Reason, ...] = ()
        self.due_ms: Millis | None = None
        self.withheld: tuple[str, Millis] | None = None
        """By which reason nothing is done about its failure, and since when."""

    @property
    def id(self) -> HostId:
        return self.config.host_id

    def set(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)

    def set_incident(self, **changes: Any) -> None:
        assert self.record.incident is not None, f"{self.config.name}: no incident to change"
        self.set(incident=replace(self.record.incident, **changes))

    def forget_investigation(self) -> None:
        """A new suspicion begins with no witness heard."""
        self.neighbours.clear()
        self.newcomers.clear()
        self.quiet_rounds = self.rounds_asked = self.reader_rounds = 0
        self.blind = False
        self.asked_ms = self.power_asked_ms = None
        self.power.clear()
        self.off_since.clear()


class VmNode:
    """One VM: its record, what its host reports of it, and why it is not being recovered."""

    __slots__ = (
        "asked_ms",
        "asked_words",
        "blocked_told",
        "config",
        "due_ms",
        "fits_ms",
        "guest_agent",
        "half",
        "io_error",
        "kill_answer",
        "kill_sent_ms",
        "no_room",
        "paused_ms",
        "reasons",
        "record",
        "saved",
        "seen",
        "sent",
        "stands",
        "state",
        "state_host",
        "unanswered",
    )

    def __init__(self, config: EngineVm, record: VmRecord) -> None:
        self.config = config
        self.record = record
        self.saved: VmRecord | None = None
        self.state = VmState.UNKNOWN
        self.state_host: HostId | None = None
        self.blocked_told: str | None = None
        """The obstacle that was last told of."""
        self.seen: dict[HostId, tuple[Incarnation, VmState]] = {}
        """What each holder last said of it."""
        self.sent: OrderId | None = None
        self.unanswered: HostId | None = None
        """The start, its cancellation or the move that this process has sent, and who has to answer that move's order next."""
        self.asked_words: tuple[MigrationWord | None, ...] = ()
        """What source and target of its migration were last told by this process, and when."""
        self.asked_ms: Millis | None = None
        self.half: VmSeen | None = None
        """Of a migration that the records have lost: what its target says that it awaits (``halves``)."""
        self.stands: VmSeen | None = None
        """What its source says, which stands still."""
        self.guest_agent: bool | None = None
        self.io_error = self.no_room = False
        self.paused_ms: Millis | None = None
        """Since when this leader knows that an I/O error keeps it paused."""
        self.fits_ms: Millis | None = None
        """Since when another host could take it, all that time."""
        self.kill_sent_ms: Millis | None = None
        """When the order to end it went out last."""
        self.kill_answer: str | None = None
        """Why its host did not end it, as it said last."""
        self.reasons: tuple[Reason, ...] = ()
        self.due_ms: Millis | None = None

    @property
    def id(self) -> VmId:
        return self.config.vm_id

    @property
    def protected(self) -> bool:
        return self.config.ha and self.config.wanted_up and not self.config.ignore


class Cluster:
    """All of one cluster."""

    def __init__(self, *, policy: Policy, records: EngineRecords, now: Millis) -> None:
        self.policy = policy
        self.now = now
        self.record: ClusterRecord = records.cluster
        self.saved_record: ClusterRecord | None = None
        self.kept_hosts = {record.host_id: record for record in records.hosts}
        self.changed_kept: set[HostId] = set()
        """Whose kept records are to be saved."""
        self.fresh = True
        """What is configured is not known yet."""
        self.kept_vms = {record.vm_id: record for record in records.vms}
        self.began_ms = self.paced_ms = now
        """Since when it watches without having been asleep, in this term (J1); when it last asked for beats more often."""
        self.lease_until_ms = int(now)
        self.reference: bool | None = None
        self.reference_ms: Millis | None = None
        """When that was told: what was reached long ago says nothing of now (J4)."""
        self.just_ordered: set[HostId] = set()
        """Hosts whose power orders were handed out in the last step: sent by the time of the next one."""
        self.storage_out: dict[StorageDomainId, Millis | None] = {}
        """Domains that some host lacks which needs them; since when most do, or None: most see it."""
        self.not_shared: dict[StorageDomainId, tuple[HostId, HostId]] = {}
        """Domains that are not the same for all: who did not see there what whom wrote."""
        self.storage_told = False
        """In this step a host said something of its storage that may change whose lease is waived."""
        self.steady_since_ms: Millis | None = None
        """While the brake holds: since when a majority of the survivors sees its storage."""
        self.hosts: dict[HostId, HostNode] = {}
        self.rings = Rings()
        self.vms: dict[VmId, VmNode] = {}
        self.vms_on: dict[HostId, set[VmId]] = {}
        """By the copies in the records: who may hold what."""
        self.absent: set[HostId] = set()
        self.arrivals: list[tuple[HostId, bool]] = []
        """Hosts that came within reach, in order, and whether what each saw before counts no more; absent ones ``take_up`` them late."""
        self.arrivals_from: dict[HostId, int] = {}
        """How many of them each absent host has taken up, or is not to; none where nothing is said."""
        self.fallen_ms: dict[HostId, Millis] = {}
        """When each host last became absent; for the brake's window and swapped addresses."""
        self.capacity = Capacity(overcommit_percent=policy.recovery.memory_overcommit_percent)
        self.dirty_hosts: set[HostId] = set()
        """To be looked at in this step."""
        self.dirty_vms: set[VmId] = set()
        self.begun: set[HostId] = set()
        """Hosts of which a boot began in this step."""
        self.changed_hosts: set[HostId] = set()
        """Whose records may have to be saved."""
        self.changed_vms: set[VmId] = set()
        self.ready: set[VmId] = set()
        self.unsettled: set[VmId] = set()
        self.migrating: set[VmId] = set()
        self.paused: set[VmId] = set()
        """On an I/O error, or being ended for one."""
        self.homesick: set[VmId] = set()
        """Away from their home."""
        self.drains: set[HostId] = set()
        """Hosts that VMs are to leave, or have left."""
        self.awaited: set[HostId] = set()
        """Hosts that this leader knows from the records, or reaches, and that have not told what they hold (M2)."""
        self.cut_removed: dict[HostId, CutRemoved] = {}
        self.plan_wanted = False
        """Something changed that may let a waiting VM start."""
        self.questions = 0
        self._due: list[tuple[int, int, HostId | VmId]] = []
        self.notices: list[Notice] = []
        self.commands: list[Command] = []
        self.moves_asked: list[MoveAsked] = []
        """In this step, by operators; ordered or refused at its end, when every host was looked at."""
        self.dropped_hosts: list[HostId] = []
        self.dropped_vms: list[VmId] = []

    @property
    def present(self) -> Ring:
        """Verdict alive, with a sign in this term: who can be asked, and J4's majority."""
        return self.rings.present

    @property
    def hold(self) -> str | None:
        """Why nothing is done of its own accord, by the operator's will."""
        return self.record.hold

    # Time and change

    def begin(self, now: Millis) -> None:
        assert now >= self.now, f"time went back from {self.now} to {now}"
        self.now = now
        for host_id in sorted(self.just_ordered):
            # A step begins when all that the one before ordered has been written and sent.
            if host_id in self.hosts:
                self.hosts[host_id].sent_ms = now
        self.just_ordered.clear()
        self.notices, self.commands = [], []
        self.dropped_hosts, self.dropped_vms = [], []

    def touch(self, node: HostNode) -> None:
        host_id = node.id
        self.dirty_hosts.add(host_id)
        self.changed_hosts.add(host_id)

    def touch_vm(self, node: VmNode) -> None:
        self.dirty_vms.add(node.id)
        self.changed_vms.add(node.id)

    def wake_host(self, node: HostNode, at: int) -> None:
        """Look at it again at ``at``, or at an earlier time that was asked for."""
        at = max(at, int(self.now) + 1)
        if node.due_ms is None or at < node.due_ms:
            node.due_ms = Millis(at)
            heapq.heappush(self._due, (at, 0, node.id))

    def wake_vm(self, node: VmNode, at: int) -> None:
        at = max(at, int(self.now) + 1)
        if node.due_ms is None or at < node.due_ms:
            node.due_ms = Millis(at)
            heapq.heappush(self._due, (at, 1, node.id))

    def collect_due(self) -> None:
        """What is due now counts as changed."""
        while self._due and self._due[0][0] <= self.now:
            at, kind, key = heapq.heappop(self._due)
            if kind == 0:
                host = self.hosts.get(HostId(key))
                if host is not None and host.due_ms == at:
                    host.due_ms = None
                    self.touch(host)
            else:
                vm = self.vms.get(VmId(key))
                if vm is not None and vm.due_ms == at:
                    vm.due_ms = None
                    self.touch_vm(vm)

    def wake_at(self) -> Millis | None:
        while self._due:
            at, kind, key = self._due[0]
            node = self.hosts.get(HostId(key)) if kind == 0 else self.vms.get(VmId(key))
            if node is not None and node.due_ms == at:
                return Millis(at)
            heapq.heappop(self._due)
        return None

    # Records

    def set_vm(self, node: VmNode, **changes: Any) -> None:
        """Change its record, and the index of who may hold it."""
        before = {copy.host_id for copy in node.record.copies}
        record = node.record = replace(node.record, **changes)
        if record.guessed and not set(record.guessed) <= set(record.copies):
            left = tuple(one for one in record.guessed if one in record.copies)
            node.record = record = replace(record, guessed=left)
        if record.superseded:
            due = tuple(one for one in record.superseded if one.copy in record.copies)
            node.record = replace(record, superseded=due)
        after = {copy.host_id for copy in node.record.copies}
        if before - after:
            self.plan_wanted = True  # there is room now
        for host_id in before - after:
            self.vms_on[host_id].discard(node.id)
            self.capacity.vm_ended(host_id, node.id)
            node.seen.pop(host_id, None)
            self.plan_wanted = True
        starting = node.record.stage in (VmStage.STARTING, VmStage.CANCELLING)
        for host_id in after - before:
            self.vms_on.setdefault(host_id, set()).add(node.id)
            self.capacity.vm_started(host_id, held(node.config), in_flight=starting)
        if not starting:
            for host_id in after:
                self.capacity.start_finished(host_id, node.id)
        self.index_vm(node)
        self.touch_vm(node)

    def index_vm(self, node: VmNode) -> None:
        """List it by its stage."""
        stage = node.record.stage
        if node.id in self.unsettled and stage not in UNSETTLED:
            self.plan_wanted = True  # moves wait for calm
        _member(self.ready, node.id, stage is VmStage.READY)
        _member(self.unsettled, node.id, stage in UNSETTLED)
        _member(self.migrating, node.id, stage is VmStage.MIGRATING)
        _member(self.homesick, node.id, node.record.home is not None)
        _member(self.paused, node.id, node.paused_ms is not None or node.record.kill is not None)

    def forget_vm(self, vm_id: VmId) -> None:
        for group in (self.ready, self.unsettled, self.migrating, self.homesick, self.paused):
            group.discard(vm_id)

    def move_vm(self, node: VmNode, trigger: VmTrigger, **changes: Any) -> bool:
        """False: not expected in this stage, and nothing was changed."""
        stage = next_stage(node.record.stage, trigger)
        if stage is None:
            return False
        self.set_vm(node, stage=stage, **changes)
        return True

    def vms_held_by(self, host_id: HostId) -> list[VmNode]:
        """Sorted by id, so that the same events give the same decision."""
        return [
            self.vms[vm_id] for vm_id in sorted(self.vms_on.get(host_id, ())) if vm_id in self.vms
        ]

    def host_name(self, host_id: HostId) -> str:
        """What people call it; its id where it is not configured (any more)."""
        node = self.hosts.get(host_id)
        return host_id if node is None else node.config.name

    def next_order(self) -> OrderId:
        self.record = replace(self.record, orders=self.record.orders + 1)
        return OrderId(f"{self.record.term}.{self.record.orders}")

    def next_question(self) -> OrderId:
        """Of this process only: a question changes nothing, so nobody needs to find it again."""
        self.questions += 1
        return OrderId(f"{self.record.term}.q{self.questions}")

    def next_incident(self) -> int:
        self.record = replace(self.record, incidents=self.record.incidents + 1)
        return self.record.incidents

    def await_survey(self, node: HostNode) -> None:
        """Nothing starts anywhere until it has told what it holds, or is proven dead (M2)."""
        self.awaited.add(node.id)

    def await_no_more(self, host_id: HostId) -> None:
        """It has told, or nobody has to wait for it. With the last one go the starts that this leader found on record:
        nothing else would have them looked at before they are overdue."""
        if host_id not in self.awaited:
            return
        self.awaited.discard(host_id)
        if not self.awaited:
            for vm_id in self.unsettled:
                self.touch_vm(self.vms[vm_id])

    # Saying

    def tell(
        self, code: str, *, host: HostNode | None = None, vm: VmNode | None = None, **fields: Scalar
    ) -> None:
        """An event of the registry; ``host`` and ``vm`` fill the fields of that name."""
        named: dict[str, Scalar] = {}
        if host is not None:
            named["host"] = host.config.name
        if vm is not None:
            named["vm"] = vm.config.name
        incident = host.record.incident if host is not None else None
        self.notices.append(
            Notice(
                code=code,
                host_id=host.id if host is not None else None,
                vm_id=vm.id if vm is not None else None,
                incident=incident.number if incident is not None else None,
                fields={**named, **fields},
            )
        )

    def order(self, command: Command) -> None:
        self.commands.append(command)

    def ordered_commands(self) -> tuple[Command, ...]:
        """Power first: fencing has its own lane."""
        return tuple(sorted(self.commands, key=lane_of))

    # Verdicts, counted

    def list_host(self, node: HostNode) -> None:
        """After its number, its verdict or its sessions have become others."""
        self.rings.note(node.id, node.config.number, node.verdict, node.sessions)

    def note_verdict(self, node: HostNode, verdict: Verdict) -> None:
        if verdict is node.verdict:
            return
        node.verdict, node.verdict_ms = verdict, self.now
        if verdict in ABSENT and node.id not in self.absent:
            self.fallen_ms[node.id] = self.now
            self.arrivals_from[node.id] = len(self.arrivals)
        elif verdict not in ABSENT:
            self.take_up(node)
            self.arrivals_from.pop(node.id, None)
        _member(self.absent, node.id, verdict in ABSENT)
        was_present = node.id in self.present
        self.list_host(node)
        if node.id in self.present and not was_present:
            self._note_newcomer(node)
        self.plan_wanted = True

    def _note_newcomer(self, newcomer: HostNode) -> None:
        """To every host that is silent. Again only after it was away for so long that what it saw before counts no more:
        one which comes and goes can't put off a fence for ever."""
        away_ms = self.now - self.fallen_ms.get(newcomer.id, self.now)
        outdated = away_ms > self.policy.detection.evidence_max_age_ms
        if self.absent:
            self.arrivals.append((newcomer.id, outdated))
        if len(self.arrivals) > 2 * len(self.hosts):
            self.all_take_up()

    def take_up(self, node: HostNode) -> None:
        """What came within reach since the last time, if it is absent. Before its next round, and whenever it is asked for."""
        if node.id not in self.absent:
            return
        first = self.arrivals_from.get(node.id, 0)
        for host_id, outdated in self.arrivals[first:]:
            if outdated or host_id not in node.newcomers:
                node.newcomers.add(host_id)
                node.newcomer_round = node.round
        self.arrivals_from[node.id] = len(self.arrivals)

    def all_take_up(self) -> None:
        for host_id in self.absent:
            self.take_up(self.hosts[host_id])
        self.arrivals.clear()
        self.arrivals_from.clear()

    def forget_investigation(self, node: HostNode) -> None:
        """A new suspicion begins with no witness heard, and with nobody who came before it."""
        self.forget_newcomers(node)
        node.forget_investigation()

    def forget_newcomers(self, node: HostNode) -> None:
        node.newcomers.clear()
        if node.id in self.absent:
            self.arrivals_from[node.id] = len(self.arrivals)


def held(config: EngineVm) -> HeldVm:
    """The VM as its host's ledger counts it."""
    groups = tuple(group.id for group in config.groups)
    return HeldVm(id=config.vm_id, memory_bytes=config.memory_bytes, groups=groups)


_Id = TypeVar("_Id", HostId, VmId)


def _member(group: set[_Id], one: _Id, belongs: bool) -> None:
    if belongs:
        group.add(one)
    else:
        group.discard(one)


def reason(code: str, **fields: Scalar) -> Reason:
    return Reason(code=code, fields=fields)
