"""Placement against its second, dumb implementation, and against what must be true of any plan."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_oracle import Dumb, World, check_plan
from placement_worlds import worlds

from virtha.engine.placement import Plan, plan_placements
from virtha.model.codes import REGISTRY
from virtha.model.time import Millis

EXAMPLES = settings(
    max_examples=int(os.environ.get("VIRTHA_PLACEMENT_EXAMPLES", "60")), deadline=None
)


def planned(world: World) -> Plan:
    return plan_placements(
        world.capacity(),
        world.vms,
        policy=world.policy,
        now=Millis(world.now_ms),
        progress=world.progress,
    )


@pytest.mark.req("X1")
@settings(EXAMPLES, max_examples=3 * EXAMPLES.max_examples)
@given(worlds())
def test_plans_are_valid_and_those_of_the_dumb_planner(world: World) -> None:
    plan, dumb = planned(world), Dumb(world).run()
    check_plan(world, plan)
    assert [(one.vm_id, one.host_id) for one in plan.placements] == list(dumb.placed.items())
    assert [(one.vm_id, one.host_id) for one in plan.waiting] == list(dumb.waiting.items())
    assert [one.vm_id for one in plan.blocked] == dumb.blocked
    for one in (*plan.placements, *plan.waiting, *plan.blocked):
        for reason in one.reasons:
            assert set(reason.fields) == set(REGISTRY[reason.code].fields), reason.code


@EXAMPLES
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing(world: World, chance) -> None:
    def shuffled(values):
        return tuple(chance.sample(values, len(values)))

    other = msgspec.structs.replace(
        world,
        hosts=shuffled(world.hosts),
        running=shuffled(world.running),
        vms=shuffled(world.vms),
    )
    assert planned(other) == planned(world)


@EXAMPLES
@given(worlds(), st.data())
def test_a_capacity_kept_up_to_date_plans_as_one_made_anew(world: World, data) -> None:
    """Changes, and plans in between, leave nothing behind."""
    capacity = world.capacity()
    steps = [("host", host) for host in world.hosts] + [("vm", one) for one in world.running]
    for kind, what in data.draw(st.lists(st.sampled_from(steps), max_size=6)) if steps else ():
        if kind == "host":
            grown = msgspec.structs.replace(what, memory_bytes=what.memory_bytes * 2, unfit=None)
            capacity.host_changed(grown)
        else:
            capacity.vm_ended(what[0], what[1].id)
        if data.draw(st.booleans()):
            _plan_on(capacity, world)
    for host in world.hosts:
        if data.draw(st.booleans()):
            capacity.host_removed(host.id)
            capacity.settle()
        capacity.host_changed(host)
    for host_id, vm, in_flight in world.running:
        capacity.vm_started(host_id, vm, in_flight=in_flight)
    assert _plan_on(capacity, world) == planned(world)


def _plan_on(capacity, world):
    return plan_placements(
        capacity,
        world.vms,
        policy=world.policy,
        now=Millis(world.now_ms),
        progress=world.progress,
    )


def test_hash_seeds_change_nothing() -> None:
    script = Path(__file__).with_name("placement_digest.py")
    digests = {
        subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(digests) == 1
    assert json.loads(digests.pop())["blocked"] > 0
