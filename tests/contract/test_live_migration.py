"""Two real libvirts and a QEMU that moves between them: a source that gave the word to run is never resumed by libvirt (ADR 14)."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from moved_machine import VM_ID, Rig, flows, played, slow_move, two_libvirtds
from own_libvirtd import OwnLibvirtd

from virtha.model.domain import DomainState
from virtha.model.facts import Result
from virtha.ports.hypervisor import MoveEnd

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
STANDS = (DomainState.PAUSED, "migration")


@pytest.fixture(scope="module")
def libvirtds() -> Iterator[tuple[OwnLibvirtd, OwnLibvirtd]]:
    with two_libvirtds() as pair:
        yield pair


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
        await asyncio.sleep(
            3
        )  # a libvirtd that lets it run on tells nobody beforehand: only time shows that it does not
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
