"""What the sentinel holds in memory between steps, and what one step has to say so far."""

from enum import StrEnum
from typing import Any

from msgspec.structs import replace

from virtha.model.domain import DomainReport
from virtha.model.facts import Awaited, FactBody, Happened, ReleaseCause, Released, VmReport
from virtha.model.ids import BootId, Incarnation, VmId
from virtha.model.policy import Policy
from virtha.model.time import Millis
from virtha.model.value import Scalar
from virtha.model.vm import Reason, Vm, VmState
from virtha.model.watchdog import Watchdog
from virtha.sentinel.events import (
    Command,
    ExitCause,
    GatherEvidence,
    ListDomains,
    Move,
    Restart,
    SentinelRecords,
    VmRecord,
    Watched,
)
from virtha.sentinel.machine import UP_STATES, Trigger, next_state


class LibvirtLink(StrEnum):
    UNSEEN = "unseen"
    """No list yet since this agent began."""
    CONNECTED = "connected"
    LOST = "lost"


class Guarded:
    """One VM: its record, and what only this process needs to remember."""

    def __init__(self, record: VmRecord, *, saved: VmRecord | None) -> None:
        self.record = record
        self.saved = saved
        self.reported: VmReport | Awaited | None = None
        self.known = False
        """Compared with libvirt, or learned from it: worth reporting."""
        self.moved = False
        """An event came since the list was asked for, so that list may be older than it."""
        self.evidence: str | None = None
        self.agent_lost_ms: Millis | None = None
        self.exit_told = False
        self.firing_told = False
        self.gap_seen_ms: Millis | None = None
        self.pause_sent_ms: Millis | None = None
        self.rebooted_ms: Millis | None = None
        self.abort_sent = False
        """Its migration was too late, and libvirt was asked to end it."""
        self.arrival_watched = False
        """Nothing can have happened unseen since its arrival was accepted."""
        self.full_disk: str | None = None
        """Libvirt said just now that the storage of that disk is full."""
        self.probe_number = 0
        self.probe_sent_ms: Millis | None = None
        """``ProbeDisks`` of that number is under way since then."""
        self.probed_ms: Millis | None = None
        self.storage_objection: str | None = None
        """What the last answer said then."""
        self.called_off = False
        """No copy of it is to come here any more."""

    @property
    def up(self) -> bool:
        return self.record.state in UP_STATES

    def set(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)

    def move(self, trigger: Trigger) -> bool:
        """False: not expected in this state, and nothing was changed."""
        state = next_state(self.record.state, trigger)
        if state is None:
            return False
        self.set(state=state)
        return True


class HostState:
    """All VMs of the host and what concerns them together."""

    def __init__(
        self,
        *,
        boot: BootId,
        records: SentinelRecords,
        now: Millis,
        default_watchdog: Watchdog | None,
    ) -> None:
        self.boot = boot
        self.policy: Policy = records.policy
        self.hold = records.hold
        self.watched: Watched | None = records.watched
        self.told = records.told
        self.default_watchdog = default_watchdog
        self.now = now
        self.libvirt = LibvirtLink.UNSEEN
        self.lost_ms: Millis = now
        self.shutting_down = False
        self.opened = False
        self.listing_ms: Millis | None = None
        self.list_wanted = False
        self.listed: dict[VmId, DomainReport] = {}
        self.vms = {
            record.vm.id: Guarded(record, saved=record)
            for record in sorted(records.vms, key=lambda record: record.vm.id)
        }
        self.notices: list[FactBody] = []
        self.commands: list[Command] = []
        self.dropped: list[VmId] = []

    @property
    def connected(self) -> bool:
        return self.libvirt is LibvirtLink.CONNECTED

    def begin(self, now: Millis) -> None:
        assert now >= self.now, f"time went back from {self.now} to {now}"
        self.now = now
        self.notices, self.commands, self.dropped = [], [], []

    def all(self) -> list[Guarded]:
        """Sorted by id, so that the same events give the same decision."""
        return [self.vms[vm_id] for vm_id in sorted(self.vms)]

    def tell(self, guarded: Guarded | None, code: str, **fields: Scalar) -> None:
        """History: an event of the registry."""
        if guarded is None:
            self.notices.append(Happened(code=code, fields=fields))
            return
        record = guarded.record
        self.notices.append(
            Happened(
                code=code,
                vm_id=record.vm.id,
                incarnation=record.incarnation,
                fields={"vm": record.vm.name, **fields},
            )
        )

    def tell_released(self, guarded: Guarded) -> None:
        record = guarded.record
        self.notices.append(
            Released(
                vm_id=record.vm.id, incarnation=record.incarnation, cause=_release_cause(record)
            )
        )

    def order(self, command: Command) -> None:
        self.commands.append(command)

    def ordered_commands(self) -> tuple[Command, ...]:
        """Restarts before all else, evidence after all else (W12)."""
        return tuple(sorted(self.commands, key=_urgency))


_INTENDED = frozenset(
    {
        ExitCause.ORDERED,
        ExitCause.GUEST_SHUTDOWN,
        ExitCause.DESTROYED_OUTSIDE,
        ExitCause.SIGNAL,
        ExitCause.MIGRATED,
        ExitCause.SAVED,
    }
)


def _release_cause(record: VmRecord) -> ReleaseCause | None:
    """What the server has to know to decide whether it starts elsewhere. None: no exit is recorded."""
    if record.exit is None:
        return None
    cause = record.exit.cause
    blocked = record.blocked.code if record.blocked is not None else ""
    if cause is ExitCause.HOST_SHUTDOWN or blocked == "restart.blocked.host_shutting_down":
        return ReleaseCause.HOST_SHUTDOWN
    if cause is ExitCause.MIGRATED and record.moves_to:
        return ReleaseCause.MOVED
    if record.superseded_by is not None:
        return ReleaseCause.SUPERSEDED
    if cause in _INTENDED:
        return ReleaseCause.INTENDED
    if cause is ExitCause.LEASE:
        return ReleaseCause.LEASE_LOST
    if cause is ExitCause.IO_ERROR:
        return ReleaseCause.IO_ERROR
    if cause is ExitCause.NEW_BOOT:
        return ReleaseCause.HOST_BOOTED
    if cause is ExitCause.START_FAILED:
        return ReleaseCause.NEVER_RAN
    return ReleaseCause.ENDED


def _urgency(command: Command) -> int:
    match command:
        case Restart():
            return 0
        case ListDomains():
            return 1
        case GatherEvidence():
            return 3
        case _:
            return 2


def reason(code: str, **fields: Scalar) -> Reason:
    return Reason(code=code, fields=fields)


def take_in(
    host: HostState, vm: Vm, incarnation: Incarnation, *, up: Reason, move: Move | None = None
) -> Guarded:
    """A copy that was accepted, to be started or to arrive: what was counted and held against the VM has ended."""
    old = host.vms.get(vm.id)
    record = VmRecord(
        vm=vm,
        incarnation=incarnation,
        boot=host.boot,
        state=VmState.STARTING,
        wanted_up=True,
        firing_count=old.record.firing_count if old else 0,
        last_alive_ms=int(host.now),
        started_ms=int(host.now),
        up=up,
        move=move,
    )
    guarded = old or Guarded(record, saved=None)
    guarded.record = record
    guarded.known, guarded.evidence, guarded.agent_lost_ms = True, None, None
    host.vms[vm.id] = guarded
    return guarded
