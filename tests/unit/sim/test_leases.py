"""Leases in the simulated world: clocks, slots, the watchdog, and that the checkers notice what they are for."""

import os
import subprocess
import sys

import pytest

from virtha.engine.events import SaveHost
from virtha.engine.records import HostRecord, Incident
from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.proof import Proof, ProofKind
from virtha.model.slot import BlockFault, Declaration, Slot, Unreadable
from virtha.scenario.language import parse
from virtha.sentinel.lease import LeaseState
from virtha.sim.checkers import Violation
from virtha.sim.clock import HostClock
from virtha.sim.kernel import Kernel
from virtha.sim.lease import WatchdogDevice
from virtha.sim.play import Player
from virtha.sim.slots import HostIo, SlotDomain
from virtha.sim.storage import HostPath, PathState
from virtha.sim.world_time import WALL_EPOCH_MS

SHARED = StorageDomainId("shared")
RUNNING = "engine\nlease\nhosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\n"


def played(lines: str) -> Player:
    player = Player()
    for step in parse(f"# a story\n{lines}").steps:
        player.do(step)
    return player


# Clocks


@pytest.mark.parametrize("ppm", [-10_000, -1, 0, 250, 10_000])
def test_a_clock_drifts_from_where_it_is_and_says_when_it_will_show_a_moment(ppm: int):
    kernel = Kernel()
    clock = HostClock(kernel)
    kernel.advance(50_000)
    clock.drift(ppm)
    assert clock.read() == 50_000
    wait_ms = clock.until(150_000)
    kernel.advance(wait_ms - 1)
    assert clock.read() < 150_000
    kernel.advance(1)
    assert clock.read() >= 150_000
    assert abs(wait_ms - 100_000) <= 1_011


def test_a_wall_clock_that_jumps_moves_no_other():
    kernel = Kernel()
    clock = HostClock(kernel)
    clock.wall_offset_ms = -86_400_000
    kernel.advance(5)
    assert (clock.read(), clock.wall_ms()) == (5, WALL_EPOCH_MS + 5 - 86_400_000)


# Slots


