"""The guardian's storage part, pure: renews slots, and ends VMs whose lease is lost (safety.md, section 3).

Beside `guardian.py`, which beats and kills ungranted QEMUs, in the same process and on the same clock. A
lease that is lost costs the VMs with disks in that domain; a poison costs all VMs of the host, for
good: a poisoned boot never holds a lease again. Sessions don't matter here: an isolated host goes on as long
as its leases hold, and no longer, because it can't know whether others lost the domain too. The one
exception is the leader's waiver.

A session is asked for only when the watchdog is armed for the first time: never on a host in trouble.
"""

from collections.abc import Iterable, Iterator

from virtha.model.ids import BootId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import BlockFault, Declaration, Unreadable
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.sentinel.guardian import Kill, LinkLost, QemuProcess, Report, Welcomed
from virtha.sentinel.host_watchdog import HostWatchdog, WatchdogState, fits
from virtha.sentinel.lease import BOUND, DomainLease, LeaseState
from virtha.sentinel.lease_events import (
    AllowStarts,
    DomainAttached,
    HostNature,
    LeaseCommand,
    LeaseDecision,
    LeasedQemu,
    LeaseEvent,
    LeaseOwner,
    PolicySet,
    QemuEnded,
    QemusSeen,
    RenewDone,
    ResetHost,
    WaiverEnded,
    WaiverGiven,
    WaiverOver,
    WatchdogArmed,
    WatchdogDisarmed,
    WatchdogFailed,
    WatchdogFed,
)

ENDED = (LeaseState.LOST, LeaseState.CLEARED)
KILL_AGAIN_MS = 1_000
RESET_AGAIN_MS = 1_000


class _Times(Value, frozen=True, kw_only=True):
    """The earliest of all leases: from when on one is lost, by when its VMs have to be dead where a watchdog was
    promised (``_over_at``), and when one is to be renewed."""

    end_at: Millis
    over_at: Millis | None
    renew_at: Millis | None


