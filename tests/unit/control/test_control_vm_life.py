"""VMs from creation to deletion, as their hosts' facts move them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.copies import with_copy
from virtha.control.requests import (
    DiskCreate,
    NicCreate,
    OperationQuery,
    VmChange,
    VmCreate,
    VmQuery,
    VmStart,
    WatchdogRequest,
)
from virtha.control.views import Caller
from virtha.model.errors import Conflict, NotFound, Refused, Stale, VirthaError
from virtha.model.facts import Outcome, Progress, Released, Result, StorageReport, VmReport
from virtha.model.host import HostState
from virtha.model.ids import Incarnation, Revision
from virtha.model.operation import OperationState
from virtha.model.orders import CreateDisk, DefineVm, ForgetVm, StartVm, StopMode, StopVm
from virtha.model.user import Role
from virtha.model.vm import OnIoError, PossibleCopy, Reason, VmState
from virtha.store.vms import save_vm_status

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
GIB = 1 << 30
MIB = 1 << 20
Tell = Callable[[Any], None]


def kinds(orders: list[Any]) -> list[str]:
    return [type(order.body).__name__ for order in orders]


@pytest.mark.req("W1", "A3")
def test_creation_makes_disks_defines_and_starts(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        before = len(host.orders)
        vm_id = await world.add_vm(
            watchdog=WatchdogRequest(model="i6300esb", action="reset"),
            disks=(DiskCreate(size_bytes=GIB, name="data"),),
            nics=(NicCreate(bridge="br0"),),
            start=True,
        )
        orders = host.orders[before:]
        assert kinds(orders) == ["CreateDisk", "CreateDisk", "DefineVm", "StartVm"]
        first = orders[0].body
        assert isinstance(first, CreateDisk)
        assert (first.image, first.disk.size_bytes) == ("tiny.qcow2", 64 * MIB)
        assert first.disk.path == f"vms/{vm_id}/disk0.qcow2"
        view = await world.control.vms.get("web1")
        assert view.status.state is VmState.RUNNING
        assert view.status.holders == (host.id,)
        assert view.status.incarnation == 1
        assert view.host_name == "h1"
        assert view.vm.nics[0].mac.startswith("52:54:00:")
        codes = await world.codes()
        assert "vm.created" in codes
        assert codes.count("disk.created") == 2

    tell(story)


@pytest.mark.req("A8")
def test_a_start_is_one_transaction_and_its_grant_quotes_the_last_beat(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        vm_id = await world.add_vm()
        operation = await world.control.vms.start(ADMIN, "web1", VmStart())
        assert operation.kind == "vm.start" and operation.subject == vm_id
        order = host.orders[-1]
        assert isinstance(order.body, StartVm)
        grant = order.body.grant
        assert (grant.boot, grant.beat_monotonic_ms, grant.duration_ms) == (
            host.boot,
            77_000,
            15_000,
        )
        assert grant.incarnation == 1 and order.body.by == "admin"
        status = (await world.control.vms.get("web1")).status
        assert status.holders == (host.id,), "the holder is there before any answer"
        assert status.state is VmState.STARTING and status.wanted_up
        settings = world.links.settings_of(host.id)
        assert [held.vm.id for held in settings.vms] == [vm_id]
        assert settings.vms[0].incarnation == 1

    tell(story)


def test_only_a_release_removes_a_holder(tell: Tell) -> None:
    async def story(world: Any) -> None:
        h1 = await world.join("h1")
        await world.join("h2")
        await world.add_storage()
        vm_id = await world.add_vm()
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        await h1.answer(result=Result.REFUSED, code="order.refused.grant_expired")
        view = await world.control.vms.get("web1")
        assert view.status.state is VmState.DOWN
        assert view.status.holders == (h1.id,), "a refusal is no release"
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart(host="h2"))
        assert refused.value.code == "host.unfit.holder"
        assert "h1" in str(refused.value)
        # Left to itself, it goes where it may be already.
        again = await world.control.vms.start(ADMIN, "web1", VmStart())
        assert world.links.delivered[-1][0] == h1.id
        await world.play(again.id)
        await h1.tell(Released(vm_id=vm_id, incarnation=Incarnation(1)))
        assert (await world.control.vms.get("web1")).status.holders == (h1.id,), (
            "the release of an earlier incarnation says nothing of the present one"
        )
        await h1.stopped(vm_id, 2)
        assert (await world.control.vms.get("web1")).status.holders == ()
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h2"))

    tell(story)


def test_two_concurrent_starts_give_one_order(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.join("h2")
        await world.add_storage()
        await world.add_vm()
        results = await asyncio.gather(
            *(world.control.vms.start(ADMIN, "web1", VmStart(host=name)) for name in ("h1", "h2")),
            return_exceptions=True,
        )
        failures = [one for one in results if isinstance(one, BaseException)]
        assert len(failures) == 1 and isinstance(failures[0], Conflict)
        assert failures[0].code == "problem.operation.open"
        starts = [one for _, one in world.links.delivered if isinstance(one.body, StartVm)]
        assert len(starts) == 1
        status = (await world.control.vms.get("web1")).status
        assert status.incarnation == 1 and len(status.holders) == 1

    tell(story)


UNFIT = [
    ({"memory_bytes": 256 * MIB}, "512MiB needed"),
    ({"gate_in_force": False}, "start gate"),
    ({"libvirt_connected": False}, "libvirt does not answer"),
    ({"watchdog_models": ()}, "does not accept watchdog i6300esb"),
    ({"bridges": ()}, "no bridge br0"),
    ({"architecture": "s390x"}, "it is s390x"),
]


@pytest.mark.parametrize(("lack", "told"), UNFIT, ids=[told for _, told in UNFIT])
@pytest.mark.bad_input("start with no host that fits")
def test_a_start_that_no_host_fits_says_why_per_host(
    tell: Tell, lack: dict[str, Any], told: str
) -> None:
    async def story(world: Any) -> None:
        able = await world.join("good")
        await world.add_storage()
        await world.add_vm(
            watchdog=WatchdogRequest(model="i6300esb", action="reset"),
            nics=(NicCreate(bridge="br0"),),
        )
        able.vanish()
        poor = await world.join("poor", **lack)
        storage = await world.control.storage.get("ds1")
        await poor.tell(StorageReport(storage_domain_id=storage.domain.id, usable=True))
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart())
        assert refused.value.code == "problem.no_host_fits"
        assert "good: its agent is not connected" in refused.value.message
        assert "poor: " in refused.value.message and told in refused.value.message
        view = await world.control.vms.get("web1")
        assert view.status.holders == () and view.status.incarnation == 0, "nothing has begun"
        assert not (await world.control.operations.list(OperationQuery(open=True))).items

    tell(story)


def test_the_host_with_most_free_memory_is_chosen(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("small", memory_bytes=2 * GIB)
        await world.join("large", memory_bytes=4 * GIB)
        await world.add_storage()
        for name in ("a", "b", "c"):
            await world.add_vm(name, memory_bytes=GIB)
            await world.run_vm(name)
        placed = {
            view.vm.name: view.host_name for view in (await world.control.vms.list(VmQuery())).items
        }
        assert placed == {"a": "large", "b": "large", "c": "small"}
        assert (await world.control.hosts.get("large")).free_memory_bytes == 2 * GIB

    tell(story)


def test_an_operation_survives_the_server(tell: Tell) -> None:
    """Restarted between two steps: the outcome, that comes after the restart, moves it on."""

    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        operation = await world.control.vms.create(
            ADMIN, VmCreate(name="web1", memory_bytes=512 * MIB, image="tiny", start=True)
        )
        assert kinds(host.orders[-1:]) == ["CreateDisk"]
        await world.reopen()
        answer = await host.hello()
        assert kinds(answer.orders) == ["CreateDisk"], "what was not answered comes again"
        await host.answer(answer.orders[0])
        assert kinds(host.orders) == ["DefineVm"]
        await world.reopen()
        answer = await host.hello()
        await host.answer(answer.orders[0])
        # The start went out, the server dies before the host answers.
        assert kinds(host.orders) == ["StartVm"]
        await world.reopen()
        world.links.beats.clear()
        answer = await world.control.hosts.hello(
            host.id,
            boot=host.boot,
            certificate_serial=host.serial,
            term_elsewhere=0,
            fact_sequence_last=host.sequence,
        )
        assert answer.orders == (), "no beat of its boot can be quoted yet"
        world.links.connected.add(host.id)
        host.beat()
        assert await world.control.hosts.resend(host.id) == 1
        await host.started(host.orders[-1])
        done = await world.control.operations.get(operation.id)
        assert done.state is OperationState.DONE and done.progress == 100
        assert (await world.control.vms.get("web1")).status.state is VmState.RUNNING

    tell(story)


def test_a_start_is_not_sent_to_another_boot_than_it_was_made_for(tell: Tell) -> None:
    """That boot's end is a proof (P4), by which the engine may be starting the VM elsewhere."""

    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        operation = await world.control.vms.start(ADMIN, "web1", VmStart())
        answer = await host.hello("h1-boot2")
        assert answer.orders == ()
        assert await world.control.hosts.resend(host.id) == 0
        ended = await world.control.operations.get(operation.id)
        assert ended.state is OperationState.FAILED and "another boot" in ended.message
        status = (await world.control.vms.get("web1")).status
        assert status.holders == (host.id,), (
            "what ran in the former boot is its host's to say, or proven"
        )
        assert status.state is VmState.UNKNOWN

    tell(story)


