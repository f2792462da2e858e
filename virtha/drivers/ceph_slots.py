"""Storage domain ``ceph-rbd``: heartbeat blocks in RADOS objects, one per host, beside the pool's images.

``virtha.heartbeat.<place>`` holds the host's slot and, ``BLOCK_BYTES`` further, its mailbox. Its owner and whoever poisons
write different halves of it, each only if what it takes to stand there does so in that very moment: the OSD compares and writes in
one step. So a write that comes late, of a connection that was given up, lands on nothing newer; and none lands in a place whose
mailbox does not name this installation, domain and host (G7).

Torn blocks don't exist: a write is whole on all copies before it is acknowledged, or not there. Reads are never stale: they
go to the primary OSD, which answers with what was acknowledged, and no client keeps data. docs/adr/0019-heartbeat-on-rados.md.
"""

import errno
from collections.abc import Mapping
from typing import Any

from virtha.drivers.ceph_client import CephClient, CephUnusable
from virtha.drivers.ceph_library import MISMATCH
from virtha.model.errors import Failed, InvalidInput, Refused
from virtha.model.host import CephPool
from virtha.model.ids import HostId, InstallationId, StorageDomainId
from virtha.model.slot import (
    BLOCK_BYTES,
    SECTOR_BYTES,
    BlockFault,
    Mailbox,
    MailboxReading,
    Place,
    Slot,
    SlotReading,
    Unreadable,
    decode_mailbox,
    decode_slot,
    encode_mailbox,
    encode_slot,
    owner_bytes,
)
from virtha.model.slot_round import PLACES_MAX

OP_S = 55
"""A write that hangs lands when the storage is back; one that is given up is one of unknown fate, which binds its boot
(ADR 8). So this is longer than any lease needs."""
PATIENCE_MS = 60_000
"""For the library's process itself to say so."""
CONNECT_S = 10
"""A renewal that fails binds its boot: a cluster that is slow is waited for."""
OTHERS_MS = 3_000
"""So long another host's slot or mailbox may take: its part of the pool may hang alone."""
OTHERS_PATIENCE_MS = OTHERS_MS + 2_000
ATTEMPTS = 3
_NOT_OURS = (BlockFault.FOREIGN, BlockFault.MISPLACED, BlockFault.FUTURE)


