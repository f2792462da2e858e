"""What can be done to a lab: power cuts, pulled cables, stalled storage, dead programs, sick guests."""

import signal
import time
from collections.abc import Sequence

from virtha.lab import guest
from virtha.lab.bmc import BmcManners
from virtha.lab.lab import Lab, start_server
from virtha.lab.namespaces import (
    ProcessId,
    command_line,
    kill,
    processes_in_network,
    wait_gone,
)
from virtha.lab.node import WATCHDOG_MODULE, Node
from virtha.model.errors import Conflict, Failed, Unavailable

GUEST_TIMEOUT_S = 60.0


def kill_host(lab: Lab, name: str, *, silent: bool = False) -> None:
    """A power cut. ``silent``: peers only stop hearing from it; else they see connections close."""
    with lab.power_button(name):
        host = lab.host(name)
        host.require_on()
        if silent and host.state.cable_up:
            # Written first: a crash in between must not leave a cable that nobody knows is out.
            lab.change_node(name, cable_up=False, cable_out_until_boot=True)
        host.power_cut(silent=silent)
        lab.change_node(name, init=None)


def boot_host(lab: Lab, name: str) -> None:
    """Power on: a new boot id, the same disks; its services start as on any boot. A cable that was pulled stays out."""
    press_power(lab, name).wait_ready()


def press_power(lab: Lab, name: str, services_on: Sequence[str] | None = None) -> Node:
    """Power on, with all services or only those named; returns the host as soon as it is on, and long before it is up."""
    with lab.power_button(name):
        host = lab.host(name)
        if host.is_on():
            raise Conflict(f"{name} is on already", field="host")
        if host.state.cable_out_until_boot:
            host.set_cable(up=True)
            host.state = lab.change_node(name, cable_up=True, cable_out_until_boot=False)
        lab.change_node(name, init=host.boot(services_on, wait_ready=False))
    return host


def hang_host(lab: Lab, name: str, *, with_watchdog: bool = True) -> None:
    """All of its processes stand still; its kernel goes on, and answers what needs no process. Its watchdog ends it when its
    time is over; ``with_watchdog=False``: that one is broken, and does not."""
    host = lab.host(name)
    for process in host.processes():
        kill(process, signal.SIGSTOP)
    # Not before its host stands still: its guardian would see it go.
    if not with_watchdog:
        end_watchdog(lab, name)


def thaw_host(lab: Lab, name: str) -> None:
    """Its processes go on where they were, those that stand still; one that is off stays so."""
    for process in lab.host(name).processes():
        kill(process, signal.SIGCONT)


def freeze_service(lab: Lab, name: str, service: str) -> None:
    """That program stands still, and its connections stand."""
    lab.host(name).signal_service(service, signal.SIGSTOP)


def end_watchdog(lab: Lab, name: str) -> None:
    """Nobody ends that host any more when it stands still, until it is booted. Gone already is fine."""
    for process in processes_in_network([lab.host(name).namespace]):
        if WATCHDOG_MODULE in command_line(process):
            kill(process)


def cut_net(lab: Lab, name: str) -> None:
    lab.node(name).set_cable(up=False)
    lab.change_node(name, cable_up=False, cable_out_until_boot=False)


def heal_net(lab: Lab, name: str) -> None:
    lab.node(name).set_cable(up=True)
    lab.change_node(name, cable_up=True, cable_out_until_boot=False)


def kill_bmc(lab: Lab, name: str) -> None:
    """Nothing answers on its address any more, whatever its host does."""
    lab.bmc(name).stop()
    lab.change_node(name, bmc=None)


def start_bmc(lab: Lab, name: str) -> None:
    bmc = lab.bmc(name)
    if bmc.host.state.bmc is not None and bmc.host.state.bmc.is_alive():
        raise Conflict(f"the BMC of {name} runs already", field="host")
    lab.change_node(name, bmc=bmc.start())


def spoil_bmc(lab: Lab, name: str, manners: BmcManners) -> None:
    """From its next request on; ``BmcManners()`` mends it."""
    lab.bmc(name).behave(manners)


def stall_storage(lab: Lab, name: str) -> None:
    """Its shared storage hangs: every access waits, nothing fails."""
    lab.host(name).signal_service("storage", signal.SIGSTOP)


def resume_storage(lab: Lab, name: str) -> None:
    lab.host(name).signal_service("storage", signal.SIGCONT)


def fail_storage(lab: Lab, name: str) -> None:
    """Its shared storage breaks: every access fails, until the host is booted again."""
    lab.host(name).kill_service("storage")


def kill_agent(lab: Lab, name: str) -> None:
    lab.host(name).kill_service("agent")


def start_agent(lab: Lab, name: str) -> None:
    lab.host(name).start_service("agent")


def kill_guardian(lab: Lab, name: str) -> None:
    lab.host(name).kill_service("guardian")


def start_guardian(lab: Lab, name: str) -> None:
    lab.host(name).start_service("guardian")


def kill_libvirtd(lab: Lab, name: str) -> None:
    """Running VMs go on without it."""
    lab.host(name).kill_service("libvirtd")


def start_libvirtd(lab: Lab, name: str) -> None:
    lab.host(name).start_service("libvirtd")


def kill_server(lab: Lab) -> None:
    lab.server.kill_service("server")


def start_server_again(lab: Lab) -> None:
    start_server(lab.server)


def kill_qemu(lab: Lab, vm: str) -> tuple[Node, ProcessId, float]:
    """kill -9 of a VM's QEMU. Returns host, process, and the moment (monotonic seconds)."""
    host = lab.host_of(vm)
    process = host.qemu_of(vm)
    if process is None:
        raise Unavailable(f"{vm} ended by itself just now")
    moment = time.monotonic()
    if not kill(process):
        raise Unavailable(f"{vm} ended by itself just now")
    if wait_gone([process], timeout_s=60.0):
        raise Failed(f"QEMU of {vm} (process {process.pid}) does not die")
    return host, process, moment


def hang_guest(lab: Lab, vm: str) -> Node:
    """Kill the guest's watchdog daemon with -9: its card fires when its time is up."""
    host = lab.host_of(vm)
    # A guest that still boots has nobody to hang yet.
    guest.wait_for_agent(host, vm, timeout_s=GUEST_TIMEOUT_S)
    before = guest.execute(host, vm, "pidof watchdog || true").split()
    if not before:
        raise Conflict(
            f"{vm} feeds no watchdog", fix=f"'virtha vm watchdog set {vm} i6300esb:reset', restart"
        )
    guest.execute(host, vm, "lab-hang")
    return host


def panic_guest(lab: Lab, vm: str) -> Node:
    """Crash the guest's kernel."""
    host = lab.host_of(vm)
    guest.wait_for_agent(host, vm, timeout_s=GUEST_TIMEOUT_S)
    guest.begin(host, vm, "lab-panic")
    return host
