"""The server is killed in the middle of a fencing, at twenty moments; the one that is started in its place finishes it."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from recorded import Recorded

from virtha.engine.records import FenceStep
from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.bmc import Bmc, BmcManners
from virtha.lab.disk_witnesses import DiskWitnesses
from virtha.lab.node import wait_until
from virtha.lab.story import Story, bmcs, no_restart_limit
from virtha.lab.watching import LibvirtWitness

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.req("F4", "F5"),
]
PATIENCE_S = 240.0
LOOK_S = 0.002
VM = "web1"
VICTIM, TARGET = "h1", "h2"
OFFS = {"off", "off!"}
OFF, ON, READ = "set power 0", "set power 1", "get power"
POLICY: Json = {
    **no_restart_limit(),
    # One after the other, many within the hour; a loaded machine takes its time to run ipmitool.
    "fencing": {"action": "reboot", "cap_count": 1000, "read_deadline_ms": 4_500},
    # Its watchdog would end the host before it is ordered off.
    "lease": {"enabled": False},
}


@dataclass(frozen=True)
class Scene:
    story: Story
    bmc: Bmc
    recorded: Recorded
    target: LibvirtWitness


@dataclass(frozen=True)
class Moment:
    """``reached``: asked again and again. ``holds``: at which the BMC stops, one after the other; the last one is the moment."""

    name: str
    reached: Callable[[Scene], bool] = lambda scene: scene.bmc.is_held
    holds: tuple[BmcManners, ...] = field(default=())
    libvirt_stands: bool = False
    """That of the target, from the beginning on."""

    def __str__(self) -> str:
        return self.name


def _at_bmc(name: str, words: str, **more: int | bool) -> Moment:
    return Moment(name, holds=(BmcManners(hold=words, **more),))


def _event(code: str, **more: bool) -> Moment:
    words = "with libvirt of the target standing" if more else ""
    return Moment(f"{code} is recorded {words}".strip(), lambda at: at.recorded.event(code), **more)


def _line(code: str) -> Moment:
    return Moment(f"{code} is recorded", lambda at: at.recorded.line(code))


def _target_says(kind: str) -> Callable[[Scene], bool]:
    return lambda at: any(one.vm == VM and one.kind == kind for one in at.target.since(0))


MOMENTS = (
    _event("host.suspected"),
    _at_bmc("the silent host's BMC is asked, and has not answered", READ),
    _event("host.judged_dead"),
    _event("fence.began"),
    _line("incident.fence.intended"),
    _at_bmc("off is with the BMC, and not carried out", OFF),
    _at_bmc("off is carried out, and not answered", OFF, hold_after=True),
    _line("incident.fence.accepted"),
    Moment(
        "the first reading back is asked, and not answered",
        holds=(BmcManners(hold=OFF, hold_after=True), BmcManners(hold=READ)),
    ),
    _line("incident.fence.read_off"),
    Moment(
        "the second reading back is asked, and not answered",
        holds=(BmcManners(hold=OFF, hold_after=True), BmcManners(hold=READ, hold_nth=2)),
    ),
    _event("host.proven_dead"),
    Moment("on is recorded", lambda at: at.recorded.step(FenceStep.ON_ORDERED)),
    _at_bmc("on is with the BMC, and not carried out", ON),
    _at_bmc("on is carried out, and not answered", ON, hold_after=True),
    _line("incident.fence.on_taken"),
    _event("vm.recovery_started", libvirt_stands=True),
    Moment("QEMU is made on the target", _target_says("started")),
    Moment("the VM runs on the target", _target_says("resumed")),
    _event("vm.recovered"),
)


ON_INTENDED = next(n for n, moment in enumerate(MOMENTS) if str(moment) == "on is recorded")
"""From this moment on the host is to be on, and no off may follow, whoever gives it."""


def test_there_are_twenty_moments() -> None:
    assert len({str(moment) for moment in MOMENTS}) == len(MOMENTS) == 20


@pytest.fixture
def scene(story: Story) -> Iterator[Scene]:
    print(f"policy: {POLICY}")
    story.set_policy(POLICY)
    try:
        with bmcs(story) as made:
            story.create_vm(VM, host=VICTIM)
            story.wait_agent(VM)
            with (
                Recorded(story, VICTIM) as recorded,
                LibvirtWitness(story.lab.host(TARGET)) as target,
            ):
                yield Scene(story, made[VICTIM], recorded, target)
    finally:
        story.lab.host(TARGET).signal_service("libvirtd", signal.SIGCONT)
        story.set_policy(no_restart_limit())


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_server_that_is_killed_in_a_fencing_is_followed_by_one_that_finishes_it(
    scene: Scene, moment: Moment
) -> None:
    story = scene.story
    revision, vm = story.revision(), story.api.vm(VM)
    target = story.lab.host(TARGET)
    with DiskWitnesses(story.lab, {VM: str(vm["vm"]["disks"][0]["path"])}) as witnesses:
        if moment.libvirt_stands:
            target.signal_service("libvirtd", signal.SIGSTOP)
        _reach(scene, moment)
        asked = len(scene.bmc.requests())
        faults.kill_server(story.lab)
        scene.bmc.behave(BmcManners())
        if moment.libvirt_stands:
            target.signal_service("libvirtd", signal.SIGCONT)
        faults.start_server_again(story.lab)
        _wait_finished(scene, revision)
    assert witnesses.error is None
    assert witnesses.of[VM].double_runs == 0, witnesses.of[VM].writers
    assert story.lab.copies_of(VM) == [TARGET]
    came = [one.kind for one in scene.target.since(0) if one.vm == VM]
    assert (came.count("started"), came.count("resumed")) == (1, 1), came
    assert story.api.vm(VM)["status"]["incarnation"] == vm["status"]["incarnation"] + 1
    orders = scene.bmc.orders()
    print(f"{moment}: its BMC was told {orders}")
    assert orders.count("off!") == 1, "one off found the host on"
    assert not OFFS & set(orders[orders.index("on") :]), "none after it was ordered on"
    if MOMENTS.index(moment) >= ON_INTENDED:
        later = [one.order for one in scene.bmc.requests()[asked:] if one.order]
        print(f"{moment}: of these after the kill {later}")
        assert not OFFS & set(later), "none after it was to be on"
    _one_fence_is_done(story, revision)


def _reach(scene: Scene, moment: Moment) -> None:
    """The host hangs, and the fencing has come as far as that."""
    first, *others = moment.holds or (BmcManners(),)
    scene.bmc.behave(first)
    faults.hang_host(scene.story.lab, VICTIM, with_watchdog=False)
    for manners in others:
        wait_until(
            lambda: scene.bmc.is_held, "its BMC is held", timeout_s=PATIENCE_S, pause_s=LOOK_S
        )
        scene.bmc.behave(manners)
    wait_until(lambda: moment.reached(scene), str(moment), timeout_s=PATIENCE_S, pause_s=LOOK_S)


def _wait_finished(scene: Scene, revision: int) -> None:
    story = scene.story

    def is_finished() -> bool:
        codes = {event["code"] for event in story.api.events(after=revision)}
        return {"vm.recovered", "host.returned"} <= codes

    wait_until(
        is_finished, f"{VM} is recovered, {VICTIM} returned", timeout_s=PATIENCE_S, pause_s=0.5
    )
    story.wait_agent(VM)
    wait_until(
        lambda: all(one["ended"] for one in _fences(story, revision)),
        "the fence has ended",
        timeout_s=PATIENCE_S,
    )


def _fences(story: Story, revision: int) -> list[Json]:
    """Operations since then."""
    found = story.api.get("/v1/operations", kind="host.fence")["items"]
    return [one for one in found if one["revision"] > revision]


def _one_fence_is_done(story: Story, revision: int) -> None:
    found = [(one["state"], one["code"]) for one in _fences(story, revision)]
    assert found == [("done", None)]
    codes = [event["code"] for event in story.api.events(after=revision)]
    assert [codes.count(code) for code in ("fence.began", "host.proven_dead")] == [1, 1], codes