class CephSlots:
    """Implements ``HeartbeatSlots``. Not for two threads at once, but for ``write_back``."""

    def __init__(
        self,
        pool: CephPool,
        *,
        installation_id: InstallationId,
        domain_id: StorageDomainId,
        options: Mapping[str, str] | None = None,
        locked: bool = False,
    ) -> None:
        self._client = CephClient(
            pool, options=options, locked=locked, connect_s=CONNECT_S, op_s=OP_S
        )
        self._pool = pool
        self._installation_id = installation_id
        self._domain_id = domain_id
        self._direct = False
        self._standing: dict[int, bytes] = {}
        """What stands in places of which it was seen that they are ours."""

    @property
    def direct_io(self) -> bool:
        return self._direct

    def close(self) -> None:
        self._client.close()

    # Setting up

    def prepare(self, index: int, host_id: HostId) -> None:
        _check_index(index)
        mailbox = Mailbox(
            installation_id=self._installation_id,
            domain_id=self._domain_id,
            index=index,
            host_id=host_id,
            counter=0,
        )
        data = bytes(BLOCK_BYTES) + encode_mailbox(mailbox)
        try:
            self._write(index, 0, data, exclusive=True, whole=True)
        except FileExistsError:
            self._check_prepared(index, host_id)
        except CephUnusable as error:
            raise unusable(error, self._pool) from error
        except PermissionError as error:
            raise no_write(self._pool) from error

    def _check_prepared(self, index: int, host_id: HostId) -> None:
        found = self.read_mailbox(index)
        if isinstance(found, Mailbox):
            if found.host_id != host_id:
                raise self._refused(f"place {index} is host {found.host_id}'s")
            return
        if found.fault in _NOT_OURS:
            raise self._refused(
                f"its heartbeat is of another installation or domain ({found.fault.value})"
            )
        # Written anew it would say that nobody ever poisoned this host.
        lost = found.fault is BlockFault.EMPTY
        raise Failed(
            f"the mailbox of {_name(index)} is {'lost' if lost else found.fault.value}",
            fix="see that no host of this installation runs VMs with disks there, then remove that object: "
            f"'rados -p {self._pool.pool} rm {_name(index)}'",
        )

    def _refused(self, why: str) -> Refused:
        return Refused(
            f"{self._pool.shown}: {why}",
            code="order.refused.storage_foreign",
            fix="use another pool or namespace",
        )

    # Reading

    def read_slot(self, index: int) -> SlotReading:
        _check_index(index)
        return decode_slot(self._read(index, 0), self._place(index))

    def read_mailbox(self, index: int) -> MailboxReading:
        _check_index(index)
        return decode_mailbox(self._read(index, BLOCK_BYTES), self._place(index))

    def read_slots(self, places: Mapping[HostId, int]) -> dict[HostId, SlotReading]:
        return {
            host_id: block
            if isinstance(block, Unreadable)
            else decode_slot(block, self._place(places[host_id]))
            for host_id, block in self._blocks(places, 0).items()
        }

    def read_mailboxes(self, places: Mapping[HostId, int]) -> dict[HostId, MailboxReading]:
        return {
            host_id: block
            if isinstance(block, Unreadable)
            else decode_mailbox(block, self._place(places[host_id]))
            for host_id, block in self._blocks(places, BLOCK_BYTES).items()
        }

    def _blocks(
        self, places: Mapping[HostId, int], offset: int
    ) -> dict[HostId, bytes | Unreadable]:
        """All are asked at once. One that does not answer says nothing; the others do."""
        if not places:
            return {}
        for index in places.values():
            _check_index(index)
        wanted = [(_name(index), offset, SECTOR_BYTES) for index in places.values()]
        found = self._ask("read", wanted=wanted, wait_ms=OTHERS_MS, patience_ms=OTHERS_PATIENCE_MS)
        return dict(zip(places, map(_block, found), strict=True))

    def _place(self, index: int) -> Place:
        return Place(installation_id=self._installation_id, domain_id=self._domain_id, index=index)

    def _read(self, index: int, offset: int) -> bytes:
        """An object that is not there was never prepared: that reads as zeros, like a place in a file."""
        wanted = [(_name(index), offset, SECTOR_BYTES)]
        (found,) = self._ask("read", wanted=wanted, wait_ms=OP_S * 1_000)
        block = _block(found)
        if isinstance(block, Unreadable):
            raise OSError(found, f"{_name(index)} can't be read")
        return block

    # Writing

    def write_slot(self, slot: Slot) -> None:
        _check_index(slot.index)
        data = encode_slot(slot)
        for _ in range(ATTEMPTS):
            standing = self._own(slot)
            expected = [(0, standing), (BLOCK_BYTES, self._owner(slot.index, slot.host_id))]
            try:
                self._write(slot.index, 0, data, expected=expected)
            except OSError as error:
                self._standing.pop(slot.index, None)
                if error.errno != MISMATCH:
                    raise
                continue  # a write of a connection before this one has landed meanwhile, or the place is another's
            self._standing[slot.index] = data[:SECTOR_BYTES]
            return
        raise OSError(errno.ESTALE, f"slot {slot.index} is written by another, too")

    def write_mailbox(self, mailbox: Mailbox) -> None:
        _check_index(mailbox.index)
        (block,) = self._blocks({mailbox.host_id: mailbox.index}, BLOCK_BYTES).values()
        if isinstance(block, Unreadable):
            raise OSError(errno.ETIMEDOUT, f"{_name(mailbox.index)} can't be read: {block.detail}")
        found = decode_mailbox(block, self._place(mailbox.index))
        self._check_mailbox(found, mailbox.host_id)
        stale = OSError(errno.ESTALE, f"mailbox {mailbox.index} was written by another since")
        assert isinstance(found, Mailbox)
        if found.counter + 1 != mailbox.counter:
            raise stale
        try:
            self._write(
                mailbox.index,
                BLOCK_BYTES,
                encode_mailbox(mailbox),
                expected=[(BLOCK_BYTES, block)],
                patience_ms=OTHERS_PATIENCE_MS,
            )
        except OSError as error:
            if error.errno == MISMATCH:
                raise stale from error
            raise

    def write_back(self) -> None:
        """No cache of the host's kernel lies between a QEMU and Ceph. What a QEMU that ended had sent is on its way; the
        image's exclusive lock, whose breaking shuts its sender out, keeps that from the next copy (ADR 19)."""

    def _own(self, slot: Slot) -> bytes:
        known = self._standing.get(slot.index)
        if known is not None:
            return known
        self._check_mailbox(self.read_mailbox(slot.index), slot.host_id)
        standing = self._read(slot.index, 0)
        found = decode_slot(standing, self._place(slot.index))
        alien = (
            found.host_id != slot.host_id if isinstance(found, Slot) else found.fault in _NOT_OURS
        )
        if alien:
            raise OSError(errno.EPERM, f"slot {slot.index} of {self._pool.shown} is another's")
        self._standing[slot.index] = standing
        return standing

    def _owner(self, index: int, host_id: HostId) -> bytes:
        return owner_bytes(self._place(index), host_id)

    def _check_mailbox(self, found: MailboxReading, host_id: HostId) -> None:
        if isinstance(found, Unreadable):
            raise OSError(errno.EPERM, f"{self._pool.shown}: the mailbox is {found.fault.value}")
        if found.host_id != host_id:
            raise OSError(errno.EPERM, f"{self._pool.shown}: that place is host {found.host_id}'s")

    def _write(self, index: int, offset: int, data: bytes, **words: Any) -> None:
        asked = {"expected": [], "exclusive": False, "whole": False, **words}
        self._ask("write", name=_name(index), offset=offset, data=data, **asked)

    def _ask(self, what: str, *, patience_ms: int | None = None, **words: Any) -> Any:
        try:
            told = self._client.ask(what, patience_ms=patience_ms or PATIENCE_MS, **words)
        except OSError:
            self._standing.clear()
            raise
        self._direct = True
        return told


