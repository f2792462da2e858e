"""A host's slot on a storage domain and the mailbox beside it: what they hold, and their bytes.

Slots are written by their host's guardian only; mailboxes by whoever poisons (safety.md, P2). One host has
``index`` in both tables. Blocks are ``BLOCK_BYTES`` apart and as long, because direct I/O on 4Kn disks
wants that; what they say lies in the first 512 bytes, the unit that every disk writes whole.

The checksum is zlib's CRC-32: it finds each burst up to 32 bits, misses a torn block once in 2^32, is in
the standard library, and no one is to be kept from forging: who may write here may write the images too.
A misread block is no use to anyone either: a proof takes dozens of rounds that agree. Against a block that
lies in the wrong place, what no checksum finds, the block names its domain and index.

Integers are little-endian. A later version may use bytes that are zero now only under a higher ``version``,
and a reader refuses versions it doesn't know: half understood would be misunderstood. So hosts come before
servers where a version rises.
"""

from enum import StrEnum
from functools import lru_cache
from struct import Struct
from zlib import crc32

from virtha.model.errors import InvalidInput
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.value import Value

BLOCK_BYTES = 4_096
SECTOR_BYTES = 512
VERSION = 1
_SLOT_MAGIC = b"VIRTSLOT"
_MAILBOX_MAGIC = b"VIRTMAIL"
_ID_BYTES = 40
"""UUID text is 36. Text, so that `hexdump -C` shows an administrator whose block it is."""
_HEAD = Struct(f"<8sH2xI{_ID_BYTES}s{_ID_BYTES}s{_ID_BYTES}s{_ID_BYTES}s")
_SLOT = Struct("<QQqQ16s")
_DECLARATION = Struct("<IIII")
_MAILBOX = Struct(f"<QQ{_ID_BYTES}s{_ID_BYTES}s")
_CHECKSUM = Struct("<I")
_CHECKED_BYTES = SECTOR_BYTES - _CHECKSUM.size
_MILLIS_MAX = (1 << 32) - 1
_COUNTER_MAX = (1 << 63) - 1
_NEVER = -1
_CACHED_MAX = 1_024
"""Renewals differ in their counters and times only. What a host's blocks have in common is made, and read, once."""


class Declaration(Value, frozen=True, kw_only=True):
    """What the host's boot undertakes; only with all of it does an expired slot prove a death (P2).

    Each is true from the moment a slot that says it is *submitted*, for it may land and be read at any time
    from then on; what relieves the host holds only once no slot that says otherwise can land any more.
    """

    armed: bool = False
    """A host watchdog runs that resets the host ``watchdog_ms`` after its last feeding."""
    no_way_out: bool = False
    """Nothing short of a reset stops it."""
    fed_by_renewer: bool = False
    """The process that renews this slot is the only one that feeds it."""
    direct_io: bool = False
    """Slot and mailbox are written and read past every cache of the host."""
    watchdog_ms: int = 0
    self_fence_after_ms: int = 0
    """From the submission of the last good renewal until its VMs are killed, waived or not."""
    kill_ms: int = 0
    """From then until they are reaped with no write outstanding, or the host is being reset."""
    waived: bool = False
    """The leader waived self-fencing: this slot proves nothing."""


class Slot(Value, frozen=True, kw_only=True):
    """``submitted_ms`` and ``good_ms`` are of ``boot``'s boot-time clock and mean nothing to another host."""

    installation_id: InstallationId
    domain_id: StorageDomainId
    index: int
    host_id: HostId
    boot: BootId
    counter: int
    submitted_ms: int = 0
    """When this renewal was decided: how old a change is at least, for a leader that has heard this clock in beats."""
    good_ms: int | None = None
    """When the last good renewal before this one was. A restarted guardian resumes from it, not from
    ``submitted_ms``: of the renewal that stands here nobody knows that its mailbox was clean."""
    acknowledged_poison: int = 0
    """Counter of the poison that this boot has read and obeys; 0: none."""
    declaration: Declaration = Declaration()


class Poison(Value, frozen=True, kw_only=True):
    """Ends the leases of ``boot`` for good: what reads it kills its VMs and starts none in this boot."""

    boot: BootId
    server: str
    """Who poisoned, for people."""
    term: Term
    incident: str


class Mailbox(Value, frozen=True, kw_only=True):
    """``counter`` rises by one with each write. Preparing a domain writes counter 0 with no poison, so a
    block of zeros is a mailbox that was lost, never one that says "nothing"."""

    installation_id: InstallationId
    domain_id: StorageDomainId
    index: int
    host_id: HostId
    counter: int
    poison: Poison | None = None


