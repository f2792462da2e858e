"""Reads the slots of others and says when an expired lease is proof (safety.md, P2). Pure.

Readers are hosts that see the storage domain. In each round a reader writes its own slot, then reads all
slots and mailboxes, and tells when it began and ended on its own boot-time clock; no two clocks are ever
compared. What a round is worth, and from when the wait counts:

- It *counts* if the reader read past its caches, saw the very counter that it had just written, and saw
  another host's slot advance since its round before. A host of two has no other: there the reader must have
  seen the silent host itself advance, in this boot of the reader, so that it reads the real block.
- The poison is *acknowledged* when a round that counts reads it back. So a dead host needs no answer: what
  has to be certain is that no renewal can succeed any more without reading the poison, and that is so from
  the moment the poison is on the storage, whoever lives. A host that lives acknowledges it in
  its slot, and such renewals don't prolong the wait.
- The wait begins at that round's end, or at the end of the round that first saw another change of the slot,
  whichever is later; its length is what the slot itself promises. The round that ends it counts too
  and began after it.

A proof is about the copies that have a disk in one of the target's domains, on that boot; the engine names
all domains that the host's copies have disks in, and all of them have to expire.
"""

from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.proof import Proof, ProofKind
from virtha.model.slot import Declaration, Mailbox, Slot, SlotReading
from virtha.model.slot_round import SlotRound
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import Reason


class LeaseTarget(Value, frozen=True, kw_only=True):
    """Whose lease is watched. ``domain_ids``: every domain that its copies have disks in; never empty."""

    host_id: HostId
    boot: BootId
    domain_ids: frozenset[StorageDomainId]


class LifeSign(Value, frozen=True, kw_only=True):
    """A slot went on at some moment of the last ``within_ms``: much, when its reader did not reach it for a while. Its host
    submitted that renewal at ``submitted_ms`` of its boot-time clock."""

    host_id: HostId
    boot: BootId
    within_ms: int
    submitted_ms: int


