"""What server and guardian say to each other about storage leases (safety.md, P2 and section 3).

    server -> guardian   ReadSlots, StopReading, WaiveLease, KeepLease
    guardian -> server   SlotsRead, LeaseKept

A server sends them only to a guardian whose hello has ``LEASE_FEATURE``. None of them is acknowledged: duties and waivers
are said again in each new session and at each change, rounds come for as long as the duty stands.
"""

from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot import Mailbox, Slot, Unreadable
from virtha.model.slot_round import LeaseDuty, SlotRound
from virtha.model.value import Value

LEASE_FEATURE = "leases"


class ReadSlots(Value, frozen=True, kw_only=True, tag="read_slots"):
    """Read there, and poison whom it names; replaces what was asked of that domain before. ``boot``: of the reader that
    was chosen; another boot ignores it."""

    boot: BootId
    duty: LeaseDuty


class StopReading(Value, frozen=True, kw_only=True, tag="stop_reading"):
    domain_id: StorageDomainId


class WaiveLease(Value, frozen=True, kw_only=True, tag="waive_lease"):
    """The leader's record of it was durable before. Another boot ignores it."""

    waiver_id: str
    boot: BootId
    domain_id: StorageDomainId


class KeepLease(Value, frozen=True, kw_only=True, tag="keep_lease"):
    """The waiver ends: renew, and say so by ``LeaseKept``, also where that was said before."""

    waiver_id: str
    boot: BootId
    domain_id: StorageDomainId


class LeaseKept(Value, frozen=True, kw_only=True, tag="lease_kept"):
    waiver_id: str
    boot: BootId
    domain_id: StorageDomainId


class SlotsRead(Value, frozen=True, kw_only=True, tag="slots_read"):
    """A ``SlotRound``. Of each host either its block or why there is none; the reader is who says it."""

    boot: BootId
    domain_id: StorageDomainId
    began_ms: int
    ended_ms: int
    own_counter: int
    direct_io: bool
    slots: dict[HostId, Slot] = {}
    unreadable_slots: dict[HostId, Unreadable] = {}
    mailboxes: dict[HostId, Mailbox] = {}
    unreadable_mailboxes: dict[HostId, Unreadable] = {}


LeaseOrder = ReadSlots | StopReading | WaiveLease | KeepLease
LeaseAnswer = SlotsRead | LeaseKept
LeaseMessage = LeaseOrder | LeaseAnswer


def told_round(seen: SlotRound) -> SlotsRead:
    return SlotsRead(
        boot=seen.reader_boot,
        domain_id=seen.domain_id,
        began_ms=seen.began_ms,
        ended_ms=seen.ended_ms,
        own_counter=seen.own_counter,
        direct_io=seen.direct_io,
        slots={host: slot for host, slot in seen.slots.items() if isinstance(slot, Slot)},
        unreadable_slots={
            host: slot for host, slot in seen.slots.items() if isinstance(slot, Unreadable)
        },
        mailboxes={host: box for host, box in seen.mailboxes.items() if isinstance(box, Mailbox)},
        unreadable_mailboxes={
            host: box for host, box in seen.mailboxes.items() if isinstance(box, Unreadable)
        },
    )


def heard_round(reader_id: HostId, told: SlotsRead) -> SlotRound:
    """``reader_id``: of the session, by its certificate."""
    return SlotRound(
        reader_id=reader_id,
        reader_boot=told.boot,
        domain_id=told.domain_id,
        began_ms=told.began_ms,
        ended_ms=told.ended_ms,
        own_counter=told.own_counter,
        direct_io=told.direct_io,
        slots={**told.unreadable_slots, **told.slots},
        mailboxes={**told.unreadable_mailboxes, **told.mailboxes},
    )
