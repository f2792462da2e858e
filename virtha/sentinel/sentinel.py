"""The sentinel: protects the VMs of one host on its own, server or not. Pure.

Each step folds all events into the records, plans by looking at the records only, and hands out what
changed: records to be saved, then commands. So the agent's restart, libvirt's return and the undisturbed
case take one path. See ``events`` for the order in which the caller carries a decision out.
"""

from collections.abc import Sequence
from typing import assert_never

from virtha.model.domain import DomainEvent
from virtha.model.facts import Awaited, VmReport
from virtha.model.ids import BootId, Incarnation, VmId
from virtha.model.orders import SettleMigration
from virtha.model.time import Millis
from virtha.model.vm import Reason, VmState
from virtha.model.watchdog import Watchdog
from virtha.sentinel.events import (
    Adopted,
    ArrivalAccepted,
    ArrivalCalledOff,
    ArrivalRefused,
    BootStatusRead,
    Configured,
    Decision,
    DomainsListed,
    DropRecord,
    Forgotten,
    GuestAnswered,
    HostShuttingDown,
    HostStaysUp,
    Intent,
    KilledForLease,
    LibvirtLost,
    ListDomains,
    MigrationMarked,
    MoveAccepted,
    MoveEnded,
    MoveEnding,
    MoveEvent,
    MoveGivenUp,
    MoveRefused,
    MoveToldAgain,
    PauseAccepted,
    RebootAccepted,
    ReportAgain,
    RestartEnded,
    ResumeAccepted,
    SaveRecord,
    SaveWatched,
    SentinelEvent,
    SentinelRecords,
    StartAccepted,
    StartEnded,
    StartRefused,
    StopAccepted,
    VmRecord,
    Watched,
)
from virtha.sentinel.explain import reasons_of
from virtha.sentinel.invariants import check
from virtha.sentinel.io_error_events import DisksProbed, EndPausedAccepted, ResumeEnded
from virtha.sentinel.io_errors import (
    disks_probed,
    end_paused_accepted,
    io_error_moments,
    plan_io_error,
    resume_ended,
)
from virtha.sentinel.moves import (
    CopySeen,
    SettleAction,
    arrival_accepted,
    arrival_called_off,
    arrival_refusal,
    arrival_refused,
    awaited_report,
    give_up,
    leaving_report,
    move_accepted,
    move_ended,
    move_ending,
    move_ends_at,
    move_refusal,
    move_refused,
    move_told_again,
    never_came,
    plan_move,
    settle_action,
)
from virtha.sentinel.observe import (
    agent_grace_ends,
    domain_event,
    guest_answered,
    tell_silent_agent,
)
from virtha.sentinel.reconstruct import (
    RELIST_MS,
    boot_status_read,
    domains_listed,
    expire_gap,
    gap_deadline,
    libvirt_lost,
    open_records,
)
from virtha.sentinel.restart import (
    ATTEMPT_DEADLINE_MS,
    attempts_in_window,
    awaits_restart,
    due_at,
    exit_expected_until,
    gather_evidence,
    plan,
    restart_ended,
    start_overdue_ms,
)
from virtha.sentinel.starts import (
    adopted,
    configured,
    forgotten,
    migration_marked,
    pause_accepted,
    reboot_accepted,
    resume_accepted,
    start_accepted,
    start_ended,
    start_refusal,
    start_refused,
)
from virtha.sentinel.state import Guarded, HostState, LibvirtLink
from virtha.sentinel.stops import (
    expire_stop_mark,
    killed_for_lease,
    stop_accepted,
    stop_may_lapse,
)
from virtha.sentinel.watchdog import pause_retry_at, retry_pause

WATCHED_EVERY_MS = 5_000
"""How precisely a gap's beginning is known: one small write in that time, for all VMs."""


