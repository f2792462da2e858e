"""A small server: holders, incarnations, orders that are sent again, facts acknowledged in order.

It stands in for the real one (``virtha.control``) and starts nothing by itself: that is the engine's, where a
world has one (``virtha.sim.failover``), whose records lie in ``table`` and are mirrored into the VMs' holders.
Everything here is in its database and survives the process; sessions are ``virtha.sim.gateway``'s.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from virtha.engine.events import CopyGranted
from virtha.engine.records import VmRecord, VmStage
from virtha.engine.superseded import frozen_holders
from virtha.model.domain import DomainReport, DomainState
from virtha.model.errors import Unavailable
from virtha.model.facts import (
    Fact,
    Happened,
    Inventory,
    Outcome,
    Released,
    Result,
    VmReport,
)
from virtha.model.host import HostState
from virtha.model.ids import BootId, HostId, Incarnation, OperationId, Term, VmId
from virtha.model.orders import Grant, HeldVm, HostSettings, Order, OrderBody, StartVm
from virtha.model.policy import Policy
from virtha.model.value import Fields, Scalar, Value
from virtha.model.vm import Vm, VmState
from virtha.sim.engine_table import EngineTable, Lead
from virtha.sim.line import INSTALLATION
from virtha.sim.pending_orders import PendingOrder, subject_of
from virtha.sim.placing import Placing

LIST_MARGIN_MS = 10_000
"""As ``virtha.control.copies``: how much older than its fact an inventory's list may be."""
VOID_AFTER_MS = 60_000
_STOPPED = (VmState.DOWN, VmState.CRASHED, VmState.UNKNOWN)
_RUNS = (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING)
_REFUSED_FOR = ("order.refused.running", "order.refused.incarnation")


class HistoryEntry(Value, frozen=True, kw_only=True):
    """``at_ms``: when it was said on the host, in the world's time."""

    at_ms: int
    code: str
    subject: str
    fields: Fields = {}
    host: str = ""
    sequence: int = 0
    """Of the fact that said it; empty where the server itself did."""
    by_engine: bool = False


class ServerVm:
    def __init__(self, vm: Vm, host: str) -> None:
        self.vm = vm
        self.host = host
        self.holders: set[str] = set()
        self.superseded: set[str] = set()
        """Holders whose copies are to be left as they are (G4)."""
        self.incarnation = Incarnation(0)
        self.ordered = Incarnation(0)
        """The highest that was given out; ``incarnation`` is above it when another host superseded it."""
        self.copies: dict[str, dict[Incarnation, Grant | None]] = {}
        """Starts of each holder whose end it has not told."""
        self.state = VmState.DOWN
        self.wanted_up = False
        self.managed = True
        self.placing = Placing()
        self.report: VmReport | None = None
        """The last that counted; None: what it does is not known."""
        self.reports: dict[str, VmReport] = {}
        """The last of each host."""

    def of(self, host: str) -> dict[Incarnation, Grant | None]:
        return self.copies.setdefault(host, {})

    def drop(self, host: str) -> None:
        self.holders.discard(host)
        self.copies.pop(host, None)

    def release(self, host: str, incarnation: Incarnation, boot: BootId | None) -> None:
        """A host stays a holder until each of its starts has ended (see ``virtha.control.copies``)."""
        if self.incarnation > self.ordered or host not in self.holders:
            return  # superseded from elsewhere: it settles nothing
        mine = self.of(host)
        if not mine:
            if incarnation >= self.incarnation:
                self.drop(host)
            return
        gone = [one for one in mine if one == incarnation or self._died(one, mine[one], boot)]
        for one in gone:
            del mine[one]
        if not mine:
            self.drop(host)

    def reported(self, host: str, incarnation: Incarnation) -> None:
        """The host has a record of it: it takes one only when no earlier copy is there."""
        mine = self.of(host)
        if not mine:
            return
        for one in [one for one in mine if one < incarnation]:
            del mine[one]
        if incarnation > self.incarnation:
            mine[incarnation] = None
        if not mine:
            self.drop(host)

    def seen_off(self, host: str, boot: BootId, at_ms: int, present: BootId | None) -> None:
        """Not active in a full list: that ends earlier starts whose grants were over by then."""
        mine = self.of(host)
        gone = [
            one
            for one, grant in mine.items()
            if one < self.incarnation
            and grant is not None
            and (
                self._died(one, grant, present)
                or (grant.boot == boot and at_ms >= grant.ends_at_ms + LIST_MARGIN_MS)
            )
        ]
        for one in gone:
            del mine[one]
        if gone and not mine:
            self.drop(host)

    def held_incarnation(self, host: str) -> Incarnation:
        superseded = self.incarnation > self.ordered or host in self.superseded
        if self.state is VmState.STARTING or superseded:
            return self.incarnation
        return min(self.of(host), default=self.incarnation)

    def start_over(self, *, unclear: bool) -> None:
        if self.state is VmState.STARTING:
            self.state = VmState.UNKNOWN if unclear else VmState.DOWN

    def _died(self, one: Incarnation, grant: Grant | None, present: BootId | None) -> bool:
        """P4, for earlier starts: the newest one's end is its host's to say."""
        if grant is None or present is None:
            return False
        return one < self.incarnation and grant.boot != present


