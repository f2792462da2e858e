"""Whom a silent host's neighbours are, and that finding them costs nothing in a large cluster."""

import random

import pytest
from counted_opcodes import opcodes
from engine_driver import Play, vm

from virtha.engine.events import Investigate, SessionChanged, VmSeen
from virtha.engine.machine import Verdict
from virtha.engine.ring import Ring, Rings
from virtha.model.evidence import ProcessKind
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.time import Millis
from virtha.model.vm import VmState

H1, H2, H3 = HostId("h1"), HostId("h2"), HostId("h3")


def test_a_ring_is_what_a_search_through_all_would_find():
    chance = random.Random(1)
    for _ in range(200):
        ring, numbers = Ring(), dict[HostId, int]()
        for _ in range(chance.randrange(1, 60)):
            host_id = HostId(f"h{chance.randrange(40)}")
            if chance.random() < 0.3:
                ring.discard(host_id)
                numbers.pop(host_id, None)
            else:
                numbers[host_id] = chance.randrange(50)  # also a new number, also another's
                ring.put(host_id, numbers[host_id])
        expected = sorted(numbers, key=lambda one: (numbers[one], one))
        assert list(ring) == expected and len(ring) == len(expected)
        if not expected:
            continue
        at, steps = chance.randrange(len(expected)), chance.randrange(100)
        start = ring.place_after(expected[at], steps)
        first = (at + 1 + steps) % len(expected)
        turned = [*expected[first:], *expected[:first]]
        assert list(ring.around(start)) == turned
        some = {HostId(f"h{chance.randrange(40)}") for _ in range(chance.randrange(20))}
        assert list(ring.those_of(some, start)) == [one for one in turned if one in some]


def test_a_part_of_the_ring_begins_where_the_whole_does():
    rings = Rings()
    for host_id, number in ((H1, 1), (H2, 2), (H3, 3)):
        rings.note(host_id, number, Verdict.ALIVE, {ProcessKind.AGENT: BootId("b")})
    rings.note(H2, 2, Verdict.SUSPECT, {})
    start = rings.all.place_after(H1, 0)
    assert list(rings.present.around(start)) == [H3, H1]
    rings.note(H3, 3, Verdict.AGENT_DOWN, {})
    assert list(rings.present) == [H1, H3] and list(rings.readers) == [H1]
    rings.note(H2, 7, Verdict.SUSPECT, {ProcessKind.AGENT: BootId("b")})
    assert list(rings.heard_by_agent) == [H1, H2] and list(rings.all) == [H1, H3, H2]
    rings.forget(H1)
    assert list(rings.all) == [H3, H2] and list(rings.heard_by_agent) == [H2]
    assert not list(rings.readers)


def cost_of_silence(hosts: int, *, silent: int, agents: bool) -> float:
    """Opcodes per silent host of the step in which their connections break and their neighbours are asked. Without
    ``agents`` all beat, and no agent is connected: there is nobody to read disks."""
    names = [f"h{number}" for number in range(1, hosts + 1)]
    play = Play(hosts, vms=[vm(f"v{name}") for name in names])
    play.inbox += [
        VmSeen(
            host_id=host.id,
            boot=host.boot,
            vm_id=VmId(f"v{host.id}"),
            incarnation=Incarnation(1),
            state=VmState.RUNNING,
        )
        for host in play.hosts.values()
    ]
    play.tick()

    def gone(name: str, process: ProcessKind, *, broken: bool) -> SessionChanged:
        boot = play.hosts[name].boot
        return SessionChanged(
            host_id=HostId(name), process=process, boot=boot, up=False, broken=broken
        )

    if not agents:
        play.inbox += [gone(name, ProcessKind.AGENT, broken=False) for name in names]
        play.tick()
        play.tick()
    broken = [
        gone(name, process, broken=True)
        for name in names[:silent]
        for process in (ProcessKind.AGENT, ProcessKind.GUARDIAN)
    ]
    decision, counted = opcodes(lambda: play.engine.step(Millis(play.now + 1), broken))
    asked = [one for one in decision.commands if isinstance(one, Investigate)]
    assert len(asked) == silent and all(one.vms for one in asked)
    assert all((one.disk_reader is None) is not agents for one in asked)
    print(hosts, silent, counted / silent)
    return counted / silent


@pytest.mark.parametrize("agents", [True, False])
def test_asking_costs_no_more_in_a_larger_cluster(agents: bool):
    small, large = (cost_of_silence(hosts, silent=4, agents=agents) for hosts in (20, 200))
    assert large < 1.2 * small


def test_a_large_cluster_that_falls_silent_as_a_whole_costs_as_much_per_host():
    small, large = (cost_of_silence(hosts, silent=hosts - 1, agents=True) for hosts in (10, 80))
    assert large < 1.2 * small
