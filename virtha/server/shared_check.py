"""Is a storage domain one and the same for all its hosts? Seen by the slots: what one wrote the others must read.

Two hosts with a directory of the same name on their own disks both find a domain there, with the header that each wrote
itself. Pure; fed with each round that arrives, in the order of arrival. It refuses a domain for HA; as a proof of
anything it is not used.
"""

from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot import BlockFault, Slot, SlotReading, Unreadable
from virtha.model.slot_round import SlotRound
from virtha.model.value import Value

ROUNDS = 5
"""A round may have begun before the write that another host told of; five of one reader in a row did not."""
_SAYS_NOTHING = (BlockFault.UNREAD, BlockFault.SHORT, BlockFault.TORN)


class NotShared(Value, frozen=True, kw_only=True):
    """``reader`` does not see on that domain what ``writer`` wrote there."""

    domain_id: StorageDomainId
    reader_id: HostId
    writer_id: HostId


class _Written(Value, frozen=True, kw_only=True):
    boot: BootId
    counter: int


class SharedCheck:
    def __init__(self) -> None:
        self._written: dict[tuple[StorageDomainId, HostId], _Written] = {}
        self._awaited: dict[NotShared, _Written] = {}
        self._missed: dict[NotShared, int] = {}
        self._found: set[NotShared] = set()

    def fold(self, seen: SlotRound) -> None:
        self._written[seen.domain_id, seen.reader_id] = _Written(
            boot=seen.reader_boot, counter=seen.own_counter
        )
        for writer_id, reading in seen.slots.items():
            written = self._written.get((seen.domain_id, writer_id))
            if writer_id != seen.reader_id and written is not None:
                pair = NotShared(
                    domain_id=seen.domain_id, reader_id=seen.reader_id, writer_id=writer_id
                )
                self._compare(pair, reading, written)

    def _compare(self, pair: NotShared, reading: SlotReading, written: _Written) -> None:
        awaited = self._awaited.setdefault(pair, written)
        if isinstance(reading, Unreadable) and reading.fault in _SAYS_NOTHING:
            return
        if awaited.boot != written.boot:
            awaited = self._awaited[pair] = written  # it rebooted; nobody knows what was seen last
        if isinstance(reading, Slot) and _shows(reading, awaited):
            self._awaited[pair] = written
            self._missed.pop(pair, None)
            self._found.discard(pair)
        else:
            self._missed[pair] = self._missed.get(pair, 0) + 1
            if self._missed[pair] >= ROUNDS:
                self._found.add(pair)

    def not_shared(self) -> tuple[NotShared, ...]:
        """A pair stays until that reader sees what that writer wrote."""
        return tuple(
            sorted(self._found, key=lambda pair: (pair.domain_id, pair.reader_id, pair.writer_id))
        )

    def drop(self, host_id: HostId) -> None:
        """It is no member any more."""
        self.forget(host_id)
        self._found = {
            pair for pair in self._found if host_id not in (pair.reader_id, pair.writer_id)
        }

    def forget(self, host_id: HostId) -> None:
        """It may be another boot, or reads no more: what was awaited of it is not comparable."""
        for pair in [each for each in self._awaited if host_id in (each.reader_id, each.writer_id)]:
            del self._awaited[pair]
            self._missed.pop(pair, None)
        for key in [each for each in self._written if each[1] == host_id]:
            del self._written[key]


def _shows(slot: Slot, awaited: _Written) -> bool:
    return slot.boot == awaited.boot and slot.counter >= awaited.counter
