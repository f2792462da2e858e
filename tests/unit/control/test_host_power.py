"""A person's order to a host's power is an operation: its levels, its read-backs, its end, whatever becomes of the server."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from played_power import Machine, PlayedPower

from virtha.control.host_power import HostPower
from virtha.control.power import Power
from virtha.control.power_orders import PowerOrders
from virtha.control.power_views import HostPowerAction, HostPowerOrder, PowerPut
from virtha.control.secret_box import NoKeyBox
from virtha.control.views import Caller
from virtha.model.errors import Conflict, NotFound, Refused, Unavailable
from virtha.model.facts import HostReport
from virtha.model.host import HostCapabilities
from virtha.model.operation import Operation, OperationState
from virtha.model.power import PowerAction
from virtha.model.power_settings import MachineIdentity, PowerDriver, PowerSettings
from virtha.model.user import Role

pytestmark = pytest.mark.req("F5", "F6")
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]
World = Any
OFF, ON = HostPowerAction.OFF, HostPowerAction.ON
REBOOT, BLINK = HostPowerAction.REBOOT, HostPowerAction.BLINK
UUID = "4c4c4544-0042-3510-8050-b7c04f4d4d31"


@pytest.fixture(autouse=True)
def no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings."""
    monkeypatch.setattr("virtha.control.power_attempts.GAP_S", 0.0)


async def set_up(world: World, *devices: str) -> tuple[Machine, ...]:
    """h1, with one device at each level."""
    await world.join("h1")
    played = PlayedPower()
    use(world, played)
    for level, name in enumerate(devices, 1):
        played.add(name)
        given = PowerSettings(
            driver=PowerDriver.COMMAND,
            executable="/bin/false",
            syntax="$IPMI_EXEC $IPMI_ACTION",
            stop="stop",
            start="start",
            status="status",
            address=name,
            level=level,
        )
        await world.control.power.put_of_host(ADMIN, "h1", name, PowerPut(settings=given), None)
    return tuple(played.machines[one] for one in devices)


def use(world: World, played: PlayedPower) -> None:
    power = Power(world.store, NoKeyBox(), played)
    world.played = played
    world.control = replace(
        world.control,
        power=power,
        power_orders=PowerOrders(world.store, power, world.clock),
        host_power=HostPower(world.store, power, world.clock),
    )


async def begin(world: World, action: HostPowerAction, **more: Any) -> Operation:
    order = HostPowerOrder(action=action, **more)
    operation: Operation = await world.control.host_power.begin(ADMIN, "h1", order)
    return operation


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if check():
                return
            await asyncio.sleep(0.001)


async def over(world: World, operation: Operation) -> Operation:
    ended: Operation = await world.control.operations.wait(operation.id, 60_000)
    assert ended.is_over, ended
    return ended


async def ordered(world: World, action: HostPowerAction, **more: Any) -> Operation:
    return await over(world, await begin(world, action, **more))


def test_off_on_and_blink_are_told_step_by_step(tell: Tell) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        off = await ordered(world, OFF)
        assert (off.kind, off.state, off.progress) == ("host.power", OperationState.DONE, 100)
        assert (off.fields["state"], off.asked_by) == ("off", "admin")
        (step,) = off.steps
        assert step.name == "off at level 1" and step.state is OperationState.DONE
        assert step.detail == "bmc: took the order; bmc: now off"
        assert bmc.asked == ["status", "off", "status", "status"], "read twice"
        assert (await ordered(world, ON)).fields["state"] == "on"
        assert (await ordered(world, BLINK)).state is OperationState.DONE
        assert bmc.orders == ["off", "on", "blink"]
        events = await world.events("power.ordered")
        assert [one.fields["action"] for one in events] == ["off", "on", "blink"]
        assert events[0].operation_id == off.id and events[0].user == "admin"
        assert len(world.played.closed) == len(world.played.made)

    tell(story)


def test_the_next_level_is_tried_and_each_ones_end_is_shown(tell: Tell) -> None:
    async def story(world: World) -> None:
        bmc, strip = await set_up(world, "bmc", "strip")
        bmc.refuses = True
        off = await ordered(world, OFF)
        assert off.state is OperationState.DONE, off
        assert [(one.name, one.state.value) for one in off.steps] == [
            ("off at level 1", "failed"),
            ("off at level 2", "done"),
        ]
        assert "power.sign_in_refused" in off.steps[0].detail
        assert (bmc.on, strip.on) == (True, False)
        only = await ordered(world, OFF, device="bmc")
        assert (only.state, only.code) == (OperationState.FAILED, "power.sign_in_refused")
        assert strip.orders == ["off"], "only that device was asked for"

    tell(story)


