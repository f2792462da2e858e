"""Templates: from VMs that are down, to VMs full and thin; what is in use can't go."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.requests import (
    NicCreate,
    SearchQuery,
    TemplateCreate,
    VmChange,
    VmFromTemplate,
    VmStart,
    WatchdogRequest,
)
from virtha.control.views import Caller
from virtha.model.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Refused,
    Stale,
    VirthaError,
)
from virtha.model.facts import Result
from virtha.model.ids import Revision
from virtha.model.operation import OperationState
from virtha.model.orders import CopyDisk, DefineVm, DeleteTemplate, ForgetVm
from virtha.model.template import TemplateState
from virtha.model.user import Role
from virtha.model.vm import OnIoError
from virtha.model.watchdog import WatchdogAction, WatchdogModel

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
MIB = 1 << 20
Tell = Callable[[Any], None]


async def _with_vm(world: Any) -> Any:
    host = await world.join("h1")
    await world.add_storage()
    await world.add_vm(
        watchdog=WatchdogRequest(model="i6300esb", action="reset"),
        nics=(NicCreate(bridge="br0", model="e1000"),),
        vcpus=2,
        on_io_error=OnIoError.LEAVE_PAUSED,
        priority=30,
    )
    return host


async def _with_template(world: Any) -> Any:
    host = await _with_vm(world)
    operation = await world.control.templates.create(
        ADMIN, TemplateCreate(name="gold", vm="web1", description="patched in May")
    )
    assert (await world.play(operation.id)).state is OperationState.DONE
    return host


async def _vm(world: Any, name: str, **wanted: Any) -> Any:
    operation = await world.control.templates.create_vm(
        ADMIN, "gold", VmFromTemplate(name=name, **wanted)
    )
    assert (await world.play(operation.id)).state is OperationState.DONE
    return (await world.control.vms.get(name)).vm


async def _refused(kind: type[VirthaError], code: str, asked: Any) -> VirthaError:
    with pytest.raises(kind) as caught:
        await asked
    assert caught.value.code == code
    return caught.value


@pytest.mark.req("W5")
def test_the_watchdog_and_the_rest_travel_into_the_template_and_out_of_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_template(world)
        source = (await world.control.vms.get("web1")).vm
        view = await world.control.templates.get("gold")
        template = view.template
        assert (template.state, template.source_vm) == (TemplateState.READY, "web1")
        assert template.watchdog == source.watchdog
        assert (template.memory_bytes, template.vcpus, template.ha) == (512 * MIB, 2, True)
        assert template.on_io_error is OnIoError.LEAVE_PAUSED
        assert template.priority == 30
        assert [(nic.bridge, nic.model) for nic in template.nics] == [("br0", "e1000")]
        order = host.orders[-1].body
        assert isinstance(order, CopyDisk)
        assert (order.source, order.sealed, order.thin) == (source.disks[0], True, False)
        assert order.target.path == f"templates/{template.id}/disk0.qcow2"
        assert (order.vm_id, order.incarnation) == (source.id, 0)

        vm = await _vm(world, "web2")
        copy, define = (order.body for order in host.orders[-2:])
        assert isinstance(copy, CopyDisk) and isinstance(define, DefineVm)
        assert (copy.source, copy.thin, copy.sealed) == (template.disks[0], False, False)
        assert copy.vm_id is None
        assert vm.watchdog == source.watchdog
        assert (vm.memory_bytes, vm.vcpus, vm.ha) == (512 * MIB, 2, True)
        assert vm.on_io_error is OnIoError.LEAVE_PAUSED
        assert vm.start_priority == 30
        assert vm.description == "patched in May"
        assert vm.nics[0].model == "e1000" and vm.nics[0].mac != source.nics[0].mac
        assert vm.disks[0].path == f"vms/{vm.id}/disk0.qcow2"
        assert vm.disks[0].id not in (source.disks[0].id, template.disks[0].id)

        other = await _vm(
            world,
            "web3",
            watchdog=WatchdogRequest(model="ib700", action="poweroff"),
            memory_bytes=64 * MIB,
            ha=False,
            on_io_error=OnIoError.AUTO_RESUME,
            priority=0,
            nics=(),
        )
        assert other.start_priority == 0
        assert other.on_io_error is OnIoError.AUTO_RESUME
        assert other.watchdog is not None
        assert (other.watchdog.model, other.watchdog.action) == (
            WatchdogModel.IB700,
            WatchdogAction.POWEROFF,
        )
        assert (other.memory_bytes, other.ha, other.nics) == (64 * MIB, False, ())
        assert (await _vm(world, "web4", watchdog=None)).watchdog is None
        assert "template.created" in await world.codes()

    tell(story)


@pytest.mark.req("W1", "W5")
def test_a_templates_watchdog_is_one_and_can_be_replaced_and_removed(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _with_template(world)
        templates = world.control.templates
        made = await _vm(world, "web2", thin=True)
        card = WatchdogRequest(model="i6300esb", action="pause")
        second = await _refused(
            Conflict, "problem.watchdog.second", templates.add_watchdog(ADMIN, "gold", card)
        )
        assert second.field == "watchdog" and "i6300esb:reset" in second.message
        before = (await templates.get("gold")).template
        changed = (await templates.put_watchdog(ADMIN, "gold", card, before.revision)).template
        assert changed.watchdog is not None and changed.watchdog.action is WatchdogAction.PAUSE
        assert changed.revision > before.revision and changed.disks == before.disks
        await _refused(
            Stale, "problem.stale", templates.put_watchdog(ADMIN, "gold", card, before.revision)
        )
        wrong = await _refused(
            InvalidInput,
            "problem.watchdog.model",
            templates.put_watchdog(ADMIN, "gold", WatchdogRequest(model="diag288", action="reset")),
        )
        assert "i6300esb" in wrong.allowed
        assert (await _vm(world, "web3")).watchdog == changed.watchdog
        assert (await world.control.vms.get("web2")).vm.watchdog == made.watchdog
        assert (await templates.remove_watchdog(ADMIN, "gold")).template.watchdog is None
        await _refused(NotFound, "problem.not_found", templates.remove_watchdog(ADMIN, "gold"))
        assert (await _vm(world, "web4")).watchdog is None
        again = (await templates.add_watchdog(ADMIN, "gold", card)).template
        assert again.watchdog == changed.watchdog
        cards = [
            (event.user, event.fields["before"], event.fields["after"])
            for event in await world.events("template.changed")
        ]
        assert cards == [
            ("admin", '{"watchdog":{"action":"reset"}}', '{"watchdog":{"action":"pause"}}'),
            (
                "admin",
                '{"watchdog":{"model":"i6300esb","action":"pause"}}',
                '{"watchdog":null}',
            ),
            (
                "admin",
                '{"watchdog":null}',
                '{"watchdog":{"model":"i6300esb","action":"pause"}}',
            ),
        ]

    tell(story)


@pytest.mark.req("W1", "W5")
def test_a_template_is_made_with_another_card_than_the_vms(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _with_vm(world)
        templates = world.control.templates
        card = WatchdogRequest(model="ib700", action="pause")
        wrong = WatchdogRequest(model="diag288", action="reset")
        bad = TemplateCreate(name="gold", vm="web1", watchdog=wrong)
        error = await _refused(InvalidInput, "problem.watchdog.model", templates.create(ADMIN, bad))
        assert error.field == "watchdog.model" and "i6300esb" in error.allowed
        for name, wanted in (("gold", card), ("bare", None)):
            request = TemplateCreate(name=name, vm="web1", watchdog=wanted)
            await world.play((await templates.create(ADMIN, request)).id)
        had = (await templates.with_watchdog("gold")).watchdog
        assert had is not None
        assert (had.model, had.action) == (WatchdogModel.IB700, WatchdogAction.PAUSE)
        none = await _refused(NotFound, "problem.not_found", templates.with_watchdog("bare"))
        assert "bare has no watchdog" in none.message
        source = (await world.control.vms.get("web1")).vm.watchdog
        assert source is not None and source.model is WatchdogModel.I6300ESB, "it keeps its own"

    tell(story)


@pytest.mark.req("W5")
@pytest.mark.bad_input("template in use")
def test_a_template_goes_only_when_no_thin_disk_needs_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_template(world)
        control = world.control
        await _vm(world, "full1")
        thin = await _vm(world, "thin1", thin=True)
        order = host.orders[-2].body
        assert isinstance(order, CopyDisk) and order.thin
        assert (await control.templates.get("gold")).used_by == ("thin1",)
        error = await _refused(
            Refused, "problem.template.in_use", control.templates.delete(ADMIN, "gold")
        )
        assert "thin1" in str(error) and "full1" not in str(error)

        # A disk that is kept needs its template all the same; it is said by its path then.
        deleted = await control.vms.delete(ADMIN, "thin1")
        await world.play(deleted.id)
        error = await _refused(
            Refused, "problem.template.in_use", control.templates.delete(ADMIN, "gold")
        )
        assert thin.disks[0].path in str(error)

        other = await _vm(world, "thin2", thin=True)
        await world.play((await control.vms.delete(ADMIN, other.name, delete_data=True)).id)
        users = (await control.templates.get("gold")).used_by
        assert users == (f"the file {thin.disks[0].path}",)

    tell(story)


@pytest.mark.req("W5")
def test_an_unused_template_is_deleted_with_its_files(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_template(world)
        control = world.control
        await _vm(world, "full1")
        with pytest.raises(VirthaError):
            await control.templates.delete(ADMIN, "gold", Revision(1))  # it has another by now
        operation = await control.templates.delete(ADMIN, "gold")
        order = host.orders[-1].body
        assert isinstance(order, DeleteTemplate)
        view = await control.templates.get("gold")
        assert view.template.state is TemplateState.DELETING
        # From the order on nothing is made from it, however late the order is carried out.
        await _refused(
            Conflict,
            "problem.template.state",
            control.templates.create_vm(ADMIN, "gold", VmFromTemplate(name="late")),
        )
        await host.answer(result=Result.FAILED, message="storage hangs")
        assert (await control.operations.get(operation.id)).state is OperationState.FAILED
        assert (await control.templates.get("gold")).template.state is TemplateState.DELETING
        await world.play((await control.templates.delete(ADMIN, "gold")).id)
        with pytest.raises(NotFound):
            await control.templates.get("gold")
        assert "template.deleted" in await world.codes()

    tell(story)


@pytest.mark.req("W5")
@pytest.mark.bad_input("template of a running VM")
def test_only_a_vm_that_is_down_and_stays_down_is_copied(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _with_vm(world)
        control = world.control
        vm_id, host = await world.run_vm()
        request = TemplateCreate(name="gold", vm="web1")
        error = await _refused(
            Refused, "problem.vm.state", control.templates.create(ADMIN, request)
        )
        assert "virtha vm shutdown web1" in str(error.fix)
        await host.stopped(vm_id, 1)
        # It stopped by itself: something may start it again at any moment.
        error = await _refused(
            Refused, "problem.vm.state", control.templates.create(ADMIN, request)
        )
        assert "wanted up" in str(error)
        await world.run_vm()
        await control.vms.power_off(ADMIN, "web1")
        await host.answer()
        await host.stopped(vm_id, 2)
        operation = await control.templates.create(ADMIN, request)
        order = host.orders[-1].body
        assert isinstance(order, CopyDisk) and order.incarnation == 2
        # While it is read nothing may write.
        for asked in (
            control.vms.start(ADMIN, "web1", VmStart()),
            control.vms.delete(ADMIN, "web1"),
            control.vms.change(ADMIN, "web1", VmChange(vcpus=4)),
            control.templates.create(ADMIN, TemplateCreate(name="gold2", vm="web1")),
            control.templates.delete(ADMIN, "gold"),
        ):
            await _refused(Conflict, "problem.operation.open", asked)
        await _refused(
            Conflict,
            "problem.template.state",
            control.templates.create_vm(ADMIN, "gold", VmFromTemplate(name="early")),
        )
        await world.play(operation.id)
        await control.vms.start(ADMIN, "web1", VmStart())

    tell(story)


@pytest.mark.req("W5")
def test_a_copy_that_fails_leaves_no_template_and_no_vm(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _with_vm(world)
        control = world.control
        operation = await control.templates.create(ADMIN, TemplateCreate(name="gold", vm="web1"))
        await host.answer(result=Result.FAILED, code="problem.disk.full", message="full")
        order = host.orders[-1].body
        assert isinstance(order, DeleteTemplate) and len(order.disks) == 1
        await host.answer()
        ended = await control.operations.get(operation.id)
        assert (ended.state, ended.code) == (OperationState.FAILED, "problem.disk.full")
        assert (await control.templates.list(SearchQuery())).items == ()
        assert "template.created" not in await world.codes()

        made = await control.templates.create(ADMIN, TemplateCreate(name="gold", vm="web1"))
        await world.play(made.id)
        operation = await control.templates.create_vm(
            ADMIN, "gold", VmFromTemplate(name="thin1", thin=True)
        )
        assert (await control.templates.get("gold")).used_by == ("thin1",)
        await host.answer(result=Result.FAILED, code="problem.disk.full", message="full")
        order = host.orders[-1].body
        assert isinstance(order, ForgetVm) and order.disks == (), "it made none"
        await host.answer()
        assert (await control.templates.get("gold")).used_by == ()
        with pytest.raises(NotFound):
            await control.vms.get("thin1")
        # The template is needed while a full copy is made, too.
        operation = await control.templates.create_vm(ADMIN, "gold", VmFromTemplate(name="full1"))
        await _refused(Refused, "problem.template.in_use", control.templates.delete(ADMIN, "gold"))
        await world.play(operation.id)
        await world.play((await control.templates.delete(ADMIN, "gold")).id)

    tell(story)


def test_bad_wishes_name_field_and_fix(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _with_template(world)
        await world.add_storage("ds2")
        templates, vms = world.control.templates, world.control.vms
        for name in ("", "a" * 300, "a b", "../x", "ä", "a\nb"):
            with pytest.raises(InvalidInput) as caught:
                await templates.create(ADMIN, TemplateCreate(name=name, vm="web1"))
            assert caught.value.field == "name"
            with pytest.raises(InvalidInput) as caught:
                await templates.create_vm(ADMIN, "gold", VmFromTemplate(name=name))
            assert caught.value.field == "name"
        await _refused(
            Conflict,
            "problem.name_taken",
            templates.create(ADMIN, TemplateCreate(name="gold", vm="web1")),
        )
        await _refused(
            Conflict,
            "problem.name_taken",
            templates.create_vm(ADMIN, "gold", VmFromTemplate(name="web1")),
        )
        with pytest.raises(NotFound) as missing:
            await templates.get("glod")
        assert "gold" in str(missing.value.fix)
        for field, wanted in {
            "storage_domain": {"thin": True, "storage_domain": "ds2"},
            "memory_bytes": {"memory_bytes": 1},
            "vcpus": {"vcpus": 0},
            "watchdog.model": {"watchdog": WatchdogRequest(model="diag288", action="reset")},
            "nics[0].bridge": {"nics": (NicCreate(bridge="no bridge"),)},
            "description": {"description": "x" * 2_000},
        }.items():
            with pytest.raises(InvalidInput) as caught:
                await templates.create_vm(ADMIN, "gold", VmFromTemplate(name="web9", **wanted))
            assert caught.value.field == field
        with pytest.raises(NotFound):
            await vms.get("web9")
        assert (await templates.get("gold")).used_by == ()
        with pytest.raises(Refused, match="templates are on storage domain ds1"):
            await world.play((await vms.delete(ADMIN, "web1", delete_data=True)).id)
            await world.control.storage.delete(ADMIN, "ds1")

    tell(story)