class Io:
    """One host's way to one domain."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.path = HostPath()
        self.domain = SlotDomain(SHARED)
        for index, name in enumerate(("h1", "h2")):
            self.domain.prepare(HostId(name), index)
        self.io = HostIo(self.kernel, self.path, self.domain, HostId("h1"))
        self.answers: list[bool] = []

    def write(self, counter: int) -> None:
        place = self.domain.places[HostId("h1")]
        slot = Slot(
            installation_id=place.installation_id,
            domain_id=SHARED,
            index=0,
            host_id=HostId("h1"),
            boot=f"boot-{counter}",
            counter=counter,
            declaration=Declaration(),
        )
        self.io.write_slot(slot, self.answers.append)

    def seen(self, reader: str = "h2") -> int | BlockFault:
        found = self.domain.read_slot(reader, HostId("h1"))
        return found.fault if isinstance(found, Unreadable) else found.counter


def test_a_write_that_hangs_lands_when_the_path_is_back_unless_the_power_went():
    io = Io()
    io.path.state = PathState.STALLED
    io.write(1)
    io.kernel.advance(60_000)
    assert (io.seen(), io.answers) == (BlockFault.EMPTY, [])
    io.path.state = PathState.WELL
    io.io.path_changed()
    assert (io.seen(), io.answers) == (1, [True])
    io.path.state = PathState.STALLED
    io.write(2)
    io.kernel.advance(10)
    io.io.power_lost()
    io.path.state = PathState.WELL
    io.io.path_changed()
    io.kernel.advance(10)
    assert (io.seen(), io.answers) == (1, [True])


@pytest.mark.parametrize(
    ("state", "reads"), [(PathState.ERRORS, False), (PathState.READ_ONLY, True)]
)
def test_errors_are_answered_and_nothing_lands(state: PathState, reads: bool):
    io = Io()
    io.path.state = state
    io.write(1)
    io.kernel.advance(1_000)
    io.io.read(io.answers.append)
    io.kernel.advance(1_000)
    assert (io.seen(), io.answers) == (BlockFault.EMPTY, [False, reads])


def test_a_torn_slot_is_acknowledged_and_reads_as_torn():
    io = Io()
    io.write(1)
    io.kernel.advance(10)
    io.io.faults.tear = True
    io.write(2)
    io.kernel.advance(10)
    assert (io.seen(), io.answers) == (BlockFault.TORN, [True, True])


def test_a_late_slot_is_answered_with_an_error_and_lands_over_a_newer_one_even_without_power():
    io = Io()
    io.io.faults.late_ms = 25_000
    io.write(1)
    io.kernel.advance(1_000)
    io.write(2)
    io.kernel.advance(1_000)
    assert (io.seen(), io.answers) == (2, [False, True])
    io.io.power_lost()
    io.kernel.advance(25_000)
    assert io.seen() == 1


def test_a_view_that_is_held_still_shows_old_blocks_but_ones_own():
    io = Io()
    io.write(1)
    io.kernel.advance(10)
    io.domain.hold_still("h2", [HostId("h1"), HostId("h2")])
    io.domain.hold_still("h1", [HostId("h1")])
    io.write(2)
    io.kernel.advance(10)
    assert (io.seen("h2"), io.seen("h1")) == (1, 2)
    io.domain.let_go("h2")
    assert io.seen("h2") == 2


# The watchdog


@pytest.mark.parametrize(("no_way_out", "bites"), [(True, 1), (False, 0)])
def test_a_watchdog_outlives_its_guardian_only_without_a_way_out(no_way_out: bool, bites: int):
    kernel, bitten = Kernel(), []
    device = WatchdogDevice(
        kernel, lambda: bitten.append(kernel.now), exists=True, no_way_out=no_way_out
    )
    assert device.arm(10_000)
    kernel.advance(9_000)
    device.feed()
    kernel.advance(9_000)
    assert bitten == []
    device.released()
    kernel.advance(60_000)
    assert len(bitten) == bites
    assert bitten in ([], [19_000])


# The world


@pytest.mark.req("F2", "X3")
def test_hosts_hold_their_leases_and_feed_their_watchdogs():
    world = played(RUNNING).world
    for host in world.hosts.values():
        assert host.guardian is not None and host.guardian.lease is not None
        assert host.guardian.lease.states() == {SHARED: LeaseState.HELD}
        assert host.lease is not None and host.lease.watchdog.timeout_ms == 10_000


def test_without_the_verb_there_are_none():
    world = played(RUNNING.replace("lease\n", "")).world
    assert all(host.lease is None for host in world.hosts.values())


# Checkers


def lease_proof(player: Player) -> SaveHost:
    host = player.world.hosts["h1"]
    proof = Proof(kind=ProofKind.LEASE, host_id=HostId("h1"), boot=host.boot, at_ms=1, detail="")
    incident = Incident(number=1, boot=host.boot, silent_since_ms=0, began_ms=0, proofs=(proof,))
    return SaveHost(record=HostRecord(host_id=HostId("h1"), boot=host.boot, incident=incident))


@pytest.mark.parametrize(
    ("before", "what"),
    [("", "it runs there"), ("cut storage h1\nadvance 1s\nkill-qemu web\n", "a write of it waits")],
)
def test_a_lease_proof_of_a_host_that_can_still_write_is_a_violation(before: str, what: str):
    player = played(RUNNING + before)
    with pytest.raises(Violation, match=what):
        player.truth.written_under(player.world.server.lead, [lease_proof(player)])


def test_a_lease_proof_of_a_boot_that_is_over_is_none():
    player = played(RUNNING)
    proof = lease_proof(player)
    player.world.reset(player.world.hosts["h1"], "for the test")
    player.truth.written_under(player.world.server.lead, [proof])


@pytest.mark.req("F1")
def test_a_release_with_a_write_left_in_the_kernel_is_a_violation():
    player = played(f"{RUNNING}cut storage h1\nadvance 1s\n")
    host, vm_id = player.world.hosts["h1"], player.world.ids["web"]
    with pytest.raises(Violation, match="writes of it queued"):
        host.released(vm_id, player.world.server.vms[vm_id].incarnation)


# Determinism


STORY = (
    RUNNING
    + "drift h2 300\ncut bmc h1\nfreeze h1 guardian at=renew\nadvance 60s\nthaw h1\nadvance 30s\n"
)
TRACE = (
    "import sys; from virtha.scenario.language import parse; from virtha.sim.play import Player\n"
    + (
        "player = Player(); player.play(parse('# a story\\n' + sys.stdin.read()))\n"
        "print('\\n'.join(player.world.trace_lines))\n"
    )
)


def test_the_same_story_gives_the_same_trace_under_any_hash_seed():
    traces = {
        subprocess.run(
            [sys.executable, "-c", TRACE],
            input=STORY,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(traces) == 1
    assert "its watchdog bites" in traces.pop()


# Bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("hosts h1\nlease\n", "before the first host"),
        ("host h1 watchdog=none\n", "needs leases"),
        ("lease\nhost h1 watchdog=big\n", "no watchdog 'big'"),
        ("lease\nhosts h1\ndrift h1 fast\n", "no drift in ppm"),
        ("lease\nhosts h1\ndrift h1 10001\n", "no drift in ppm"),
        ("lease\nhosts h1\nstale-slots h1 of=h9\n", "no host 'h9'"),
        ("lease\nhosts h1\ntear-slot h1 domain=ds9\n", "no storage domain 'ds9'"),
        ("lease\nhosts h1\nhang h1 at=lunch\n", "no point 'lunch'"),
        ("hosts h1\nhang h1 at=kill\n", "needs leases"),
        ("hosts h1\nlate-slot h1 25s\n", "needs leases"),
        ("lease\nhosts h1\nlate-slot h1 soon\n", "soon"),
        ("hosts h1\nbreak-storage slow\n", "storage that is 'slow'"),
        ("lease ds1\nhosts h1\nvm web on=h1 storage=ds2\n", "no storage domain 'ds2'"),
        ("lease\nhosts h1\njump-clock h1 tomorrow\n", "tomorrow"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(lines: str, why: str):
    with pytest.raises(InvalidInput) as caught:
        played(lines)
    assert why in str(caught.value)
    assert "line" in str(caught.value)