def expiry_ms(said: Declaration, policy: LeasePolicy) -> int:
    """P2's sum on the reader's clock, over what the slot promises. The reader's policy gives the rest: one
    read period for a mailbox that the writer read from a view that old, one for a slot that the reader did."""
    host_ms = said.self_fence_after_ms + said.kill_ms + said.watchdog_ms
    waited_ms = host_ms + 2 * policy.read_period_ms
    return -(-waited_ms * (100 + policy.drift_percent) // 100)


class _Sight(Value, frozen=True, kw_only=True):
    """What one reader, in one boot, knows of one slot. Times are of its clock."""

    slot: Slot | None = None
    changed_ms: int = 0
    poisoned_ms: int | None = None


class LeaseWatch:
    """One slot of one host's boot. Invariant: expired only on the word of a round that counts."""

    def __init__(self, host_id: HostId, boot: BootId) -> None:
        self._host_id = host_id
        self._boot = boot
        self._sights: dict[tuple[HostId, BootId], _Sight] = {}
        self.expired_by: HostId | None = None
        self.reason = Reason(code="lease.not_proof.unread")

    def begin_anew(self) -> None:
        self._sights.clear()
        self.expired_by = None

    def fold(
        self, seen: SlotRound, why_not: Reason | None, *, policy: LeasePolicy, waived: bool
    ) -> None:
        """``why_not``: the round does not count, and why. Its changes are signs of life all the same."""
        reader = (seen.reader_id, seen.reader_boot)
        before = self._sights.get(reader, _Sight())
        reading = seen.slots.get(self._host_id)
        slot = reading if isinstance(reading, Slot) else None
        changed_ms = before.changed_ms
        if slot is None or before.slot is None or not _stands(before.slot, slot):
            changed_ms = seen.ended_ms
            self.expired_by = None
        poisoned_ms = before.poisoned_ms
        if why_not is None:
            poisoned_ms = self._poisoned_from(before, seen)
        sight = _Sight(slot=slot, changed_ms=changed_ms, poisoned_ms=poisoned_ms)
        self._sights[reader] = sight
        refused = why_not or self._refusal(reading, sight, waived=waived)
        if refused is None:
            refused = _waits(sight, seen, policy)
        if refused is None:
            self.expired_by, self.reason = seen.reader_id, Reason(code="lease.expired")
        else:
            self.reason = refused

    def _poisoned_from(self, before: _Sight, seen: SlotRound) -> int | None:
        mailbox = seen.mailboxes.get(self._host_id)
        if not isinstance(mailbox, Mailbox) or mailbox.host_id != self._host_id:
            return None
        if mailbox.poison is None or mailbox.poison.boot != self._boot:
            return None
        return seen.ended_ms if before.poisoned_ms is None else before.poisoned_ms

    def _refusal(
        self, reading: SlotReading | None, sight: _Sight, *, waived: bool
    ) -> Reason | None:
        slot = sight.slot
        if slot is None:
            fault = "unread" if reading is None or isinstance(reading, Slot) else reading.fault
            return Reason(code="lease.not_proof.unreadable", fields={"fault": str(fault)})
        if slot.host_id != self._host_id or slot.boot != self._boot:
            return Reason(code="lease.not_proof.other_boot")
        if waived or slot.declaration.waived:
            return Reason(code="lease.not_proof.waived")
        undeclared = _undeclared(slot.declaration)
        if undeclared is not None:
            return undeclared
        if sight.poisoned_ms is None:
            return Reason(code="lease.not_proof.not_poisoned")
        return None


def _stands(before: Slot, now: Slot) -> bool:
    """Whether nothing happened that prolongs the wait. A poisoned boot may go on writing its slot: from
    its acknowledgement on no renewal of it is good, so only what it promises must be the same."""
    if before == now:
        return True
    same_promise = before.boot == now.boot and before.declaration == now.declaration
    return same_promise and now.counter > before.counter and now.acknowledged_poison > 0


def _undeclared(said: Declaration) -> Reason | None:
    """An expired slot without these is evidence, not proof."""
    if not said.armed or not said.watchdog_ms:
        return Reason(code="lease.not_proof.no_watchdog")
    if not said.no_way_out:
        return Reason(code="lease.not_proof.way_out")
    if not said.fed_by_renewer:
        return Reason(code="lease.not_proof.other_feeder")
    if not said.direct_io:
        return Reason(code="lease.not_proof.cached_io")
    return None


def _waits(sight: _Sight, seen: SlotRound, policy: LeasePolicy) -> Reason | None:
    assert sight.slot is not None and sight.poisoned_ms is not None
    due_ms = max(sight.changed_ms, sight.poisoned_ms) + expiry_ms(sight.slot.declaration, policy)
    if seen.began_ms >= due_ms:
        return None
    return Reason(code="lease.waits", fields={"wait_ms": due_ms - seen.began_ms})


class _Reader:
    """What one reader saw of one domain in its round before, to find what advanced since."""

    def __init__(self) -> None:
        self._boot: BootId | None = None
        self._slots: dict[HostId, Slot] = {}
        self._ever: set[HostId] = set()
        self._ended_ms = 0
        self.gap_ms = 0
        """From the end of the round before to the end of the last one."""

    def advanced(self, seen: SlotRound) -> tuple[frozenset[HostId], frozenset[HostId]]:
        """Hosts whose slots went on since this reader's round before, and those that ever did."""
        if seen.reader_boot != self._boot:
            self._boot, self._slots, self._ever = seen.reader_boot, {}, set()
        self.gap_ms, self._ended_ms = seen.ended_ms - self._ended_ms, seen.ended_ms
        now = {host: slot for host, slot in seen.slots.items() if isinstance(slot, Slot)}
        went_on = frozenset(
            host for host, slot in now.items() if _went_on(self._slots.get(host), slot)
        )
        self._slots = now
        self._ever |= went_on
        return went_on, frozenset(self._ever)


def _went_on(before: Slot | None, now: Slot) -> bool:
    return before is not None and before.boot == now.boot and now.counter > before.counter


class LeaseJudge:
    """One per cluster, on the leader. A new leader begins anew: the poison stands, only the wait is longer."""

    def __init__(
        self, installation_id: InstallationId, policy: LeasePolicy, *, two_hosts: bool = False
    ) -> None:
        """``two_hosts``: the cluster has no third host that a round could be controlled by."""
        self._installation_id = installation_id
        self.policy = policy
        self.two_hosts = two_hosts
        self._targets: dict[HostId, LeaseTarget] = {}
        self._watches: dict[tuple[HostId, StorageDomainId], LeaseWatch] = {}
        self._readers: dict[tuple[HostId, StorageDomainId], _Reader] = {}
        self._waived: set[tuple[HostId, StorageDomainId]] = set()
        self.signs: tuple[LifeSign, ...] = ()
        """Whose slots went on, by the last round that was read (J2). Empty where that round does not show its
        reader's own write."""

    def watch(self, target: LeaseTarget) -> None:
        assert target.domain_ids, "a lease proof is about copies with disks in some domain"
        self.forget(target.host_id)
        self._targets[target.host_id] = target
        for domain_id in target.domain_ids:
            watch = LeaseWatch(target.host_id, target.boot)
            self._watches[target.host_id, domain_id] = watch

    def forget(self, host_id: HostId) -> None:
        """The incident is over."""
        target = self._targets.pop(host_id, None)
        for domain_id in target.domain_ids if target else ():
            del self._watches[host_id, domain_id]

    def set_waiver(self, host_id: HostId, domain_id: StorageDomainId, *, stands: bool) -> None:
        """From the leader's records: set before the waiver is given, unset only after ``WaiverOver`` came.
        What was seen while it stood is forgotten with it."""
        if stands:
            self._waived.add((host_id, domain_id))
            return
        self._waived.discard((host_id, domain_id))
        watch = self._watches.get((host_id, domain_id))
        if watch is not None:
            watch.begin_anew()

    def read(self, now: Millis, seen: SlotRound) -> tuple[Proof, ...]:
        """Fold one round; ``now`` is cluster time. The proofs that stand after it, if this round touched them."""
        reader = self._readers.setdefault((seen.reader_id, seen.domain_id), _Reader())
        went_on, ever = reader.advanced(seen)
        self.signs = self._signs(seen, went_on, reader.gap_ms)
        proofs = []
        for target in self._targets.values():
            watch = self._watches.get((target.host_id, seen.domain_id))
            if watch is None or target.host_id == seen.reader_id:
                continue
            watch.fold(
                seen,
                self._why_not(seen, target.host_id, went_on, ever),
                policy=self.policy,
                waived=(target.host_id, seen.domain_id) in self._waived,
            )
            if all(self._watches[target.host_id, each].expired_by for each in target.domain_ids):
                proofs.append(self._proof(now, target))
        return tuple(proofs)

    def reasons(self, host_id: HostId) -> dict[StorageDomainId, Reason]:
        """Per domain what is awaited, or why its slot is no proof."""
        target = self._targets.get(host_id)
        if target is None:
            return {}
        return {each: self._watches[host_id, each].reason for each in sorted(target.domain_ids)}

    def _signs(
        self, seen: SlotRound, went_on: frozenset[HostId], within_ms: int
    ) -> tuple[LifeSign, ...]:
        if not seen.direct_io or not self._fresh(seen):
            return ()
        found = [(host_id, seen.slots[host_id]) for host_id in sorted(went_on - {seen.reader_id})]
        return tuple(
            LifeSign(
                host_id=host_id,
                boot=slot.boot,
                within_ms=within_ms,
                submitted_ms=slot.submitted_ms,
            )
            for host_id, slot in found
            if isinstance(slot, Slot)
        )

    def _fresh(self, seen: SlotRound) -> bool:
        own = seen.slots.get(seen.reader_id)
        return (
            isinstance(own, Slot)
            and own.installation_id == self._installation_id
            and (own.boot, own.counter) == (seen.reader_boot, seen.own_counter)
        )

    def _why_not(
        self,
        seen: SlotRound,
        target: HostId,
        went_on: frozenset[HostId],
        ever: frozenset[HostId],
    ) -> Reason | None:
        """None: the round counts."""
        if not seen.direct_io:
            return Reason(code="lease.not_proof.cached_round")
        if not self._fresh(seen):
            return Reason(code="lease.not_proof.own_write")
        controls = ever & {target} if self.two_hosts else went_on - {target, seen.reader_id}
        return None if controls else Reason(code="lease.not_proof.no_control")

    def _proof(self, now: Millis, target: LeaseTarget) -> Proof:
        domains = ", ".join(sorted(target.domain_ids))
        return Proof(
            kind=ProofKind.LEASE,
            host_id=target.host_id,
            boot=target.boot,
            at_ms=int(now),
            detail=f"poisoned lease expired on {domains}",
            domain_ids=tuple(sorted(target.domain_ids)),
        )
