"""A host's hypervisor, cut by who uses what. Every method makes one bounded attempt.

Errors: ``HypervisorUnavailable`` (can't be asked; nothing is known), ``DomainMissing``,
``GateRefused`` (the start gate said no; message is the gate's), ``HypervisorFailed`` (it answered
no), ``HypervisorTimeout`` (no answer within the deadline: the outcome is unknown).
"""

from collections.abc import Callable
from typing import Protocol

from virtha.model.domain import DomainEvent, DomainReport
from virtha.model.errors import VirthaError
from virtha.model.facts import Result
from virtha.model.host import HostCapabilities
from virtha.model.ids import VmId
from virtha.model.orders import MoveDestination
from virtha.model.value import Value


class HypervisorError(VirthaError):
    """Base of what a hypervisor driver raises."""


class HypervisorUnavailable(HypervisorError):
    pass


class HypervisorTimeout(HypervisorError):
    pass


class HypervisorFailed(HypervisorError):
    pass


class DomainMissing(HypervisorError):
    pass


class GateRefused(HypervisorError):
    pass


class DomainControl(Protocol):
    """Power of one domain."""

    async def start_paused(self, vm_id: VmId) -> None:
        """Create its QEMU with stopped processors, from the defined XML; never from a managed save."""
        ...

    async def run(self, vm_id: VmId) -> None:
        """Let the processors run (after ``start_paused``, or resume)."""
        ...

    async def pause(self, vm_id: VmId) -> None: ...

    async def shutdown(self, vm_id: VmId) -> None:
        """Ask the guest; returns when asked, not when done."""
        ...

    async def reboot(self, vm_id: VmId) -> None: ...

    async def reset(self, vm_id: VmId) -> None: ...

    async def destroy(self, vm_id: VmId) -> None:
        """Kill its QEMU and wait until it is reaped. Not running is done already."""
        ...


class DomainDevices(Protocol):
    """Devices of a running domain. Its definition stays as it is."""

    async def attach(self, vm_id: VmId, device_xml: str) -> None: ...

    async def detach(self, vm_id: VmId, device_xml: str) -> None:
        """Ask the guest to give it up; returns when asked, not when done. HypervisorFailed: it said no at once."""
        ...


class LiveDisk(Value, frozen=True, kw_only=True):
    """A disk as the QEMU that has it open sees it."""

    path: str
    size_bytes: int
    """What its guest sees."""
    snapshots: frozenset[str] = frozenset()
    """Names of those inside it."""


class DomainDisks(Protocol):
    """Disks of a running domain, changed by its own QEMU; paths are absolute."""

    async def live_disks(self, vm_id: VmId) -> tuple[LiveDisk, ...]: ...

    async def grow_disk(self, vm_id: VmId, path: str, size_bytes: int) -> None: ...

    async def make_snapshot(self, vm_id: VmId, paths: tuple[str, ...], name: str) -> None:
        """Inside all of these disks, as they are in one moment; or in none."""
        ...

    async def delete_snapshot(self, vm_id: VmId, path: str, name: str) -> None: ...


class MoveEnd(Value, frozen=True, kw_only=True):
    """How an attempt to move a VM away ended, as far as this host's libvirt says.

    ``OK``: handed over. ``FAILED``: the target never got the word to run it. ``UNKNOWN``: it got it, or may have.
    """

    result: Result
    code: str | None = None
    detail: str = ""


class MoveProgress(Value, frozen=True, kw_only=True):
    """Of the guest's memory; a busy guest's total grows."""

    bytes_total: int
    bytes_left: int


class DomainMoves(Protocol):
    """Live migration away from this host (G6: no post-copy). A copy that was sent whole is never let run by this: that
    takes ``DomainControl.run`` (ADR 14)."""

    async def move(self, vm_id: VmId, destination: MoveDestination) -> MoveEnd:
        """Returns when this host has done with it. Cancelled (the agent ends), it goes on; ``under_way`` tells."""
        ...

    async def under_way(self, vm_id: VmId) -> bool:
        """Whether one is led from here, also by a former agent."""
        ...

    async def abort_move(self, vm_id: VmId) -> None:
        """Not any more when all of it was sent; none under way is done already."""
        ...

    async def leave_move(self, vm_id: VmId) -> None:
        """Nobody waits for its answer any more: a source that stands still goes on standing still."""
        ...

    async def move_progress(self, vm_id: VmId) -> MoveProgress | None:
        """None: nothing flows."""
        ...


class DomainSecrets(Protocol):
    """Keys that a QEMU needs for its disks."""

    async def keep_secret(self, secret_id: str, name: str, value: bytes) -> None:
        """Not to be read again by any client. Again: it has another value then."""
        ...


class DomainCatalog(Protocol):
    """Which domains there are, and their definitions."""

    async def domains(self) -> tuple[DomainReport, ...]: ...

    async def domain(self, vm_id: VmId) -> DomainReport: ...

    async def xml(self, vm_id: VmId, *, inactive: bool = True) -> str: ...

    async def define(self, xml: str) -> None:
        """Define or redefine; libvirt validates against its schema."""
        ...

    async def undefine(self, vm_id: VmId) -> None:
        """Remove the definition and any managed save; absent is done already."""
        ...

    async def set_autostart(self, vm_id: VmId, on: bool) -> None: ...


class DomainWatch(Protocol):
    """Events of all domains, in order, from the event loop's thread."""

    def subscribe(
        self,
        on_event: Callable[[DomainEvent], None],
        on_connection: Callable[[bool], None],
    ) -> None:
        """``on_connection(False)``: libvirt is lost; ``True``: it is back, list everything anew."""
        ...

    async def start(self) -> None:
        """Connect and keep connected in the background; returns at once."""
        ...

    async def close(self) -> None: ...


class DomainEvidence(Protocol):
    """What shows a failure. Each returns what it wrote, or raises."""

    async def screenshot(self, vm_id: VmId, path: str) -> str:
        """Writes a picture; returns the path with its real suffix (.ppm or .png)."""
        ...

    async def dump(self, vm_id: VmId, path: str) -> None: ...


class HostFacts(Protocol):
    async def answers(self, *, deadline_ms: int) -> None:
        """Asks for what costs nothing, beside all else that is asked. HypervisorTimeout: no answer in time;
        HypervisorUnavailable: it can't be asked, as while it is not connected or the question before hangs."""
        ...

    async def capabilities(self) -> HostCapabilities:
        """Without overcommit, gate and agent version, which the agent adds."""
        ...


class GuestAgent(Protocol):
    """Over the virtio channel; no network into the guest."""

    async def ping(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        """Sync, then ping. False: the channel is there but nobody answers in time."""
        ...

    async def freeze(self, vm_id: VmId, *, deadline_ms: int) -> int:
        """Write out and hold all its file systems; how many. HypervisorFailed: it can't, or nobody answers; they may be
        frozen all the same."""
        ...

    async def thaw(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        """True: it says that nothing is frozen (any more). Raises DomainMissing and HypervisorUnavailable."""
        ...

    async def is_frozen(self, vm_id: VmId, *, deadline_ms: int) -> bool | None:
        """None: nobody answers."""
        ...

    async def read_file(self, vm_id: VmId, path: str, *, deadline_ms: int) -> bytes | None:
        """None: no agent, no such file, or the guest forbids it."""
        ...
