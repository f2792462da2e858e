"""A storage domain's heartbeat blocks, and signs of writing on its disks. One driver per kind of storage.

Every method may hang for as long as the storage does: it is called in that domain's own worker only, one at a
time, and nobody waits for it without a deadline. Errors: ``OSError`` (the storage answered with an error, or what is
there can't be used; nothing is known, and a write may land later all the same) and, of ``prepare`` alone, those of
`model/errors.py`. What a driver has to keep:

- A block is written in place, whole and aligned, past every cache of the host where ``direct_io`` says so, and a write
  returns when the storage has acknowledged it durably. Nothing is renamed or grows: a full domain takes renewals.
- A read goes to the storage, never to a cache, where ``direct_io`` says so. Without it a lease proves nothing (P2).
- No block is written where the mailbox in that place does not name this installation, domain and host: a mount
  that came back may be another one's (G7).
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from virtha.model.ids import HostId
from virtha.model.slot import Mailbox, MailboxReading, Slot, SlotReading
from virtha.model.value import Value


class HeartbeatSlots(Protocol):
    """Slots and mailboxes of one domain, as seen from this host."""

    @property
    def direct_io(self) -> bool:
        """Past every cache. Known once a method succeeded, and the same from then on; False before."""
        ...

    def prepare(self, index: int, host_id: HostId) -> None:
        """Make what is missing for that host's place: the table, and a mailbox without poison. Done already: nothing
        changes. Raises Refused (foreign, the place is another host's), Failed (no room, damaged), OSError."""
        ...

    def read_slot(self, index: int) -> SlotReading: ...

    def read_mailbox(self, index: int) -> MailboxReading: ...

    def read_slots(self, places: Mapping[HostId, int]) -> dict[HostId, SlotReading]:
        """Of all those hosts, in one look. One whose part of the storage does not answer within a few seconds is
        ``BlockFault.UNREAD``, and the others are what they are."""
        ...

    def read_mailboxes(self, places: Mapping[HostId, int]) -> dict[HostId, MailboxReading]:
        """As ``read_slots``."""
        ...

    def write_slot(self, slot: Slot) -> None: ...

    def write_mailbox(self, mailbox: Mailbox) -> None:
        """Only over a mailbox of the same host whose counter is one less."""
        ...

    def write_back(self) -> None:
        """Returns when nothing that any process of this host wrote to the domain before is left in its caches. May be
        called while another method is under way: it may take long."""
        ...


class DiskSigns(Value, frozen=True, kw_only=True):
    """What a write to a disk changes, or some of it. Only two reads by one reader are compared (J3); that nothing
    changed proves nothing, for a guest may be idle."""

    modified_ns: int
    size_bytes: int
    blocks: int
    """Allocated: rises as a thin disk is filled, also where time stamps are rounded to seconds."""
    head: bytes
    """Digest of the first 64 KiB: a qcow2's header, first tables and reference counts."""
    tables: bytes = b""
    """Digest of a qcow2's first level table, wherever its header says that it lies."""
    storage: str = ""
    """What this kind of storage can tell besides."""


class DiskActivity(Protocol):
    def read_signs(self, paths: Iterable[str]) -> dict[str, DiskSigns | None]:
        """By path below the domain. None: it can't be read; another one may be all the same."""
        ...
