"""A server's reference addresses (J4): what counts as an answer, when the engines are told, and that it lets a fence go."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest
from command_power import command_power
from led_world import LedWorld, ManualClock
from own_bmc import UUID
from played_power import PlayedPower
from test_led_power import STEPS_MAX, powered, silent, step, steps_until, tell

from virtha.control.readiness import Readiness
from virtha.drivers.reference_address import (
    AFTER_FAILURE_MS,
    LOOK_UP_AGAIN_MS,
    OWN,
    PLACES_MAX,
    Place,
    ReferenceAddress,
    is_of_this_machine,
    why_unreached,
)
from virtha.engine.events import EngineEvent, ReferenceAnswered
from virtha.model.ids import ClusterId
from virtha.model.policy import FencingPolicy, Policy
from virtha.model.policy.detection import DetectionPolicy
from virtha.model.power_settings import MachineIdentity
from virtha.server.reference_watch import ReferenceWatch

pytestmark = pytest.mark.req("J4")
WAIT_S = 60.0
C1, C2 = ClusterId("c1"), ClusterId("c2")
REACHED, UNREACHED = ReferenceAnswered(reached=True), ReferenceAnswered(reached=False)


def policy(evidence_max_age_ms: int) -> Policy:
    slow_ms = max(evidence_max_age_ms, 6_000)
    return Policy(
        detection=DetectionPolicy(
            evidence_max_age_ms=evidence_max_age_ms,
            beat_interval_ms=200,
            check_interval_ms=200,
            dead_after_ms=slow_ms,
            hung_after_ms=2 * slow_ms,
        ),
        fencing=FencingPolicy(read_deadline_ms=100),
    )


HASTY = policy(500)


def place(port: int, address: str = "127.0.0.1") -> Place:
    return Place(socket.AF_INET, (address, port))


def nobody(_place: Place) -> bool:
    """For tests, which have no other machine."""
    return False


@pytest.fixture
def listening() -> Iterator[int]:
    """Port of one that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def closed() -> Iterator[int]:
    """Port of one that refuses them: taken, so that nobody else gets it, and not listened on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield int(one.getsockname()[1])


@pytest.fixture
def quiet() -> Iterator[int]:
    """Port of one that says nothing at all: a queue that is full takes no connection, and packets are lost as on a cable that is cut."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for one in (first, second):
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(full.getsockname())
        yield int(full.getsockname()[1])


class Led:
    """Of a cluster's feed what the watch asks."""

    def __init__(self, policy: Policy) -> None:
        self.policy_now = policy


class LedClusters:
    def __init__(self, **policies: Policy) -> None:
        self.led = {ClusterId(name): Led(policy) for name, policy in policies.items()}
        self.told: list[tuple[ClusterId, EngineEvent]] = []

    @property
    def feeds(self) -> Mapping[ClusterId, Led]:
        return self.led

    def offer(self, cluster_id: ClusterId, event: EngineEvent) -> bool:
        self.told.append((cluster_id, event))
        return True


def watch_of(
    *ports: int,
    clusters: LedClusters | None = None,
    clock: ManualClock | None = None,
    is_own: Callable[[Place], bool] = nobody,
) -> ReferenceWatch:
    return ReferenceWatch(
        tuple(f"127.0.0.1:{port}" for port in ports),
        clusters or LedClusters(c1=HASTY),
        clock or ManualClock(),
        is_own=is_own,
    )


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await story

    asyncio.run(bounded())


# One attempt


def test_whoever_takes_a_connection_or_refuses_it_was_reached(listening: int, closed: int) -> None:
    async def story() -> None:
        for port in (listening, closed):
            assert await why_unreached(place(port), deadline_ms=60_000, is_own=nobody) == ""

    run(story())


def test_silence_and_no_way_there_are_no_answers(quiet: int) -> None:
    async def story() -> None:
        said = await why_unreached(place(quiet), deadline_ms=100, is_own=nobody)
        assert said == "no answer within 100ms"
        nowhere = place(443, "255.255.255.255")
        assert await why_unreached(nowhere, deadline_ms=60_000, is_own=nobody) not in ("", OWN)

    run(story())


@pytest.mark.bad_input
def test_this_machine_itself_never_counts(listening: int) -> None:
    async def story() -> None:
        for address in ("127.0.0.1", "127.8.9.10"):
            assert await why_unreached(place(listening, address), deadline_ms=60_000) == OWN

    run(story())
    assert is_of_this_machine(Place(socket.AF_INET6, ("::1", 443, 0, 0)))
    assert is_of_this_machine(place(443, "0.0.0.0"))
    elsewhere = place(443, "192.0.2.1")
    assert not is_of_this_machine(elsewhere)
    # Where this machine has an address that others know it by, that is its own as well.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(elsewhere.address)
        except OSError:
            return
        assert is_of_this_machine(place(443, outward.getsockname()[0]))


# Names


