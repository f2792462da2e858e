"""Snapshots: under an incarnation of their own, of VMs that are down; a torn revert is never started from."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.requests import DiskCreate, SnapshotCreate, TemplateCreate, VmStart
from virtha.control.views import Caller
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused, VirthaError
from virtha.model.facts import Released, Result, VmReport
from virtha.model.ids import Incarnation
from virtha.model.operation import OperationState
from virtha.model.orders import (
    ChangeLiveSnapshots,
    ChangeSnapshots,
    SnapshotAction,
    StartVm,
)
from virtha.model.snapshot import SnapshotState
from virtha.model.user import Role
from virtha.model.vm import DiskFormat, VmState

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]
NAME = SnapshotCreate(name="before")


async def _with_vm(world: Any) -> Any:
    host = await world.join("h1")
    await world.add_storage()
    await world.add_vm()
    return host


async def _done(host: Any, result: Result = Result.OK, **more: Any) -> None:
    """As the agent does it: the answer, and the release of the incarnation."""
    order = host.orders[-1]
    assert isinstance(order.body, ChangeSnapshots)
    grant = order.body.grant
    await host.answer(order, result=result, **more)
    if result is not Result.UNKNOWN:
        await host.tell(Released(vm_id=grant.vm_id, incarnation=grant.incarnation))


async def _state(world: Any) -> SnapshotState:
    (one,) = (await world.control.snapshots.list("web1")).items
    return one.state


async def _refused(kind: type[VirthaError], code: str, asked: Any) -> None:
    with pytest.raises(kind) as caught:
        await asked
    assert caught.value.code == code


@pytest.mark.req("G1", "G4")
def test_the_host_is_a_holder_until_it_has_released(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        other = await world.join("h2")
        snapshots = world.control.snapshots
        operation = await snapshots.create(ADMIN, "web1", NAME)
        order = host.orders[-1].body if host.orders else other.orders[-1].body
        maker = host if isinstance(order, ChangeSnapshots) else other
        order = maker.orders[-1].body
        assert isinstance(order, ChangeSnapshots) and order.action is SnapshotAction.CREATE
        status = (await world.control.vms.get("web1")).status
        assert status.holders == (maker.id,), "before the order went out"
        assert status.incarnation == order.grant.incarnation == 1
        assert not status.wanted_up
        assert await _state(world) is SnapshotState.CREATING
        await _refused(
            Conflict,
            "problem.operation.open",
            world.control.vms.start(ADMIN, "web1", VmStart()),
        )
        await _done(maker)
        assert (await world.control.operations.get(operation.id)).state is OperationState.DONE
        status = (await world.control.vms.get("web1")).status
        assert (status.holders, status.copies) == ((), ())
        assert await _state(world) is SnapshotState.READY
        for action in (snapshots.revert, snapshots.delete):
            await action(ADMIN, "web1", "before")
            await _done(maker)
        assert (await snapshots.list("web1")).items == ()
        await world.control.vms.start(ADMIN, "web1", VmStart())
        starts = [o.body for h in (host, other) for o in h.orders if isinstance(o.body, StartVm)]
        assert starts[-1].grant.incarnation == 4
        codes = await world.codes()
        assert {"snapshot.created", "snapshot.reverted", "snapshot.deleted"} <= set(codes)

    tell(story)


@pytest.mark.bad_input("some of a VM's disks")
def test_of_some_disks_there_is_no_snapshot_and_no_way_back(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        await world.control.vms.devices.add_disk(ADMIN, "web1", DiskCreate(size_bytes=1 << 30))
        await host.answer(host.orders[-1])
        snapshots = world.control.snapshots
        root, data = (disk.id for disk in (await world.control.vms.get("web1")).vm.disks)
        for only in ((root,), (data,), (), (root, data, "another"), (root, "")):
            with pytest.raises(Refused, match="not of some") as refused:
                await snapshots.create(ADMIN, "web1", NAME, only=only)
            assert refused.value.field == "disks" and refused.value.allowed == (root, data)
        assert (await snapshots.list("web1")).items == ()
        await snapshots.create(ADMIN, "web1", NAME, only=(data, root))
        await _done(host)
        sent = len(host.orders)
        for only in ((root,), (data,), ()):
            with pytest.raises(Refused, match="not of some"):
                await snapshots.revert(ADMIN, "web1", "before", only=only)
        assert len(host.orders) == sent and await _state(world) is SnapshotState.READY
        await snapshots.revert(ADMIN, "web1", "before", only=(root, data))
        order = host.orders[-1].body
        assert isinstance(order, ChangeSnapshots) and order.action is SnapshotAction.REVERT

    tell(story)


@pytest.mark.req("G1")
def test_an_end_that_nobody_knows_frees_nothing(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        snapshots = world.control.snapshots
        operation = await snapshots.create(ADMIN, "web1", NAME)
        host.vanish()
        world.clock.advance(24 * 3_600_000)
        await world.control.operations.expire()
        assert (await world.control.operations.get(operation.id)).state is OperationState.FAILED
        assert (await world.control.vms.get("web1")).status.holders == (host.id,)
        assert await _state(world) is SnapshotState.DELETING, "it may be there"
        await world.join("h2")
        with pytest.raises(Refused):
            await world.control.vms.start(ADMIN, "web1", VmStart(host="h2"))
        with pytest.raises(Refused):
            await snapshots.delete(ADMIN, "web1", "before")

    tell(story)


def test_a_torn_revert_is_not_started_from(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        control = world.control
        await control.snapshots.create(ADMIN, "web1", NAME)
        await _done(host)
        await control.snapshots.revert(ADMIN, "web1", "before")
        await _done(host, Result.REFUSED, code="order.refused.boot")
        assert await _state(world) is SnapshotState.READY, "nothing was begun"
        await control.snapshots.revert(ADMIN, "web1", "before")
        await _done(host, Result.FAILED, message="disk error")
        await _refused(
            Refused, "problem.snapshot.state", control.vms.start(ADMIN, "web1", VmStart())
        )
        await control.snapshots.revert(ADMIN, "web1", "before")
        await _done(host)
        await control.vms.start(ADMIN, "web1", VmStart())

    tell(story)


@pytest.mark.bad_input("snapshot of a running VM")
def test_a_torn_vm_stays_torn_until_a_revert_succeeds(tell: Tell) -> None:
    """Neither a revert that was refused, nor the snapshot's deletion, makes its disks of one time; nobody copies them."""

    async def story(world: Any) -> None:
        host = await _with_vm(world)
        control = world.control
        await control.snapshots.create(ADMIN, "web1", NAME)
        await _done(host)
        await control.snapshots.revert(ADMIN, "web1", "before")
        await _done(host, Result.FAILED, message="disk error")
        await control.snapshots.revert(ADMIN, "web1", "before")
        await _done(host, Result.REFUSED, code="host.unfit.libvirt")
        assert await _state(world) is SnapshotState.REVERTING
        snapshots, other = control.snapshots, SnapshotCreate(name="after")
        template = TemplateCreate(name="gold", vm="web1")
        for asked in (
            snapshots.delete(ADMIN, "web1", "before"),
            snapshots.create(ADMIN, "web1", other),
            control.templates.create(ADMIN, template),
            control.vms.start(ADMIN, "web1", VmStart()),
        ):
            await _refused(Refused, "problem.snapshot.state", asked)
        await control.snapshots.revert(ADMIN, "web1", "before")
        await _done(host)
        await control.vms.start(ADMIN, "web1", VmStart())

    tell(story)


