"""Carries out what ``chaos_plan.py`` drew: on real hosts, while BMCs, engine and watchdogs do what they do to the same hosts.

A strike may find its host off, or its service gone: then it says so, and nothing happens.
"""

import signal
import time
from collections.abc import Callable

from virtha.lab import faults
from virtha.lab.bmc import BmcFault, BmcManners
from virtha.lab.chaos_plan import FaultKind, Strike
from virtha.lab.lab import Lab
from virtha.lab.namespaces import ProcessId, kill
from virtha.lab.node import Node
from virtha.model.errors import Conflict, VirthaError

Mend = Callable[[], object]
OFF_RESTS_S = 15.0
"""A technician does not press a power button right after somebody else did: what was ordered off is read as off first."""
_SERVICES = ("virtlogd", "libvirtd", "guardian", "agent")


def _nothing() -> None:
    return


class Striker:
    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._off_since_s: dict[str, float] = {}

    def strike(self, one: Strike) -> Mend:
        """What mends it, if it is to be mended by itself. Raises VirthaError where it can't strike."""
        lab, target = self._lab, one.target
        match one.kind:
            case FaultKind.POWER_CUT | FaultKind.POWER_CUT_SILENT:
                faults.kill_host(lab, target, silent=one.kind is FaultKind.POWER_CUT_SILENT)
                return lambda: faults.press_power(lab, target)
            case FaultKind.HOST_HUNG:
                return self._hang(lab.host(target))
            case FaultKind.NETWORK_CUT:
                faults.cut_net(lab, target)
                return lambda: faults.heal_net(lab, target)
            case FaultKind.STORAGE_STALL:
                return self._freeze(target, "storage")
            case FaultKind.BMC_DEAD:
                faults.kill_bmc(lab, target)
                return lambda: faults.start_bmc(lab, target)
            case FaultKind.BMC_SLOW:
                slow = BmcManners(fault=BmcFault.SLOW, slow_ms=one.amount_ms)
                faults.spoil_bmc(lab, target, slow)
                return lambda: faults.spoil_bmc(lab, target, BmcManners())
            case FaultKind.AGENT_KILLED:
                return self._kill(target, "agent")
            case FaultKind.GUARDIAN_KILLED:
                return self._kill(target, "guardian")
            case FaultKind.LIBVIRTD_KILLED:
                return self._kill(target, "libvirtd")
            case FaultKind.GUARDIAN_FROZEN:
                return self._freeze(target, "guardian")
            case FaultKind.LIBVIRTD_HUNG:
                return self._freeze(target, "libvirtd")
            case FaultKind.QEMU_KILLED:
                faults.kill_qemu(lab, target)
                return _nothing
            case FaultKind.SERVER_KILLED:
                faults.kill_server(lab)
                return lambda: self._server_is_on()
            case _:
                raise AssertionError(f"{one.kind} is an operator's work")

    def _kill(self, host: str, service: str) -> Mend:
        self._lab.host(host).kill_service(service)
        return lambda: self._lab.host(host).start_service(service)

    def _freeze(self, host: str, service: str) -> Mend:
        self._lab.host(host).signal_service(service, signal.SIGSTOP)
        return lambda: self._lab.host(host).signal_service(service, signal.SIGCONT)

    def _hang(self, host: Node) -> Mend:
        host.require_on()
        stopped: set[ProcessId] = set()
        # Until no new one was born meanwhile.
        while found := set(host.processes()) - stopped:
            stopped |= found
            for process in found:
                kill(process, signal.SIGSTOP)

        def thaw() -> None:
            for process in stopped:
                kill(process, signal.SIGCONT)

        return thaw

    def _server_is_on(self) -> None:
        if "server" not in self._lab.server.running_services():
            faults.start_server_again(self._lab)

    def mend_all(self) -> list[str]:
        """Everything that is broken now and is no product's business to mend; may be called again and again. Returns what
        was done, or could not be."""
        did = [f"server: {error}" for error in _tried(self._server_is_on)]
        for host in self._lab.hosts:
            did += [f"{host.name}: {words}" for words in self._mend(host)]
        return did

    def _mend(self, host: Node) -> list[str]:
        lab, name = self._lab, host.name
        did = []
        if host.state.bmc is None:
            did += _tried(lambda: faults.start_bmc(lab, name))
        if lab.bmc(name).manners() != BmcManners():
            faults.spoil_bmc(lab, name, BmcManners())
        if not host.state.cable_up and not host.state.cable_out_until_boot:
            did += _tried(lambda: faults.heal_net(lab, name))
        if not host.is_on():
            return [*did, *self._power_on(name)]
        self._off_since_s.pop(name, None)
        for process in host.processes():
            kill(process, signal.SIGCONT)
        if not (host.directory / "ready").exists():
            return did  # it boots
        return [*did, *_tried(lambda: _start_missing(host))]

    def _power_on(self, name: str) -> list[str]:
        now_s = time.monotonic()
        if now_s - self._off_since_s.setdefault(name, now_s) < OFF_RESTS_S:
            return []
        self._off_since_s.pop(name)
        return ["power pressed", *_tried(lambda: faults.press_power(self._lab, name))]


def _start_missing(host: Node) -> None:
    running = host.running_services()
    for service in _SERVICES:
        if service not in running:
            host.start_service(service)


def _tried(act: Mend) -> list[str]:
    """Why it did not work; nothing when it did, or when somebody else was faster."""
    try:
        act()
    except Conflict:
        return []
    except (VirthaError, OSError) as error:
        return [str(error)]
    return []