class Resolver:
    """Answers when it is let."""

    def __init__(self, *found: Place | OSError) -> None:
        self.found = list(found)
        self.asked = 0
        self.may_answer = threading.Event()

    def look_up(self, _host: str, _port: int) -> list[Place]:
        self.asked += 1
        found = self.found.pop(0)
        assert self.may_answer.wait(WAIT_S)
        if isinstance(found, OSError):
            raise found
        return [found] * (PLACES_MAX + 1)


def until(happened: Callable[[], bool]) -> None:
    """The thread's last lines come after its answer."""
    waiting = threading.Event()
    for _ in range(int(WAIT_S / 0.005)):
        if happened():
            return
        waiting.wait(0.005)
    raise AssertionError("it did not happen")


def test_a_name_is_looked_up_anew_and_what_was_found_counts_until_then() -> None:
    clock = ManualClock()
    resolver = Resolver(OSError(2, "no such name"), place(1), OSError(2, "later"), place(2))
    address = ReferenceAddress("gw:443", "gw", 443, clock=clock, look_up=resolver.look_up)
    assert address.places() == () and address.why == "its name is being looked up"
    resolver.may_answer.set()
    until(lambda: address.why == "its name: no such name" and not address._looking)
    assert address.places() == () and resolver.asked == 1, "not at each asking"
    for later_ms, found in (
        (AFTER_FAILURE_MS, place(1)),
        (LOOK_UP_AGAIN_MS, place(1)),  # that one failed: the last that was found counts
        (AFTER_FAILURE_MS, place(2)),
    ):
        clock.now += later_ms
        asked = resolver.asked
        address.places()
        until(lambda asked=asked: resolver.asked == asked + 1 and not address._looking)
        assert address.places() == (found,) * PLACES_MAX


@pytest.mark.bad_input
def test_a_resolver_that_hangs_holds_up_nothing_and_is_asked_once(listening: int) -> None:
    resolver = Resolver(place(listening))
    clock = ManualClock()

    async def story() -> None:
        clusters = LedClusters(c1=HASTY)
        watch = ReferenceWatch(
            ("gw.example.org:443",), clusters, clock, look_up=resolver.look_up, is_own=nobody
        )
        for _ in range(3):
            await watch.ask()
            clock.now += LOOK_UP_AGAIN_MS
        assert watch.seen().reached is False and clusters.told == []
        assert watch.seen().why == "gw.example.org:443: its name is being looked up"
        assert resolver.asked == 1
        resolver.may_answer.set()
        while not watch.seen().reached:
            await watch.ask()
            await asyncio.sleep(0.001)
        assert clusters.told == [(C1, REACHED)]

    run(story())


# What the engines are told


def test_that_one_answers_is_told_each_time_and_that_none_does_once(
    listening: int, closed: int, quiet: int
) -> None:
    async def story() -> None:
        clusters = LedClusters(c1=HASTY)
        gone: list[Place] = []
        watch = watch_of(listening, quiet, clusters=clusters, is_own=lambda one: one in gone)
        assert (watch.seen().reached, watch.seen().addresses) == (
            None,
            (f"127.0.0.1:{listening}", f"127.0.0.1:{quiet}"),
        )
        gone.append(place(listening))
        await watch.ask()
        assert clusters.told == [], "who hears nothing takes nothing for reached"
        assert watch.seen().reached is False
        assert watch.seen().why == (
            f"127.0.0.1:{listening}: {OWN}; 127.0.0.1:{quiet}: no answer within 250ms"
        )
        gone.clear()
        await watch.ask()
        await watch.ask()
        assert clusters.told == [(C1, REACHED)] * 2
        assert (watch.seen().reached, watch.seen().why) == (True, "")
        gone.append(place(listening))
        await watch.ask()
        await watch.ask()
        assert clusters.told[2:] == [(C1, UNREACHED)]
        # A leader that begins now hears the next answer, as all others do.
        clusters.led[C2] = Led(Policy())
        gone.clear()
        await watch.ask()
        assert clusters.told[3:] == [(C1, REACHED), (C2, REACHED)]
        clusters.led.clear()
        await watch.ask()
        assert len(clusters.told) == 5

    run(story())