class Sentinel:
    """One per host and agent process. Invariants: see ``invariants``."""

    def __init__(
        self,
        *,
        boot: BootId,
        records: SentinelRecords,
        now: Millis,
        default_watchdog: Watchdog | None = None,
    ) -> None:
        """``default_watchdog``: the host's (W10), for VMs that name none."""
        self._host = HostState(
            boot=boot, records=records, now=now, default_watchdog=default_watchdog
        )
        self._at_rest = False
        """The last step had no events, changed nothing, and left nothing that time alone could change."""

    def step(self, now: Millis, events: Sequence[SentinelEvent]) -> Decision:
        host = self._host
        host.begin(now)
        if self._at_rest and not events:
            return self._rest()
        if not host.opened:
            host.opened = True
            open_records(host)
        for event in events:
            self._fold(event)
        for guarded in host.all():
            self._plan(guarded)
        self._ask_for_list()
        intents = self._intents()
        self._report()
        commands = host.ordered_commands()
        check(host, intents, commands)
        self._at_rest = not (events or commands or host.notices) and self._may_rest(intents)
        return Decision(
            intents=intents,
            commands=commands,
            notices=tuple(host.notices),
            wake_at=self._wake_at(),
        )

    def _may_rest(self, intents: Sequence[Intent]) -> bool:
        """Attempts and resumes count for a window of time, and a list that is wanted is asked for again."""
        return not self._host.list_wanted and (
            all(isinstance(intent, SaveWatched) for intent in intents)
            and not any(
                guarded.record.attempts_ms
                or (guarded.record.resumes_ms and guarded.record.io_pause)
                or self._moments(guarded)
                for guarded in self._host.all()
            )
        )

    def _rest(self) -> Decision:
        """Nothing to be looked at but the time until which all is known."""
        watched = self._watched_now()
        return Decision(
            intents=() if watched is None else (SaveWatched(watched=watched),),
            wake_at=self._watched_due() if self._watches() else None,
        )

    @property
    def ready(self) -> bool:
        """Compared with libvirt, and not lost it since. Orders wait for it: one carried out before
        would cover up what happened while nobody watched."""
        return self._host.connected

    def start_refusal(self, vm_id: VmId, incarnation: Incarnation) -> Reason | None:
        """Why a start order must be refused now; only without one is ``StartAccepted`` allowed."""
        return start_refusal(self._host, vm_id, incarnation)

    def move_refusal(
        self, vm_id: VmId, incarnation: Incarnation, target_incarnation: Incarnation
    ) -> Reason | None:
        """Why an order to move it away must be refused now; see ``MoveAccepted``."""
        return move_refusal(self._host, vm_id, incarnation, target_incarnation)

    def arrival_refusal(self, vm_id: VmId, incarnation: Incarnation) -> Reason | None:
        """Why no copy may come in now; see ``ArrivalAccepted``."""
        return arrival_refusal(self._host, vm_id, incarnation)

    def settle_action(self, order: SettleMigration, copy: CopySeen) -> SettleAction:
        """What the server's word about a migration comes to here; ``copy``: as libvirt shows it now."""
        return settle_action(self._host, order, copy)

    def view(self) -> tuple[VmRecord, ...]:
        return tuple(guarded.record for guarded in self._host.all())

    # Fold

    def _fold(self, event: SentinelEvent) -> None:
        host = self._host
        match event:
            case DomainEvent():
                domain_event(host, event)
            case DomainsListed():
                domains_listed(host, event)
            case LibvirtLost():
                libvirt_lost(host)
            case HostShuttingDown():
                host.shutting_down = True
            case HostStaysUp():
                host.shutting_down = False
            case ReportAgain():
                self._report_again(event.vm_id)
            case Configured():
                configured(host, event)
            case RestartEnded():
                restart_ended(host, event)
            case BootStatusRead():
                boot_status_read(host, event)
            case GuestAnswered():
                guest_answered(host, event)
            case DisksProbed():
                disks_probed(host, event)
            case ResumeEnded():
                resume_ended(host, event)
            case EndPausedAccepted():
                end_paused_accepted(host, event)
            case (
                MoveAccepted()
                | MoveRefused()
                | MoveEnded()
                | MoveToldAgain()
                | MoveEnding()
                | MoveGivenUp()
                | ArrivalAccepted()
                | ArrivalRefused()
                | ArrivalCalledOff()
            ):
                self._fold_move(event)
            case _:
                self._fold_order(event)

    def _fold_move(self, event: MoveEvent) -> None:
        host = self._host
        match event:
            case MoveAccepted():
                move_accepted(host, event)
            case MoveRefused():
                move_refused(host, event)
            case MoveEnded():
                move_ended(host, event)
            case MoveToldAgain():
                move_told_again(host, event)
            case MoveEnding():
                move_ending(host, event)
            case MoveGivenUp():
                give_up(host, event)
            case ArrivalAccepted():
                arrival_accepted(host, event)
            case ArrivalRefused():
                arrival_refused(host, event)
            case ArrivalCalledOff():
                arrival_called_off(host, event)
            case _:
                assert_never(event)

    def _fold_order(
        self,
        event: StartAccepted
        | StartRefused
        | StartEnded
        | StopAccepted
        | RebootAccepted
        | PauseAccepted
        | ResumeAccepted
        | KilledForLease
        | MigrationMarked
        | Adopted
        | Forgotten,
    ) -> None:
        host = self._host
        match event:
            case StartAccepted():
                start_accepted(host, event)
            case StartRefused():
                start_refused(host, event)
            case StartEnded():
                start_ended(host, event)
            case StopAccepted():
                stop_accepted(host, event)
            case RebootAccepted():
                reboot_accepted(host, event)
            case PauseAccepted():
                pause_accepted(host, event)
            case ResumeAccepted():
                resume_accepted(host, event)
            case KilledForLease():
                killed_for_lease(host, event)
            case MigrationMarked():
                migration_marked(host, event)
            case Adopted():
                adopted(host, event)
            case Forgotten():
                forgotten(host, event)
            case _:
                assert_never(event)

    # Plan

    def _plan(self, guarded: Guarded) -> None:
        host = self._host
        expire_stop_mark(host, guarded)
        expire_gap(host, guarded)
        tell_silent_agent(host, guarded)
        retry_pause(host, guarded)
        plan_move(host, guarded)
        plan_io_error(host, guarded)
        plan(host, guarded)
        gather_evidence(host, guarded)

    def _ask_for_list(self) -> None:
        host = self._host
        if not host.connected or not host.list_wanted:
            return
        if host.listing_ms is not None and host.now - host.listing_ms < RELIST_MS:
            return
        host.listing_ms = host.now
        for guarded in host.all():
            guarded.moved = False
        host.order(ListDomains())

    # What changed

    def _intents(self) -> tuple[Intent, ...]:
        host = self._host
        intents: list[Intent] = [DropRecord(vm_id=vm_id) for vm_id in host.dropped]
        for guarded in host.all():
            reasons = reasons_of(host, guarded.record)
            if reasons != guarded.record.reasons:
                guarded.set(reasons=reasons)
            if guarded.record is guarded.saved or guarded.record == guarded.saved:
                continue
            alive = guarded.record.state is not VmState.DOWN and guarded.record.boot == host.boot
            # Not while libvirt is away: a record that new settings change is not one that was seen.
            if alive and host.connected:
                guarded.set(last_alive_ms=int(host.now))
            guarded.saved = guarded.record
            intents.append(SaveRecord(record=guarded.record))
        watched = self._watched_now()
        if watched is not None:
            intents.append(SaveWatched(watched=watched))
        return tuple(intents)

    def _watches(self) -> bool:
        host = self._host
        return host.connected and any(guarded.up for guarded in host.vms.values())

    def _watched_now(self) -> Watched | None:
        """To be saved, if it is due."""
        host = self._host
        if not self._watches() or host.now < self._watched_due():
            return None
        host.watched = Watched(boot=host.boot, until_ms=int(host.now))
        return host.watched

    def _watched_due(self) -> Millis:
        watched = self._host.watched
        if watched is None or watched.boot != self._host.boot:
            return self._host.now
        return Millis(watched.until_ms + WATCHED_EVERY_MS)

    def _report(self) -> None:
        for guarded in self._host.all():
            if not guarded.known:
                continue
            report = self._report_of(guarded.record)
            if report is not None and report != guarded.reported:
                guarded.reported = report
                self._host.notices.append(report)

    def _report_of(self, record: VmRecord) -> VmReport | Awaited | None:
        if never_came(record):
            return awaited_report(record)
        return VmReport(
            vm_id=record.vm.id,
            incarnation=record.incarnation,
            state=record.state,
            reasons=record.reasons,
            guest_agent=record.guest_agent,
            restart_count=len(attempts_in_window(self._host, record)),
            leaves=leaving_report(record),
        )

    def _report_again(self, vm_id: VmId | None) -> None:
        host = self._host
        for guarded in host.all():
            if vm_id in (None, guarded.record.vm.id):
                guarded.reported = None
        host.list_wanted = host.list_wanted or vm_id is not None

    def _wake_at(self) -> Millis | None:
        host = self._host
        moments = [moment for guarded in host.all() for moment in self._moments(guarded)]
        if self._watches():
            moments.append(self._watched_due())
        if host.connected and host.list_wanted and host.listing_ms is not None:
            moments.append(Millis(host.listing_ms + RELIST_MS))
        assert all(moment > host.now for moment in moments), f"due already: {moments}"
        return min(moments) if moments else None

    def _moments(self, guarded: Guarded) -> list[Millis]:
        """Each is when something of this VM may be decided without an event."""
        host, record = self._host, guarded.record
        moments: list[Millis | None] = [
            gap_deadline(guarded),
            agent_grace_ends(guarded),
            pause_retry_at(guarded) if host.connected else None,
            move_ends_at(host, guarded),
            exit_expected_until(host, guarded) if guarded.evidence else None,
            *io_error_moments(host, guarded),
        ]
        if stop_may_lapse(record):
            assert record.stop is not None
            moments.append(Millis(record.stop.ends_at_ms))
        if record.attempt is not None:
            overdue = record.state in (VmState.STARTING, VmState.DOWN)
            if overdue and host.libvirt is not LibvirtLink.UNSEEN:
                moments.append(Millis(record.attempt_ms + ATTEMPT_DEADLINE_MS))
        elif record.start_open:
            if record.state is VmState.DOWN:
                moments.append(Millis(start_overdue_ms(record)))
        elif host.connected and awaits_restart(record) and record.blocked is None:
            moments.append(due_at(host, record))
        return [moment for moment in moments if moment is not None]
