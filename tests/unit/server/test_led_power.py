"""The way from a silent host to its VM on another one, by power: through the engine, the leader, its desk and a device."""

import asyncio
from pathlib import Path

import pytest
from command_power import command_power
from led_world import ABLE, ADMIN, LedWorld
from msgspec.structs import replace
from own_bmc import PASSWORD, UUID, IpmiSim
from played_power import Machine, PlayedPower
from powered_world import (
    STEPS_MAX,
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
from recorded_incidents import (
    codes,
    it_is_told_from_the_last_beat_to_the_hosts_return,
    make_unreadable,
    only_h2s_guest_agent_counts,
    the_incident,
)

from virtha.agent.power_attempts import PowerAttempts
from virtha.control.leading import Leading
from virtha.control.own_machine import OwnMachine
from virtha.control.power_views import PowerPut
from virtha.drivers.power_devices import RealPowerDevices
from virtha.engine.configured import EngineHost
from virtha.model.errors import InvalidInput, Refused
from virtha.model.evidence import IdentityMatch
from virtha.model.facts import Happened, HostReport
from virtha.model.ids import BootId, Revision, VmId
from virtha.model.operation import OperationState
from virtha.model.policy import FencingPolicy, Policy, UntestedDevices
from virtha.model.power import PowerFeed, PowerLevel
from virtha.model.power_settings import (
    AskedFrom,
    MachineIdentity,
    PowerDriver,
    PowerHelp,
    PowerSettings,
)
from virtha.wire.power_messages import AttemptPower, PowerAttempted

pytestmark = pytest.mark.req("F4", "F9")


@pytest.fixture
def power() -> PlayedPower:
    made = PlayedPower()
    made.add("h1-bmc")
    return made


def of_h1(power: PlayedPower) -> Machine:
    return power.machines["h1-bmc"]


@pytest.mark.req("P1", "X4")
def test_a_host_that_falls_silent_is_switched_off_and_its_vm_starts_once(
    tmp_path: Path, power: PlayedPower
) -> None:
    async def story(world: LedWorld) -> None:
        machine = of_h1(power)
        await powered(world, command_power("h1-bmc"))
        await silent(world)
        await steps_until(world, started(world), "h2")
        assert machine.asked[-4:] == ["status", "off", "status", "status"], machine.asked
        assert machine.struck == 1 and not machine.on
        await web1_runs_once_on_h2(world)
        assert len(await world.events("fence.began")) == 1
        operation = await fencing(world)
        assert operation.state is OperationState.DONE and operation.progress == 100
        (only,) = operation.steps
        assert only.name.startswith("off at level 1, attempt 1 (") and only.ended
        assert only.detail.endswith("read off twice") and only.detail.startswith("bmc: ")
        await only_h2s_guest_agent_counts(world)
        await world.hosts["h1"].hello("h1-boot2")
        await world.hosts["h1"].tell_all()
        await world.settle()
        assert await fencing(world) == operation, "it is over, whoever comes back"
        await it_is_told_from_the_last_beat_to_the_hosts_return(world)

    tell(tmp_path, power, story)


@pytest.mark.req("W7", "X4")
def test_what_its_new_host_tells_of_a_vm_on_its_way_back_names_the_failure(
    tmp_path: Path, power: PlayedPower
) -> None:
    """By that routes group it; what is told after it runs is of its own."""

    async def story(world: LedWorld) -> None:
        await powered(world, command_power("h1-bmc"))
        web1 = await world.vm()
        await tells(world, "vm.agent.lost", web1.vm.id)
        await silent(world)
        await steps_until(world, started(world), "h2")
        await tells(world, "vm.start_failed", web1.vm.id)
        await tells(world, "vm.started", web1.vm.id)
        await web1_runs_once_on_h2(world)
        await tells(world, "vm.crashed", web1.vm.id)
        incident = (await the_incident(world)).incident.id
        told = {
            code: (await world.events(code))[-1].fields.get("incident_id")
            for code in ("vm.agent.lost", "vm.start_failed", "vm.started", "vm.crashed")
        }
        assert told == {
            "vm.agent.lost": None,
            "vm.start_failed": incident,
            "vm.started": incident,
            "vm.crashed": None,
        }

    tell(tmp_path, power, story)


async def tells(world: LedWorld, code: str, vm_id: VmId) -> None:
    await world.hosts["h2"].tell(Happened(code=code, vm_id=vm_id))


@pytest.mark.req("P1", "F5")
def test_neighbours_agents_switch_it_off_and_each_reads_it_once(
    tmp_path: Path, power: PlayedPower
) -> None:
    """The server itself reaches no device (ADR 18)."""

    async def story(world: LedWorld) -> None:
        machine = of_h1(power)
        machine.identity = MachineIdentity(uuid=UUID)
        await with_helpers(world, power, "h1", "h2", "h3")
        put = command_power("h1-bmc", asked_from=AskedFrom.AGENTS)
        await powered(world, put, "h3", machine=machine.identity)
        del world.gateway.power_words[:]
        await silent(world, "h2", "h3")
        await steps_until(world, started(world), "h2", "h3")
        assert machine.asked[-4:] == ["status", "off", "status", "status"], machine.asked
        assert machine.struck == 1 and not machine.on
        asked = [to for to, word in world.gateway.power_words if isinstance(word, AttemptPower)]
        h2, h3 = (world.hosts[name].id for name in ("h2", "h3"))
        assert set(asked) == {h2, h3}, "never of itself"
        assert set(asked[-2:]) == {h2, h3}, "two witnesses for the two readings"
        (order,) = world.hosts["h2"].starts()
        await world.hosts["h2"].started(order)
        (proven,) = await world.events("host.proven_dead")
        assert proven.fields["proof"] == "power_off"

    tell(tmp_path, PlayedPower(), story)


@pytest.mark.req("P1", "F5")
def test_an_off_through_a_neighbour_of_a_device_that_names_no_machine_proves_nothing(
    tmp_path: Path, power: PlayedPower
) -> None:
    """It may be another machine there: what one host's test of it found says nothing of the other's way."""

    async def story(world: LedWorld) -> None:
        machine = of_h1(power)
        await with_helpers(world, power, "h1", "h2", "h3")
        await powered(world, command_power("h1-bmc", asked_from=AskedFrom.AGENTS), "h3")
        await silent(world, "h2", "h3")
        for _ in range(STEPS_MAX):
            await step(world, "h2", "h3")
            failed = await world.events("fence.level_failed")
            if failed:
                break
        assert machine.struck == 1 and not machine.on
        assert failed and not started(world)()

    tell(tmp_path, power, story)


@pytest.mark.req("P1", "F5")
@pytest.mark.bad_input
def test_without_an_able_neighbour_nothing_is_ordered_and_nothing_starts(
    tmp_path: Path, power: PlayedPower
) -> None:
    async def story(world: LedWorld) -> None:
        machine = of_h1(power)
        await with_helpers(world, power, "h1", "h2")
        await powered(world, command_power("h1-bmc", asked_from=AskedFrom.AGENTS))
        world.gateway.helpers.pop(world.hosts["h2"].id)  # its agent is of before, or may not
        await silent(world)
        failed = False
        for _ in range(STEPS_MAX):
            await step(world, "h2")
            if failed := bool(await world.events("fence.failed")):
                break
        assert failed and "off" not in machine.asked and machine.on
        assert not started(world)()
        (operation,) = [await fencing(world)]
        assert operation.steps[-1].detail.endswith("power.no_neighbour")

    tell(tmp_path, PlayedPower(), story)


@pytest.mark.req("P1", "F5")
@pytest.mark.bad_input("power address of the host that asks")
def test_a_cluster_that_lets_agents_ask_sends_none_to_itself(
    tmp_path: Path, power: PlayedPower
) -> None:
    """The hosts' addresses were set before: from the server they led to a device, from each host they lead to that host."""

    async def story(world: LedWorld) -> None:
        machine = power.add("127.0.0.1")
        await with_helpers(world, power, "h1", "h2", "h3")
        await powered(world, command_power("127.0.0.1"), "h3")
        by_agents = PowerPut(settings=PowerSettings(asked_from=AskedFrom.AGENTS))
        await world.control.power.put_of_cluster(ADMIN, "default", "bmc", by_agents, None)
        # It can pass no test any more, and would get no order at all.
        ordered = Policy(fencing=FencingPolicy(untested_devices=UntestedDevices.ORDER))
        await world.control.clusters.put_policy(ADMIN, "default", ordered, None)
        (view,) = await world.control.power.of_host("h1")
        assert not view.usable and "asked_from=server" in view.problem
        with pytest.raises(InvalidInput, match="asked_from"):
            await world.control.power_orders.status("h1", None)
        await world.settle()
        del machine.asked[:]
        await silent(world, "h2", "h3")
        failed = None
        for _ in range(STEPS_MAX):
            await step(world, "h2", "h3")
            if failed := await world.events("fence.level_failed"):
                break
        assert failed and failed[0].fields["why"] == "power.unusable_settings"
        assert machine.asked == [] and machine.on and not started(world)()

    tell(tmp_path, power, story)


async def with_helpers(world: LedWorld, power: PlayedPower, *names: str) -> None:
    """Agents that reach those devices, of hosts that join now."""
    for name in names:
        host = await world.join(name)

        def tell_back(answer: PowerAttempted) -> None:
            assert world.gateway.power is not None
            world.gateway.power.heard(1, answer)

        world.gateway.helpers[host.id] = PowerAttempts(
            host_id=host.id,
            boot=host.boot,
            drivers=PowerHelp.ANY.drivers,
            devices=power,
            clock=world.clock,
            term_seen=lambda: world.gateway.term,
            spawn=lambda name, work: asyncio.create_task(work, name=name),
            tell=tell_back,
        )


def test_the_next_server_finishes_a_fence_with_what_was_tested_before(
    tmp_path: Path, power: PlayedPower
) -> None:
    """Killed when the order was carried out and its answer not heard: one off that finds the host on, the VM once."""

    async def story(world: LedWorld) -> None:
        machine = of_h1(power)
        await powered(world, command_power("h1-bmc"))
        await silent(world)
        desk = world.feed.power_desk
        assert desk is not None
        for _ in range(STEPS_MAX):
            await world.pass_time(500, beating=("h2",))
            # The clock stands meanwhile: on a slow machine it would run past the device's deadlines.
            async with asyncio.timeout(WAIT_S):
                while desk.busy and "off" not in machine.asked:
                    await asyncio.sleep(0.001)
            if "off" in machine.asked:
                break
        before = await fencing(world)
        assert before.state is OperationState.RUNNING
        with pytest.raises(Refused, match="virtha hold") as refused:
            await world.control.operations.cancel(ADMIN, before.id)
        assert refused.value.code == "problem.operation.cancel"
        recorded = await the_incident(world, open=True)
        await world.restart()
        await world.hosts["h2"].hello()
        await world.hosts["h2"].tell_all()
        await steps_until(world, started(world), "h2")
        assert machine.struck == 1
        goes_on = await the_incident(world, open=True)
        assert goes_on.incident.id == recorded.incident.id
        assert goes_on.timeline[: len(recorded.timeline)] == recorded.timeline
        assert "vm.recovery_started" in codes(goes_on) and "host.proven_dead" in codes(goes_on)
        await make_unreadable(world)
        await web1_runs_once_on_h2(world)
        after = await fencing(world)
        assert (after.id, after.state) == (before.id, OperationState.DONE)

    tell(tmp_path, power, story)


def test_a_device_that_takes_the_order_and_then_refuses_to_be_read_is_told_as_that(
    tmp_path: Path, power: PlayedPower
) -> None:
    """Its host may well be off: what kept it from being read is what an operator has to mend."""

    async def story(world: LedWorld) -> None:
        machine = of_h1(power)
        machine.idle = True

        def meanwhile() -> None:
            machine.refuses = "off" in machine.asked[:-1]

        machine.meanwhile = meanwhile
        await powered(world, command_power("h1-bmc"))
        await silent(world)
        for _ in range(60):
            await step(world, "h2")
            if failed := await world.events("fence.level_failed"):
                break
        assert failed[0].fields["why"] == "power.unread"
        assert failed[0].fields["cause"] == "power.sign_in_refused"
        reasons = (await world.control.hosts.get("h1")).engine
        (last,) = [one for one in reasons if one.code == "fence.last_failure"]
        assert "refused our user or password" in str(last.fields["why"])
        assert world.hosts["h2"].starts() == []

    tell(tmp_path, power, story)


@pytest.mark.bad_input("wrong power password")
def test_a_device_that_refuses_proves_nothing_and_is_told(
    tmp_path: Path, power: PlayedPower
) -> None:
    async def story(world: LedWorld) -> None:
        machine = of_h1(power)
        await powered(world, command_power("h1-bmc"))
        await silent(world)
        machine.refuses = True
        for _ in range(40):
            await step(world, "h2")
        failed = await world.events("fence.level_failed")
        assert {one.fields["why"] for one in failed} == {"power.sign_in_refused"}
        assert len(await world.events("fence.failed")) == 1
        assert machine.orders == ["off", "off"], "so many attempts, then a pause"
        assert world.hosts["h2"].starts() == [] and machine.on
        operation = await fencing(world)
        assert operation.state is OperationState.RUNNING and "again" in operation.message
        states = [one.state for one in operation.steps]
        assert states == [OperationState.FAILED] * 2, operation
        assert operation.steps[1].detail.endswith("power.sign_in_refused")
        incident = await the_incident(world, open=True)
        assert codes(incident).count("fence.level_failed") == len(failed)
        assert [one.code for one in incident.engine][:1] == ["host.dead.unproven"]
        assert incident.incident.vms.waiting == 1 and incident.vms[0].engine_text, "why it waits"
        reasons = (await world.control.hosts.get("h1")).engine
        fence = [one for one in reasons if one.code.startswith("fence.")]
        assert [one.code for one in fence] == ["fence.waiting.retry", "fence.last_failure"]
        assert "password" in str(fence[-1].fields["why"])
        world.hosts["h1"].boot = BootId("h1-boot1")
        await world.hosts["h1"].hello()
        for _ in range(8):
            await step(world, "h1", "h2")
        assert (await fencing(world)).state is OperationState.CANCELLED, "it lives"
        incident = await the_incident(world, open=False)
        assert incident.incident.vms.unharmed == 1
        assert codes(incident)[-3:] == [
            "fence.failed_host_lives",
            "incident.vm.unharmed",
            "incident.closed",
        ]

    tell(tmp_path, power, story)


@pytest.mark.req("P1", "F6")
def test_a_real_bmc(tmp_path: Path) -> None:
    """The plug is pulled: its BMC lives, names its host, and says off."""
    bmc = IpmiSim(tmp_path)

    async def story(world: LedWorld) -> None:
        h1 = await world.join("h1")
        await h1.tell(HostReport(capabilities=replace(ABLE, machine=MachineIdentity(uuid=UUID))))
        fencing = FencingPolicy(read_deadline_ms=4_500)
        cluster = await world.control.clusters.get("default")
        await world.control.clusters.put_policy(
            ADMIN, "default", Policy(fencing=fencing), cluster.revision
        )
        await world.join("h2")
        await world.add_storage()
        await world.add_vm()
        await world.settle()
        await world.run_vm("web1", "h1")
        address = PowerSettings(
            driver=PowerDriver.IPMI, address="127.0.0.1", port=bmc.port, user="admin", cipher=3
        )
        put = PowerPut(settings=address, secrets={"password": PASSWORD})
        await world.control.power.put_of_host(ADMIN, "h1", "bmc", put, None)
        await world.settle()
        await step(world, "h1", "h2")
        view = await world.control.power_orders.test(ADMIN, "h1", None)
        assert view.test.passed and view.test.identity is IdentityMatch.MATCH
        await step(world, "h1", "h2")
        (tmp_path / "power").write_text("0")
        world.hosts["h1"].vanish()
        await steps_until(world, started(world), "h2")
        assert (tmp_path / "orders").read_text() == "0\n"
        await web1_runs_once_on_h2(world)

    bmc.start()
    try:
        tell(tmp_path, RealPowerDevices(), story)
    finally:
        bmc.stop()


# What the engine is told


async def h1_of(world: LedWorld) -> EngineHost:
    await world.engines.refresh()
    await world.leader.turn()
    states = world.leader.engine.snapshot().hosts
    return next(one.config for one in states if one.config.name == "h1")


def levels(*of_each: tuple[str, bool]) -> tuple[PowerLevel, ...]:
    return tuple(
        PowerLevel(feeds=(PowerFeed(device=name, reads_state=reads),)) for name, reads in of_each
    )


@pytest.mark.req("F6", "P1")
def test_the_engine_knows_the_devices_as_they_are_set_up_now(
    tmp_path: Path, power: PlayedPower
) -> None:
    """Of a host and of its cluster; each change makes another device of it, which nobody has tested."""

    async def story(world: LedWorld) -> None:
        setup = world.control.power
        await world.join("h1")
        assert (await h1_of(world)).power == ()
        shared = command_power("h1-bmc").settings
        shared = replace(shared, address=None)
        await setup.put_of_cluster(ADMIN, "default", "bmc", PowerPut(settings=shared), None)
        assert (await h1_of(world)).power == (), "the host gave no address"
        own = PowerPut(settings=PowerSettings(address="h1-bmc"))
        view = await setup.put_of_host(ADMIN, "h1", "bmc", own, None)
        assert view.power is not None
        first = f"bmc@{view.power.revision}"
        assert (await h1_of(world)).power == levels((first, True))
        test = (await world.control.power_orders.test(ADMIN, "h1", None)).test
        await world.settle()
        assert test.passed and await known_tests(world) == (first,)

        blind = await setup.put_of_host(
            ADMIN, "h1", "b", command_power("x", status="", level=2), None
        )
        assert blind.power is not None
        second = f"b@{blind.power.revision}"
        assert (await h1_of(world)).power == levels((first, True), (second, False))
        changed = await setup.put_of_cluster(
            ADMIN, "default", "bmc", PowerPut(settings=replace(shared, user="root")), None
        )
        third = f"bmc@{changed.power.revision}"
        assert (await h1_of(world)).power == levels((third, True), (second, False))
        assert third not in await known_tests(world)
        await setup.delete_of_host(ADMIN, "h1", "b", None)
        assert (await h1_of(world)).power == levels((third, True))
        twin = await setup.put_of_host(ADMIN, "h1", "b", command_power("x"), None)
        assert twin.power is not None
        (level,) = (await h1_of(world)).power
        assert {feed.device for feed in level.feeds} == {third, f"b@{twin.power.revision}"}
        await setup.delete_of_cluster(ADMIN, "default", "bmc", None)
        (level,) = (await h1_of(world)).power
        assert len(level.feeds) == 2, "it can't be used, and the other one alone proves nothing"

    tell(tmp_path, power, story)


async def known_tests(world: LedWorld) -> tuple[str, ...]:
    states = world.leader.engine.snapshot().hosts
    return next(one.record.tested_devices for one in states if one.config.name == "h1")


@pytest.mark.req("P1")
def test_a_test_that_failed_is_told_as_well(tmp_path: Path, power: PlayedPower) -> None:
    async def story(world: LedWorld) -> None:
        await powered(world, command_power("h1-bmc"))
        assert len(await known_tests(world)) == 1
        of_h1(power).refuses = True
        assert not (await world.control.power_orders.test(ADMIN, "h1", None)).test.passed
        await world.settle()
        assert await known_tests(world) == ()

    tell(tmp_path, power, story)


@pytest.mark.req("J4")
def test_the_host_that_this_server_runs_on_is_known_as_that(
    tmp_path: Path, power: PlayedPower
) -> None:
    async def story(world: LedWorld) -> None:
        h1 = await world.join("h1")
        for boot, own in ((h1.boot, True), (BootId("another"), False), (None, False)):
            machine = OwnMachine(boot=boot, id="m1")
            leading = Leading(world.store, *_parts(world), own=machine)
            (led,) = (await leading.changes(Revision(0), hosts=(), vms=())).hosts
            assert led.host.carries_server is own
        # The machine reboots, and its agent does not come back: the boot on record is the old one.
        world.control.hosts._own = OwnMachine(boot=h1.boot, id="m1")
        await h1.hello()
        for machine_id, own in (("m1", True), ("m2", False)):
            machine = OwnMachine(boot=BootId("next"), id=machine_id)
            leading = Leading(world.store, *_parts(world), own=machine)
            (led,) = (await leading.changes(Revision(0), hosts=(), vms=())).hosts
            assert led.host.carries_server is own

    def _parts(world: LedWorld) -> tuple[object, object]:
        leading = world.control.leading
        return leading._dispatcher, leading._hellos

    tell(tmp_path, power, story)