def test_a_reboot_is_off_read_back_and_on_by_the_same_level(tell: Tell) -> None:
    async def story(world: World) -> None:
        bmc, strip = await set_up(world, "bmc", "strip")
        bmc.refuses = True
        reboot = await ordered(world, REBOOT)
        assert reboot.state is OperationState.DONE and reboot.fields["state"] == "on"
        assert [one.name for one in reboot.steps][1:] == ["off at level 2", "on at level 2"]
        assert strip.orders == ["off", "on"] and strip.on

    tell(story)


def test_what_stays_on_is_not_switched_on_again(tell: Tell) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        bmc.idle = True
        bmc.meanwhile = lambda: world.clock.advance(10_000)
        reboot = await ordered(world, REBOOT)
        assert (reboot.state, reboot.code) == (OperationState.FAILED, "power.still_on")
        assert bmc.orders == ["off"] and reboot.fields["state"] == "on"

    tell(story)


def test_it_can_be_taken_back_until_its_order_goes_out(tell: Tell) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        bmc.stuck = True  # the look before the order
        off = await begin(world, OFF)
        await until(lambda: bool(bmc.asked))
        with pytest.raises(Conflict, match="already"):
            await begin(world, ON)
        taken = await world.control.operations.cancel(ADMIN, off.id)
        assert (taken.state, taken.code) == (OperationState.CANCELLED, "order.failed.cancelled")
        await world.control.host_power.close()
        bmc.stuck = False
        blink = await ordered(world, BLINK)
        assert bmc.orders == ["blink"]
        with pytest.raises(Refused, match="done already") as refused:
            await world.control.operations.cancel(ADMIN, blink.id)
        assert refused.value.code == "problem.operation.cancel"

    tell(story)


@pytest.mark.bad_input
def test_off_waits_for_a_word_where_vms_run_and_a_device_must_be_there(tell: Tell) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        await world.add_storage()
        await world.add_vm()
        await world.run_vm()
        for action in (OFF, REBOOT):
            with pytest.raises(Refused, match="web1"):
                await begin(world, action)
        with pytest.raises(NotFound, match="pdu"):
            await begin(world, ON, device="pdu")
        assert bmc.asked == []
        assert (await ordered(world, OFF, force=True)).state is OperationState.DONE

    tell(story)


@pytest.mark.bad_input
@pytest.mark.parametrize("action", [OFF, REBOOT])
@pytest.mark.parametrize("force", [False, True])
def test_each_level_waits_for_a_word_where_vms_run_by_then(
    tell: Tell, action: HostPowerAction, force: bool
) -> None:
    """The host was empty when it was ordered; a VM came while the first level's device was asked."""

    async def story(world: World) -> None:
        bmc, strip = await set_up(world, "bmc", "strip")
        await world.add_storage()
        await world.add_vm()
        bmc.refuses = True
        bmc.meanwhile = lambda: setattr(bmc, "answers", asyncio.Event() if bmc.orders else None)
        operation = await begin(world, action, force=force)
        await until(lambda: bmc.answers is not None)
        await world.run_vm()
        bmc.meanwhile = lambda: None
        assert bmc.answers is not None
        bmc.answers.set()
        ended = await over(world, operation)
        if force:
            assert ended.state is OperationState.DONE and strip.orders[0] == "off"
            return
        assert (ended.state, ended.code) == (OperationState.FAILED, "power.vms_may_run"), ended
        assert strip.orders == [] and strip.on
        assert [one.name for one in ended.steps] == ["off at level 1", "off at level 2"]
        assert ended.steps[-1].state is OperationState.FAILED and "web1" in ended.steps[-1].detail

    tell(story)


def test_another_machines_device_is_not_switched(tell: Tell) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        able = HostCapabilities(libvirt_connected=True, machine=MachineIdentity(uuid=UUID))
        await world.hosts["h1"].tell(HostReport(capabilities=able))
        bmc.identity = MachineIdentity(uuid=UUID.replace("4c", "5c"))
        off = await ordered(world, OFF)
        assert (off.state, off.code) == (OperationState.FAILED, "power.other_machine")
        assert bmc.orders == []

    tell(story)


