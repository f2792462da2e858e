"""Snapshots: under an incarnation of their own, of VMs that are down; a torn revert is never started from."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.requests import DiskCreate, SnapshotCreate, VmStart
from virtha.control.views import Caller
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused, VirthaError
from virtha.model.facts import Released, Result
from virtha.model.operation import OperationState
from virtha.model.orders import ChangeSnapshots, SnapshotAction, StartVm
from virtha.model.snapshot import SnapshotState
from virtha.model.user import Role
from virtha.model.vm import DiskFormat

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
        await _refused(
            Refused,
            "problem.vm.state",
            snapshots.create(ADMIN, "web1", SnapshotCreate(name="live")),
        )
        await _refused(Refused, "problem.vm.state", snapshots.revert(ADMIN, "web1", "before"))
        assert len(host.orders) == before

    tell(story)