@pytest.mark.bad_input("snapshot of a running VM")
def test_bad_wishes_are_refused_before_anything_is_ordered(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        snapshots = world.control.snapshots
        for name in ("", "a" * 300, "a b", "../x", "ä"):
            with pytest.raises(InvalidInput) as caught:
                await snapshots.create(ADMIN, "web1", SnapshotCreate(name=name))
            assert caught.value.field == "name"
        with pytest.raises(NotFound):
            await snapshots.revert(ADMIN, "web1", "nothing")
        await snapshots.create(ADMIN, "web1", NAME)
        await _done(host)
        await _refused(Conflict, "problem.name_taken", snapshots.create(ADMIN, "web1", NAME))
        await world.add_vm(
            "raw1", image=None, disks=(DiskCreate(size_bytes=1 << 30, format=DiskFormat.RAW),)
        )
        with pytest.raises(InvalidInput, match="raw"):
            await snapshots.create(ADMIN, "raw1", NAME)
        await world.run_vm()
        before = len(host.orders)
        await _refused(Refused, "problem.vm.state", snapshots.revert(ADMIN, "web1", "before"))
        assert len(host.orders) == before

    tell(story)


@pytest.mark.req("G1", "G4")
def test_a_running_copy_makes_and_deletes_its_own_snapshots(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        await world.run_vm()
        before = (await world.control.vms.get("web1")).status
        snapshots = world.control.snapshots
        for name, crash_consistent in (("frozen", False), ("crashed", True)):
            wanted = SnapshotCreate(name=name, crash_consistent=crash_consistent)
            operation = await snapshots.create(ADMIN, "web1", wanted)
            order = host.orders[-1].body
            assert isinstance(order, ChangeLiveSnapshots)
            assert (order.action, order.incarnation) == (SnapshotAction.CREATE, 1)
            assert order.freeze is not crash_consistent
            status = (await world.control.vms.get("web1")).status
            assert (status.holders, status.incarnation) == (before.holders, 1), "no new holder"
            await host.answer(fields={"frozen": not crash_consistent})
            assert (await world.control.operations.get(operation.id)).state is OperationState.DONE
        shown = {one.name: one.frozen for one in (await snapshots.list("web1")).items}
        assert shown == {"frozen": True, "crashed": False}
        await snapshots.delete(ADMIN, "web1", "crashed")
        order = host.orders[-1].body
        assert isinstance(order, ChangeLiveSnapshots) and order.action is SnapshotAction.DELETE
        await host.answer()
        assert [one.name for one in (await snapshots.list("web1")).items] == ["frozen"]

    tell(story)


@pytest.mark.bad_input("snapshot of a running VM")
def test_a_live_snapshot_that_failed_is_none_and_an_unknown_one_is_deleted_later(
    tell: Tell,
) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        vm_id, _ = await world.run_vm()
        snapshots = world.control.snapshots
        for result, code, left in (
            (Result.REFUSED, "order.refused.guest_silent", []),
            (Result.FAILED, "order.failed.not_frozen", []),
            (Result.UNKNOWN, "problem.failed", [SnapshotState.DELETING]),
        ):
            operation = await snapshots.create(ADMIN, "web1", NAME)
            await host.answer(result=result, code=code)
            ended = await world.control.operations.get(operation.id)
            assert (ended.state, ended.code) == (OperationState.FAILED, code)
            assert [one.state for one in (await snapshots.list("web1")).items] == left
        await snapshots.delete(ADMIN, "web1", "before")
        await host.answer()
        assert (await snapshots.list("web1")).items == ()
        silent = VmReport(
            vm_id=vm_id, incarnation=Incarnation(1), state=VmState.RUNNING, guest_agent=False
        )
        await host.tell(silent)
        since = len(host.orders)
        with pytest.raises(Refused) as refused:
            await snapshots.create(ADMIN, "web1", NAME)
        assert refused.value.code == "order.refused.guest_silent"
        assert "--crash-consistent" in refused.value.fix
        assert len(host.orders) == since
        assert (await snapshots.list("web1")).items == ()

    tell(story)