class BlockFault(StrEnum):
    """Why a block says nothing. None of them is a sign of death, or a clean mailbox."""

    EMPTY = "empty"
    """All zeros: never written, or lost."""
    TORN = "torn"
    """The checksum is wrong: half written, or damaged."""
    ALIEN = "alien"
    """No block of this kind."""
    FOREIGN = "foreign"
    """Of another installation (G7)."""
    MISPLACED = "misplaced"
    """Of another domain or another place."""
    FUTURE = "future"
    """Of a version that this program doesn't know."""
    SHORT = "short"
    """Fewer bytes than a block has."""
    UNREAD = "unread"
    """The read failed, or was not tried. Given by callers, never by the decoder."""


class Unreadable(Value, frozen=True, kw_only=True):
    fault: BlockFault
    detail: str = ""


SlotReading = Slot | Unreadable
MailboxReading = Mailbox | Unreadable


class Place(Value, frozen=True, kw_only=True):
    """Where a block is read from, and so what it has to say of itself."""

    installation_id: InstallationId
    domain_id: StorageDomainId
    index: int


def encode_slot(slot: Slot) -> bytes:
    """``BLOCK_BYTES`` bytes. Raises InvalidInput when a field does not fit."""
    good_ms = slot.submitted_ms if slot.good_ms is None else slot.good_ms
    numbers = (slot.counter, slot.submitted_ms, good_ms, slot.acknowledged_poison)
    if min(numbers) < 0 or max(numbers) > _COUNTER_MAX:
        names = ("counter", "submitted_ms", "good_ms", "acknowledged_poison")
        for name, number in zip(names, numbers, strict=True):
            _counter(f"slot.{name}", number)
    body = _SLOT.pack(
        slot.counter,
        slot.submitted_ms,
        _NEVER if slot.good_ms is None else good_ms,
        slot.acknowledged_poison,
        _declared(slot.declaration),
    )
    return _block(_SLOT_MAGIC, slot, boot=slot.boot, body=body)


def encode_mailbox(mailbox: Mailbox) -> bytes:
    """``BLOCK_BYTES`` bytes. Raises InvalidInput when a field does not fit."""
    poison = mailbox.poison
    if poison is not None and not poison.boot:
        raise InvalidInput("a poison names a boot", field="mailbox.poison.boot")
    body = _MAILBOX.pack(
        _counter("mailbox.counter", mailbox.counter),
        poison.term if poison else 0,
        _text("mailbox.poison.server", poison.server if poison else ""),
        _text("mailbox.poison.incident", poison.incident if poison else ""),
    )
    return _block(_MAILBOX_MAGIC, mailbox, boot=poison.boot if poison else "", body=body)


def decode_slot(block: bytes, place: Place) -> SlotReading:
    """Never raises: a block may hold anything."""
    head = _head(block, _SLOT_MAGIC, place)
    if isinstance(head, Unreadable):
        return head
    host_id, boot = head
    counter, submitted_ms, good_ms, acknowledged, declared = _SLOT.unpack_from(block, _HEAD.size)
    return Slot(
        installation_id=place.installation_id,
        domain_id=place.domain_id,
        index=place.index,
        host_id=HostId(host_id),
        boot=BootId(boot),
        counter=counter,
        submitted_ms=submitted_ms,
        good_ms=None if good_ms == _NEVER else good_ms,
        acknowledged_poison=acknowledged,
        declaration=_declaration(declared),
    )


def decode_mailbox(block: bytes, place: Place) -> MailboxReading:
    """Never raises: a block may hold anything."""
    head = _head(block, _MAILBOX_MAGIC, place)
    if isinstance(head, Unreadable):
        return head
    host_id, boot = head
    counter, term, server, incident = _MAILBOX.unpack_from(block, _HEAD.size)
    poison = None
    if boot:
        poison = Poison(
            boot=BootId(boot), server=_read(server), term=Term(term), incident=_read(incident)
        )
    return Mailbox(
        installation_id=place.installation_id,
        domain_id=place.domain_id,
        index=place.index,
        host_id=HostId(host_id),
        counter=counter,
        poison=poison,
    )


def owner_bytes(place: Place, host_id: HostId) -> bytes:
    """How every mailbox of that host in that place begins, whatever else it says: for storage that compares what stands
    there with it before it writes. Raises InvalidInput."""
    names = (place.installation_id, place.domain_id, host_id, "")
    return _packed_head(_MAILBOX_MAGIC, "mailbox", place.index, *names)[:-_ID_BYTES]


# Bytes

_BITS = {"armed": 1, "no_way_out": 2, "fed_by_renewer": 4, "direct_io": 8, "waived": 16}


