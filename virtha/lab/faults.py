"""What can be done to a lab: power cuts, pulled cables, stalled storage, dead programs, sick guests."""

import signal
import time

import msgspec

from virtha.lab import guest
from virtha.lab.lab import Lab, start_server
from virtha.lab.namespaces import ProcessId, kill, wait_gone
from virtha.lab.node import Node
from virtha.model.errors import Conflict, Failed, Unavailable

GUEST_TIMEOUT_S = 60.0


def kill_host(lab: Lab, name: str, *, silent: bool = False) -> None:
    """A power cut. ``silent``: peers only stop hearing from it; else they see connections close."""
    host = lab.host(name)
    host.require_on()
    if silent:
        # Written first: a crash in between must not leave a cable that nobody knows is out.
        lab.keep(msgspec.structs.replace(host.state, cable_up=False))
    host.power_cut(silent=silent)
    lab.keep(msgspec.structs.replace(lab.state.node(name), init=None))


def boot_host(lab: Lab, name: str) -> None:
    """Power on: a new boot id, the same disks; its services start as on any boot."""
    host = lab.host(name)
    if host.is_on():
        raise Conflict(f"{name} is on already", field="host")
    host.set_cable(up=True)
    host.state = msgspec.structs.replace(host.state, cable_up=True)
    try:
        host.boot()
    finally:
        # Also when a service failed: the host is on, and `down` and `exec` must know it.
        lab.keep(host.state)


def cut_net(lab: Lab, name: str) -> None:
    lab.node(name).set_cable(up=False)
    lab.keep(msgspec.structs.replace(lab.state.node(name), cable_up=False))


def heal_net(lab: Lab, name: str) -> None:
    lab.node(name).set_cable(up=True)
    lab.keep(msgspec.structs.replace(lab.state.node(name), cable_up=True))


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
    if wait_gone([process], timeout_s=10.0):
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
