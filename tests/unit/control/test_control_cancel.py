"""Operations that only make disks are taken back; what a host may have done already is not."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.cleanup import check_can_cancel
from virtha.control.plan import Plan
from virtha.control.requests import DiskCreate, TemplateCreate, VmCreate, VmStart
from virtha.control.views import Caller
from virtha.model.errors import NotFound, Refused
from virtha.model.facts import Result
from virtha.model.ids import OperationId
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.orders import CancelWork, CopyDisk, CreateDisk, DeleteTemplate, ForgetVm
from virtha.model.user import Role

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
EVE = Caller(name="eve", role=Role.OPERATOR)
GIB = 1 << 30
NEW = VmCreate(name="new1", memory_bytes=GIB, image="tiny", start=True)
Tell = Callable[[Any], None]


async def _begun(world: Any) -> tuple[Any, Any]:
    host = await world.join("h1")
    await world.add_storage()
    return host, await world.control.vms.create(ADMIN, NEW)


async def _over(world: Any, operation: Any) -> Any:
    ended = await world.control.operations.get(operation.id)
    assert ended.is_over, ended
    return ended


def test_a_vm_that_is_being_made_is_taken_back_with_its_host_told_to_stop(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host, operation = await _begun(world)
        copy = host.orders[-1]
        assert isinstance(copy.body, CreateDisk)
        shown = await world.control.operations.cancel(EVE, operation.id)
        assert not shown.is_over, "its host has not said yet that it stopped"
        stop = host.orders[-1]
        assert stop.body == CancelWork(operation_id=operation.id, step=copy.step)
        with pytest.raises(Refused, match="for eve"):
            await world.control.operations.cancel(ADMIN, operation.id)
        await host.answer(stop)
        await host.answer(copy, result=Result.FAILED, code="order.failed.cancelled")
        forget = host.orders[-1]
        assert isinstance(forget.body, ForgetVm) and forget.body.disks == ()
        await host.answer(forget)
        ended = await _over(world, operation)
        assert (ended.state, ended.code) == (OperationState.CANCELLED, "order.failed.cancelled")
        assert ended.message == "it was taken back by eve"
        with pytest.raises(NotFound):
            await world.control.vms.get("new1")
        event = (await world.events("operation.cancelled"))[0]
        assert (event.user, event.fields["kind"]) == ("eve", "vm.create")
        assert await world.events("operation.failed") == []

    tell(story)


@pytest.mark.bad_input("cancel of what is done")
def test_a_disk_that_was_done_before_its_host_heard_is_removed(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host, operation = await _begun(world)
        copy = host.orders[-1]
        await world.control.operations.cancel(ADMIN, operation.id)
        stop = host.orders[-1]
        await host.answer(copy)
        await host.answer(stop)
        forget = host.orders[-1]
        assert isinstance(forget.body, ForgetVm)
        assert forget.body.disks == (copy.body.disk,)
        await host.answer(forget)
        assert (await _over(world, operation)).state is OperationState.CANCELLED
        assert len([one for one in host.orders if isinstance(one.body, ForgetVm)]) == 1

    tell(story)


@pytest.mark.bad_input("cancel of what is done")
def test_a_cancel_outlives_the_server(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host, operation = await _begun(world)
        copy = host.orders[-1]
        host.vanish()
        await world.control.operations.cancel(ADMIN, operation.id)
        await world.reopen()
        answer = await host.hello()
        assert [type(order.body) for order in answer.orders] == [CreateDisk, CancelWork]
        await host.answer(copy, result=Result.FAILED, code="order.failed.cancelled")
        await host.answer(answer.orders[1])
        await host.answer(host.orders[-1])
        assert (await _over(world, operation)).state is OperationState.CANCELLED

    tell(story)


def test_a_template_that_is_being_made_is_taken_back(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        operation = await world.control.templates.create(
            ADMIN, TemplateCreate(name="gold", vm="web1")
        )
        copy = host.orders[-1]
        assert isinstance(copy.body, CopyDisk)
        await world.control.operations.cancel(ADMIN, operation.id)
        await host.answer()
        await host.answer(copy, result=Result.FAILED, code="order.failed.cancelled")
        assert isinstance(host.orders[-1].body, DeleteTemplate)
        await host.answer()
        assert (await _over(world, operation)).state is OperationState.CANCELLED
        with pytest.raises(NotFound):
            await world.control.templates.get("gold")
        await world.control.vms.start(ADMIN, "web1", VmStart())

    tell(story)


@pytest.mark.bad_input("cancel of what is done")
def test_a_disk_that_is_being_added_is_taken_back_unless_it_was_quicker(tell: Tell) -> None:
    """Made before its host heard of it, it is added: a file that no VM has would keep its name from the next one."""

    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        devices, operations = world.control.vms.devices, world.control.operations
        wanted = DiskCreate(name="data", image="tiny")
        for stopped in (True, False):
            operation = await devices.add_disk(ADMIN, "web1", wanted)
            copy = host.orders[-1]
            assert not (await operations.cancel(EVE, operation.id)).is_over
            stop = host.orders[-1]
            assert stop.body == CancelWork(operation_id=operation.id, step=copy.step)
            if stopped:
                await host.answer(copy, result=Result.FAILED, code="order.failed.cancelled")
                await host.answer(stop)
            else:
                await host.answer(copy)
                await host.answer(stop)
            ended = await _over(world, operation)
            names = [disk.name for disk in (await world.control.vms.get("web1")).vm.disks]
            if stopped:
                assert (ended.state, "data" in names) == (OperationState.CANCELLED, False)
            else:
                assert (ended.state, ended.code) == (OperationState.DONE, None)
                assert "data" in names
        assert [event.user for event in await world.events("operation.cancelled")] == ["eve"]

    tell(story)


@pytest.mark.bad_input("cancel of what is done")
def test_what_cannot_be_taken_back_says_what_can_be_done(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        operations, vms = world.control.operations, world.control.vms
        start = await vms.start(ADMIN, "web1", VmStart())
        since = len(host.orders)
        with pytest.raises(Refused) as refused:
            await operations.cancel(ADMIN, start.id)
        assert refused.value.code == "problem.operation.cancel"
        assert "power-off" in refused.value.fix
        await host.started()
        with pytest.raises(Refused, match="is done already"):
            await operations.cancel(ADMIN, start.id)
        shutdown = await vms.shutdown(ADMIN, "web1")
        with pytest.raises(Refused, match=r"vm\.shutdown can't be taken back"):
            await operations.cancel(ADMIN, shutdown.id)
        with pytest.raises(NotFound):
            await operations.cancel(ADMIN, "../../etc")
        assert len(host.orders) == since + 1

    tell(story)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["vm.migrate", "host.fence"])
def test_what_the_engine_does_is_refused_with_what_to_do_instead(kind: str) -> None:
    """It has steps to show, and none that the runner planned."""
    step = OperationStep(name="off at level 1", state=OperationState.RUNNING)
    operation = Operation(
        id=OperationId("o1"), kind=kind, subject="s1", state=OperationState.RUNNING, steps=(step,)
    )
    with pytest.raises(Refused, match="virtha ") as refused:
        check_can_cancel(operation, Plan(steps=()))
    assert refused.value.code == "problem.operation.cancel"
