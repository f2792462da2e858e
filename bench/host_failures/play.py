"""One round of each kind of failure: break it, watch from outside, say what was seen."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from host_failures.cases import RECOVERS, Case, Fault
from host_failures.floor import Floor
from host_failures.outside import End, Outside
from host_failures.played import Round
from host_failures.stage import CALM_S, VICTIM, Stage
from virtha.lab import faults, guest
from virtha.lab.api import Json
from virtha.lab.namespaces import kill
from virtha.lab.node import wait_until
from virtha.model.errors import Failed, VirthaError

RECOVERED_S = 150.0
SEEN_S = 60.0
CUT_S = 20.0
"""How long a network cut lasts: longer than a hung host is waited for (balanced: 12 s)."""
AGENT_AWAY_S = 10.0
THAWED_S = 3.0
CORES = 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A round's. ``dead``: when the host that fails was dead; None: it is not to die."""

    stage: Stage
    case: Case
    outside: Outside
    dead: End | None

    @property
    def vms(self) -> list[str]:
        return self.stage.vms(self.case)

    def is_dead(self) -> None:
        """The host that fails: all of its processes were waited for."""
        if self.dead is not None:
            self.dead.note()

    def double_runs(self) -> int:
        return self.outside.double_runs(self.vms, self.dead)


def play(stage: Stage, case: Case) -> Round:
    """All is well when it begins. Where what is measured did not come about, it says why; how often a VM ran twice it says
    then, too, for that is when it would have."""
    try:
        if case.fault is Fault.NONE:
            return Floor(stage).measure()
        dies = case.fault in RECOVERS
        watched = stage.others if dies else stage.lab.hosts
        with Outside(stage.lab, watched, stage.disks(case)) as outside:
            dead = End(stage.victim_process) if dies else None
            scene = Scene(stage=stage, case=case, outside=outside, dead=dead)
            try:
                return _PLAYS[case.fault](scene)
            except VirthaError as error:
                return _failed(scene, error.message)
    except VirthaError as error:
        return Round(failed=error.message, double_runs=None)


def _failed(scene: Scene, why: str) -> Round:
    try:
        double_runs: int | None = scene.double_runs()
    except VirthaError as error:
        why, double_runs = f"{why}; {error.message}", None
    return Round(failed=why, double_runs=double_runs, orders=scene.stage.orders())


# A host fails, and its VMs come back


def _host_fails(scene: Scene) -> Round:
    stage, case, outside, vms = scene.stage, scene.case, scene.outside, scene.vms
    revision = stage.story.revision()
    with _busy(case.loaded), _stopped_libvirtd(stage, case):
        began_s = _break(scene)
        started = outside.wait_for_each("started", vms, timeout_s=RECOVERED_S)
        resumed = outside.wait_for_each("resumed", vms, timeout_s=RECOVERED_S)
        _wait_recovered(stage, vms, revision)
    if case.libvirtd_hangs:
        # What it was once told to start, it would start now.
        time.sleep(THAWED_S)
    if case.vms > 1:
        _wait_for_guests(stage, vms)
    double_runs, started_again = scene.double_runs(), outside.started_again()
    told = stage.events(revision)
    if case.libvirtd_hangs:
        _first_target_was_hung(told)
    return Round(
        started_s=_after(began_s, started),
        resumed_s=_after(began_s, resumed),
        double_runs=double_runs,
        started_again=started_again,
        suspected=sum(_suspects_another(one) for one in told),
        orders=stage.orders(),
        phases=_phases(stage, revision),
    )


def _after(began_s: float, moments: dict[str, float]) -> tuple[float, ...]:
    return tuple(round(moment - began_s, 4) for moment in sorted(moments.values()))


def _break(scene: Scene) -> float:
    """Returns the moment before it, so that nothing is measured shorter than it was."""
    stage, case, lab = scene.stage, scene.case, scene.stage.lab
    match case.fault:
        case Fault.HUNG:
            processes = stage.victim.processes()
            began_s = time.monotonic()
            for process in processes:
                kill(process, signal.SIGSTOP)
        case Fault.POWER_AND_BMC:
            faults.kill_bmc(lab, VICTIM)
            began_s = time.monotonic()
            faults.kill_host(lab, VICTIM, silent=True)
            scene.is_dead()
        case _:
            began_s = time.monotonic()
            faults.kill_host(lab, VICTIM, silent=case.fault is Fault.POWER_SILENT)
            scene.is_dead()
    return began_s


def _wait_recovered(stage: Stage, vms: list[str], revision: int) -> None:
    """Its host tells that it runs; that this was the recovery, the engine says with its next turn."""

    def are_recovered() -> bool:
        told = stage.events(revision)
        return sum(one["code"] == "vm.recovered" for one in told) == len(vms)

    wait_until(are_recovered, f"{len(vms)} VMs count as recovered", timeout_s=SEEN_S, pause_s=0.1)
    for vm in vms:
        stage.story.wait_state(vm, "running")


def _wait_for_guests(stage: Stage, vms: list[str]) -> None:
    """The boot storm to its end: nobody may be suspected for it."""
    for vm in vms:
        guest.wait_for_agent(stage.lab.host_of(vm), vm, timeout_s=CALM_S)


