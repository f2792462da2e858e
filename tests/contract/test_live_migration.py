"""Two real libvirts and a QEMU that moves between them: a source that gave the word to run is never resumed by libvirt (ADR 14)."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from own_libvirtd import OwnLibvirtd

from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.drivers.libvirt_moves import LibvirtMoves, Movers
from virtha.drivers.libvirt_rpc import CALL, FINISH, REPLY, Packets
from virtha.model.domain import DomainEvent, DomainState
from virtha.model.facts import Result
from virtha.model.ids import VmId
from virtha.model.orders import MoveDestination
from virtha.ports.hypervisor import HypervisorError, MoveEnd

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
VM_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-dddddddddddd")
WAIT_S = 60.0
SLOW_MIB = 1
"""So that a machine without a guest takes some seconds."""
STANDS = (DomainState.PAUSED, "migration")


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


@pytest.fixture(scope="module")
def libvirtds() -> Iterator[tuple[OwnLibvirtd, OwnLibvirtd]]:
    with tempfile.TemporaryDirectory(prefix="vm-", ignore_cleanup_errors=True) as directory:
        pair = tuple(
            OwnLibvirtd(
                Path(directory, name), host_uuid=f"6f1c2b52-8f43-4a8c-9a5e-00000000000{name[1]}"
            )
            for name in ("a1", "a2")
        )
        try:
            for one in pair:
                one.start()
            yield pair[0], pair[1]
        finally:
            for one in pair:
                one.stop()


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


def test_it_moves_to_and_fro(libvirtds: tuple[OwnLibvirtd, OwnLibvirtd]) -> None:
    async def story(rig: Rig) -> None:
        for source, target in ((rig.one, rig.other), (rig.other, rig.one)):
            end = await source.moves.move(VM_ID, rig.to(target))
            assert end == MoveEnd(result=Result.OK), end
            assert (await source.state())[0] is DomainState.SHUTOFF
            assert await target.state() == (DomainState.RUNNING, "migrated")
            assert (await target.host.domain(VM_ID)).persistent
        words = [(event.kind.value, event.detail) for event in rig.one.events]
        left = words.index(("stopped", "migrated"))
        assert ("suspended", "migrated") in words[:left], words
        assert ("resumed", "migrated") in words[left:], words

    played(libvirtds, story)


def test_an_answer_that_is_lost_leaves_the_source_standing(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        async with rig.between("answer") as between:
            end = await rig.one.moves.move(VM_ID, rig.to(rig.other, socket=between.path))
        assert end.result is Result.UNKNOWN, end
        assert between.words == 1
        await rig.until_left(rig.one)
        assert await rig.one.state() == STANDS
        await rig.until_state(rig.other, (DomainState.RUNNING, "migrated"))
        await asyncio.sleep(3)
        assert await rig.one.state() == STANDS, "and it goes on standing still"
        await rig.one.host.destroy(VM_ID)
        assert (await rig.one.state())[0] is DomainState.SHUTOFF
        assert await rig.other.state() == (DomainState.RUNNING, "migrated")

    played(libvirtds, story)


def test_a_word_that_is_lost_leaves_it_standing_until_it_is_let_run(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        async with rig.between("word") as between:
            end = await rig.one.moves.move(VM_ID, rig.to(rig.other, socket=between.path))
        assert end.result is Result.UNKNOWN, end
        await rig.until_left(rig.one)
        assert await rig.one.state() == STANDS
        await rig.until_gone(rig.other)
        await rig.one.host.run(VM_ID)
        assert (await rig.one.state())[0] is DomainState.RUNNING
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        assert end.result is Result.OK, "and it can be moved again"

    played(libvirtds, story)


@pytest.mark.bad_input("death in a move", story=True)
def test_a_source_stands_still_through_a_death_of_its_libvirtd(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        async with rig.between("answer") as between:
            await rig.one.moves.move(VM_ID, rig.to(rig.other, socket=between.path))
        await asyncio.to_thread(libvirtd_dies, rig.one.libvirtd)
        await rig.back(rig.one)
        assert await rig.one.state() == STANDS
        await rig.until_state(rig.other, (DomainState.RUNNING, "migrated"))

    played(libvirtds, story)


@pytest.mark.bad_input("death in a move", story=True)
def test_a_source_whose_libvirtd_dies_while_it_copies_goes_on(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        moving = slow_move(rig)
        await flows(rig)
        await asyncio.to_thread(libvirtd_dies, rig.one.libvirtd)
        end = await moving
        assert end.result is Result.FAILED, "the word to run was never given"
        await rig.back(rig.one)
        await rig.until_gone(rig.other)
        await rig.until_left(rig.one)
        assert (await rig.one.state())[0] is DomainState.RUNNING

    played(libvirtds, story)


def libvirtd_dies(libvirtd: OwnLibvirtd) -> None:
    libvirtd.kill_libvirtd()
    libvirtd.restart_libvirtd()


def slow_move(rig: Rig) -> "asyncio.Task[MoveEnd]":
    return asyncio.ensure_future(rig.one.moves.move(VM_ID, rig.to(rig.other, slow=True)))


async def flows(rig: Rig) -> None:
    async def holds() -> bool:
        return await rig.one.moves.move_progress(VM_ID) is not None

    await rig.until(holds, "its memory flows")


def test_a_cancelled_move_leaves_the_source_running(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        moving = slow_move(rig)
        await flows(rig)
        assert await rig.one.moves.under_way(VM_ID)
        await rig.one.moves.abort_move(VM_ID)
        end = await moving
        assert (end.result, end.code) == (Result.FAILED, "migration.ended.cancelled"), end
        assert (await rig.one.state())[0] is DomainState.RUNNING
        await rig.until_gone(rig.other)
        await rig.one.moves.abort_move(VM_ID)

    played(libvirtds, story)


@pytest.mark.bad_input("death in a move", story=True)
def test_a_mover_that_is_killed_while_it_copies_leaves_the_source_running(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        moving = slow_move(rig)
        await flows(rig)
        await rig.one.moves.leave_move(VM_ID)
        assert (await moving).result is Result.UNKNOWN
        await rig.until_left(rig.one)
        assert (await rig.one.state())[0] is DomainState.RUNNING
        await rig.until_gone(rig.other)
        assert (await rig.one.moves.move(VM_ID, rig.to(rig.other))).result is Result.OK

    played(libvirtds, story)


@pytest.mark.long
def test_a_target_that_hangs_while_it_is_prepared_holds_up_only_the_mover(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    """libvirt has no job yet that it could abort: to abort it is to end its mover, and the source is free again."""

    async def story(rig: Rig) -> None:
        hangs = rig.other.libvirtd.libvirtd_pid()
        os.kill(hangs, signal.SIGSTOP)
        try:
            moving = slow_move(rig)

            async def waits() -> bool:
                socket = rig.one.libvirtd.directory / "movers" / f"{VM_ID}.sock"
                return socket.exists() and await rig.one.moves.under_way(VM_ID)

            await rig.until(waits, "its mover waits")
            assert not moving.done()
            await rig.one.moves.abort_move(VM_ID)
            assert (await moving).result is Result.UNKNOWN
            await rig.until_left(rig.one)
            assert (await rig.one.state())[0] is DomainState.RUNNING
        finally:
            os.kill(hangs, signal.SIGCONT)
        await rig.back(rig.other)
        await rig.until_gone(rig.other)
        assert (await rig.one.moves.move(VM_ID, rig.to(rig.other))).result is Result.OK

    played(libvirtds, story)


def test_a_gate_that_refuses_is_told_as_that(libvirtds: tuple[OwnLibvirtd, OwnLibvirtd]) -> None:
    async def story(rig: Rig) -> None:
        gate = rig.other.libvirtd.gate
        gate.write_text("#!/bin/sh\necho 'virtha: no (gate.refused.no_grant)' >&2\nexit 1\n")
        gate.chmod(0o755)
        try:
            end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        finally:
            gate.unlink()
        assert (end.result, end.code) == (Result.FAILED, "migration.ended.gate"), end
        assert (await rig.one.state())[0] is DomainState.RUNNING

    played(libvirtds, story)


def test_libvirt_asks_the_gate_migrate_and_then_prepare(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        gate, asked = rig.other.libvirtd.gate, rig.directory / "asked"
        gate.write_text(f'#!/bin/sh\necho "$2 $3" >> {asked}\n')
        gate.chmod(0o755)
        try:
            end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
            assert end.result is Result.OK
            words = asked.read_text().splitlines()
            assert words[:2] == ["migrate begin", "prepare begin"], words
            await rig.other.host.destroy(VM_ID)
            asked.write_text("")
            await rig.other.host.start_paused(VM_ID)
            assert "migrate begin" not in asked.read_text()
        finally:
            gate.unlink()

    played(libvirtds, story)


def test_a_target_that_is_away_is_told_as_that(libvirtds: tuple[OwnLibvirtd, OwnLibvirtd]) -> None:
    async def story(rig: Rig) -> None:
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other, socket=rig.directory / "none"))
        assert (end.result, end.code) == (Result.FAILED, "migration.ended.unreachable"), end
        assert (await rig.one.state())[0] is DomainState.RUNNING

    played(libvirtds, story)


# A guest that stands still for another reason than its move (S6, G6)

PAUSED_BY_A_USER = (DomainState.PAUSED, "user")
PAUSED_ON_ERROR = (DomainState.PAUSED, "ioerror")
READS_FOR_EVER = (
    bytes.fromhex("b80102 bb0080 b90200 ba8000 cd13 ebf0").ljust(510, b"\0") + b"\x55\xaa"
)
"""A boot sector: int 13h reads the second sector of the first disk, again and again."""


class FailingStorage:
    """A disk behind an NBD server, which both machines reach; without it each read is an error."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "nbd"
        disk = directory / "reads.raw"
        disk.write_bytes(READS_FOR_EVER + bytes(8 << 20))
        options = ("--persistent", "--shared=4", "--format=raw", f"--socket={self._socket}")
        self._server = subprocess.Popen(["qemu-nbd", *options, str(disk)])

    @property
    def is_there(self) -> bool:
        assert self._server.poll() is None
        return self._socket.exists()

    def fail(self) -> None:
        self._server.kill()
        self._server.wait(60)

    def domain_xml(self) -> str:
        """It stops on an error, as virtha's VMs do."""
        plain = domain_xml(Path("/away"))
        disk = (
            "<disk type='network' device='disk'>"
            "<driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>"
            f"<source protocol='nbd'><host transport='unix' socket='{self._socket}'/></source>"
            "<target dev='vda' bus='virtio'/></disk>"
        )
        before, after = plain.split("<disk ")[0], plain.split("</disk>")[1]
        return before + disk + after