class SimServer:
    """``clock``: the world's. ``wall_epoch_ms``: what its wall clocks add to it."""

    _KEPT = (
        "vms",
        "policy",
        "hold",
        "history",
        "pending",
        "recorded",
        "acknowledged",
        "boots",
        "states",
        "timelines",
        "timeline",
        "term",
        "revision",
        "table",
    )

    def __init__(self, clock: Callable[[], int], *, wall_epoch_ms: int) -> None:
        self._clock = clock
        self._epoch_ms = wall_epoch_ms
        self._operations = 0
        self._restores = 0
        self.vms: dict[VmId, ServerVm] = {}
        self.policy = Policy()
        self.hold: str | None = None
        self.history: list[HistoryEntry] = []
        self.pending: dict[OperationId, PendingOrder] = {}
        self.recorded: dict[str, int] = {}
        """The last of each host's facts that is in the records."""
        self.acknowledged: dict[str, int] = {}
        """The last that it may forget: what the engine makes of it is in its records as well."""
        self.boots: dict[str, BootId] = {}
        self.states: dict[str, HostState] = {}
        self.timelines: dict[str, int] = {}
        self.timeline = 0
        self.term = Term(0)
        self.revision = 0
        self.table = EngineTable()
        self.on_fact: Callable[[str, Fact, bool], None] = lambda _host, _fact, _made_after: None
        """After each is recorded, and of one that comes again; the flag: see ``made_after``."""
        self.on_grant: Callable[[CopyGranted], None] = lambda _granted: None
        """Of an operator's order, after the transaction that makes that host a holder."""
        self.settings_due = False
        """What a host is told has changed: after this transaction all get their settings."""

    # The database as a whole

    def backup(self) -> dict[str, Any]:
        return {name: copy.deepcopy(getattr(self, name)) for name in self._KEPT}

    def restore(self, backup: dict[str, Any]) -> None:
        """A new timeline: nothing starts before every host has told its inventory in it (M2)."""
        for name, value in backup.items():
            setattr(self, name, copy.deepcopy(value))
        self._restores += 1
        self.timeline = self._restores

    @property
    def lead(self) -> Lead:
        return Lead(self.timeline, self.term)

    def untold(self, host: str) -> bool:
        """Whether it has not told what it runs in this timeline of the database (M2)."""
        return self.timelines.get(host, 0) != self.timeline

    def changed(self) -> None:
        self.revision += 1
        self.settings_due = True

    def say(self, code: str, subject: str, *, by_engine: bool = False, **fields: Scalar) -> None:
        self.history.append(
            HistoryEntry(
                at_ms=self._clock(),
                code=code,
                subject=subject,
                fields={**fields},
                by_engine=by_engine,
            )
        )

    def mirror(self, record: VmRecord) -> None:
        """What the engine wrote of a VM: who may hold it, and as what. An operator's start that this turn
        was not told of keeps its host."""
        known = self.vms[record.vm_id]
        ordered = {
            str(one.host_id)
            for one in self.table.granted_of(record.vm_id)
            if one.incarnation in known.copies.get(one.host_id, ())
        }
        held: dict[str, list[Incarnation]] = {}
        for copy_ in record.copies:
            held.setdefault(copy_.host_id, []).append(copy_.incarnation)
        before = (known.holders.copy(), known.incarnation, known.superseded)
        known.superseded = {*map(str, frozen_holders(record))}
        for host in known.holders - set(held) - ordered:
            known.drop(host)
        for host, incarnations in held.items():
            known.holders.add(host)
            for incarnation in incarnations:
                known.of(host).setdefault(incarnation, None)
        if held:
            # A migration that failed has counted on, and its source still holds what it held.
            held_as = [copy_.incarnation for copy_ in record.copies]
            newest = max(held_as) if record.migration is None else min(held_as)
            if record.superseded:
                newest = record.incarnation  # also when the newer copy is over: it may have written
            known.incarnation = known.incarnation if ordered else newest
            known.ordered = max(known.incarnation, newest)
        if record.start is not None and record.stage is VmStage.STARTING and not ordered:
            known.host, known.state = record.start.host_id, VmState.STARTING
        if known.host not in known.holders and record.copies != ():
            known.report = None  # what its former host said of it last is no longer how it is
            self._follow(known, record)
        if record.copies == () and known.report is None:
            last = known.reports.get(known.host)
            known.report = last if last is not None and last.state is VmState.DOWN else None
        if before != (known.holders, known.incarnation, known.superseded):
            self.changed()

    def _follow(self, known: ServerVm, record: VmRecord) -> None:
        """It was moved, and its former host spoke last."""
        if record.stage is not VmStage.SETTLED or len(known.holders) != 1:
            return
        (host,) = known.holders
        report = known.reports.get(host)
        if report is not None and report.incarnation == known.incarnation:
            known.report, known.state, known.host = report, report.state, host

    # Hosts

    def followed(self, term: Term) -> bool:
        """A host did, under another server; 0: none. Whether that is one that our records don't know, as those of a
        restored database do not (M1). They count on from there."""
        later = bool(term) and term >= self.term
        if later:
            self.term = Term(term + 1)
        return later

    def hello(self, host: str, *, boot: BootId, last: int) -> int:
        """The agent's. Returns the last of its facts that it need not send again."""
        known = self.acknowledged.get(host, 0)
        if last < known:
            self.say("host.outbox.truncated", host)
        if self.boots.get(host) != boot:
            self.boots[host] = boot
        self.revision += 1
        self.judged(host, HostState.UP)
        if last <= self.recorded.get(host, 0):
            self.void_starts(host)
        return known

    def judged(self, host: str, state: HostState) -> None:
        before = self.states.get(host, HostState.UP)
        self.states[host] = state
        if before is state:
            return
        if before is HostState.UNREACHABLE:
            self.say("host.reachable", host)
        if before is HostState.AGENT_DOWN and state is HostState.UP:
            self.say("host.agent.up", host)
        if state is HostState.AGENT_DOWN:
            self.say("host.agent.down", host)
        if state is HostState.UNREACHABLE:
            self.say("host.unreachable", host)

    # Facts in

    def record_facts(
        self, host: str, facts: Sequence[Fact], made_after: Callable[[Fact], bool]
    ) -> int:
        """Those recorded already are skipped. Returns the last. ``made_after``: see ``HelloBook``."""
        last = self.recorded.get(host, 0)
        for fact in facts:
            if fact.sequence <= last:
                self.on_fact(host, fact, made_after(fact))
                continue
            if fact.sequence > last + 1:
                self.say("host.facts.lost", host, count=fact.sequence - last - 1)
            self._record(host, fact, made_after)
            self.on_fact(host, fact, made_after(fact))
            last = fact.sequence
        self.recorded[host] = last
        return last

    def _record(self, host: str, fact: Fact, made_after: Callable[[Fact], bool]) -> None:
        match fact.body:
            case Happened(code=code, vm_id=vm_id, fields=fields):
                known = self.vms.get(vm_id) if vm_id else None
                at_ms, subject = fact.wall_ms - self._epoch_ms, known.vm.name if known else host
                self.history.append(
                    HistoryEntry(
                        at_ms=at_ms,
                        code=code,
                        subject=subject,
                        fields=fields,
                        host=host,
                        sequence=fact.sequence,
                    )
                )
            case VmReport() as report:
                self._reported(host, report)
            case Released(vm_id=vm_id, incarnation=incarnation):
                known = self.vms.get(vm_id)
                if known is not None:
                    known.release(host, incarnation, self.boots.get(host))
                    self.changed()
            case Inventory(domains=domains):
                if made_after(fact):
                    self.timelines[host] = self.timeline
                if fact.boot == self.boots.get(host):
                    self._inventory(host, fact, domains)
            case Outcome(operation_id=operation_id) as outcome:
                order = self.pending.pop(operation_id, None)
                if order is not None and outcome.result is not Result.OK:
                    self._tell_failed(order, outcome.code or outcome.result.value)
                    self._failed(order, outcome)

    def _reported(self, host: str, report: VmReport) -> None:
        known = self.vms.get(report.vm_id)
        if known is None or not self._counts(known, host, report.incarnation):
            return
        if host not in known.holders and host != known.host:
            return
        known.reports[host] = report
        held = (known.holders.copy(), dict(known.of(host)))
        known.reported(host, report.incarnation)
        known.incarnation = max(known.incarnation, report.incarnation)
        known.ordered = max(known.ordered, report.incarnation)
        known.report, known.state, known.host = report, report.state, host
        if held != (known.holders, known.of(host)):
            self.changed()

    def _counts(self, known: ServerVm, host: str, incarnation: Incarnation) -> bool:
        """Whether a host's report of that incarnation says how the VM is."""
        if incarnation >= known.incarnation:
            return True
        if known.state is VmState.STARTING:
            return False
        return incarnation in known.of(host) or not known.holders

    # Inventories: they end doubts, and tell of copies that nobody granted

    def _inventory(self, host: str, fact: Fact, domains: tuple[DomainReport, ...]) -> None:
        active = {one.vm_id for one in domains if one.state is not DomainState.SHUTOFF}
        for vm_id, known in self.vms.items():
            if not known.managed:
                continue
            if vm_id in active and host not in known.holders:
                known.holders.add(host)
                self.say("vm.unmanaged_copy", known.vm.name)
                self.changed()
            elif vm_id not in active and host in known.holders:
                self._inactive(host, fact, known)

    def _inactive(self, host: str, fact: Fact, known: ServerVm) -> None:
        held = known.holders.copy()
        known.seen_off(host, fact.boot, fact.monotonic_ms, self.boots.get(host))
        if (host != known.host or not known.incarnation) and not known.of(host):
            # That copy is gone. It had no grant and no record there, so nothing starts it again.
            known.drop(host)
        if host == known.host and known.state in _RUNS:
            known.state = VmState.UNKNOWN
        if held != known.holders:
            self.changed()

    # Answers

    def _tell_failed(self, order: PendingOrder, detail: str) -> None:
        vm_id = subject_of(order.body)
        if order.by_person and vm_id in self.vms:
            kind = type(order.body).__name__
            self.say("operation.failed", self.vms[vm_id].vm.name, kind=kind, detail=detail)

    def _failed(self, order: PendingOrder, outcome: Outcome) -> None:
        """A holder goes by its durable release, never by an outcome (G1)."""
        if not isinstance(order.body, StartVm):
            return
        host, asked = order.host, order.body.grant.incarnation
        known, current = self.vms[order.body.vm.id], outcome.fields.get("current")
        runs = outcome.code == "order.refused.running"
        if known.incarnation != asked:
            return
        earlier = any(one != asked for one in known.of(host))
        known.start_over(unclear=outcome.result is Result.UNKNOWN or runs or earlier)
        self.changed()
        refused = outcome.result is Result.REFUSED and outcome.code in _REFUSED_FOR
        if not refused or not isinstance(current, int):
            return
        # The refused incarnation never was, the host's own is current: what it is doing is not
        # known before its next report.
        known.incarnation = known.ordered = Incarnation(current)
        known.of(host).pop(asked, None)
        if host in known.holders:
            known.of(host).setdefault(known.incarnation, None)
        if runs:
            known.report = None

    # Orders out

    def order(
        self,
        host: str,
        body: OrderBody,
        *,
        operation_id: OperationId | None = None,
        by_person: bool = False,
    ) -> PendingOrder:
        """``operation_id``: of an order that may have been given before; else it is a new one."""
        self._operations += 1
        order = PendingOrder(
            operation_id=operation_id or OperationId(f"op-{self._operations}"),
            host=host,
            body=body,
            created_ms=self._clock(),
            by_person=by_person,
        )
        self.pending[order.operation_id] = order
        return order

    def objection(self, vm_id: VmId, host: str) -> str | None:
        """Why a start on that host is refused; None: it may be ordered."""
        known = self.vms[vm_id]
        if any(timeline != self.timeline for timeline in self.timelines.values()):
            return "a host has not told its inventory since the restore"
        if known.holders - {host}:
            return "held elsewhere"
        if known.state not in _STOPPED:
            return f"it is {known.state}"
        if any(subject_of(order.body) == vm_id for order in self.pending.values()):
            return "an order about it has not ended"
        return None

    def grant(self, vm_id: VmId, host: str, grant: Grant) -> Grant:
        """Target into the holder set before the order goes out, where the next leader finds it too (G1)."""
        known = self.vms[vm_id]
        mine = known.of(host)
        if host in known.holders and not mine and known.incarnation:
            # Adopted there, or seen there by an inventory.
            mine[known.incarnation] = grant
        known.holders.add(host)
        known.host = host
        counted = self.table.vms.get(vm_id)
        newest = max(known.incarnation, counted.incarnation if counted is not None else 0)
        known.incarnation = known.ordered = Incarnation(newest + 1)
        grant = replace(grant, incarnation=known.incarnation)
        for one, old in list(mine.items()):
            # The last start of a former boot may have been sent again, with a grant of this one.
            if old is not None and old.boot != grant.boot and one != known.incarnation - 1:
                del mine[one]
        # Grants given before end before this one: they quoted an older beat.
        known.copies[host] = dict.fromkeys((*mine, known.incarnation), grant)
        known.wanted_up, known.state = True, VmState.STARTING
        granted = CopyGranted(
            host_id=HostId(host), boot=grant.boot, vm_id=vm_id, incarnation=grant.incarnation
        )
        self.table.granted.append(granted)
        self.on_grant(granted)
        self.changed()
        return grant

    def still_stands(self, order: PendingOrder) -> bool:
        """A start stands while its host is held to have that very incarnation: sent again after its
        release, it could be a second copy (G1)."""
        if not isinstance(order.body, StartVm):
            return True
        grant, known = order.body.grant, self.vms[order.body.vm.id]
        if order.host not in known.holders or known.incarnation != grant.incarnation:
            return False
        return grant.incarnation in (known.of(order.host) or {grant.incarnation})

    def void_starts(self, host: str) -> None:
        """End this host's starts that may not be sent again: it released them and did not answer."""
        for order in self.unanswered(host):
            if isinstance(order.body, StartVm) and not self.still_stands(order):
                del self.pending[order.operation_id]
                self._tell_failed(order, Unavailable.default_code)
                known = self.vms[order.body.vm.id]
                if known.incarnation == order.body.grant.incarnation:
                    known.start_over(unclear=bool(known.holders))
                    self.changed()

    def expire(self) -> None:
        late = {
            order.host
            for order in self.pending.values()
            if order.created_ms + VOID_AFTER_MS < self._clock() and not self.still_stands(order)
        }
        for host in sorted(late):
            self.void_starts(host)

    def unanswered(self, host: str) -> list[PendingOrder]:
        return [order for order in self.pending.values() if order.host == host]

    def addressed(self, order: PendingOrder, body: OrderBody) -> Order:
        """For the host's present boot and our term."""
        return Order(
            operation_id=order.operation_id,
            step=0,
            term=self.term,
            host_boot=self.boots[order.host],
            body=body,
        )

    # Settings

    def settings_for(self, host: str) -> HostSettings:
        managed = [known for known in self.vms.values() if known.managed]
        return HostSettings(
            revision=self.revision,
            installation_id=INSTALLATION,
            term=self.term,
            hold=self.hold,
            policy=self.policy,
            vms=tuple(
                HeldVm(
                    vm=known.vm,
                    incarnation=known.held_incarnation(host),
                    wanted_up=known.wanted_up,
                )
                for known in managed
                if host in known.holders
            ),
            foreign_vms=tuple(known.vm.id for known in managed if host not in known.holders),
        )

    def forget(self, vm_id: VmId) -> None:
        """Given back to its host's own tools."""
        known = self.vms[vm_id]
        known.holders.clear()
        known.copies.clear()
        known.wanted_up, known.managed, known.report = False, False, None