class LeaseGuardian:
    """One per host and process. Invariants: see ``_check``."""

    def __init__(
        self,
        *,
        owner: LeaseOwner,
        boot: BootId,
        nature: HostNature,
        policy: LeasePolicy,
        now: Millis,
        first_of_boot: bool,
        watchdog_runs_ms: int = 0,
    ) -> None:
        """``first_of_boot``: no guardian ran in this boot before this one. ``watchdog_runs_ms``: the timeout with
        which the host's watchdog runs already, as its driver says it; 0: it does not run, or nobody can tell."""
        self._owner = owner
        self._boot = boot
        self._policy = policy
        self._now = now
        self._first_of_boot = first_of_boot
        self._session = False
        self._leases: dict[StorageDomainId, DomainLease] = {}
        self._began = False
        self._came_later: set[StorageDomainId] = set()
        """Domains that this guardian did not begin with."""
        self.poisoned = False
        """For good: it is the boot that was poisoned, by any of its mailboxes."""
        self._watchdog = HostWatchdog(nature)
        self._watchdog_runs_ms = watchdog_runs_ms
        self._qemus: dict[QemuProcess, LeasedQemu] = {}
        """Each that was seen and has not ended for certain; one that merely vanished may have writes left."""
        self._seen: tuple[LeasedQemu, ...] = ()
        """In the last look, if none has ended since: the same again adds none."""
        self._looked_from: int | None = None
        self._looks: dict[StorageDomainId, Millis | None] = {}
        """Since when starts are refused for certain in a lost domain; None: ordered in the last step."""
        self._killed: dict[QemuProcess, Millis] = {}
        self._kill_again_at: Millis | None = None
        self._reset_again_at: Millis | None = None
        self._renewed_now: set[StorageDomainId] = set()
        self._waiver_ending: set[StorageDomainId] = set()
        self._calm_until = now
        """Until then a look that shows what the one before it did asks for nothing."""
        self._was_calm = False
        """After the last step."""
        self._times: _Times | None = None
        """As ``_times_in_calm`` would find them, for what came since changed no lease."""

    def step(self, now: Millis, events: Iterable[LeaseEvent]) -> LeaseDecision:
        assert now >= self._now, f"time went back from {self._now} to {now}"
        self._now = now
        # The last step's commands were carried out before this step: what it refused is refused by now.
        if self._looks:
            self._looks = {each: now if at is None else at for each, at in self._looks.items()}
        told: list[LeaseCommand] = []
        shows_nothing_new = True
        for event in events:
            if type(event) is QemusSeen and event.qemus == self._seen:
                self._looked_from = event.began_ms
                continue
            shows_nothing_new = False
            if type(event) is WatchdogFed:
                self._watchdog.fed()
                continue
            self._times = None
            told += self._fold(event)
        self._began = True
        if shows_nothing_new and now < self._calm_until:
            return LeaseDecision(wake_at=self._calm_until)
        if self._was_calm:
            times = self._times
            if times is None or now >= times.end_at:
                times = self._times_in_calm()
            if times is not None:
                return self._step_in_calm(times, told)
        self._times = None
        # Ends and relief first, then what promises: a step never feeds on a promise that it is about to break.
        commands = [*self._lose()]
        if any(lease.state in ENDED for lease in self._leases.values()):
            commands += [*self._clear(), *self._kill(), *self._reset()]
        else:
            self._kill_again_at = self._reset_again_at = None
        commands += [*self._allow_starts(), *told]
        commands += self._plan_watchdog()
        commands += self._renew()
        self._check()
        wake_at = self._wake_at()
        self._was_calm = wake_at is not None and self._is_calm()
        self._calm_until = wake_at if wake_at is not None and self._was_calm else now
        return LeaseDecision(commands=tuple(commands), wake_at=wake_at)

    def takes_in_passing(self, look: QemusSeen, now: Millis) -> bool:
        """In calm a look mostly shows what the one before it did. True: it was taken, and a step with it would decide
        nothing and wait for the same moment. False: it was not taken, and needs a step."""
        if now >= self._calm_until or self._looks or look.qemus != self._seen:
            return False
        self._now, self._looked_from = now, look.began_ms
        return True

    def states(self) -> dict[StorageDomainId, LeaseState]:
        return {domain_id: lease.state for domain_id, lease in self._leases.items()}

    def _is_calm(self) -> bool:
        """All is held and fed: only an event, or the moment to wake at, can ask for something."""
        return self._watchdog.state is WatchdogState.ARMED and all(
            lease.state is LeaseState.HELD for lease in self._leases.values()
        )

    def _times_in_calm(self) -> _Times | None:
        """None: not all is held and fed any more, or something ends one in this step: a deadline, a poison, a policy
        without leases."""
        if (
            self.poisoned
            or not self._policy.enabled
            or self._watchdog.state is not WatchdogState.ARMED
        ):
            return None
        # Written out, without lists of one: it is asked at each renewal, result and feeding of each host.
        end_at = over_at = renew_at = None
        for lease in self._leases.values():
            moments = lease.held_moments
            if moments is None:
                return None
            its_end_at, its_over_at, its_renew_at = moments
            if self._now >= its_end_at:
                return None
            if end_at is None or its_end_at < end_at:
                end_at = its_end_at
            if its_renew_at is not None and (renew_at is None or its_renew_at < renew_at):
                renew_at = its_renew_at
            if lease.promised_watchdog_ms and (over_at is None or its_over_at < over_at):
                over_at = its_over_at
        if end_at is None:
            return None
        over = None if over_at is None else Millis(over_at)
        return _Times(end_at=Millis(end_at), over_at=over, renew_at=renew_at)

    def _step_in_calm(self, times: _Times, told: list[LeaseCommand]) -> LeaseDecision:
        """The rest of a step that began and goes on in calm, and in which none ends: it decides what ``step`` would
        without it, for less. Nothing is lost then, so nothing is cleared, killed or reset, and the step before has left
        nothing of that to end. All slots are known, the watchdog runs and is wanted: it is neither taken over nor armed
        nor disarmed, only fed. And what binds changes at most by ordering a renewal."""
        now = self._now
        commands = [*self._allow_starts(), *told] if self._renewed_now else told
        feed_at = self._watchdog.feed_at(now, times.over_at)
        if feed_at is not None and now >= feed_at:
            commands += self._watchdog.feed(now, times.over_at)
            feed_at = self._watchdog.feed_at(now, times.over_at)
        if times.renew_at is not None and now >= times.renew_at:
            commands += self._renew()
            self._check()
            after = self._times_in_calm()
            assert after is not None, "a renewal ended the calm"
            if after.over_at != times.over_at:
                feed_at = self._watchdog.feed_at(now, after.over_at)
            times = after
        self._times = times
        # None of these is past: the step that comes next is after this one.
        wake_at = times.end_at
        if times.renew_at is not None and times.renew_at < wake_at:
            wake_at = times.renew_at
        if feed_at is not None and feed_at < wake_at:
            wake_at = feed_at
        self._calm_until = wake_at
        return LeaseDecision(commands=tuple(commands), wake_at=wake_at)

    # Fold

    def _fold(self, event: LeaseEvent) -> list[LeaseCommand]:
        match event:
            case PolicySet(policy=policy):
                self._policy = policy
            case Welcomed():
                self._session = True
            case LinkLost():
                self._session = False
            case DomainAttached():
                return self._attach(event)
            case RenewDone():
                return self._renewed(event)
            case QemusSeen():
                self._looked_from = event.began_ms
                if event.qemus != self._seen:
                    self._seen = event.qemus
                    self._qemus |= {qemu.process: qemu for qemu in event.qemus}
            case QemuEnded(process=process):
                self._seen = ()
                self._qemus.pop(process, None)
                self._killed.pop(process, None)
            case WaiverGiven(domain_id=domain_id):
                return self._waive(domain_id)
            case WaiverEnded(domain_id=domain_id):
                if domain_id in self._leases:
                    self._leases[domain_id].end_waiver()
                    self._waiver_ending.add(domain_id)
            case WatchdogArmed():
                return self._watchdog.armed(event, self._now)
            case WatchdogFailed(detail=detail):
                return self._watchdog.failed(detail)
            case WatchdogFed():
                self._watchdog.fed()
            case WatchdogDisarmed():
                self._watchdog.disarmed()
        return []

    def _attach(self, event: DomainAttached) -> list[LeaseCommand]:
        lease = self._leases.get(event.domain_id)
        if lease is None:
            lease = DomainLease(self._owner, self._boot, event)
            self._leases[event.domain_id] = lease
            if self._began:
                self._came_later.add(event.domain_id)
        if lease.state is not LeaseState.UNKNOWN:
            return []
        lease.attach(event, now=self._now, first_of_boot=self._first_of_boot)
        self._all_poisoned_by(lease)
        own = event.own
        if lease.state is not LeaseState.UNKNOWN or not isinstance(own, Unreadable):
            return []
        if own.fault is BlockFault.UNREAD:
            return []  # announced, or the read failed: it is read again
        return [self._report("host.lease.unreadable", lease, fault=own.fault.value)]

    def _renewed(self, event: RenewDone) -> list[LeaseCommand]:
        lease = self._leases.get(event.domain_id)
        if lease is None:
            return []
        before, poisoned = lease.state, self.poisoned
        good = lease.renewed(event, self._now)
        self._all_poisoned_by(lease)
        told: list[LeaseCommand] = []
        if lease.poisoned and not poisoned:
            told.append(self._report("host.lease.poisoned", lease))
        if lease.state is LeaseState.HELD and before is LeaseState.CLEARED:
            self._looks.pop(lease.domain_id, None)
            told.append(self._report("host.lease.held_again", lease))
        if not good:
            return told
        if lease.state is LeaseState.HELD and lease.domain_id in self._waiver_ending:
            self._waiver_ending.discard(lease.domain_id)
            told.append(WaiverOver(domain_id=lease.domain_id))
        self._renewed_now.add(lease.domain_id)
        return told

    def _all_poisoned_by(self, lease: DomainLease) -> None:
        """No domain is held again, whichever mailbox held the poison: it would only be lost once more."""
        self.poisoned = self.poisoned or lease.poisoned
        if self.poisoned:
            for each in self._leases.values():
                each.poisoned = True

    def _waive(self, domain_id: StorageDomainId) -> list[LeaseCommand]:
        lease = self._leases.get(domain_id)
        if lease is None or self.poisoned or not lease.waive():
            return []
        self._waiver_ending.discard(domain_id)
        self._looks.pop(domain_id, None)
        return [self._report("host.lease.waived", lease)]

    # Ends

    def _lose(self) -> Iterator[LeaseCommand]:
        for lease in self._leases.values():
            deadline = lease.self_fence_at
            due = deadline is not None and self._now >= deadline
            killable = lease.state in (LeaseState.FREE, LeaseState.WAIVED, LeaseState.HELD)
            if not (due or (self.poisoned and killable)):
                continue
            lease.lose(self._now)
            self._looks[lease.domain_id] = None
            yield AllowStarts(domain_id=lease.domain_id, renewed_ms=self._now, until_ms=None)
            yield self._report(
                "host.lease.lost", lease, cause="poison" if self.poisoned else "storage"
            )

    def _allow_starts(self) -> list[LeaseCommand]:
        """After the losses of this step: what is lost now is allowed nothing, however good its renewal was."""
        allowed: list[LeaseCommand] = []
        for domain_id in sorted(self._renewed_now):
            lease = self._leases[domain_id]
            if lease.state in (LeaseState.FREE, LeaseState.WAIVED, LeaseState.HELD):
                until = lease.self_fence_at or self._now + self._policy.self_fence_after_ms
                allowed.append(
                    AllowStarts(
                        domain_id=domain_id,
                        renewed_ms=self._now if lease.good_ms is None else lease.good_ms,
                        until_ms=Millis(until),
                    )
                )
        self._renewed_now.clear()
        return allowed

    def _doomed(self, lease: DomainLease) -> list[LeasedQemu]:
        return [
            qemu
            for qemu in self._qemus.values()
            if self.poisoned or qemu.may_write_to(lease.domain_id)
        ]

    def _clear(self) -> Iterator[LeaseCommand]:
        """None of its VMs is left: all that were seen have ended for certain, and a look that began after
        starts were refused shows none. What exists and was refused stays paused, and is killed at sight."""
        for lease in self._leases.values():
            if lease.state is not LeaseState.LOST or self._doomed(lease):
                continue
            refused_at = self._looks.get(lease.domain_id)
            if refused_at is None or self._looked_from is None or self._looked_from < refused_at:
                continue
            lease.clear()
            yield self._report("host.lease.cleared", lease)

    def _kill(self) -> Iterator[LeaseCommand]:
        self._kill_again_at = None
        for lease in self._leases.values():
            for qemu in self._doomed(lease) if lease.state in ENDED else ():
                killed_at = self._killed.get(qemu.process)
                if killed_at is None or self._now >= killed_at + KILL_AGAIN_MS:
                    self._killed[qemu.process] = self._now
                    yield Kill(process=qemu.process, code="host.lease.killed_vm")
                if killed_at is None:
                    yield _killed(lease, qemu.process)
                again = Millis(self._killed[qemu.process] + KILL_AGAIN_MS)
                self._kill_again_at = min(self._kill_again_at or again, again)

    def _reset(self) -> Iterator[LeaseCommand]:
        """The kill time is over. The watchdog would do it too; this is sooner where it is not armed."""
        due = [
            lease
            for lease in self._leases.values()
            if lease.reset_at is not None and self._now >= lease.reset_at
        ]
        if not due:
            self._reset_again_at = None
            return
        if self._reset_again_at is not None and self._now < self._reset_again_at:
            return
        if self._reset_again_at is None:
            yield self._report("host.lease.reset", due[0], count=len(self._doomed(due[0])))
        self._reset_again_at = Millis(self._now + RESET_AGAIN_MS)
        yield ResetHost(domain_id=due[0].domain_id)

    # Watchdog

    @property
    def _over_at(self) -> Millis | None:
        """By when the VMs of the tightest lease have to be dead. Nothing binds the feeding of a watchdog that
        no slot of this boot has declared: such a slot proves nothing."""
        moments = [
            over_at
            for lease in self._leases.values()
            if lease.promised_watchdog_ms and (over_at := lease.over_at) is not None
        ]
        return min(moments, default=None)

    def _may_bind_unknown(self, lease: DomainLease) -> bool:
        """A guardian before this one may have promised in its slot, and a copy that the promise is about may be left. Not so where the domain
        came after this guardian had begun and no QEMU here has disks there: none may be started as long as its lease is not held.
        Else a domain that can't be read, added by mistake, would end hosts that have nothing to do with it."""
        if not lease.binds_unknown:
            return False
        if lease.domain_id not in self._came_later or self._looked_from is None:
            return True
        return any(qemu.may_write_to(lease.domain_id) for qemu in self._qemus.values())

    def _plan_watchdog(self) -> list[LeaseCommand]:
        leases = self._leases.values()
        if not self._first_of_boot and any(self._may_bind_unknown(lease) for lease in leases):
            return []  # the watchdog, if it runs, runs out
        promised = [lease.promised_watchdog_ms for lease in leases if lease.promised_watchdog_ms]
        over_at = self._over_at
        planned: list[LeaseCommand] = []
        if promised:
            planned = self._watchdog.take_over(self._now, min(promised), over_at)
        elif self._watchdog_runs_ms and any(lease.waived_unread for lease in leases):
            # What it was declared with can't be read, but it was declared with what its driver says; and by the
            # waiver nobody relies on it now. Unfed it would end a host that the leader wants to live.
            planned = self._watchdog.take_over(self._now, self._watchdog_runs_ms, None)
        elif not self._policy.enabled:
            planned = self._watchdog.disarm()
        elif self._session and any(lease.state is LeaseState.HELD for lease in leases):
            planned = self._watchdog.arm(self._now, self._policy)
        return planned or self._watchdog.feed(self._now, over_at)

    # Renewals

    def _renew(self) -> list[LeaseCommand]:
        ordered: list[LeaseCommand] = []
        for lease in self._leases.values():
            done = lease.state is LeaseState.FREE and not self._policy.enabled
            renew_at = lease.renew_at
            if done or renew_at is None or self._now < renew_at:
                continue
            ordered.append(
                lease.renew(
                    self._now,
                    self._declaration(),
                    wanted=self._policy.enabled,
                    renew_ms=self._policy.renew_ms,
                )
            )
        return ordered

    def _declaration(self) -> Declaration:
        watchdog = self._watchdog
        # One whose driver rounded the timeout up past what leaves room for feeding is fed, not declared.
        armed = watchdog.declared and fits(self._policy, watchdog.timeout_ms)
        return Declaration(
            armed=armed,
            no_way_out=armed and watchdog.no_way_out,
            fed_by_renewer=armed,
            watchdog_ms=watchdog.timeout_ms if armed else 0,
            self_fence_after_ms=self._policy.self_fence_after_ms,
            kill_ms=self._policy.kill_ms,
        )

    # Around

    def _wake_at(self) -> Millis | None:
        moments = [
            self._watchdog.feed_at(self._now, self._over_at),
            self._kill_again_at,
            self._reset_again_at,
        ]
        for lease in self._leases.values():
            stopped = lease.state is LeaseState.FREE and not self._policy.enabled
            moments += [lease.self_fence_at, None if stopped else lease.renew_at]
            if self._reset_again_at is None:
                moments.append(lease.reset_at)
        known = [moment for moment in moments if moment is not None]
        return Millis(max(min(known), self._now + 1)) if known else None

    def _report(self, code: str, lease: DomainLease, **fields: str | int) -> Report:
        return Report(code=code, fields={"domain": lease.domain_id, **fields})

    def _check(self) -> None:
        """What must hold after each step; a guardian that breaks it ends, and its watchdog runs out."""
        for lease in self._leases.values():
            deadline = lease.self_fence_at
            assert deadline is None or deadline > self._now, "held past its deadline"
            if self.poisoned:
                ended = (LeaseState.LOST, LeaseState.CLEARED, LeaseState.UNKNOWN)
                assert lease.state in ended, f"poisoned, yet {lease.state}"
            if lease.state is LeaseState.CLEARED:
                assert not lease.good_ms, "cleared, yet it counts"
        assert self._watchdog.state is not WatchdogState.DISARMING or not any(
            lease.state in BOUND and lease.promised_watchdog_ms for lease in self._leases.values()
        ), "disarmed while a lease proves something"


def _killed(lease: DomainLease, process: QemuProcess) -> Report:
    return Report(
        code="host.lease.killed_vm",
        vm_id=process.vm_id,
        fields={"domain": lease.domain_id, "vm": process.vm_id, "pid": process.pid},
    )