async def copies(rig: Rig) -> bool:
    """Both machines are there by then."""
    found = await rig.one.moves.move_progress(VM_ID)
    return found is not None and found.bytes_total > 0


@contextlib.asynccontextmanager
async def reading_guest(rig: Rig) -> AsyncIterator[FailingStorage]:
    """The machine reads its disk without end. In place of the one that runs."""
    await rig.one.host.destroy(VM_ID)
    storage = FailingStorage(rig.directory)

    async def serves() -> bool:
        return storage.is_there

    try:
        await rig.until(serves, "the storage is there")
        for side in (rig.one, rig.other):
            await side.host.define(storage.domain_xml())
        await rig.one.host.start_paused(VM_ID)
        await rig.one.host.run(VM_ID)
        yield storage
    finally:
        with contextlib.suppress(HypervisorError):
            await rig.one.host.destroy(VM_ID)
        storage.fail()


async def stays(rig: Rig, state: tuple[DomainState, str]) -> None:
    """At the source, and nothing of it is at the target."""
    await rig.until_left(rig.one)
    await rig.until_gone(rig.other)
    assert await rig.one.state() == state
    resumed = [event for event in rig.one.events if event.kind.value == "resumed"]
    assert resumed == [], "nobody let it run"


@pytest.mark.req("S6", "G6")
@pytest.mark.bad_input("host that can't take a move", story=True)
def test_a_guest_that_is_paused_already_is_not_moved_nor_let_run(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        await rig.one.host.pause(VM_ID)
        rig.one.events.clear()
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        assert (end.result, end.code) == (Result.FAILED, "migration.ended.paused"), end
        await stays(rig, PAUSED_BY_A_USER)
        await rig.one.host.run(VM_ID)
        assert (await rig.one.moves.move(VM_ID, rig.to(rig.other))).result is Result.OK

    played(libvirtds, story)


@pytest.mark.req("S6", "G6")
def test_a_guest_that_is_paused_already_by_an_io_error_is_not_moved_nor_let_run(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        async with reading_guest(rig) as storage:
            storage.fail()
            await rig.until_state(rig.one, PAUSED_ON_ERROR)
            rig.one.events.clear()
            end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
            assert (end.result, end.code) == (Result.FAILED, "migration.ended.io_error"), end
            await stays(rig, PAUSED_ON_ERROR)

    played(libvirtds, story)


@pytest.mark.req("S6", "G6")
def test_a_guest_that_stops_on_an_io_error_while_it_is_copied_is_let_run_nowhere(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    """libvirt carries it over and lets it run there, with its I/O in flight: the word to run is not given."""

    async def story(rig: Rig) -> None:
        async with reading_guest(rig) as storage:
            moving = slow_move(rig)
            await rig.until(partial(copies, rig), "its memory is on its way")
            rig.one.events.clear()
            storage.fail()
            end = await moving
            assert (end.result, end.code) == (Result.FAILED, "migration.ended.io_error"), end
            await stays(rig, PAUSED_ON_ERROR)

    played(libvirtds, story)


@pytest.mark.req("G6")
def test_a_guest_that_is_paused_just_before_libvirt_begins_is_let_run_nowhere(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    """As if it were paused between our look and libvirt's: libvirt would bring it over paused, which no agent knows."""

    async def story(rig: Rig) -> None:
        rig.one.movers.command = (
            sys.executable,
            "-c",
            "from virtha.drivers import libvirt_mover as m\n"
            "look = m.standing\n"
            "def late(domain):\n"
            "    m.standing = look\n"
            "    domain.suspend()\n"
            "m.standing = late\n"
            "m.main()\n",
        )
        rig.one.events.clear()
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        assert (end.result, end.code) == (Result.FAILED, "migration.ended.paused"), end
        await stays(rig, PAUSED_BY_A_USER)

    played(libvirtds, story)


# A target whose processor lacks something

LACKS = "sse4.2"


@pytest.fixture(scope="module")
def with_an_older(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> Iterator[tuple[OwnLibvirtd, OwnLibvirtd]]:
    with tempfile.TemporaryDirectory(prefix="vm-", ignore_cleanup_errors=True) as directory:
        older = OwnLibvirtd(
            Path(directory, "a3"), host_uuid="6f1c2b52-8f43-4a8c-9a5e-000000000003", lacks=LACKS
        )
        try:
            older.start()
            yield libvirtds[0], older
        finally:
            older.stop()


async def begin_as(rig: Rig, processor: str) -> None:
    """In place of the one that runs."""
    await rig.one.host.destroy(VM_ID)
    xml = domain_xml(rig.disk).replace("<devices>", f"{processor}<devices>")
    for side in (rig.one, rig.other):
        await side.host.define(xml)
    await rig.one.host.start_paused(VM_ID)
    await rig.one.host.run(VM_ID)


def as_model(name: str) -> str:
    return f"<cpu mode='custom' match='exact' check='partial'><model fallback='forbid'>{name}</model></cpu>"


@pytest.mark.req("L6")
@pytest.mark.bad_input("host that can't take a move", story=True)
@pytest.mark.parametrize(
    "processor", [as_model("Nehalem"), "<cpu mode='host-model' check='partial'/>"]
)
def test_a_guest_whose_processor_the_target_can_not_give_stays_where_it_runs(
    with_an_older: tuple[OwnLibvirtd, OwnLibvirtd], processor: str
) -> None:
    """By libvirt's own comparison of processors."""

    async def story(rig: Rig) -> None:
        await begin_as(rig, processor)
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        assert (end.result, end.code) == (Result.FAILED, "migration.ended.cpu"), end
        assert LACKS in end.detail, "it names what is missing"
        assert (await rig.one.state())[0] is DomainState.RUNNING
        await rig.until_left(rig.one)
        await rig.until_gone(rig.other)

    played(with_an_older, story)


def test_a_guest_whose_processor_the_older_target_has_moves_there(
    with_an_older: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        await begin_as(rig, as_model("Penryn"))
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        assert end.result is Result.OK, end

    played(with_an_older, story)
