"""A small server: holders, incarnations, orders that are sent again, facts acknowledged in order.

It stands in for the real one until the engine comes: it starts nothing by itself.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from virtha.model.facts import Fact, Happened, Outcome, Released, Result, VmReport
from virtha.model.ids import Incarnation, OperationId, VmId
from virtha.model.orders import (
    AdoptVm,
    HeldVm,
    OrderBody,
    PauseVm,
    RebootVm,
    ResumeVm,
    StartVm,
    StopVm,
)
from virtha.model.policy import Policy
from virtha.model.value import Fields, Value
from virtha.model.vm import Vm, VmState
from virtha.sentinel.events import Configured

if TYPE_CHECKING:
    from virtha.sim.host import SimHost

LATENCY_MS = 5
RESEND_MS = 1_000
SILENCE_MS = 5_000
AGENT_GRACE_MS = 2_000


class HistoryEntry(Value, frozen=True, kw_only=True):
    """``at_ms``: when it was said on the host, in the world's time."""

    at_ms: int
    code: str
    subject: str
    fields: Fields = {}


class ServerVm:
    def __init__(self, vm: Vm, host: str) -> None:
        self.vm = vm
        self.host = host
        self.holders: set[str] = set()
        self.incarnation = Incarnation(0)
        self.ordered = Incarnation(0)
        """The highest that was given out; ``incarnation`` is above it when another host superseded it."""
        self.copies: set[Incarnation] = set()
        """Starts of the one holder whose end it has not told."""
        self.wanted_up = False
        self.report: VmReport | None = None

    def release(self, host: str, incarnation: Incarnation) -> None:
        """A host stays a holder until each of its starts has ended (see ``virtha.control.copies``)."""
        if self.incarnation > self.ordered:
            return  # superseded from elsewhere: it settles nothing
        known = bool(self.copies)
        self.copies.discard(incarnation)
        if not self.copies and (known or incarnation >= self.incarnation):
            self.holders.discard(host)

    def held_incarnation(self, *, starting: bool) -> Incarnation:
        if starting or self.incarnation > self.ordered:
            return self.incarnation
        return min(self.copies, default=self.incarnation)


class PendingOrder(Value, frozen=True, kw_only=True):
    operation_id: OperationId
    host: str
    body: OrderBody


def _subject(body: OrderBody) -> VmId | None:
    match body:
        case StartVm(vm=vm) | AdoptVm(vm=vm):
            return vm.id
        case StopVm(vm_id=vm_id) | RebootVm(vm_id=vm_id) | PauseVm(vm_id=vm_id):
            return vm_id
        case ResumeVm(vm_id=vm_id):
            return vm_id
        case _:
            return None


class HostSeen:
    """What the server sees of one host: beats only."""

    def __init__(self) -> None:
        self.beat_ms = 0
        self.agent_alive = True
        self.agent_dead_since: int | None = None
        self.state = "up"


