"""Two real libvirts, and a QEMU without a guest that moves between them."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from own_libvirtd import OwnLibvirtd

from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.drivers.libvirt_moves import LibvirtMoves, Movers
from virtha.drivers.libvirt_rpc import CALL, FINISH, REPLY, Packets
from virtha.model.domain import DomainEvent, DomainState
from virtha.model.ids import VmId
from virtha.model.orders import MoveDestination
from virtha.ports.hypervisor import HypervisorError, MoveEnd

VM_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-dddddddddddd")
WAIT_S = 60.0
SLOW_MIB = 1
"""So that a machine without a guest takes some seconds."""


def domain_xml(disk: Path) -> str:
    """A machine whose firmware finds nothing to boot, and runs all the same."""
    return (
        f"<domain type='qemu'><name>moves</name><uuid>{VM_ID}</uuid>"
        "<memory unit='MiB'>64</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
        "<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
    )


class Side:
    def __init__(self, libvirtd: OwnLibvirtd) -> None:
        self.libvirtd = libvirtd
        self.host = LibvirtHost(libvirtd.uri, domain_type="qemu")
        self.events: list[DomainEvent] = []
        self.host.subscribe(self.events.append, lambda _connected: None)
        self.movers = Movers(libvirtd.directory / "movers", libvirtd.uri)
        self.moves = LibvirtMoves(
            self.movers,
            self.host.with_domain,
            tls_directory=Path("/nonexistent"),
            serial_directory="",
        )

    async def state(self) -> tuple[DomainState, str]:
        report = await self.host.domain(VM_ID)
        return report.state, report.reason


class Between:
    """In front of the target's libvirt: loses what it is told to lose."""

    def __init__(self, path: Path, target: Path, loses: str) -> None:
        self.path = path
        self._target = target
        self._loses = loses
        self.words = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above_reader, above_writer = await asyncio.open_unix_connection(str(self._target))
        ways = [
            asyncio.ensure_future(self._relay(reader, above_writer, CALL)),
            asyncio.ensure_future(self._relay(above_reader, writer, REPLY)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        writer.close()
        above_writer.close()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: int
    ) -> None:
        packets = Packets()
        while data := await reader.read(1 << 16):
            for one in packets.feed(data):
                finish = one.procedure in FINISH and one.kind == kind
                self.words += finish and kind == CALL
                if finish and (self._loses, kind) in (("word", CALL), ("answer", REPLY)):
                    return
                writer.write(one.data)
            await writer.drain()


class Rig:
    def __init__(self, directory: Path, one: Side, other: Side) -> None:
        self.directory = directory
        self.one, self.other = one, other
        self.disk = directory / "disk.raw"
        self.data_number = 0

    def to(self, side: Side, *, socket: Path | None = None, slow: bool = False) -> MoveDestination:
        self.data_number += 1
        return MoveDestination(
            socket=str(socket or side.libvirtd.socket),
            data_uri=f"unix://{self.directory}/data{self.data_number}",
            bandwidth_mib_s=SLOW_MIB if slow else 0,
        )

    async def begin(self) -> None:
        xml = domain_xml(self.disk)
        for side in (self.one, self.other):
            await side.host.define(xml)
        await self.one.host.start_paused(VM_ID)
        await self.one.host.run(VM_ID)

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while not await holds():
                await asyncio.sleep(0.05)

    async def until_state(self, side: Side, *states: tuple[DomainState, str]) -> None:
        async def holds() -> bool:
            return await side.state() in states

        await self.until(holds, str(states))

    async def until_gone(self, side: Side) -> None:
        """libvirt destroys a copy that nobody let run."""

        async def holds() -> bool:
            return (await side.state())[0] is DomainState.SHUTOFF

        await self.until(holds, "the part that came is destroyed")

    async def until_left(self, side: Side) -> None:
        async def holds() -> bool:
            return not await side.moves.under_way(VM_ID)

        await self.until(holds, "libvirt has done with it")

    async def back(self, side: Side) -> None:
        async def holds() -> bool:
            try:
                await side.state()
            except HypervisorError:
                return False
            return side.host.connected

        await self.until(holds, "libvirt answers again")

    @contextlib.asynccontextmanager
    async def between(self, loses: str) -> AsyncIterator[Between]:
        found = Between(self.directory / "between", self.other.libvirtd.socket, loses)
        server = await asyncio.start_unix_server(found.serve, found.path)
        try:
            yield found
        finally:
            server.close()


@contextlib.contextmanager
def two_libvirtds(*, second_lacks: str = "") -> Iterator[tuple[OwnLibvirtd, OwnLibvirtd]]:
    """``second_lacks``: see ``OwnLibvirtd``."""
    with tempfile.TemporaryDirectory(prefix="vm-", ignore_cleanup_errors=True) as directory:
        one, other = (
            OwnLibvirtd(
                Path(directory, name),
                host_uuid=f"6f1c2b52-8f43-4a8c-9a5e-00000000000{name[1]}",
                lacks=lacks,
            )
            for name, lacks in (("a1", ""), ("a2", second_lacks))
        )
        try:
            for libvirtd in (one, other):
                libvirtd.start()
            yield one, other
        finally:
            for libvirtd in (one, other):
                libvirtd.stop()


def played(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd], story: Callable[[Rig], Awaitable[None]]
) -> None:
    async def run() -> None:
        one, other = (Side(libvirtd) for libvirtd in libvirtds)
        with tempfile.TemporaryDirectory(prefix="vm-") as directory:
            rig = Rig(Path(directory), one, other)
            rig.disk.write_bytes(bytes(8 << 20))
            for side in (one, other):
                await side.host.start()
            try:
                async with asyncio.timeout(WAIT_S):
                    while not (one.host.connected and other.host.connected):
                        await asyncio.sleep(0.02)
                await rig.begin()
                await story(rig)
            finally:
                for side in (one, other):
                    # Whatever the story left: a failed clean-up must not hide why it failed.
                    with contextlib.suppress(Exception):
                        await side.host.destroy(VM_ID)
                        await side.host.undefine(VM_ID)
                    await side.host.close()

    asyncio.run(run())


def slow_move(rig: Rig) -> "asyncio.Task[MoveEnd]":
    return asyncio.ensure_future(rig.one.moves.move(VM_ID, rig.to(rig.other, slow=True)))


async def flows(rig: Rig) -> None:
    async def holds() -> bool:
        return await rig.one.moves.move_progress(VM_ID) is not None

    await rig.until(holds, "its memory flows")