def test_all_are_asked_side_by_side_and_the_first_answer_is_that_of_all(
    quiet: int, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other would take longer than the test may."""
    monkeypatch.setattr(ReferenceWatch, "deadline_ms", 300_000)

    async def story() -> None:
        watch = watch_of(quiet, closed)
        await watch.ask()
        assert watch.seen().reached
        assert len(asyncio.all_tasks()) == 1, "the others are given up"

    run(story())


def test_an_answer_that_this_server_slept_over_does_not_count(listening: int) -> None:
    clock = ManualClock()

    def sleeping(_place: Place) -> bool:
        clock.now += 251
        return False

    async def story() -> None:
        clusters = LedClusters(c1=HASTY)
        watch = watch_of(listening, clusters=clusters, clock=clock, is_own=sleeping)
        await watch.ask()
        assert clusters.told == []
        assert (watch.seen().reached, watch.seen().why) == (False, "an answer was read too late")

    run(story())


@pytest.mark.parametrize("age_ms", [500, 501, 2_500, 5_000, 10_000])
def test_an_answer_never_gets_too_old_before_the_next(age_ms: int) -> None:
    """Of the shortest age of all clusters that are led; a quarter of it is left for the way to the engine."""
    watch = watch_of(1, clusters=LedClusters(c1=policy(14_000), c2=policy(age_ms)))
    assert min(watch.pause_ms, watch.deadline_ms) > 0
    assert watch.pause_ms + watch.deadline_ms <= age_ms * 3 // 4
    assert watch.pause_ms <= 1_000, "a new leader hears of it soon"
    assert watch_of(1, clusters=LedClusters()).pause_ms == 1_000, "nobody is led yet"


def test_the_loop_asks_again_and_again_and_ends_at_once(
    listening: int, quiet: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceWatch, "deadline_ms", 300_000)

    async def story() -> None:
        stopping = asyncio.Event()
        clusters = LedClusters(c1=HASTY)
        loop = asyncio.create_task(watch_of(listening, clusters=clusters).run(stopping))
        while len(clusters.told) < 3:
            await asyncio.sleep(0.001)
        # Beside one that hangs in an answer, and one that has nobody to ask.
        hanging = watch_of(quiet)
        without = watch_of()
        others = [asyncio.create_task(one.run(stopping)) for one in (hanging, without)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not any(one.done() for one in (loop, *others)), "its end would be the server's"
        stopping.set()
        await asyncio.gather(loop, *others)
        assert without.seen().reached is None

    run(story())


# The whole way


@pytest.mark.parametrize("answering", ["listening", "closed"])
def test_of_three_hosts_two_die_and_only_who_reaches_its_reference_address_fences(
    tmp_path: Path, answering: str, quiet: int, request: pytest.FixtureRequest
) -> None:
    port = request.getfixturevalue(answering)
    power = PlayedPower()
    machine = power.add("h1-bmc")
    machine.identity = MachineIdentity(uuid=UUID)  # else it may be h2's, which is silent as well

    async def story(world: LedWorld) -> None:
        await world.join("h3")
        await powered(world, command_power("h1-bmc"), "h3", machine=machine.identity)
        await silent(world, "h3")
        world.hosts["h2"].vanish()
        unreached = ReferenceWatch(
            (f"127.0.0.1:{quiet}",), world.engines, world.clock, is_own=nobody
        )
        with_none = Readiness(world.store, world.gateway, world.engines)
        assert not await shown(with_none), "nothing is asked"

        def why() -> set[str]:
            return {one.code for one in world.engines.explain_host(world.hosts["h1"].id)}

        await steps_until(world, lambda: "fence.blocked.observer" in why(), "h3")
        await unreached.ask()
        for _ in range(STEPS_MAX):
            if await world.events("fence.withheld"):
                break
            await step(world, "h3")
        (withheld,) = await world.events("fence.withheld")
        assert withheld.fields["why"] == "fence.blocked.observer", withheld
        assert "fence.blocked.observer" in why() and "off" not in machine.asked and machine.on
        ready = Readiness(world.store, world.gateway, world.engines, references=unreached)
        (found,) = await shown(ready)
        assert found == f"127.0.0.1:{quiet}: no answer within 2s"
        reached = ReferenceWatch((f"127.0.0.1:{port}",), world.engines, world.clock, is_own=nobody)
        for _ in range(STEPS_MAX):
            if world.hosts["h3"].starts():
                break
            await reached.ask()
            await step(world, "h3")
        assert machine.struck == 1 and not machine.on
        (order,) = world.hosts["h3"].starts()
        await world.hosts["h3"].started(order)
        (proven,) = await world.events("host.proven_dead")
        assert (proven.host_id, proven.fields["proof"]) == (world.hosts["h1"].id, "power_off")
        ready = Readiness(world.store, world.gateway, world.engines, references=reached)
        assert not await shown(ready)

    async def shown(readiness: Readiness) -> list[str]:
        """What it says of reference addresses, of all there is and of the cluster alike."""
        views = (await readiness.all(), await readiness.of_cluster("default"))
        first, second = (
            [str(one.fields["why"]) for one in view.findings if one.code == "ready.reference"]
            for view in views
        )
        assert first == second
        return first

    tell(tmp_path, power, story)


def test_what_was_reached_before_a_new_leader_began_counts_for_nothing_until_it_hears_of_it(
    tmp_path: Path, listening: int
) -> None:
    async def story(world: LedWorld) -> None:
        await world.join("h1")
        await ask_and_settle(world)
        assert world.leader.engine.snapshot().reference is True
        await world.restart()
        await world.settle()
        assert world.leader.engine.snapshot().reference is None
        await ask_and_settle(world)
        assert world.leader.engine.snapshot().reference is True

    async def ask_and_settle(world: LedWorld) -> None:
        watch = ReferenceWatch(
            (f"127.0.0.1:{listening}",), world.engines, world.clock, is_own=nobody
        )
        await watch.ask()
        await world.settle()

    tell(tmp_path, PlayedPower(), story)
