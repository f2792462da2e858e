"""What one reader saw of all slots of a domain in one look, as it is told to the server (safety.md, P2).

The rules that a round has to meet to count are the judge's (`engine/lease.py`). It lies here because hosts make
it, and hosts know nothing of the engine.
"""

from collections.abc import Mapping

from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot import MailboxReading, Poison, SlotReading
from virtha.model.value import Value


class SlotRound(Value, frozen=True, kw_only=True):
    """``began_ms``: before the first write or read; ``ended_ms``: after the last; both of the reader's boot-time
    clock. ``own_counter``: what it wrote into its own slot in this round, before it read."""

    reader_id: HostId
    reader_boot: BootId
    domain_id: StorageDomainId
    began_ms: int
    ended_ms: int
    own_counter: int
    direct_io: bool
    slots: Mapping[HostId, SlotReading]
    mailboxes: Mapping[HostId, MailboxReading]


class LeaseDuty(Value, frozen=True, kw_only=True):
    """What a server asks of a reader on one domain, beside the reader's own renewals, until it says otherwise."""

    domain_id: StorageDomainId
    places: Mapping[HostId, int]
    """Whose slots, and at which index: all hosts that the server knows there."""
    poisons: Mapping[HostId, Poison] = {}
    """Whose mailboxes are to be written, with what, until they read so."""


PLACES_MAX = 1_024
"""Hosts that a storage domain has blocks for."""


def slot_index(host_number: int) -> int:
    """Where a host's blocks lie on every domain: hosts are numbered from 1, and no number is given twice."""
    return host_number - 1