@lru_cache(_CACHED_MAX)
def _declared(said: Declaration) -> bytes:
    return _DECLARATION.pack(
        sum(bit for name, bit in _BITS.items() if getattr(said, name)),
        _millis("slot.declaration.watchdog_ms", said.watchdog_ms),
        _millis("slot.declaration.self_fence_after_ms", said.self_fence_after_ms),
        _millis("slot.declaration.kill_ms", said.kill_ms),
    )


@lru_cache(_CACHED_MAX)
def _declaration(declared: bytes) -> Declaration:
    flags, watchdog, self_fence, kill = _DECLARATION.unpack(declared)
    return Declaration(
        **{name: bool(flags & bit) for name, bit in _BITS.items()},
        watchdog_ms=watchdog,
        self_fence_after_ms=self_fence,
        kill_ms=kill,
    )


def _block(magic: bytes, told: Slot | Mailbox, *, boot: str, body: bytes) -> bytes:
    kind = "slot" if isinstance(told, Slot) else "mailbox"
    names = (told.installation_id, told.domain_id, told.host_id, boot)
    head = _packed_head(magic, kind, told.index, *names)
    said = (head + body).ljust(_CHECKED_BYTES, b"\0")
    return (said + _CHECKSUM.pack(crc32(said))).ljust(BLOCK_BYTES, b"\0")


@lru_cache(_CACHED_MAX)
def _packed_head(
    magic: bytes,
    kind: str,
    index: int,
    installation_id: str,
    domain_id: str,
    host_id: str,
    boot: str,
) -> bytes:
    if not 0 <= index <= _MILLIS_MAX:
        raise InvalidInput(f"{index} is out of range", field=f"{kind}.index")
    return _HEAD.pack(
        magic,
        VERSION,
        index,
        _text(f"{kind}.installation_id", installation_id),
        _text(f"{kind}.domain_id", domain_id),
        _text(f"{kind}.host_id", host_id),
        _text(f"{kind}.boot", boot),
    )


@lru_cache(_CACHED_MAX)
def _unpacked_head(head: bytes) -> tuple[bytes, int, int, str, str, str, str]:
    """Magic, version, index, installation, domain, host and boot."""
    magic, version, index, *names = _HEAD.unpack(head)
    installation, domain, host, boot = (_read(name) for name in names)
    return magic, version, index, installation, domain, host, boot


def _head(block: bytes, magic: bytes, place: Place) -> tuple[str, str] | Unreadable:
    """Host and boot of a block that is whole, ours, and in its place."""
    if len(block) < SECTOR_BYTES:
        return Unreadable(fault=BlockFault.SHORT, detail=f"{len(block)} bytes")
    sector = bytes(block[:SECTOR_BYTES])
    if not any(sector):
        return Unreadable(fault=BlockFault.EMPTY)
    found, version, index, installation, domain, host, boot = _unpacked_head(sector[: _HEAD.size])
    if found != magic:
        return Unreadable(fault=BlockFault.ALIEN, detail=repr(found))
    # Before the version: of a torn block not even that can be believed. All versions keep this checksum.
    if _CHECKSUM.unpack_from(sector, _CHECKED_BYTES) != (crc32(sector[:_CHECKED_BYTES]),):
        return Unreadable(fault=BlockFault.TORN)
    if version != VERSION:
        return Unreadable(fault=BlockFault.FUTURE, detail=f"version {version}")
    if installation != place.installation_id:
        return Unreadable(fault=BlockFault.FOREIGN, detail=installation)
    if (domain, index) != (place.domain_id, place.index):
        return Unreadable(fault=BlockFault.MISPLACED, detail=f"{domain} index {index}")
    return host, boot


def _text(field: str, text: str) -> bytes:
    data = text.encode("ascii", "replace")
    if len(data) > _ID_BYTES or not text.isascii() or "\0" in text:
        raise InvalidInput(
            f"{text!r} does not fit a block",
            field=field,
            allowed=(f"up to {_ID_BYTES} ASCII characters",),
        )
    return data


def _read(data: bytes) -> str:
    return data.rstrip(b"\0").decode("ascii", "replace")


def _counter(field: str, value: int) -> int:
    if not 0 <= value <= _COUNTER_MAX:
        raise InvalidInput(f"{value} is out of range", field=field, allowed=("0 to 2^63 - 1",))
    return value


def _millis(field: str, value: int) -> int:
    if not 0 <= value <= _MILLIS_MAX:
        raise InvalidInput(f"{value} is out of range", field=field, allowed=("0 to 2^32 - 1",))
    return value