@pytest.mark.parametrize(
    ("action", "went_out", "on", "code", "told"),
    [
        (OFF, False, True, "power.interrupted", "no order had gone out"),
        (OFF, True, True, "power.interrupted", "now on"),
        (OFF, True, False, None, "now off"),
        (REBOOT, True, False, "power.interrupted", "not switched on again"),
    ],
)
def test_a_server_that_ended_leaves_none_open_and_nothing_is_ordered_twice(
    tell: Tell, action: HostPowerAction, went_out: bool, on: bool, code: str | None, told: str
) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        bmc.stuck = not went_out  # when it is looked at, or when it is ordered
        if went_out:
            bmc.meanwhile = lambda: setattr(bmc, "stuck", True)
        operation = await begin(world, action)
        await until(lambda: bool(bmc.orders if went_out else bmc.asked))
        await world.control.host_power.close()  # as at the server's end
        played = world.played
        await world.reopen()
        use(world, played)
        bmc.stuck, bmc.on = False, on
        bmc.meanwhile = lambda: None
        orders = list(bmc.orders)
        assert await world.control.host_power.settle() == 1
        ended = await world.control.operations.get(operation.id)
        assert ended.is_over and ended.code == code and told in ended.message, ended
        assert bmc.orders == orders, "it is not given again"
        assert await world.control.host_power.settle() == 0

    tell(story)


@pytest.mark.parametrize("comes_back", [True, False])
def test_whoever_asks_for_us_may_come_back_before_it_is_called_interrupted(
    tell: Tell, comes_back: bool
) -> None:
    """A server that has just begun has no agent yet that could ask the device (ADR 18): it waits, and no longer than a host
    takes to come back."""

    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        bmc.meanwhile = lambda: setattr(bmc, "stuck", bool(bmc.orders))
        operation = await begin(world, OFF)
        await until(lambda: bool(bmc.orders))
        await world.control.host_power.close()
        await world.reopen()
        use(world, world.played)
        bmc.meanwhile = lambda: None
        bmc.stuck, bmc.on = False, False
        bmc.refuses, bmc.why = True, "power.no_neighbour"
        settle = world.control.host_power.settle
        for _ in range(3):
            assert await settle() == 0
            world.clock.advance(5_000)
        assert not (await world.control.operations.get(operation.id)).is_over
        if comes_back:
            bmc.refuses = False
        else:
            world.clock.advance(60_000)
        assert await settle() == 1
        ended = await world.control.operations.get(operation.id)
        told = (None, "now off") if comes_back else ("power.interrupted", "power.no_neighbour")
        assert ended.code == told[0] and told[1] in ended.message, ended
        assert bmc.orders == ["off"]

    tell(story)


def test_a_test_that_an_order_ended_says_nothing_of_its_device(tell: Tell) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        bmc.stuck = True
        test = asyncio.create_task(world.control.power_orders.test(ADMIN, "h1", "bmc"))
        await until(lambda: bool(bmc.asked))
        bmc.stuck = False
        device = world.control.power.open(await world.control.power.reach("h1", "bmc"))
        await device.order(PowerAction.OFF, deadline_ms=60_000, may_go=lambda: True)
        with pytest.raises(Unavailable, match="an order to it came first"):
            await test
        (view,) = await world.control.power.of_host("h1")
        assert view.test is None

    tell(story)


def test_a_driver_that_breaks_leaves_no_open_operation_and_no_secret(tell: Tell) -> None:
    async def story(world: World) -> None:
        (bmc,) = await set_up(world, "bmc")
        bmc.meanwhile = lambda: setattr(bmc, "breaks", bool(bmc.asked))
        off = await begin(world, OFF)
        await until(lambda: bool(bmc.orders))
        await world.control.host_power.close()
        assert await world.control.host_power.settle() == 1
        ended = await world.control.operations.get(off.id)
        assert (ended.state, ended.code) == (OperationState.FAILED, "power.interrupted")
        assert "can't be read: RuntimeError" in ended.message
        assert "hunter2" not in repr(ended) and "hunter2" not in repr(await world.events())

    tell(story)
