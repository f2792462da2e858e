"""Moves that can't be: refused at once with what is in the way, and nothing is ordered of any host."""

import asyncio
from pathlib import Path
from typing import Any

import led_world
import msgspec
import pytest
from led_world import ADMIN, LedWorld
from test_led_moves import asked, begun, given, moves_of, play, state

from virtha.control.requests import MaintenanceChange, NicCreate, VmMigrate
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused, VirthaError
from virtha.model.facts import HostReport, ReleaseCause, Released, VmReport
from virtha.model.ids import Incarnation, VmId
from virtha.model.operation import OperationState
from virtha.model.orders import MigrateVm, ReceiveVm
from virtha.model.vm import VmState


@pytest.mark.bad_input("host that can't take a move")
@pytest.mark.parametrize(
    ("request_", "kind", "field"),
    [
        ({"host": "h1"}, InvalidInput, "host"),
        ({"host": "h9"}, VirthaError, "host"),
        ({"host": "h2", "bandwidth_mib_s": 0}, InvalidInput, "bandwidth_mib_s"),
        ({"host": "h2", "bandwidth_mib_s": 10**9}, InvalidInput, "bandwidth_mib_s"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    tmp_path: Path, request_: dict[str, Any], kind: type[VirthaError], field: str
) -> None:
    async def story(world: LedWorld) -> None:
        with pytest.raises(kind) as raised:
            await world.control.moves.migrate(ADMIN, "web1", VmMigrate(**request_))
        assert raised.value.field == field
        with pytest.raises(NotFound):
            await world.control.moves.migrate(ADMIN, "web9", VmMigrate())

    play(tmp_path, story)


LACKS = {
    "the storage": "it has no storage domain ds1",
    "room": "512MiB needed, 256MiB free",
    "its network": "it has no bridge br0",
    "nobody's hands inside": "it is in maintenance",
}


async def h2(world: LedWorld, lacks: str) -> None:
    """It lacks only that: whatever it lacked before it has again."""
    if lacks == "its network":
        operation = await world.control.vms.devices.add_nic(ADMIN, "web1", NicCreate(bridge="br0"))
        await world.done(operation.id)
    await world.tell_storage("h2", usable=lacks != "the storage")
    able = msgspec.structs.replace(
        led_world.ABLE,
        memory_bytes=led_world.MIB * (256 if lacks == "room" else 8_192),
        bridges=("br1" if lacks == "its network" else "br0",),
    )
    await world.hosts["h2"].tell(HostReport(capabilities=able))
    if lacks == "nobody's hands inside":
        change = MaintenanceChange(on=True, drain=False)
        care = asyncio.ensure_future(world.control.host_care.set_maintenance(ADMIN, "h2", change))
        while not care.done():
            await world.settle(1)
            await asyncio.wait({care}, timeout=0.01)
    await world.settle()


@pytest.mark.req("X1")
@pytest.mark.bad_input("host that can't take a move")
def test_a_host_that_can_t_take_it_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    """Named by a person: at once. Where none is named and no other is left, its operation says that."""

    async def story(world: LedWorld) -> None:
        for lacks, told in LACKS.items():
            await h2(world, lacks)
            with pytest.raises(Refused) as raised:
                await world.control.moves.migrate(ADMIN, "web1", VmMigrate(host="h2"))
            assert raised.value.code == "problem.no_host_fits"
            assert raised.value.message == f"no host can take web1 (h2: {told})"
            refused = len(await moves_of(world))
            anywhere = await state(world, await asked(world))
            assert (anywhere.state, anywhere.code) == (
                OperationState.FAILED,
                "migration.blocked.no_target",
            ), lacks
            assert len(await moves_of(world)) == refused + 1, "what was refused left none"
        for host in world.hosts.values():
            assert given(host, MigrateVm) == given(host, ReceiveVm) == []
        status = (await world.vm()).status
        assert (status.state, status.holders) == (VmState.RUNNING, (world.hosts["h1"].id,))

    play(tmp_path, story)


@pytest.mark.bad_input("host that can't take a move")
def test_a_host_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        world.hosts["h2"].vanish()
        world.gateway.beats.clear()
        with pytest.raises(Refused, match="h2: ") as raised:
            await world.control.moves.migrate(ADMIN, "web1", VmMigrate(host="h2"))
        assert raised.value.code == "problem.no_host_fits"

    play(tmp_path, story)


@pytest.mark.bad_input
def test_a_vm_that_moves_is_not_moved_twice(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await begun(world)
        with pytest.raises(Conflict):
            await world.control.moves.migrate(ADMIN, "web1", VmMigrate())

    play(tmp_path, story)


@pytest.mark.bad_input
def test_a_vm_whose_devices_are_being_changed_is_not_moved(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        nic = NicCreate(bridge="br0")
        operation = await world.control.vms.devices.add_nic(ADMIN, "web1", nic)
        assert operation.state is OperationState.RUNNING
        with pytest.raises(Conflict) as caught:
            await asked(world, host="h2")
        assert caught.value.code == "problem.operation.open"
        assert operation.id in (caught.value.fix or "")

    play(tmp_path, story)


def test_nothing_is_called_off_that_does_not_move(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        with pytest.raises(Refused) as raised:
            await world.control.moves.cancel(ADMIN, "web1")
        assert raised.value.code == "problem.vm.state"

    play(tmp_path, story)


@pytest.mark.bad_input
def test_a_vm_that_is_down_is_not_moved(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = (await world.vm()).vm.id
        await world.hosts["h1"].tell(
            VmReport(vm_id=VmId(vm_id), incarnation=Incarnation(1), state=VmState.DOWN),
            Released(vm_id=vm_id, incarnation=Incarnation(1), cause=ReleaseCause.INTENDED),
        )
        await world.settle()
        with pytest.raises(Refused) as raised:
            await world.control.moves.migrate(ADMIN, "web1", VmMigrate())
        assert raised.value.code == "problem.vm.state"

    play(tmp_path, story)