class SimServer:
    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.vms: dict[VmId, ServerVm] = {}
        self.policy = Policy()
        self.hold: str | None = None
        self.history: list[HistoryEntry] = []
        self.pending: dict[OperationId, PendingOrder] = {}
        self.outcomes: dict[OperationId, Outcome] = {}
        self.acknowledged: dict[str, int] = {}
        self.seen: dict[str, HostSeen] = {}
        self._operations = 0

    # Facts in

    def receive(self, host: "SimHost", facts: list[tuple[int, Fact]]) -> int:
        """Facts come with their world time; those recorded already are skipped. Returns the last."""
        last = self.acknowledged.get(host.name, 0)
        for at_ms, fact in facts:
            if fact.sequence <= last:
                continue
            assert fact.sequence == last + 1, f"{host.name}: fact {fact.sequence} after {last}"
            last = fact.sequence
            self._record(host, at_ms, fact)
        self.acknowledged[host.name] = last
        return last

    def _record(self, host: "SimHost", at_ms: int, fact: Fact) -> None:
        match fact.body:
            case Happened(code=code, vm_id=vm_id, fields=fields):
                known = self.vms.get(vm_id) if vm_id else None
                subject = known.vm.name if known else host.name
                self.history.append(
                    HistoryEntry(at_ms=at_ms, code=code, subject=subject, fields=fields)
                )
            case VmReport(vm_id=vm_id) as report:
                known = self.vms.get(vm_id)
                if known is not None and known.host == host.name:
                    self._reported(known, report)
            case Released(vm_id=vm_id, incarnation=incarnation):
                known = self.vms.get(vm_id)
                if known is not None and host.name in known.holders:
                    known.release(host.name, incarnation)
            case Outcome(operation_id=operation_id) as outcome:
                self._ended(self.pending.pop(operation_id, None), outcome)
                self.outcomes[operation_id] = outcome

    def _reported(self, known: ServerVm, report: VmReport) -> None:
        """As the real one: of a former incarnation only what may still be there, and no start is on
        its way."""
        older = report.incarnation < known.incarnation
        may_be = report.incarnation in known.copies or not known.holders
        if older and (self._starting(known.vm.id) or not may_be):
            return
        known.incarnation = max(known.incarnation, report.incarnation)
        known.report = report
        for copy in [copy for copy in known.copies if copy < report.incarnation]:
            known.release(known.host, copy)

    def _starting(self, vm_id: VmId) -> bool:
        return any(
            isinstance(order.body, StartVm) and order.body.vm.id == vm_id
            for order in self.pending.values()
        )

    def _ended(self, order: PendingOrder | None, outcome: Outcome) -> None:
        refused = outcome.result is Result.REFUSED
        if order is None or not refused or not isinstance(order.body, StartVm):
            return
        known, current = self.vms[order.body.vm.id], outcome.fields.get("current")
        if outcome.code == "order.refused.boot":
            # The simulated desk has no release of its own for an order of a boot that is over.
            known.release(order.host, order.body.grant.incarnation)
        if known.incarnation != order.body.grant.incarnation or not isinstance(current, int):
            return
        if outcome.code in ("order.refused.running", "order.refused.incarnation"):
            # The refused incarnation never was, the host's own is current: what it is doing is not
            # known before its next report.
            known.copies.discard(known.incarnation)
            known.incarnation = Incarnation(current)
            if order.host in known.holders:
                known.copies.add(known.incarnation)
            if outcome.code == "order.refused.running":
                known.report = None

    # Orders out

    def order(self, host: str, body: OrderBody) -> PendingOrder:
        self._operations += 1
        order = PendingOrder(
            operation_id=OperationId(f"op-{self._operations}"), host=host, body=body
        )
        self.pending[order.operation_id] = order
        return order

    def grant(self, vm_id: VmId, host: str) -> Incarnation | None:
        """Target into the holder set before the order goes out (G1).

        None: somebody else may hold it, it runs, or an order about it has not ended.
        """
        known = self.vms[vm_id]
        if known.holders - {host}:
            return None
        up = known.report is not None and known.report.state is not VmState.DOWN
        if known.holders and up and known.report and known.report.incarnation == known.incarnation:
            return None
        if any(_subject(order.body) == vm_id for order in self.pending.values()):
            return None
        if host in known.holders and not known.copies:
            known.copies.add(known.incarnation)
        known.holders.add(host)
        known.host = host
        known.incarnation = known.ordered = Incarnation(known.incarnation + 1)
        known.copies.add(known.incarnation)
        known.wanted_up = True
        return known.incarnation

    def settings_for(self, host: str) -> Configured:
        held = [
            HeldVm(
                vm=known.vm,
                incarnation=known.held_incarnation(starting=self._starting(known.vm.id)),
                wanted_up=known.wanted_up,
            )
            for _, known in sorted(self.vms.items())
            if host in known.holders
        ]
        return Configured(policy=self.policy, hold=self.hold, vms=tuple(held))

    def change_vm(self, vm_id: VmId, *, ha: bool) -> None:
        known = self.vms[vm_id]
        known.vm = replace(known.vm, ha=ha)

    def forget(self, vm_id: VmId) -> None:
        """Given back to its host's own tools."""
        known = self.vms[vm_id]
        known.holders.clear()
        known.copies.clear()
        known.wanted_up, known.report = False, None

    # Beats: host state

    def beat(self, host: str, *, agent_alive: bool) -> None:
        seen = self.seen.setdefault(host, HostSeen())
        seen.beat_ms = self._clock()
        seen.agent_alive = agent_alive
        if agent_alive:
            seen.agent_dead_since = None
        elif seen.agent_dead_since is None:
            seen.agent_dead_since = self._clock()

    def judge_hosts(self) -> None:
        """Silence proves nothing: `unreachable` starts nothing here."""
        for name in sorted(self.seen):
            seen = self.seen[name]
            state = self._judge(seen)
            if state == seen.state:
                continue
            code = {
                ("unreachable", "up"): "host.reachable",
                ("unreachable", "agent_down"): "host.agent.down",
                ("agent_down", "up"): "host.agent.up",
                ("up", "agent_down"): "host.agent.down",
            }.get((seen.state, state), "host.unreachable")
            seen.state = state
            self.history.append(HistoryEntry(at_ms=self._clock(), code=code, subject=name))

    def _judge(self, seen: HostSeen) -> str:
        now = self._clock()
        if now - seen.beat_ms > SILENCE_MS:
            return "unreachable"
        dead_since = seen.agent_dead_since
        if dead_since is not None and now - dead_since >= AGENT_GRACE_MS:
            return "agent_down"
        return "up" if seen.state != "agent_down" or seen.agent_alive else "agent_down"
