"""However late, often and disordered an outbox comes: no living boot is called dead, no VM starts beside a copy that runs, and
when all has been told, every VM runs or says why not. See ``late_facts_world``."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from late_facts_world import VMS, LateWorld, Move

from virtha.model.ids import VmId

pytestmark = pytest.mark.req("F4", "F9")

NUMBER = st.integers(0, 95)
MOVES: st.SearchStrategy[list[Move]] = st.lists(
    st.tuples(NUMBER, NUMBER, NUMBER), min_size=8, max_size=60
)


def ends_well(world: LateWorld) -> None:
    """A release that overtakes the report which it ends leaves a holder that only a reboot disproves: safe, and no way that
    facts come, for each has its sequence."""
    world.settle(150)
    if not world.orderly:
        return
    if not world.told:
        world.connect_anew()  # of what came late, nobody could know that its boot was over
        world.settle(60)
    for vm in VMS:
        runs = [host.name for host in world.hosts.values() if vm in host.running]
        why = [one.code for one in world.engine.explain_vm(VmId(vm))]
        assert len(runs) == 1 or why, f"{vm} is down and nobody is told why: {world.record(vm)}"
        assert "recovery.waiting.proof" not in why, f"every host lives and has told: {why}"
        if runs:
            holders = {copy.host_id for copy in world.record(vm).copies}
            assert holders == set(runs), f"{vm} runs on {runs}, held by {world.record(vm)}"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves=MOVES, told=st.booleans(), orderly=st.booleans())
def test_no_order_of_facts_makes_two_writers(moves: list[Move], told: bool, orderly: bool) -> None:
    world = LateWorld(told=told, orderly=orderly)
    for move in moves:
        world.move(move)
    ends_well(world)


@pytest.mark.parametrize("seed", range(0, 100, 20))
def test_nor_in_long_runs(seed: int) -> None:
    starts = unseen = 0
    for each in range(seed, seed + 20):
        chance = random.Random(each)
        world = LateWorld(told=each % 4 != 0, orderly=each % 2 == 0)
        for _ in range(150):
            world.move((chance.randrange(96), chance.randrange(96), chance.randrange(96)))
        ends_well(world)
        starts += world.starts
        unseen += world.reboots_unseen
    assert starts > 10 and unseen > 20, (
        "runs that start nothing, or in which all is seen, show nothing"
    )


def test_what_a_boot_told_that_nobody_heard_of_ends_with_the_next_session():
    """It comes when the host is long in its next boot, and nobody can tell over which session it was read."""
    world = LateWorld(told=False, orderly=True)
    world.unheard_boot("h1")
    world.new_leader(recorded=False)
    world.connect("h1")
    world.settle(20)
    why = [one.code for one in world.engine.explain_vm(VmId("v1"))]
    assert why == ["recovery.waiting.proof"]
    world.connect_anew()
    world.settle(20)
    runs = [host.name for host in world.hosts.values() if "v1" in host.running]
    assert len(runs) == 1 and world.engine.explain_vm(VmId("v1")) == ()


def test_what_a_leader_finds_recorded_of_a_boot_that_is_over_holds_nothing():
    world = LateWorld(told=True, orderly=True)
    world.unheard_boot("h1")
    world.new_leader(recorded=False)
    world.connect("h1")
    world.new_leader(recorded=True)
    world.settle(20)
    runs = [host.name for host in world.hosts.values() if "v1" in host.running]
    assert len(runs) == 1 and world.engine.explain_vm(VmId("v1")) == ()
