"""One host's lease on one storage domain: renewed, lost, cleared (safety.md, P2 and section 3). Pure.

Two rules carry the argument (docs/adr/0008-storage-lease.md):

- *A promise holds from submission.* A slot's write may land, late, at any time after it was ordered, so
  what it promises binds from the step that orders it.
- *Relief counts from certainty.* What frees the host (longer times, leases turned off) holds only when the
  slot that says so was acknowledged and no write of unknown fate can put an older one back. The one
  exception is the leader's waiver: its authority is the leader's durable intent, not the slot.
"""

from enum import StrEnum

from msgspec.structs import replace

from virtha.model.ids import BootId
from virtha.model.slot import (
    BlockFault,
    Declaration,
    Mailbox,
    MailboxReading,
    Slot,
    Unreadable,
)
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.sentinel.lease_events import DomainAttached, LeaseOwner, RenewDone, RenewSlot


class LeaseState(StrEnum):
    UNKNOWN = "unknown"
    """A guardian before this one may have promised something in this boot; its slot can't be read yet."""
    FREE = "free"
    """Nothing is promised: the slot says that it proves nothing. Waits for storage that works."""
    WAIVED = "waived"
    """The same, by the leader's waiver."""
    HELD = "held"
    LOST = "lost"
    """Its VMs are being killed."""
    CLEARED = "cleared"
    """None of its VMs is left, none may start; the next good renewal holds it again."""


BOUND = frozenset({LeaseState.HELD, LeaseState.LOST})
"""Somebody may rely on the host's promise while a VM could still write."""


class Terms(Value, frozen=True, kw_only=True):
    """Durations that a slot promised."""

    self_fence_after_ms: int
    kill_ms: int


