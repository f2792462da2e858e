"""A judge of the engine's starts that shares no line with it."""

import msgspec

from virtha.engine.events import (
    BeatSeen,
    CopyGranted,
    CopyReleased,
    DeathConfirmed,
    Decision,
    EngineEvent,
    HostConfigured,
    HostRemoved,
    HostSurveyed,
    NeighbourAnswered,
    OrderPower,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ProofFound,
    SessionChanged,
    SlotChanged,
    StartCommand,
    StartEnded,
    VmRemoved,
    VmSeen,
)
from virtha.model.evidence import Answer, IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.vm import VmState

READ_GAP_MS = 1_000


class Copy(msgspec.Struct, frozen=True):
    vm: str
    host: str
    boot: str
    incarnation: int


class Readings:
    """Of one order to one device: what P1 asks for, counted by hand."""

    def __init__(self, host: str, boot: str, device: str) -> None:
        self.host, self.boot, self.device = host, boot, device
        self.accepted = False
        self.first_ms: int | None = None


class Judge:
    """Which copies may live, by the events given and the starts ordered so far. Lenient where the rules leave it
    open: what it calls dead may be alive to the engine, never the other way round."""

    def __init__(self) -> None:
        self.copies: set[Copy] = set()
        self.dead: set[tuple[str, str]] = set()
        self.boots: dict[str, str] = {}
        self.orders: dict[str, Readings] = {}
        self.starts: dict[str, Copy] = {}
        self.known: set[str] = set()
        self.tested: set[tuple[str, str, str]] = set()
        """(host, boot, device)"""

    def event(self, now: int, event: EngineEvent) -> None:
        match event:
            case HostConfigured():
                self.known.add(event.host.host_id)
            case HostRemoved():
                self.known.discard(event.host_id)
            case BeatSeen():
                self._sign(event.host_id, event.boot)
                self._boot(event.host_id, event.boot)
            case HostSurveyed():
                self._sign(event.host_id, event.boot)
            case SessionChanged(up=True):
                self._sign(event.host_id, event.boot)
                self._boot(event.host_id, event.boot)
                self._session(event.host_id, event.boot)
            case SlotChanged() | NeighbourAnswered(answer=Answer.ALIVE):
                self._sign(event.subject, event.boot or self.boots.get(event.subject, ""))
            case VmSeen() if event.state not in (VmState.DOWN, VmState.UNKNOWN):
                self._add(Copy(event.vm_id, event.host_id, event.boot, event.incarnation))
            case CopyGranted():
                self._add(Copy(event.vm_id, event.host_id, event.boot, event.incarnation))
            case CopyReleased():
                self._drop(event.vm_id, event.host_id, event.incarnation)
            case StartEnded(result=Result.REFUSED | Result.FAILED):
                self.copies.discard(self.starts.get(event.order_id, Copy("", "", "", 0)))
            case ProofFound():
                self.dead.add((event.proof.host_id, event.proof.boot))
            case DeathConfirmed():
                self.dead.add((event.host_id, event.boot))
            case VmRemoved():
                self.copies = {copy for copy in self.copies if copy.vm != event.vm_id}
            case _:
                self._power(now, event)

    def _power(self, now: int, event: EngineEvent) -> None:
        match event:
            case PowerTested(passed=True) if self.boots.get(event.host_id) == event.boot:
                self.tested.add((event.host_id, event.boot, event.device))
            case PowerOrdered(result=Result.OK) if event.order_id in self.orders:
                self.orders[event.order_id].accepted = True
            case PowerRead():
                self._read(now, event)
            case _:
                pass

    def _read(self, now: int, event: PowerRead) -> None:
        seen = self.orders.get(event.order_id)
        if seen is None or not seen.accepted:
            return
        if event.state is not PowerState.OFF or event.identity is IdentityMatch.MISMATCH:
            seen.first_ms = None
        elif seen.first_ms is None:
            seen.first_ms = now
        elif now - seen.first_ms < READ_GAP_MS:
            pass
        elif (seen.host, seen.boot, seen.device) in self.tested:
            self.dead.add((seen.host, seen.boot))

    def _sign(self, host: str, boot: str) -> None:
        """Any sign of that boot: what was read before it proves nothing any more."""
        for seen in self.orders.values():
            if (seen.host, seen.boot) == (host, boot):
                seen.first_ms = None

    def _boot(self, host: str, boot: str) -> None:
        former = self.boots.get(host)
        if former is None or boot > former:
            self.boots[host] = boot
            if former is not None:
                self.dead.add((host, former))

    def _session(self, host: str, boot: str) -> None:
        """P4: what told of another boot came before, and names no session that brought it. Also where one stood already."""
        if self.boots[host] == boot:
            told = {(host, one.boot) for one in self.copies if one.host == host}
            self.dead |= told - {(host, boot)}

    def _add(self, copy: Copy) -> None:
        """What a host says that was removed is not heard: its session was closed, its certificate ended."""
        if copy.host in self.known and (copy.host, copy.boot) not in self.dead:
            self.copies.add(copy)

    def _drop(self, vm: str, host: str, incarnation: int) -> None:
        gone = {
            one
            for one in self.copies
            if (one.vm, one.host) == (vm, host) and one.incarnation <= incarnation
        }
        self.copies -= gone

    def decision(self, decision: Decision) -> None:
        """Raises AssertionError for a start while another copy may live."""
        for command in decision.commands:
            match command:
                case OrderPower(action=PowerAction.OFF):
                    boot = self.boots.get(command.host_id, "")
                    readings = Readings(command.host_id, boot, command.device)
                    self.orders.setdefault(command.order_id, readings)
                case StartCommand():
                    self._start(command)
                case _:
                    pass

    def _start(self, start: StartCommand) -> None:
        others = [
            copy
            for copy in self.copies
            if copy.vm == start.vm_id
            and (copy.host, copy.boot) not in self.dead
            and (copy.host, copy.boot) != (start.host_id, start.boot)
        ]
        assert not others, f"{start.vm_id} is started on {start.host_id} while {others} may live"
        copy = Copy(start.vm_id, start.host_id, start.boot, start.incarnation)
        self.starts[start.order_id] = copy
        self.copies.add(copy)
