"""One domain's heartbeat blocks in threads of their own: a storage that hangs stalls its worker and nothing else.

The host's own slot and mailbox have one thread, other hosts' have another, with a connection of its own: where a part of the
storage hangs that only another host's slot lies in, this host's renewals go on (docs/adr/0019-heartbeat-on-rados.md). A thread, not a process: what it left in the kernel keeps this process from being reaped and so its lock from being
taken, and no guardian starts while a write of the one before may still land (docs/adr/0008-storage-lease.md).
"""

import errno
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import structlog
from msgspec import UNSET, UnsetType

from virtha.agent.lease_files import OpenedDomain
from virtha.agent.worker import Worker
from virtha.model.errors import VirthaError
from virtha.model.host import CephPool
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot import (
    BlockFault,
    Mailbox,
    MailboxReading,
    Poison,
    SlotReading,
    Unreadable,
)
from virtha.model.slot_round import LeaseDuty, SlotRound
from virtha.model.time import Millis
from virtha.ports.storage_domain import HeartbeatSlots
from virtha.sentinel.lease_events import DomainAttached, LeaseEvent, RenewDone, RenewSlot

EMPTY = Unreadable(fault=BlockFault.EMPTY)
UNREAD = Unreadable(fault=BlockFault.UNREAD)
_log = structlog.get_logger(__name__)