class DomainLease:
    """Invariant: in HELD and LOST ``good_ms`` is the decision time of a renewal after which the mailbox was
    read clean, or of the first slot that promised anything: never later."""

    def __init__(self, owner: LeaseOwner, boot: BootId, attached: DomainAttached) -> None:
        self._owner = owner
        self._boot = boot
        self.domain_id = attached.domain_id
        self.index = attached.index
        self.direct_io = attached.direct_io
        self.state = LeaseState.UNKNOWN
        self.good_ms: Millis | None = None
        self.lost_ms: Millis | None = None
        self.poisoned = False
        self.promised_watchdog_ms = 0
        """The shortest timeout of an armed watchdog that a slot of this boot may be read to declare; 0: none does."""
        self._counter = 0
        self._acknowledged = 0
        self._mailbox_counter = 0
        self._visible: tuple[Terms, ...] = ()
        self.terms: Terms | None = None
        """The shortest of all that somebody may read."""
        self._settled = True
        self._number = 0
        self._asked: Declaration | None = None
        """What the last slot was ordered to declare, ``_said`` what it declared, and ``_said_terms`` that one's terms."""
        self._said = Declaration()
        self._said_terms = _terms(self._said)
        self._under_way: Slot | None = None
        self._renew_at: Millis | None = None
        self._proven_working = False
        self._waived_ahead = False

    # Attaching

    def attach(self, attached: DomainAttached, *, now: Millis, first_of_boot: bool) -> None:
        """Only in UNKNOWN. ``first_of_boot``: no guardian ran in this boot before, so nothing is promised."""
        own = attached.own
        if isinstance(own, Slot):
            self._counter = own.counter
            if own.boot == self._boot:
                self._resume(own, now)
            else:
                self.state = LeaseState.FREE
        elif _is_blank(own, first_of_boot=first_of_boot):
            self.state = LeaseState.FREE
        if self.state is not LeaseState.UNKNOWN:
            self._renew_at = now
            if self._waived_ahead and not self.poisoned:
                self.waive()

    def _resume(self, own: Slot, now: Millis) -> None:
        """Of an earlier guardian in this boot. Its last write may be one of unknown fate: nothing is settled."""
        self._settled = False
        self._acknowledged = own.acknowledged_poison
        self.poisoned = own.acknowledged_poison > 0
        self._promise(own.declaration)
        if own.declaration.waived and own.good_ms is None:
            # The leader's waiver, or nothing promised yet. With a good renewal: leases were being turned off,
            # and an older slot may still come back.
            self.state = LeaseState.FREE
            return
        # A first slot promised before any renewal was good: it bound from its own submission.
        good_ms = own.submitted_ms if own.good_ms is None else own.good_ms
        self.state = LeaseState.HELD
        self.good_ms = Millis(min(good_ms, now))

    # Deadlines

    @property
    def self_fence_at(self) -> Millis | None:
        """From when on its VMs must be killed; None while nothing is promised."""
        if self.state is not LeaseState.HELD or self.good_ms is None or self.terms is None:
            return None
        return Millis(self.good_ms + self.terms.self_fence_after_ms)

    @property
    def held_moments(self) -> tuple[int, int, Millis | None] | None:
        """``self_fence_at``, ``over_at`` and ``renew_at`` at once, for who asks often; None: it is not held."""
        good_ms, terms = self.good_ms, self.terms
        if self.state is not LeaseState.HELD or good_ms is None or terms is None:
            return None
        end_at = good_ms + terms.self_fence_after_ms
        return end_at, end_at + terms.kill_ms, None if self._under_way else self._renew_at

    @property
    def reset_at(self) -> Millis | None:
        """From when on the host must be reset, if the kills are not confirmed."""
        if self.state is not LeaseState.LOST or self.lost_ms is None or self.terms is None:
            return None
        return Millis(self.lost_ms + self.terms.kill_ms)

    @property
    def over_at(self) -> Millis | None:
        """By when the last VM has to be dead if the guardian is never heard of again but for one watchdog
        timeout: what the reader counts on. None while nothing is promised."""
        if self.state not in BOUND or self.terms is None:
            return None
        if self.good_ms is None:
            assert self.lost_ms is not None
            return Millis(self.lost_ms + self.terms.kill_ms)
        return Millis(self.good_ms + self.terms.self_fence_after_ms + self.terms.kill_ms)

    # Changes

    def lose(self, now: Millis) -> None:
        """Kill. A guardian that was frozen over the deadline counts from the deadline."""
        deadline = self.self_fence_at
        self.lost_ms = now if deadline is None else min(now, deadline)
        self.state = LeaseState.LOST

    def clear(self) -> None:
        assert self.state is LeaseState.LOST
        self.state = LeaseState.CLEARED
        self.good_ms = self.lost_ms = None

    @property
    def binds_unknown(self) -> bool:
        """Somebody may rely on a promise that nobody here knows."""
        return self.state is LeaseState.UNKNOWN and not self._waived_ahead

    @property
    def waived_unread(self) -> bool:
        """The leader waived it, and what its slot says is not known yet."""
        return self.state is LeaseState.UNKNOWN and self._waived_ahead

    def waive(self) -> bool:
        """Whether the waiver was taken: what is lost already stays lost. A guardian that restarts in an outage
        can't read its slot; the leader gives it the waiver again in its new session."""
        if self.state is LeaseState.UNKNOWN:
            self._waived_ahead = True
            return True
        if self.state not in (LeaseState.HELD, LeaseState.FREE, LeaseState.CLEARED):
            return False
        self.state = LeaseState.WAIVED
        self.good_ms = self.lost_ms = None
        return True

    def end_waiver(self) -> None:
        """To FREE, not to HELD: a promise made while the storage is out would kill at its first deadline."""
        self._waived_ahead = False
        if self.state is LeaseState.WAIVED:
            self.state = LeaseState.FREE
            self._proven_working = False

    # Renewals

    @property
    def renew_at(self) -> Millis | None:
        """When the next renewal is due; None while one is under way or nothing is known."""
        return None if self._under_way is not None else self._renew_at

    def renew(
        self, now: Millis, declaration: Declaration, *, wanted: bool, renew_ms: int
    ) -> RenewSlot:
        assert self._under_way is None and self.state is not LeaseState.UNKNOWN
        if self.state is LeaseState.FREE and wanted and self._proven_working and not self.poisoned:
            # Binds from here: the slot of this renewal may be read at any time from now on.
            self.state = LeaseState.HELD
            self.good_ms = now
        declaration = self._that_holds(declaration, now)
        # LOST without a good renewal: poisoned while it promised nothing, and so it goes on.
        promising = self.state is LeaseState.CLEARED or self.good_ms is not None
        waived = not (promising and wanted)
        if declaration != self._asked or waived != self._said.waived:
            self._asked = declaration
            self._said = replace(declaration, waived=waived, direct_io=self.direct_io)
            self._said_terms = _terms(self._said)
            self._promise(self._said)
        # Else the last slot said the same: what it promised is promised still.
        self._counter += 1
        self._number += 1
        self._renew_at = Millis(now + renew_ms)
        self._under_way = Slot(
            installation_id=self._owner.installation_id,
            domain_id=self.domain_id,
            index=self.index,
            host_id=self._owner.host_id,
            boot=self._boot,
            counter=self._counter,
            submitted_ms=now,
            good_ms=self.good_ms,
            acknowledged_poison=self._acknowledged,
            declaration=self._said,
        )
        return RenewSlot(domain_id=self.domain_id, number=self._number, slot=self._under_way)

    def _that_holds(self, wanted: Declaration, now: Millis) -> Declaration:
        """A shorter promise begins when a renewal is good: made while they fail it could be broken already."""
        if self.self_fence_at is None or self.good_ms is None or self.terms is None:
            return wanted
        if now < self.good_ms + wanted.self_fence_after_ms:
            return wanted
        return replace(
            wanted,
            self_fence_after_ms=self.terms.self_fence_after_ms,
            kill_ms=self.terms.kill_ms,
        )

    def renewed(self, done: RenewDone, now: Millis) -> bool:
        """Fold the result; whether the renewal was good. A good one counts from its decision, however late
        its result comes: a result past the deadline changes nothing any more."""
        slot = self._under_way
        if slot is None or done.number != self._number:
            return False
        self._under_way = None
        if not done.written:
            # It may land later, over a newer one: what it says stays promised (no relief in this boot).
            self._settled = False
        clean = self._read_mailbox(done.mailbox)
        if not (done.written and clean):
            self._proven_working = False
            return False
        if self._settled:
            if self._visible != (self._said_terms,):
                self._show(self._said_terms)
            self.promised_watchdog_ms = _promised_watchdog_ms(slot.declaration)
        self._count(slot, now)
        return True

    def _count(self, slot: Slot, now: Millis) -> None:
        submitted = Millis(slot.submitted_ms)
        self._proven_working = True
        if self.state is LeaseState.CLEARED and not self.poisoned and not slot.declaration.waived:
            # One that hung in an outage for longer than a lease lasts would be lost again at once, with a kill
            # time that is over: the host would reset itself when its storage comes back. The next one holds it.
            if self.terms is None or now >= submitted + self.terms.self_fence_after_ms:
                return
            self.state = LeaseState.HELD
        if self.state is not LeaseState.HELD:
            return
        if not slot.declaration.waived:
            self.good_ms = submitted
        elif self._settled:
            # Leases were turned off, and nothing that can still be read promises anything.
            self.state = LeaseState.FREE
            self.good_ms = None
        else:
            self.good_ms = submitted

    def _read_mailbox(self, mailbox: MailboxReading) -> bool:
        """Whether it is known to hold no poison for this boot. Unknown is not clean."""
        if isinstance(mailbox, Unreadable) or mailbox.host_id != self._owner.host_id:
            return False
        if mailbox.counter < self._mailbox_counter:
            return False  # an old block came back: a stale cache, or a lost write
        self._mailbox_counter = mailbox.counter
        if not _poisons(mailbox, self._boot):
            return True
        self._acknowledged = mailbox.counter
        self.poisoned = True
        return False

    def _show(self, *visible: Terms) -> None:
        self._visible = visible
        self.terms = Terms(
            self_fence_after_ms=min(each.self_fence_after_ms for each in visible),
            kill_ms=min(each.kill_ms for each in visible),
        )

    def _promise(self, said: Declaration) -> None:
        terms = _terms(said)
        if terms not in self._visible:
            self._show(*self._visible, terms)
        both = (self.promised_watchdog_ms, _promised_watchdog_ms(said))
        self.promised_watchdog_ms = min(filter(None, both), default=0)


def _terms(said: Declaration) -> Terms:
    return Terms(self_fence_after_ms=said.self_fence_after_ms, kill_ms=said.kill_ms)


def _promised_watchdog_ms(said: Declaration) -> int:
    return said.watchdog_ms if said.armed and not said.waived else 0


def _poisons(mailbox: Mailbox, boot: BootId) -> bool:
    return mailbox.poison is not None and mailbox.poison.boot == boot


def _is_blank(own: Unreadable, *, first_of_boot: bool) -> bool:
    """A slot that promises nothing for this boot: fresh, or torn by the end of an earlier boot."""
    if own.fault is BlockFault.EMPTY:
        return True
    return first_of_boot and own.fault in (BlockFault.TORN, BlockFault.ALIEN)
