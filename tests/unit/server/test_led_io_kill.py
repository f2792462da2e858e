"""A VM that an I/O error keeps paused is ended by an order of its engine, and starts elsewhere once it was given back (S6)."""

from pathlib import Path

import pytest
from led_world import ADMIN, LedWorld, PlayedHost, tell, two_hosts_and_a_vm

from virtha.control.requests import VmChange
from virtha.model.facts import ReleaseCause, Released, Result, VmReport
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import EndPausedVm, Order, StartVm
from virtha.model.policy import Policy
from virtha.model.vm import OnIoError, Reason, VmState

pytestmark = pytest.mark.req("S6")
KILL_AFTER_MS = Policy().io_error.kill_after_ms
BOTH = ("h1", "h2")
ONE = Incarnation(1)


def ends(host: PlayedHost) -> list[Order]:
    return [order for order in host.orders if isinstance(order.body, EndPausedVm)]


def report(vm_id: VmId, code: str = "vm.paused.io_error") -> VmReport:
    why = (Reason(code=code, fields={"disk": "vda"} if code.endswith("no_room") else {}),)
    return VmReport(vm_id=vm_id, incarnation=ONE, state=VmState.PAUSED, reasons=why)


async def paused(world: LedWorld, wish: OnIoError = OnIoError.KILL) -> VmId:
    vm_id = await two_hosts_and_a_vm(world)
    await world.control.vms.change(ADMIN, "web1", VmChange(on_io_error=wish), if_match=None)
    await world.hosts["h1"].tell(report(vm_id))
    await world.settle()
    return vm_id


def test_it_is_ordered_once_it_is_written_and_starts_elsewhere_after_its_release(
    tmp_path: Path,
) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await paused(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        assert [one.code for one in (await world.vm()).engine] == ["io_error.kill.waiting.delay"]
        await world.pass_time(KILL_AFTER_MS + 2_000, beating=BOTH)
        (order,) = ends(h1)
        assert order.body == EndPausedVm(vm_id=vm_id, incarnation=ONE, by="engine")
        assert (order.host_boot, order.term) == ("h1-boot1", world.term)
        assert (await world.record(vm_id)).kill is not None
        await h1.answer(order)
        await world.settle()
        assert h2.starts() == [], "its host has not given it back"
        await h1.tell(
            VmReport(vm_id=vm_id, incarnation=ONE, state=VmState.DOWN),
            Released(vm_id=vm_id, incarnation=ONE, cause=ReleaseCause.IO_ERROR),
        )
        await world.settle()
        (start,) = h2.starts()
        assert isinstance(start.body, StartVm) and start.body.grant.incarnation == 2
        assert (await world.vm()).status.holders == (h2.id,)
        record = await world.record(vm_id)
        assert record.kill is None and [one.host_id for one in record.deaths] == [h1.id]
        assert len(await world.events("vm.io_error.killing")) == 1

    tell(tmp_path, story)


def test_what_its_host_says_to_it_is_told(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await paused(world)
        h1 = world.hosts["h1"]
        await world.pass_time(KILL_AFTER_MS + 2_000, beating=BOTH)
        (order,) = ends(h1)
        await h1.answer(order, Result.REFUSED, code="io_error.kill.refused.page_cache")
        await world.settle()
        (told,) = await world.events("vm.io_error.kill_refused")
        assert told.fields["why"] == "io_error.kill.refused.page_cache"
        await world.pass_time(40_000, beating=BOTH)
        assert len(ends(h1)) == 2 and len({one.operation_id for one in ends(h1)}) == 2
        await h1.answer(ends(h1)[-1], Result.UNKNOWN, code="io_error.kill.failed")
        await world.settle()
        assert len(await world.events("vm.io_error.kill_failed")) == 1
        assert [one.code for one in (await world.vm()).engine] == ["io_error.kill.stuck"]
        assert world.hosts["h2"].starts() == []

    tell(tmp_path, story)


@pytest.mark.parametrize("what", ["left", "full"])
def test_one_that_waits_for_a_person_or_for_room_is_not_ended(tmp_path: Path, what: str) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await paused(world, OnIoError.LEAVE_PAUSED if what == "left" else OnIoError.KILL)
        if what == "full":
            await world.hosts["h1"].tell(report(vm_id, "vm.paused.no_room"))
        await world.pass_time(2 * KILL_AFTER_MS, beating=BOTH)
        assert ends(world.hosts["h1"]) == []

    tell(tmp_path, story)


def test_the_next_server_sends_what_is_on_record(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await paused(world)
        await world.pass_time(KILL_AFTER_MS + 2_000, beating=BOTH)
        (first,) = ends(world.hosts["h1"])
        await world.restart()
        for host in world.hosts.values():
            await host.hello()
            await host.tell_all(*((vm_id,) if host.name == "h1" else ()))
        await world.hosts["h1"].tell(report(vm_id))
        await world.pass_time(20_000, beating=BOTH)
        again = ends(world.hosts["h1"])[-1]
        assert again.operation_id != first.operation_id and again.term == world.term

    tell(tmp_path, story)