class SlotWorker:
    """``tell`` is called in the thread of the own slot, ``tell_round`` in the thread of the others'."""

    def __init__(
        self,
        domain_id: StorageDomainId,
        index: int,
        slots: HeartbeatSlots,
        *,
        others: HeartbeatSlots,
        path: str,
        ceph: CephPool | UnsetType = UNSET,
        host_id: HostId,
        boot: BootId,
        now: Callable[[], Millis],
        tell: Callable[[LeaseEvent], None],
        tell_round: Callable[[SlotRound], None],
    ) -> None:
        """``slots`` and ``others``: of the same domain, and no two that wait for each other."""
        self.domain_id = domain_id
        self.index = index
        self._slots = slots
        self._path = path
        self._ceph = ceph
        self._host_id = host_id
        self._boot = boot
        self._now = now
        self._tell = tell
        self._tell_round = tell_round
        self._others = others
        self._others_worker = Worker(f"others-slots-{domain_id}")
        self._others_busy = False
        """At most one look at others is under way: one that hangs is waited for by the next look, and by nothing else."""
        self._written_counter = 0
        """Of the last renewal that the storage acknowledged."""
        self._read_ms: Millis | None = None
        self._last_errors: dict[str, str] = {}
        self._written_back: Worker | None = None
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"virtha-slot-{domain_id}", daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except Exception:
                # The loop has ended while this call hung; or a mistake of ours, after which renewals go on all the same.
                _log.exception("a step of the slot's worker failed", domain=self.domain_id)

    # Orders

    def read_own(self, opened: Callable[[OpenedDomain], None], failed: Callable[[], None]) -> None:
        """Tells ``DomainAttached``, after ``opened``."""

        def read() -> None:
            try:
                own = self._slots.read_slot(self.index)
                if own == EMPTY and self._slots.read_mailbox(self.index) == EMPTY:
                    # The agent is about to prepare it. A renewal that fails would bind this boot for good (ADR 8).
                    raise OSError(errno.EAGAIN, "its place there is not prepared yet")
                opened(
                    OpenedDomain(
                        domain_id=self.domain_id,
                        index=self.index,
                        direct_io=self._slots.direct_io,
                        # No process has an open file of a pool.
                        path=str(Path(self._path).resolve()) if self._ceph is UNSET else self._path,
                        ceph=self._ceph,
                    )
                )
            except OSError as error:
                self._failed("can't read this host's slot", error)
                failed()
                return
            self._tell(self._attached(own))

        self._work.put(read)

    def renew(self, command: RenewSlot, duty: LeaseDuty | None, *, read_period_ms: int) -> None:
        """The slot, then its mailbox. Then, in the other thread, others' mailboxes where that is asked, and others' slots."""
        began_ms = self._now()

        def work() -> None:
            done = self._renewed(command)
            self._tell(done)
            if duty is None or self._others_busy:
                return
            due = self._read_ms is None or began_ms >= self._read_ms + read_period_ms
            reads = done.written and done.mailbox is not UNREAD and due
            if reads:
                self._read_ms = began_ms
            if reads or duty.poisons:
                self._others_busy = True
                self._others_worker.put(partial(self._look_at_others, duty, began_ms, reads))

        self._work.put(work)

    def write_back(self, done: Callable[[], None]) -> None:
        """``done`` is called when nothing that was written before is left in this host's caches; never, if not. In
        another thread, for it may take longer than a renewal may wait."""

        def work() -> None:
            try:
                self._slots.write_back()
            except OSError as error:
                self._failed("can't write back", error)
            else:
                done()

        if self._written_back is None:
            self._written_back = Worker(f"write-back-{self.domain_id}")
        self._written_back.put(work)

    # In the own slot's thread

    def _attached(self, own: SlotReading) -> DomainAttached:
        return DomainAttached(
            domain_id=self.domain_id, index=self.index, own=own, direct_io=self._slots.direct_io
        )

    def _renewed(self, command: RenewSlot) -> RenewDone:
        written = False
        mailbox: MailboxReading = UNREAD
        try:
            self._slots.write_slot(command.slot)
            self._written_counter = command.slot.counter
            written = True
            mailbox = self._slots.read_mailbox(self.index)
        except OSError as error:
            self._failed("a renewal failed", error)
        else:
            self._last_errors.pop("a renewal failed", None)
        return RenewDone(
            domain_id=self.domain_id, number=command.number, written=written, mailbox=mailbox
        )

    # In the others' thread

    def _look_at_others(self, duty: LeaseDuty, began_ms: Millis, reads: bool) -> None:
        try:
            if duty.poisons:
                self._poison(duty.poisons, duty.places)
            if reads:
                self._read_others(duty, began_ms)
        finally:
            self._others_busy = False

    def _poison(self, poisons: Mapping[HostId, Poison], places: Mapping[HostId, int]) -> None:
        """Each counter goes on. What fails is tried again at the next renewal: the server asks until it is read."""
        try:
            found = self._others.read_mailboxes(_of(places, poisons))
        except (OSError, VirthaError) as error:
            self._failed("can't read the mailboxes of others", error)
            return
        for host_id, mailbox in found.items():
            if not isinstance(mailbox, Mailbox) or not _is_due(mailbox.poison, poisons[host_id]):
                continue
            try:
                self._others.write_mailbox(
                    Mailbox(
                        installation_id=mailbox.installation_id,
                        domain_id=mailbox.domain_id,
                        index=mailbox.index,
                        host_id=host_id,
                        counter=mailbox.counter + 1,
                        poison=poisons[host_id],
                    )
                )
            except (OSError, VirthaError) as error:
                self._failed(f"can't poison {host_id}", error)

    def _read_others(self, duty: LeaseDuty, began_ms: Millis) -> None:
        # Of a renewal that was acknowledged since the round began, and before anything is read.
        counter = self._written_counter
        try:
            slots = self._others.read_slots(duty.places)
            mailboxes = self._others.read_mailboxes(_of(duty.places, duty.poisons))
        except (OSError, VirthaError) as error:
            self._failed("can't read the slots of others", error)
            return
        self._tell_round(
            SlotRound(
                reader_id=self._host_id,
                reader_boot=self._boot,
                domain_id=self.domain_id,
                began_ms=began_ms,
                ended_ms=self._now(),
                own_counter=counter,
                direct_io=self._others.direct_io,
                slots=slots,
                mailboxes=mailboxes,
            )
        )

    # In either

    def _failed(self, what: str, error: Exception) -> None:
        """The same again is not said again: it comes at each renewal."""
        if self._last_errors.get(what) != str(error):
            self._last_errors[what] = str(error)
            _log.error(what, domain=self.domain_id, error=str(error))


def _of(places: Mapping[HostId, int], hosts: Iterable[HostId]) -> dict[HostId, int]:
    return {host_id: places[host_id] for host_id in hosts if host_id in places}


def _is_due(found: Poison | None, poison: Poison) -> bool:
    """A later leader's poison stays: it may be about a boot that this one never heard of."""
    return found is None or (found != poison and found.term <= poison.term)
