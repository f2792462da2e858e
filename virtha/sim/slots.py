"""Slots and mailboxes on a simulated storage domain: real blocks, and what can happen to them on their way.

Every read and write of a host goes through its kernel (``HostIo``): where the storage hangs it waits there, outlives
the process that asked, and is done when the path is back; a host without power loses it. What a host reads may
be old: ``hold_still`` keeps its view as it is now.
"""

from collections.abc import Callable, Iterable
from functools import partial

from virtha.model.ids import HostId, StorageDomainId
from virtha.model.slot import (
    BLOCK_BYTES,
    SECTOR_BYTES,
    Mailbox,
    MailboxReading,
    Place,
    Slot,
    SlotReading,
    decode_mailbox,
    decode_slot,
    encode_mailbox,
    encode_slot,
)
from virtha.sim.kernel import Kernel
from virtha.sim.line import INSTALLATION
from virtha.sim.storage import HostPath, PathState

IO_MS = 2
"""A block there and back."""
FAILED_MS = 100
"""Until a device that answers with errors has done so."""

Blocks = dict[HostId, bytes]
_EMPTY = bytes(BLOCK_BYTES)


class SlotDomain:
    """What lies on one storage domain. ``places``: which hosts have a slot there, and where."""

    def __init__(self, domain_id: StorageDomainId) -> None:
        self.domain_id = domain_id
        self.places: dict[HostId, Place] = {}
        self.slots: Blocks = {}
        self.mailboxes: Blocks = {}
        self._read_slots: dict[HostId, tuple[bytes, SlotReading]] = {}
        self._read_mailboxes: dict[HostId, tuple[bytes, MailboxReading]] = {}
        """What the last block that was read says: the same block says the same to the next reader."""
        self._views: dict[str, tuple[Blocks, Blocks]] = {}
        """By reader: blocks that it goes on seeing, whatever lands."""

    def prepare(self, host_id: HostId, index: int) -> None:
        """As the operator's set-up does: an empty slot, and a mailbox without poison."""
        place = Place(installation_id=INSTALLATION, domain_id=self.domain_id, index=index)
        self.places[host_id] = place
        mailbox = Mailbox(
            installation_id=INSTALLATION,
            domain_id=self.domain_id,
            index=index,
            host_id=host_id,
            counter=0,
        )
        self.mailboxes[host_id] = encode_mailbox(mailbox)

    # What lands

    def land_slot(self, host_id: HostId, block: bytes) -> None:
        self.slots[host_id] = block

    def land_mailbox(self, host_id: HostId, block: bytes) -> None:
        self.mailboxes[host_id] = block

    # What a reader sees

    def read_slot(self, reader: str, host_id: HostId) -> SlotReading:
        blocks = self.slots
        if self._views and reader in self._views and host_id in self._views[reader][0]:
            blocks = self._views[reader][0]
        block = blocks.get(host_id, _EMPTY)
        last = self._read_slots.get(host_id)
        if last is None or last[0] is not block:
            last = block, decode_slot(block, self.places[host_id])
            self._read_slots[host_id] = last
        return last[1]

    def read_mailbox(self, reader: str, host_id: HostId) -> MailboxReading:
        blocks = self.mailboxes
        if self._views and reader in self._views and host_id in self._views[reader][1]:
            blocks = self._views[reader][1]
        block = blocks.get(host_id, _EMPTY)
        last = self._read_mailboxes.get(host_id)
        if last is None or last[0] is not block:
            last = block, decode_mailbox(block, self.places[host_id])
            self._read_mailboxes[host_id] = last
        return last[1]

    def hold_still(self, reader: str, hosts: Iterable[HostId]) -> None:
        """A cache: it goes on seeing these as they are now. Its own slot it sees as it wrote it."""
        names = [host for host in hosts if host in self.places]
        self._views[reader] = (
            {host: self.slots.get(host, _EMPTY) for host in names if host != reader},
            {host: self.mailboxes[host] for host in names},
        )

    def let_go(self, reader: str) -> None:
        self._views.pop(reader, None)


class SlotFaults:
    """What happens to a host's next slot writes."""

    def __init__(self) -> None:
        self.tear = False
        """Half of it lands, and is acknowledged."""
        self.late_ms = 0
        """An error is answered, and it lands so much later all the same."""


class HostIo:
    """One host's kernel on one domain: blocks on their way. ``answered`` gets False on an error."""

    def __init__(self, kernel: Kernel, path: HostPath, domain: SlotDomain, host_id: HostId) -> None:
        self._kernel = kernel
        self._path = path
        self._domain = domain
        self._host_id = host_id
        self._waiting: list[Callable[[], None]] = []
        self._power = 0
        self.faults = SlotFaults()

    def path_changed(self) -> None:
        """What waited is tried again, in its order."""
        if not self._path.hangs:
            waiting, self._waiting = self._waiting, []
            for attempt in waiting:
                attempt()

    def power_lost(self) -> None:
        self._waiting.clear()
        self._power += 1

    def write_slot(self, slot: Slot, answered: Callable[[bool], None]) -> None:
        block, faults = encode_slot(slot), self.faults
        if faults.tear:
            faults.tear = False
            old = self._domain.slots.get(self._host_id, _EMPTY)
            block = block[: SECTOR_BYTES // 2] + old[SECTOR_BYTES // 2 :]
        if faults.late_ms:
            delay_ms, faults.late_ms = faults.late_ms, 0
            # It is the storage's by now: not even the host's end keeps it from landing.
            self._kernel.after(delay_ms, lambda: self._domain.land_slot(self._host_id, block))
            self._kernel.after(FAILED_MS, lambda: answered(False))
            return
        self._submit(partial(self._domain.land_slot, self._host_id, block), answered)

    def write_mailbox(self, mailbox: Mailbox, answered: Callable[[bool], None]) -> None:
        block = encode_mailbox(mailbox)
        host_id = mailbox.host_id
        self._submit(partial(self._domain.land_mailbox, host_id, block), answered)

    def read(self, answered: Callable[[bool], None]) -> None:
        """``answered`` reads the domain itself, at that moment."""
        self._kernel.after(IO_MS, partial(self._try, self._power, None, answered))

    # Inside

    def _submit(self, land: Callable[[], None], answered: Callable[[bool], None]) -> None:
        self._kernel.after(IO_MS, partial(self._try, self._power, land, answered))

    def _try(
        self, power: int, land: Callable[[], None] | None, answered: Callable[[bool], None]
    ) -> None:
        """``land``: what a write does; None: a read."""
        if power != self._power:
            return  # its host has lost power since, and with it what was on its way
        path = self._path
        # As ``path.lands``: asked at each block.
        if (path.awake and path.state is PathState.WELL) or (land is None and path.reads):
            if land is not None:
                land()
            answered(True)
        elif path.hangs:
            self._waiting.append(partial(self._try, power, land, answered))
        else:
            self._kernel.after(FAILED_MS, partial(self._fail, power, answered))

    def _fail(self, power: int, answered: Callable[[bool], None]) -> None:
        if power == self._power:
            answered(False)