def _suspects_another(event: Json) -> bool:
    return event["code"] == "host.suspected" and event["fields"].get("host") != VICTIM


def _phases(stage: Stage, revision: int) -> dict[str, int]:
    found = stage.last_incident(revision)["phases"]
    return {phase["name"]: phase["ms"] for phase in found if phase["ms"] is not None}


@contextlib.contextmanager
def _busy(loaded: bool) -> Iterator[None]:
    """A process per core that does nothing else."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(CORES if loaded else 0)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _stopped_libvirtd(stage: Stage, case: Case) -> Iterator[None]:
    """On the best place for the VM: of two that are equal, the one with the lower number."""
    if not case.libvirtd_hangs:
        yield
        return
    target = stage.others[0]
    target.signal_service("libvirtd", signal.SIGSTOP)
    try:
        yield
    finally:
        target.signal_service("libvirtd", signal.SIGCONT)


def _first_target_was_hung(told: list[Json]) -> None:
    targets = [one["fields"] for one in told if one["code"] == "vm.recovery_started"]
    if len(targets) < 2:
        raise Failed(f"its start was never given to the host whose libvirtd stood still: {targets}")


# Nobody may touch anything


def _network_cut(scene: Scene) -> Round:
    """Shown: what `GET /v1/hosts/h1` says."""
    stage, outside, (vm,) = scene.stage, scene.outside, scene.vms
    revision = stage.story.revision()
    file = outside.file_of(vm)
    began_s = time.monotonic()
    faults.cut_net(stage.lab, VICTIM)
    isolated_s = _when(lambda: _host(stage)["verdict"] == "isolated", "isolated is shown") - began_s
    writes = 0
    newest = file.stat().st_mtime_ns
    while time.monotonic() < began_s + CUT_S:
        time.sleep(0.1)
        changed = file.stat().st_mtime_ns
        writes, newest = writes + (changed != newest), changed
    faults.heal_net(stage.lab, VICTIM)
    _when(lambda: _host(stage)["verdict"] == "alive", "it is back")
    told = [one["code"] for one in stage.events(revision)]
    starts = len(outside.seen("started"))
    return Round(
        measured={
            "isolated_s": round(isolated_s, 4),
            "writes": writes,
            "starts": starts,
            "fences": told.count("fence.began") + len(stage.orders()),
            "recoveries": told.count("vm.recovery_started"),
        },
        double_runs=scene.double_runs(),
        orders=stage.orders(),
    )


def _agent_killed(scene: Scene) -> Round:
    stage = scene.stage
    began_s = time.monotonic()
    faults.kill_agent(stage.lab, VICTIM)
    down_s = _when(lambda: _host(stage)["status"]["state"] == "agent_down", "agent down is shown")
    time.sleep(max(0.0, began_s + AGENT_AWAY_S - time.monotonic()))
    again_s = time.monotonic()
    faults.start_agent(stage.lab, VICTIM)
    back_s = _when(lambda: _is_up(_host(stage)), "its agent is back")
    # What an agent would do to VMs, it does when it comes back.
    time.sleep(1.0)
    # Not the domain by which it proves its start gate, which never runs.
    touched = [seen for _, seen in scene.outside.seen() if seen.vm in scene.vms]
    return Round(
        measured={
            "shown_s": round(down_s - began_s, 4),
            "back_s": round(back_s - again_s, 4),
            "touched": len(touched) + len(stage.orders()),
        },
        double_runs=scene.double_runs(),
        orders=stage.orders(),
    )


def _qemu_killed(scene: Scene) -> Round:
    """Its agent starts it again where it was."""
    stage, outside, (vm,) = scene.stage, scene.outside, scene.vms
    revision = stage.story.revision()
    _, _, began_s = faults.kill_qemu(stage.lab, vm)
    started = outside.wait_for_each("started", [vm], timeout_s=RECOVERED_S)
    resumed = outside.wait_for_each("resumed", [vm], timeout_s=RECOVERED_S)
    stage.story.wait_event(vm, "vm.restarted", after=revision)
    # The next one comes when this one's history is complete, as in life.
    stage.story.wait_event(vm, "vm.evidence.kept", after=revision)
    return Round(
        started_s=_after(began_s, started),
        resumed_s=_after(began_s, resumed),
        double_runs=scene.double_runs(),
        orders=stage.orders(),
    )


def _host(stage: Stage) -> Json:
    return stage.story.api.get(f"/v1/hosts/{VICTIM}")


def _is_up(view: Json) -> bool:
    return view["status"]["state"] == "up" and bool(view["agent_connected"])


def _when(condition: Callable[[], bool], what: str) -> float:
    """The moment (monotonic seconds) at which it was seen to be so."""
    wait_until(condition, what, timeout_s=SEEN_S, pause_s=0.02)
    return time.monotonic()


_PLAYS: dict[Fault, Callable[[Scene], Round]] = {
    **dict.fromkeys(RECOVERS, _host_fails),
    Fault.NETWORK_CUT: _network_cut,
    Fault.AGENT_KILLED: _agent_killed,
    Fault.QEMU_KILLED: _qemu_killed,
}
