"""To fence now: a person switches a host off on which a VM runs. The engine finds out by itself, and proves it."""

from pathlib import Path

import pytest
from command_power import command_power
from led_world import ADMIN, LedWorld
from played_power import Machine, PlayedPower
from powered_world import (
    WAIT_S,
    fencing,
    powered,
    silent,
    started,
    step,
    steps_until,
    tell,
    web1_runs_once_on_h2,
)

from virtha.control.power_views import HostPowerAction, HostPowerOrder
from virtha.control.requests import HoldPut
from virtha.engine.records import FenceCount
from virtha.model.errors import Refused
from virtha.model.operation import Operation, OperationState
from virtha.model.orders import StartVm
from virtha.model.policy import FencingPolicy, Policy

pytestmark = pytest.mark.req("F4", "F7", "F9", "P1")


@pytest.fixture
def power() -> PlayedPower:
    made = PlayedPower()
    made.add("h1-bmc")
    return made


@pytest.fixture(autouse=True)
def no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a person's two readings."""
    monkeypatch.setattr("virtha.control.power_attempts.GAP_S", 0.0)


async def switched_off_by_hand(world: LedWorld, machine: Machine) -> None:
    """Forced, for a VM runs there; read back twice. The host goes without a word."""
    order = HostPowerOrder(action=HostPowerAction.OFF)
    with pytest.raises(Refused, match="web1"):
        await world.control.host_power.begin(ADMIN, "h1", order)
    assert machine.orders == [] and machine.on
    forced = HostPowerOrder(action=HostPowerAction.OFF, force=True)
    begun = await world.control.host_power.begin(ADMIN, "h1", forced)
    ended: Operation = await world.control.operations.wait(begun.id, int(WAIT_S * 1_000))
    assert (ended.state, ended.fields["state"]) == (OperationState.DONE, "off")
    assert machine.orders == ["off"] and machine.struck == 1 and not machine.on
    (told,) = await world.events("power.ordered")
    assert told.user == "admin"
    del machine.asked[:]


def fence_counts(world: LedWorld) -> tuple[FenceCount, ...]:
    """The engine's power-downs, as its cap counts them."""
    return world.leader.engine.snapshot().cluster.fence_counts


def test_the_vm_of_a_host_that_was_switched_off_by_hand_runs_elsewhere_once(
    tmp_path: Path, power: PlayedPower
) -> None:
    """The engine reads it off, orders off once more all the same (a proof is an order and two readings), and no more:
    what was off stays off."""

    async def story(world: LedWorld) -> None:
        machine = power.machines["h1-bmc"]
        await powered(world, command_power("h1-bmc"))
        await switched_off_by_hand(world, machine)
        await silent(world)
        await steps_until(world, started(world), "h2")
        assert machine.orders == ["off"], "one of the engine"
        assert machine.asked[0] == "status" and machine.asked[-3:] == ["off", "status", "status"]
        assert machine.struck == 1, (
            "it found the host off: only the person's order cut anything off"
        )
        await web1_runs_once_on_h2(world)
        assert len(await world.events("fence.began")) == 1
        # Its cap may count it: it doesn't, where the host was read off twice before the order.
        assert len(fence_counts(world)) <= 1
        operation = await fencing(world)
        assert operation.state is OperationState.DONE and len(operation.steps) == 1
        assert machine.orders == ["off"], "and none since"

    tell(tmp_path, power, story)


def test_no_cap_holds_what_a_person_switched_off(tmp_path: Path, power: PlayedPower) -> None:
    """One power-down was allowed, and h3 had it. h1's VM comes back all the same: two readings that say off before any order
    of the engine let one pass."""

    async def story(world: LedWorld) -> None:
        machine, capped = power.machines["h1-bmc"], power.add("h3-bmc")
        for name in ("h1", "h2", "h3", "h4"):
            await world.join(name)
        await powered(world, command_power("h1-bmc"), "h3", "h4")
        await world.add_vm("web3")
        await world.settle()
        await world.run_vm("web3", "h3")
        await world.control.power.put_of_host(ADMIN, "h3", "bmc", command_power("h3-bmc"), None)
        only_one = Policy(fencing=FencingPolicy(cap_count=1))
        await world.control.clusters.put_policy(ADMIN, "default", only_one, None)
        await world.settle()
        await step(world, "h1", "h2", "h3", "h4")
        assert (await world.control.power_orders.test(ADMIN, "h3", None)).test.passed
        await step(world, "h1", "h2", "h3", "h4")
        await silent(world, "h1", "h2", "h4", who="h3")
        await steps_until(world, lambda: len(fence_counts(world)) == 1, "h1", "h2", "h4")
        await switched_off_by_hand(world, machine)
        await silent(world, "h2", "h4")
        web1 = (await world.vm()).vm.id

        def starts() -> list[str]:
            return [
                host.name
                for host in world.hosts.values()
                for order in host.starts()
                if isinstance(order.body, StartVm) and order.body.vm.id == web1
            ]

        assert starts() == ["h1"]
        await steps_until(world, lambda: len(starts()) == 2, "h2", "h4")
        assert machine.orders == ["off"] and machine.struck == 1
        assert capped.struck == 1
        assert [one.host_id for one in fence_counts(world)] == [world.hosts["h3"].id]

    tell(tmp_path, power, story)


def test_a_hold_keeps_the_vm_down_until_it_is_released(tmp_path: Path, power: PlayedPower) -> None:
    """A person's order is no automatic action; all that would follow it is."""

    async def story(world: LedWorld) -> None:
        machine = power.machines["h1-bmc"]
        await powered(world, command_power("h1-bmc"))
        await world.control.hold.set(ADMIN, HoldPut(reason="the rack is moved"))
        await world.settle()
        await switched_off_by_hand(world, machine)
        await silent(world)
        for _ in range(40):
            await step(world, "h2")
        assert machine.orders == [] and not started(world)()
        await world.control.hold.lift(ADMIN)
        await world.settle()
        await steps_until(world, started(world), "h2")
        assert machine.orders == ["off"] and machine.struck == 1
        await web1_runs_once_on_h2(world)

    tell(tmp_path, power, story)
