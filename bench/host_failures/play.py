"""One round of each kind of failure: break it, watch from outside, say what was seen."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from host_failures.cases import RECOVERS, Case, Fault
from host_failures.floor import Floor
from host_failures.outside import End, Outside
from host_failures.played import Round
from host_failures.stage import CALM_S, VICTIM, Stage
from virtha.lab import faults, guest
from virtha.lab.api import Json
from virtha.lab.namespaces import kill
from virtha.lab.node import wait_until
from virtha.model.errors import Failed

RECOVERED_S = 150.0
SEEN_S = 60.0
CUT_S = 20.0
"""How long a network cut lasts: longer than a hung host is waited for (balanced: 12 s)."""
AGENT_AWAY_S = 10.0
THAWED_S = 3.0
CORES = 2


def play(stage: Stage, case: Case) -> Round:
    """All is well when it begins. Raises Failed where what is measured did not come about."""
    if case.fault in RECOVERS:
        return _host_fails(stage, case)
    return _OTHERS[case.fault](stage, case)


# A host fails, and its VMs come back


def _host_fails(stage: Stage, case: Case) -> Round:
    vms, revision = stage.vms(case), stage.story.revision()
    with Outside(stage.lab, stage.others, stage.disks(case)) as outside:
        with _busy(case.loaded), _stopped_libvirtd(stage, case):
            dead = End(stage.victim_process)
            began_s = _break(stage, case)
            started = outside.wait_for_each("started", vms, timeout_s=RECOVERED_S)
            resumed = outside.wait_for_each("resumed", vms, timeout_s=RECOVERED_S)
            _wait_recovered(stage, vms, revision)
        if case.libvirtd_hangs:
            # What it was once told to start, it would start now.
            time.sleep(THAWED_S)
        if case.vms > 1:
            _wait_for_guests(stage, vms)
        double_runs, started_again = outside.double_runs(vms, dead), outside.started_again()
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


def _break(stage: Stage, case: Case) -> float:
    """Returns the moment before it, so that nothing is measured shorter than it was."""
    lab = stage.lab
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
        case _:
            began_s = time.monotonic()
            faults.kill_host(lab, VICTIM, silent=case.fault is Fault.POWER_SILENT)
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


def _network_cut(stage: Stage, case: Case) -> Round:
    """Shown: what `GET /v1/hosts/h1` says."""
    (vm,), revision = stage.vms(case), stage.story.revision()
    with Outside(stage.lab, stage.lab.hosts, stage.disks(case)) as outside:
        file = outside.file_of(vm)
        began_s = time.monotonic()
        faults.cut_net(stage.lab, VICTIM)
        isolated_s = (
            _when(lambda: _host(stage)["verdict"] == "isolated", "isolated is shown") - began_s
        )
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
        double_runs = outside.double_runs([vm], None)
    return Round(
        measured={
            "isolated_s": round(isolated_s, 4),
            "writes": writes,
            "starts": starts,
            "fences": told.count("fence.began") + len(stage.orders()),
            "recoveries": told.count("vm.recovery_started"),
        },
        double_runs=double_runs,
        orders=stage.orders(),
    )


def _agent_killed(stage: Stage, case: Case) -> Round:
    with Outside(stage.lab, stage.lab.hosts, stage.disks(case)) as outside:
        began_s = time.monotonic()
        faults.kill_agent(stage.lab, VICTIM)
        down_s = _when(
            lambda: _host(stage)["status"]["state"] == "agent_down", "agent down is shown"
        )
        time.sleep(max(0.0, began_s + AGENT_AWAY_S - time.monotonic()))
        again_s = time.monotonic()
        faults.start_agent(stage.lab, VICTIM)
        back_s = _when(lambda: _is_up(_host(stage)), "its agent is back")
        # What an agent would do to VMs, it does when it comes back.
        time.sleep(1.0)
        # Not the domain by which it proves its start gate, which never runs.
        touched = [seen for _, seen in outside.seen() if seen.vm in stage.vms(case)]
        double_runs = outside.double_runs(stage.vms(case), None)
    return Round(
        measured={
            "shown_s": round(down_s - began_s, 4),
            "back_s": round(back_s - again_s, 4),
            "touched": len(touched) + len(stage.orders()),
        },
        double_runs=double_runs,
        orders=stage.orders(),
    )


def _qemu_killed(stage: Stage, case: Case) -> Round:
    """Its agent starts it again where it was."""
    (vm,) = stage.vms(case)
    revision = stage.story.revision()
    with Outside(stage.lab, stage.lab.hosts, stage.disks(case)) as outside:
        _, _, began_s = faults.kill_qemu(stage.lab, vm)
        started = outside.wait_for_each("started", [vm], timeout_s=RECOVERED_S)
        resumed = outside.wait_for_each("resumed", [vm], timeout_s=RECOVERED_S)
        stage.story.wait_event(vm, "vm.restarted", after=revision)
        # The next one comes when this one's history is complete, as in life.
        stage.story.wait_event(vm, "vm.evidence.kept", after=revision)
        double_runs = outside.double_runs([vm], None)
    return Round(
        started_s=_after(began_s, started),
        resumed_s=_after(began_s, resumed),
        double_runs=double_runs,
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


def _floor(stage: Stage, case: Case) -> Round:
    return Floor(stage).measure()


_OTHERS: dict[Fault, Callable[[Stage, Case], Round]] = {
    Fault.NONE: _floor,
    Fault.NETWORK_CUT: _network_cut,
    Fault.AGENT_KILLED: _agent_killed,
    Fault.QEMU_KILLED: _qemu_killed,
}