def unusable(error: CephUnusable, pool: CephPool) -> InvalidInput:
    """Names the setting and the fix."""
    fixes = {
        "monitors": "give addresses of its monitors: HOST, or HOST:PORT; does a firewall stand between?",
        "pool": f"make it ('ceph osd pool create {pool.pool}', 'rbd pool init {pool.pool}'), or name another one",
        "user": "this cluster wants keys: name a user and put its key ring on each host",
        "keyring": f"write it on each host: 'ceph auth get client.{pool.user} -o {pool.keyring_path}'",
    }
    words = {
        "monitors": f"no Ceph monitor answers at {', '.join(pool.monitors)}",
        "pool": f"there is no pool '{pool.pool}'",
        "user": "the monitors refuse a client without a key",
        "keyring": f"the monitors refuse client.{pool.user}: its key is not what they have, or they don't know it",
    }
    own_words = error.errno == errno.EIDRM or (
        error.field == "keyring" and "/" in (error.strerror or "")
    )
    if error.errno == errno.EIDRM:
        fixes["pool"] = (
            "remove the storage domain and add it anew; its disks, claims and heartbeats are gone"
        )
    message = (error.strerror or "") if own_words else words.get(error.field, str(error.strerror))
    return InvalidInput(message, field=f"ceph.{error.field}", fix=fixes.get(error.field, ""))


def no_write(pool: CephPool) -> InvalidInput:
    caps = f"mon 'profile rbd' osd 'profile rbd pool={pool.pool}'"
    return InvalidInput(
        f"client.{pool.user} may not write to pool '{pool.pool}'",
        field="ceph.user",
        fix=f"allow it: ceph auth caps client.{pool.user} {caps}",
    )


def _block(found: bytes | int) -> bytes | Unreadable:
    if found == errno.ENOENT:
        return bytes(SECTOR_BYTES)  # never prepared: as a file reads
    if isinstance(found, int):
        return Unreadable(fault=BlockFault.UNREAD, detail=errno.errorcode.get(found, ""))
    return bytes(found)


def _name(index: int) -> str:
    return f"virtha.heartbeat.{index}"


def _check_index(index: int) -> None:
    if not 0 <= index < PLACES_MAX:
        raise InvalidInput(
            f"{index} is no place for a heartbeat",
            field="slot.index",
            allowed=(f"0 to {PLACES_MAX - 1}",),
            fix=f"an installation has room for {PLACES_MAX} hosts on each storage domain",
        )
