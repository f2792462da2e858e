"""Disks and cards added and removed: cold into the record, where the VM runs into its copy as well."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from virtha.control.copies import with_copy, without
from virtha.control.requests import DiskCreate, NicCreate, VmChange, VmCreate
from virtha.control.views import Caller
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused, Stale, VirthaError
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, Revision
from virtha.model.operation import OperationState
from virtha.model.orders import CreateDisk, DefineVm, PlugDevice, UnplugDevice
from virtha.model.user import Role
from virtha.model.vm import PossibleCopy
from virtha.store.vms import save_vm_status

MIB = 1 << 20
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
MAC = "52:54:00:00:00:77"
Tell = Callable[[Any], None]


def kinds(host: Any, since: int) -> list[str]:
    return [type(order.body).__name__ for order in host.orders[since:]]


async def installed(world: Any, *, runs: bool) -> Any:
    host = await world.join("h1")
    await world.add_storage()
    await world.add_vm()
    if runs:
        await world.run_vm()
    return host


async def vm_now(world: Any) -> Any:
    return (await world.control.vms.get("web1")).vm


async def the_state(world: Any, operation: Any) -> Any:
    return (await world.control.operations.get(operation.id)).state


def test_a_running_vm_gets_a_new_disk_made_recorded_plugged_and_then_defined(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        since = len(host.orders)
        before = await vm_now(world)
        operation = await world.control.vms.devices.add_disk(
            ADMIN, "web1", DiskCreate(name="data", size_bytes=64 * MIB), before.revision
        )
        assert kinds(host, since) == ["CreateDisk"]
        assert await vm_now(world) == before, "nothing is claimed that is not made"
        await host.answer()
        after = await vm_now(world)
        assert [disk.name for disk in after.disks[len(before.disks) :]] == ["data"]
        plug = host.orders[-1].body
        assert isinstance(plug, PlugDevice)
        assert (plug.disk, plug.incarnation, plug.vm) == (after.disks[-1], 1, after)
        await host.answer()
        define = host.orders[-1].body
        assert isinstance(define, DefineVm)
        assert define.vm == after
        await host.answer()
        assert await the_state(world, operation) is OperationState.DONE

    tell(story)


def test_a_disk_that_is_there_waits_for_a_start_which_looks_who_writes_to_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        since = len(host.orders)
        operation = await world.control.vms.devices.add_disk(
            ADMIN, "web1", DiskCreate(name="old", path="vms/old.qcow2")
        )
        assert kinds(host, since) == []
        assert operation.state is OperationState.DONE
        assert (await vm_now(world)).disks[-1].path == "vms/old.qcow2"

    tell(story)


def test_a_vm_that_is_down_is_changed_in_its_record_only(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=False)
        devices = world.control.vms.devices
        since = len(host.orders)
        await devices.add_nic(ADMIN, "web1", NicCreate(bridge="br0", mac=MAC))
        assert (await vm_now(world)).nics[-1].mac == MAC
        await devices.remove_nic(ADMIN, "web1", MAC.upper())
        assert (await vm_now(world)).nics == ()
        first = (await vm_now(world)).disks[0]
        await devices.remove_disk(ADMIN, "web1", first.name)
        assert (await vm_now(world)).disks == ()
        assert kinds(host, since) == []

    tell(story)


@pytest.mark.parametrize("name", ["", "a card", "x" * 51, "nic/1"])
def test_a_card_is_called_by_a_plain_name(tell: Tell, name: str) -> None:
    async def story(world: Any) -> None:
        await installed(world, runs=False)
        with pytest.raises(InvalidInput) as wrong:
            await world.control.vms.devices.add_nic(
                ADMIN, "web1", NicCreate(bridge="br0", name=name)
            )
        assert wrong.value.field == "nics[0].name" and (await vm_now(world)).nics == ()

    tell(story)


def test_a_card_keeps_its_name_when_all_are_given_anew_by_address(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await installed(world, runs=False)
        vms = world.control.vms
        await vms.devices.add_nic(ADMIN, "web1", NicCreate(bridge="br0", mac=MAC, name="front"))
        with pytest.raises(Conflict, match="is called front already") as twice:
            await vms.devices.add_nic(ADMIN, "web1", NicCreate(bridge="br0", name="front"))
        assert twice.value.field == "nics[0].name"
        anew = (NicCreate(bridge="br1", mac=MAC), NicCreate(bridge="br0"))
        await vms.change(ADMIN, "web1", VmChange(nics=anew))
        first, second = (await vm_now(world)).nics
        assert (first.name, first.bridge, second.name) == ("front", "br1", UNSET)
        assert second.called == f"nic-{second.mac.replace(':', '')}"

    tell(story)


def test_a_disk_made_for_a_vm_that_cannot_get_it_says_where_it_is_left(tell: Tell) -> None:
    """Nothing of it is deleted; the name that its file takes would else be a riddle to the next who wants it."""

    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        operation = await world.control.vms.devices.add_disk(
            ADMIN, "web1", DiskCreate(name="data", size_bytes=64 * MIB)
        )
        create = host.orders[-1]
        status = (await world.control.vms.get("web1")).status
        other = PossibleCopy(host_id=(await world.join("h2")).id, incarnation=Incarnation(2))
        async with world.store.write() as tx:
            await save_vm_status(tx, with_copy(status, other))
        await host.answer(create)
        ended = await world.control.operations.get(operation.id)
        assert (ended.state, ended.code) == (OperationState.FAILED, "problem.vm.state")
        assert f"{create.body.disk.path} (qcow2) was made and stays" in ended.message
        assert "data" not in [disk.name for disk in (await vm_now(world)).disks]

    tell(story)


@pytest.mark.req("G1")
def test_a_disk_that_a_later_start_has_again_stays_in_the_record(tell: Tell) -> None:
    """Its host died after it was unplugged, and says so when it is back: free, the file would get a second writer."""

    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        before = await vm_now(world)
        operation = await world.control.vms.devices.remove_disk(ADMIN, "web1", before.disks[0].name)
        unplug = host.orders[-1]
        assert isinstance(unplug.body, UnplugDevice)
        status = (await world.control.vms.get("web1")).status
        elsewhere = PossibleCopy(host_id=(await world.join("h2")).id, incarnation=Incarnation(2))
        async with world.store.write() as tx:
            moved = with_copy(without(status, host.id), elsewhere)
            await save_vm_status(
                tx,
                msgspec.structs.replace(
                    moved, host_id=elsewhere.host_id, incarnation=elsewhere.incarnation
                ),
            )
        await host.answer(unplug)
        ended = await world.control.operations.get(operation.id)
        assert (ended.state, ended.code) == (OperationState.FAILED, "problem.vm.state")
        assert (await vm_now(world)).disks == before.disks

    tell(story)


def test_what_the_guest_refuses_to_give_up_stays_in_the_record(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        devices = world.control.vms.devices
        await world.play(
            (await devices.add_nic(ADMIN, "web1", NicCreate(bridge="br0", mac=MAC))).id
        )
        before = await vm_now(world)
        operation = await devices.remove_nic(ADMIN, "web1", MAC)
        assert isinstance(host.orders[-1].body, UnplugDevice)
        with pytest.raises(Conflict) as raised:
            await world.control.vms.change(ADMIN, "web1", VmChange(vcpus=2))
        assert raised.value.code == "problem.operation.open"
        await host.answer(result=Result.FAILED, code="order.failed.unplug_refused", message="no")
        ended = await world.control.operations.get(operation.id)
        assert (ended.state, ended.code) == (OperationState.FAILED, "order.failed.unplug_refused")
        assert await vm_now(world) == before
        again = await devices.remove_nic(ADMIN, "web1", MAC)
        await host.answer()
        assert isinstance(host.orders[-1].body, DefineVm)
        assert host.orders[-1].body.vm.nics == ()
        await host.answer()
        assert await the_state(world, again) is OperationState.DONE
        assert (await vm_now(world)).nics == ()

    tell(story)


def test_a_disk_that_could_not_be_made_is_in_no_record(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        before = await vm_now(world)
        await world.control.vms.devices.add_disk(ADMIN, "web1", DiskCreate(size_bytes=MIB))
        assert isinstance(host.orders[-1].body, CreateDisk)
        await host.answer(result=Result.FAILED, code="problem.disk.full", message="full")
        assert await vm_now(world) == before

    tell(story)


def test_no_device_is_touched_while_a_holder_is_uncertain(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        since = len(host.orders)
        operation = await world.control.vms.power_off(ADMIN, "web1")
        with pytest.raises((Refused, Conflict)):
            await world.control.vms.devices.remove_disk(ADMIN, "web1", "disk0")
        await world.play(operation.id)
        assert kinds(host, since) == ["StopVm"]

    tell(story)


@pytest.mark.bad_input("two edits at once")
def test_the_second_of_two_edits_is_told_the_present_revision(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await installed(world, runs=False)
        devices, read = world.control.vms.devices, (await vm_now(world)).revision
        await devices.add_nic(ADMIN, "web1", NicCreate(bridge="br0", mac=MAC), read)
        now = (await vm_now(world)).revision
        second = Revision(read)
        for edit in (
            devices.add_nic(ADMIN, "web1", NicCreate(bridge="br0"), second),
            devices.remove_nic(ADMIN, "web1", MAC, second),
            devices.add_disk(ADMIN, "web1", DiskCreate(size_bytes=MIB), second),
            devices.remove_disk(ADMIN, "web1", "disk0", second),
            world.control.vms.change(ADMIN, "web1", VmChange(vcpus=2), second),
        ):
            with pytest.raises(Stale, match=str(now)):
                await edit
        assert (await vm_now(world)).revision == now

    tell(story)


@pytest.mark.bad_input("name of a VM or disk")
@pytest.mark.parametrize("name", ["größe", "a b", "x" * 300, "../etc/passwd", "/etc/passwd", ""])
def test_names_are_refused_by_one_rule_at_creation_edit_and_disks(tell: Tell, name: str) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=False)
        since, before = len(host.orders), await vm_now(world)
        told = set()
        for attempt in (
            world.control.vms.create(ADMIN, VmCreate(name=name, memory_bytes=64 * MIB)),
            world.control.vms.change(ADMIN, "web1", VmChange(name=name)),
            world.control.vms.devices.add_disk(
                ADMIN, "web1", DiskCreate(name=name, size_bytes=MIB)
            ),
        ):
            with pytest.raises(InvalidInput) as raised:
                await attempt
            assert raised.value.field == "name"
            told.add(str(raised.value))
        assert len(told) == 1
        assert await vm_now(world) == before
        assert kinds(host, since) == []

    tell(story)


@pytest.mark.bad_input("device of a VM")
def test_wrong_devices_are_told_with_their_field(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await installed(world, runs=True)
        since, devices = len(host.orders), world.control.vms.devices
        cases: tuple[tuple[Any, type[VirthaError], str | None], ...] = (
            (devices.add_disk(ADMIN, "web1", DiskCreate()), InvalidInput, ""),
            (
                devices.add_disk(ADMIN, "web1", DiskCreate(path="../x", size_bytes=MIB)),
                InvalidInput,
                "path",
            ),
            (
                devices.add_disk(ADMIN, "web1", DiskCreate(bus="usb", size_bytes=MIB)),
                InvalidInput,
                "bus",
            ),
            (
                devices.add_disk(ADMIN, "web1", DiskCreate(bus="ide", size_bytes=MIB)),
                InvalidInput,
                "bus",
            ),
            (
                devices.add_disk(ADMIN, "web1", DiskCreate(name="disk0", size_bytes=MIB)),
                Conflict,
                "name",
            ),
            (
                devices.add_nic(ADMIN, "web1", NicCreate(bridge="a/b")),
                InvalidInput,
                "nics[0].bridge",
            ),
            (devices.remove_disk(ADMIN, "web1", "nope"), NotFound, None),
            (devices.remove_nic(ADMIN, "web1", "nope"), NotFound, None),
        )
        for attempt, kind, field in cases:
            with pytest.raises(kind) as raised:
                await attempt
            assert raised.value.field == field or not field, raised.value
        assert kinds(host, since) == []

    tell(story)