def test_outcomes_that_come_twice_change_nothing(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        operation = await world.control.vms.start(ADMIN, "web1", VmStart())
        order = host.orders[-1]
        await host.started(order)
        await host.answer(order, result=Result.FAILED)
        assert (await world.control.operations.get(operation.id)).state is OperationState.DONE

    tell(story)


def test_a_refused_disk_is_somebodys_data_and_stays(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        operation = await world.control.vms.create(
            ADMIN,
            VmCreate(
                name="web1",
                memory_bytes=512 * MIB,
                image="tiny",
                disks=(DiskCreate(size_bytes=GIB, path="old/data.qcow2"),),
            ),
        )
        made = host.orders[-1].body.disk
        await host.answer()
        await host.answer(result=Result.REFUSED, code="problem.conflict", message="it is there")
        cleanup = host.orders[-1].body
        assert isinstance(cleanup, ForgetVm)
        assert [disk.id for disk in cleanup.disks] == [made.id]
        await host.answer()
        ended = await world.control.operations.get(operation.id)
        assert ended.state is OperationState.FAILED
        assert (ended.code, ended.message) == ("problem.conflict", "it is there")
        with pytest.raises(NotFound):
            await world.control.vms.get("web1")
        # The name and the disk's path are free again.
        await world.add_vm("web1", disks=(DiskCreate(size_bytes=GIB, path="old/data.qcow2"),))

    tell(story)


def test_a_start_that_fails_after_creation_keeps_the_vm(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        operation = await world.control.vms.create(
            ADMIN, VmCreate(name="web1", memory_bytes=512 * MIB, image="tiny", start=True)
        )
        await host.answer()
        host.vanish()
        await world.control.facts.record_facts(
            host.id, host.facts(Outcome(operation_id=operation.id, step=1, result=Result.OK))
        )
        ended = await world.control.operations.get(operation.id)
        assert ended.state is OperationState.FAILED and ended.code == "problem.no_host_fits"
        assert (await world.control.vms.get("web1")).status.state is VmState.DOWN
        assert "operation.failed" in await world.codes()

    tell(story)


def test_progress_moves_forward_only(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        operation = await world.control.vms.create(
            ADMIN, VmCreate(name="web1", memory_bytes=512 * MIB, image="tiny")
        )
        shown = []
        for percent in (50, 20, 90, 1_000):
            await host.tell(Progress(operation_id=operation.id, step=0, percent=percent))
            shown.append((await world.control.operations.get(operation.id)).progress)
        assert shown == [25, 25, 45, 50]

    tell(story)


@pytest.mark.req("W7", "F4")
def test_that_a_vm_which_is_down_is_no_longer_wanted_is_told_once(tell: Tell) -> None:
    """Of one that runs its stop tells."""

    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        await world.control.vms.power_off(ADMIN, "web1")
        assert await world.events("vm.unwanted") == []
        await host.stopped(vm_id, 1)
        await host.answer(host.orders[-1])
        vm_id, host = await world.run_vm()
        await host.tell(VmReport(vm_id=vm_id, incarnation=Incarnation(2), state=VmState.CRASHED))
        await world.control.vms.power_off(ADMIN, "web1")
        await world.control.vms.power_off(ADMIN, "web1")
        (told,) = await world.events("vm.unwanted")
        assert (told.vm_id, told.user) == (vm_id, ADMIN.name)

    tell(story)


def test_shutdown_power_off_and_deletion(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        with pytest.raises(Refused) as running:
            await world.control.vms.delete(ADMIN, "web1")
        assert running.value.code == "problem.vm.state"
        await world.control.vms.shutdown(ADMIN, "web1")
        assert not (await world.control.vms.get("web1")).status.wanted_up
        # The guest ignores it: it can be powered off all the same.
        await world.control.vms.power_off(ADMIN, "web1")
        body = host.orders[-1].body
        assert isinstance(body, StopVm) and body.mode is StopMode.POWER_OFF
        await host.stopped(vm_id, 1)
        for order in host.orders[-2:]:
            await host.answer(order)
        for refused in (
            world.control.vms.shutdown,
            world.control.vms.pause,
            world.control.vms.reset,
        ):
            with pytest.raises(Refused):
                await refused(ADMIN, "web1")
        operation = await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        forget = host.orders[-1].body
        assert isinstance(forget, ForgetVm) and len(forget.disks) == 1
        await world.play(operation.id)
        with pytest.raises(NotFound):
            await world.control.vms.get("web1")
        assert (await world.codes())[-2:] == ["disk.deleted", "vm.deleted"]

    tell(story)


def test_pause_resume_reboot_reset_order_what_they_say(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        for call, name, after in (
            (world.control.vms.reboot, "RebootVm", VmState.RUNNING),
            (world.control.vms.reset, "RebootVm", VmState.RUNNING),
            (world.control.vms.pause, "PauseVm", VmState.PAUSED),
            (world.control.vms.resume, "ResumeVm", VmState.RUNNING),
        ):
            operation = await call(ADMIN, "web1")
            assert kinds(host.orders[-1:]) == [name]
            await host.tell(VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=after))
            await world.play(operation.id)
        assert (await world.control.vms.get("web1")).status.state is VmState.RUNNING

    tell(story)


@pytest.mark.req("G1", "G6")
def test_a_paused_vm_that_several_hosts_may_hold_is_not_resumed(tell: Tell) -> None:
    """Its migration left it standing still: the other side may run."""

    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        await host.tell(VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=VmState.PAUSED))
        status = (await world.control.vms.get("web1")).status
        other = PossibleCopy(host_id=(await world.join("h2")).id, incarnation=Incarnation(2))
        async with world.store.write() as tx:
            await save_vm_status(tx, with_copy(status, other))
        before = len(world.links.delivered)
        with pytest.raises(Refused) as refused:
            await world.control.vms.resume(ADMIN, "web1")
        assert refused.value.code == "problem.vm.state"
        assert len(world.links.delivered) == before

    tell(story)


def test_a_change_honours_if_match_and_reaches_the_holder(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        _, host = await world.run_vm()
        view = await world.control.vms.get("web1")
        with pytest.raises(Stale):
            await world.control.vms.change(
                ADMIN, "web1", VmChange(vcpus=2), Revision(view.vm.revision - 1)
            )
        changed = await world.control.vms.change(
            ADMIN, "web1", VmChange(name="www", vcpus=2, ha=False), view.vm.revision
        )
        assert (changed.vm.name, changed.vm.vcpus, changed.vm.ha) == ("www", 2, False)
        assert changed.vm.revision > view.vm.revision
        define = host.orders[-1].body
        assert isinstance(define, DefineVm) and define.vm.vcpus == 2
        assert not world.links.settings_of(host.id).vms[0].vm.ha
        left = VmChange(on_io_error=OnIoError.LEAVE_PAUSED)
        await world.control.vms.change(ADMIN, "www", left)
        held = world.links.settings_of(host.id).vms[0].vm
        assert held.on_io_error is OnIoError.LEAVE_PAUSED, "its host takes that up at once"
        changed = await world.control.vms.get("www")
        assert not changed.pending
        same = await world.control.vms.change(ADMIN, "www", VmChange(vcpus=2))
        assert same.vm.revision == changed.vm.revision, "nothing changed, nothing moves"

    tell(story)


@pytest.mark.req("W1")
@pytest.mark.bad_input("second watchdog")
def test_a_vm_has_at_most_one_watchdog(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        card = WatchdogRequest(model="i6300esb", action="reset")
        with pytest.raises(NotFound):
            await world.control.vms.with_watchdog("web1")
        view = await world.control.vms.add_watchdog(ADMIN, "web1", card)
        assert view.vm.watchdog is not None
        with pytest.raises(Conflict) as second:
            await world.control.vms.add_watchdog(ADMIN, "web1", card)
        assert second.value.code == "problem.watchdog.second"
        await world.control.vms.put_watchdog(
            ADMIN, "web1", WatchdogRequest(model="ib700", action="poweroff")
        )
        assert (await world.control.vms.with_watchdog("web1")).watchdog.model == "ib700"
        await world.control.vms.remove_watchdog(ADMIN, "web1")
        with pytest.raises(NotFound):
            await world.control.vms.remove_watchdog(ADMIN, "web1")

    tell(story)


def test_an_order_for_a_lost_host_is_given_up_and_its_answer_comes_too_late(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        host.vanish()
        operation = await world.control.vms.shutdown(ADMIN, "web1")
        world.clock.advance(599_000)
        assert await world.control.operations.expire() == 0
        world.clock.advance(2_000)
        assert await world.control.operations.expire() == 1
        ended = await world.control.operations.get(operation.id)
        assert (ended.state, ended.code) == (OperationState.FAILED, "problem.unavailable")
        await host.tell(Outcome(operation_id=operation.id, step=0, result=Result.OK))
        assert (await world.control.operations.get(operation.id)).state is OperationState.FAILED
        assert (await world.control.vms.get("web1")).status.holders == (host.id,)
        assert vm_id in {held.vm.id for held in (await host.hello()).settings.vms}

    tell(story)


def test_a_wait_ends_with_the_operation(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        operation = await world.control.vms.start(ADMIN, "web1", VmStart())
        waiter = asyncio.create_task(world.control.operations.wait(operation.id, 30_000))
        await host.started()
        assert (await waiter).state is OperationState.DONE
        early = await world.control.vms.shutdown(ADMIN, "web1")
        assert not (await world.control.operations.wait(early.id, 20)).is_over

    tell(story)


def test_a_vm_of_an_unreachable_host_is_unknown_until_it_is_back(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        _, host = await world.run_vm()
        await world.control.hosts.presence_changed(host.id, HostState.UNREACHABLE)
        view = await world.control.vms.get("web1")
        assert view.status.state is VmState.UNKNOWN
        assert view.status.reasons[0].code == "protection.host_unreachable"
        assert len((await world.control.vms.list(VmQuery(state=VmState.UNKNOWN))).items) == 1
        with pytest.raises(VirthaError):
            await world.control.vms.start(ADMIN, "web1", VmStart())
        await world.control.hosts.presence_changed(host.id, HostState.UP)
        assert (await world.control.vms.get("web1")).status.state is VmState.RUNNING
        codes = await world.codes()
        assert codes[-2:] == ["host.unreachable", "host.reachable"]

    tell(story)


def test_reasons_are_rendered(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        assert (await world.control.vms.get("web1")).reason_text == ("has never been started",)
        vm_id, host = await world.run_vm()
        await host.tell(
            VmReport(
                vm_id=vm_id,
                incarnation=Incarnation(1),
                state=VmState.RUNNING,
                reasons=(Reason(code="vm.up.as_ordered", fields={"by": "admin"}),),
            )
        )
        view = await world.control.vms.get("web1")
        assert view.reason_text == ("runs since it was started by admin",)
        assert [event.code for event in view.last_events] == ["vm.created"]

    tell(story)
