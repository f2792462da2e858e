"""What real libvirts would do and may not, or won't: a guest that stands still is not moved, nor one whose processor its target can't give."""

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from moved_machine import VM_ID, Rig, domain_xml, played, slow_move, two_libvirtds
from own_libvirtd import OwnLibvirtd

from virtha.model.domain import DomainState
from virtha.model.facts import Result
from virtha.ports.hypervisor import HypervisorError

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def libvirtds() -> Iterator[tuple[OwnLibvirtd, OwnLibvirtd]]:
    with two_libvirtds() as pair:
        yield pair


# A guest that stands still for another reason than its move (S6, G6)

PAUSED_BY_A_USER = (DomainState.PAUSED, "user")
PAUSED_ON_ERROR = (DomainState.PAUSED, "ioerror")
READS_FOR_EVER = (
    bytes.fromhex("b80102 bb0080 b90200 ba8000 cd13 ebf0").ljust(510, b"\0") + b"\x55\xaa"
)
"""A boot sector: int 13h reads the second sector of the first disk, again and again."""


class FailingStorage:
    """A disk behind an NBD server, which both machines reach; without it each read is an error. What is to be flushed is
    forgotten (cache=unsafe): QEMU gives a migration up by itself where that fails."""

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
            "<driver name='qemu' type='raw' cache='unsafe' error_policy='stop' rerror_policy='stop'/>"
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


async def stays(rig: Rig, state: tuple[DomainState, str], *, tried_again: bool = False) -> None:
    """At the source, and nothing of it is at the target. ``tried_again``: libvirt itself may have let it go on there, as it
    does when QEMU gives the attempt up."""
    await rig.until_left(rig.one)
    await rig.until_gone(rig.other)
    assert await rig.one.state() == state
    assert [event for event in rig.other.events if event.kind.value == "resumed"] == []
    if tried_again:
        return
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
def test_a_guest_that_stops_on_an_io_error_while_it_is_copied_stays_where_it_is(
    libvirtds: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    """libvirt would carry it over and let it run there, with its I/O in flight: the word to run is not given, if QEMU itself
    does not fail before."""

    async def story(rig: Rig) -> None:
        async with reading_guest(rig) as storage:
            moving = slow_move(rig)
            await rig.until(partial(copies, rig), "its memory is on its way")
            rig.one.events.clear()
            storage.fail()
            end = await moving
            assert (end.result, end.code) == (Result.FAILED, "migration.ended.io_error"), end
            await stays(rig, PAUSED_ON_ERROR, tried_again=True)

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

MODEL, LACKS = "Nehalem", "sse4.2"


@pytest.fixture(scope="module")
def with_an_older() -> Iterator[tuple[OwnLibvirtd, OwnLibvirtd]]:
    with two_libvirtds(second_lacks=f"{MODEL}-x86_64-cpu.{LACKS}") as pair:
        yield pair


async def begin_as(rig: Rig, model: str) -> None:
    """As virtha's VMs with ``guest.cpu.mode=custom``, in place of the one that runs."""
    await rig.one.host.destroy(VM_ID)
    cpu = f"<cpu mode='custom' match='exact'><model fallback='forbid'>{model}</model></cpu>"
    xml = domain_xml(rig.disk).replace("<devices>", f"{cpu}<devices>")
    for side in (rig.one, rig.other):
        await side.host.define(xml)
    await rig.one.host.start_paused(VM_ID)
    await rig.one.host.run(VM_ID)


@pytest.mark.req("L6")
@pytest.mark.bad_input("host that can't take a move", story=True)
def test_a_guest_whose_processor_the_target_can_not_give_stays_where_it_runs(
    with_an_older: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    """By libvirt's own comparison with what QEMU gives there."""

    async def story(rig: Rig) -> None:
        await begin_as(rig, MODEL)
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        assert (end.result, end.code) == (Result.FAILED, "migration.ended.cpu"), end
        assert LACKS in end.detail, "it names what is missing"
        assert (await rig.one.state())[0] is DomainState.RUNNING
        await rig.until_left(rig.one)
        await rig.until_gone(rig.other)

    played(with_an_older, story)


def test_a_guest_whose_processor_that_target_has_moves_there(
    with_an_older: tuple[OwnLibvirtd, OwnLibvirtd],
) -> None:
    async def story(rig: Rig) -> None:
        await begin_as(rig, "Penryn")
        end = await rig.one.moves.move(VM_ID, rig.to(rig.other))
        assert end.result is Result.OK, end

    played(with_an_older, story)
