"""What excuses a VM from running, and what must not: an engine that forgets what was tested, or a place that is free, says the
same as one that is right to wait."""

from collections.abc import Sequence

import pytest

from virtha.engine.placement import Blocked, Plan, VmToPlace
from virtha.engine.state import reason
from virtha.model.vm import Reason
from virtha.scenario.language import parse
from virtha.sim.liveness import NotLive, awaits_a_person
from virtha.sim.play import Player
from virtha.sim.world import World

UNTESTED, SWAPPED = "proof.blocked.untested", "proof.blocked.swapped"
ENDED = "engine\nhosts h1 h2\nvm web on=h1 ha\nstart web\nadvance 5s\npower-cut h1\n"


def doubt(why: str) -> tuple[Reason, ...]:
    return (reason("recovery.waiting.doubt", host="h1", why=why),)


def fallen(
    *shapes: str,
    named: bool = False,
    liar: str = "",
    tested: bool = True,
    beats: int = 3,
    slow_beats: int = 0,
) -> World:
    """Hosts h1, h2.. that are off, each with these levels of devices, and one more that is on. So many of its beats came, first
    while its devices were slow."""
    world = World()
    for number, kinds in enumerate((*shapes, "bmc"), 1):
        host = world.add_host(f"h{number}")
        for device in world.power.add(host, kinds.split(",") if kinds else (), named=named):
            device.tested = tested
            device.lied = device.name == liar
            well_ms, device.delay_ms = device.delay_ms, 5_000
            for number in range(slow_beats + beats):
                device.delay_ms = 5_000 if number < slow_beats else well_ms
                device.beat_came(host.boot, reached=True)
            device.delay_ms = well_ms
    world.hosts[f"h{len(shapes) + 1}"].powered = True
    return world


RIGHT: dict[str, tuple[World, Sequence[Reason]]] = {
    "its only device lied": (fallen("bmc", liar="h1-bmc1"), doubt(UNTESTED)),
    "one of its two outlets lied": (fallen("outlets", liar="h1-outlets1.2"), doubt(UNTESTED)),
    "the other level is blind": (fallen("bmc,blind", liar="h1-bmc1"), doubt(UNTESTED)),
    "the other level was never tested": (
        fallen("bmc,outlets", liar="h1-bmc1", tested=False),
        doubt(UNTESTED),
    ),
    "its device was slow for as long as it was beating": (
        fallen("bmc", slow_beats=200, beats=0),
        doubt(UNTESTED),
    ),
    "it was slow, and well for moments only": (
        fallen("bmc", slow_beats=10, beats=20),
        doubt(UNTESTED),
    ),
    "it was beating for a moment only": (fallen("bmc", beats=1), doubt(UNTESTED)),
    "another kind fell with it": (fallen("outlets", "bmc,outlets"), doubt(SWAPPED)),
    "one without devices fell with it": (fallen("bmc", ""), doubt(SWAPPED)),
    "it has not told": (fallen("bmc"), (reason("recovery.waiting.restored", host="h1"),)),
}
WRONG: dict[str, tuple[World, Sequence[Reason]]] = {
    "none of its devices lied": (fallen("bmc"), doubt(UNTESTED)),
    "it was slow, and well for minutes": (
        fallen("bmc", slow_beats=10, beats=300),
        doubt(UNTESTED),
    ),
    "the device of another host lied": (fallen("bmc", "bmc", liar="h2-bmc1"), doubt(UNTESTED)),
    "the test of its other level is forgotten": (
        fallen("bmc,outlets", liar="h1-bmc1"),
        doubt(UNTESTED),
    ),
    "nothing fell with it": (fallen("outlets"), doubt(SWAPPED)),
    "the same kind fell with it": (fallen("bmc", "bmc"), doubt(SWAPPED)),
    "a level alike fell with it": (fallen("bmc,outlets", "bmc"), doubt(SWAPPED)),
    "each device says whose it is": (fallen("outlets", "bmc", named=True), doubt(SWAPPED)),
    "a liar, and another doubt": (
        fallen("bmc", liar="h1-bmc1"),
        doubt("proof.blocked.disks_change"),
    ),
    "a liar, and another wait": (
        fallen("bmc", liar="h1-bmc1"),
        (reason("recovery.waiting.proof", host="h1"),),
    ),
    "its devices name the host that has not told": (
        fallen("bmc", named=True),
        (reason("recovery.waiting.restored", host="h1"),),
    ),
}


@pytest.mark.req("X3", "P6")
@pytest.mark.parametrize("case", RIGHT)
def test_it_waits_for_a_person(case: str) -> None:
    world, claims = RIGHT[case]
    assert awaits_a_person(world, claims)


@pytest.mark.req("X3")
@pytest.mark.parametrize("case", WRONG)
def test_that_is_no_reason_to_wait_for_a_person(case: str) -> None:
    world, claims = WRONG[case]
    assert not awaits_a_person(world, claims)


@pytest.mark.req("X3")
@pytest.mark.parametrize("case", RIGHT)
def test_nobody_waits_for_a_host_that_is_on(case: str) -> None:
    world, claims = RIGHT[case]
    on = World()
    on.hosts, on.power = dict(world.hosts), world.power
    off = on.hosts["h1"]
    off.powered = True
    try:
        assert not awaits_a_person(on, claims)
    finally:
        off.powered = False


def must_run(lines: str) -> None:
    player = Player()
    for step in parse(f"# a story\n{lines}must-run\n").steps:
        player.do(step)


@pytest.mark.req("X3", "F1")
def test_an_engine_that_forgets_each_test_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded bug: what was read off twice never proves."""
    monkeypatch.setattr(
        "virtha.engine.fencing.doubt", lambda *_: reason(UNTESTED, device="h1-bmc1")
    )
    with pytest.raises(NotLive, match=r"web does not run .*recovery\.waiting\.doubt"):
        must_run(ENDED)


@pytest.mark.req("X3", "F1")
def test_an_engine_that_never_finds_room_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded bug: a VM for which there is room is given none."""

    def nowhere(_capacity: object, vms: Sequence[VmToPlace], **_: object) -> Plan:
        full = (reason("recovery.blocked.no_capacity"),)
        blocked = tuple(Blocked(vm_id=one.id, reasons=full) for one in vms)
        return Plan(placements=(), waiting=(), blocked=blocked)

    monkeypatch.setattr("virtha.engine.recovery.plan_placements", nowhere)
    with pytest.raises(NotLive, match=r"web does not run .*recovery\.blocked\.no_capacity"):
        must_run(ENDED)
