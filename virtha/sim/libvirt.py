"""A host's libvirt and its QEMUs, without time of their own: every call acts at once.

It speaks the events that libvirt 9.0 with QEMU 7.2 sends, in their order:

- kill -9: STOPPED failed, state reason `crashed` (the monitor closed without SHUTDOWN)
- SIGTERM: SHUTDOWN host, STOPPED shutdown
- the guest's own shutdown: SHUTDOWN guest, STOPPED shutdown
- watchdog `poweroff`: WATCHDOG poweroff, then QEMU exits without SHUTDOWN: STOPPED failed
- watchdog `dump`: told as WATCHDOG pause, SUSPENDED watchdog, and after the dump RESUMED unpaused
- a panic under `on_crash=destroy`: PANICKED, STOPPED crashed
"""

from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element, tostring

from defusedxml.ElementTree import fromstring

from virtha.model.domain import DomainEvent, DomainEventKind, DomainReport, DomainState
from virtha.model.ids import VmId
from virtha.ports.hypervisor import DomainMissing, GateRefused, HypervisorFailed

Kind = DomainEventKind
Emit = Callable[[DomainEvent], None]
Gate = Callable[[VmId], str | None]
"""The start gate: None lets the start through, a text refuses it."""


class Qemu:
    """One process. ``running``: its virtual processors run, so it may write."""

    def __init__(self, pid: int, start_ticks: int, born_ms: int) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.running = False
        self.ran = False
        self.guest_boot_ms = born_ms
        self.bootstatus = 0
        self.agent_connected = False
        self.whole = True
        """All of its memory is there: not so while it comes from another host."""


def _place(device: Element) -> tuple[str | None, str | None]:
    """What tells a card or a disk from others."""
    mac, source = device.find("mac"), device.find("source")
    return (
        None if mac is None else mac.get("address"),
        None if source is None else source.get("file"),
    )


class Domain:
    def __init__(self, vm_id: VmId, name: str, xml: str) -> None:
        self.vm_id = vm_id
        self.name = name
        self.xml = xml
        self.live_xml = xml
        """Of its QEMU: what was defined when that was made."""
        self.watchdog_action: str | None = None
        self.on_crash = "destroy"
        self.state = DomainState.SHUTOFF
        self.reason = "unknown"
        self.persistent = True
        self.autostart = False
        self.managed_save = False
        self.qemu: Qemu | None = None
        self.dumping = False
        self.keeps_devices = False

    def report(self) -> DomainReport:
        return DomainReport(
            vm_id=self.vm_id,
            name=self.name,
            state=self.state,
            reason=self.reason,
            persistent=self.persistent,
            autostart=self.autostart,
            managed_save=self.managed_save,
            pid=self.qemu.pid if self.qemu else None,
        )


class SimLibvirt:
    """``clock`` gives the host's milliseconds; ``emit`` gets each event in order."""

    def __init__(
        self, *, clock: Callable[[], int], emit: Emit, gate: Gate, first_pid: int = 1_000
    ) -> None:
        self._clock = clock
        self._emit = emit
        self._gate = gate
        self.incoming_gate: Gate = gate
        """For what comes from another host."""
        self._next_pid = first_pid
        self._domains: dict[VmId, Domain] = {}
        """In the order of their ids."""
        self.on_running: Callable[[VmId, bool], None] = lambda _vm_id, _runs: None
        """Whenever the processors of a QEMU begin to run, or do so no more."""
        self.processes = 0
        """Counts the beginnings and ends of QEMUs: while it stands still, so do they."""
        self.starts_that_fail = 0
        """So many next starts fail after QEMU was made, as with a vanished disk."""

    # Catalog

    def __iter__(self) -> Iterator[Domain]:
        return iter(tuple(self._domains.values()))

    def find(self, vm_id: VmId) -> Domain | None:
        return self._domains.get(vm_id)

    def domain(self, vm_id: VmId) -> Domain:
        domain = self._domains.get(vm_id)
        if domain is None:
            raise DomainMissing(f"no domain with id {vm_id}")
        return domain

    def define(self, xml: str) -> Domain:
        """Raises HypervisorFailed when the XML has no name or is none."""
        try:
            root = fromstring(xml)
        except SyntaxError as error:
            raise HypervisorFailed(f"the domain's XML can't be read: {error}") from error
        name, uuid = root.findtext("name"), root.findtext("uuid")
        if root.tag != "domain" or not name or not uuid:
            raise HypervisorFailed("a domain needs a name and a uuid")
        if any(other.name == name and other.vm_id != uuid for other in self._domains.values()):
            raise HypervisorFailed(f"domain '{name}' already exists with another uuid")
        if VmId(uuid) not in self._domains:
            self._domains[VmId(uuid)] = Domain(VmId(uuid), name, xml)
            self._domains = dict(sorted(self._domains.items()))
        domain = self._domains[VmId(uuid)]
        domain.name, domain.xml, domain.persistent = name, xml, True
        card = root.find("./devices/watchdog")
        domain.watchdog_action = None if card is None else card.get("action", "reset")
        domain.on_crash = root.findtext("on_crash") or "destroy"
        return domain

    def undefine(self, vm_id: VmId) -> None:
        domain = self._domains.get(vm_id)
        if domain is None:
            return
        domain.managed_save = False
        domain.persistent = False
        if domain.qemu is None:
            del self._domains[vm_id]
        self._say(vm_id, Kind.UNDEFINED)

    # Devices

    def attach(self, vm_id: VmId, device_xml: str) -> None:
        domain, _ = self._live(vm_id)
        devices = domain.live_xml.rindex("</devices>")
        domain.live_xml = domain.live_xml[:devices] + device_xml + domain.live_xml[devices:]

    def detach(self, vm_id: VmId, device_xml: str) -> None:
        """``keeps_devices``: the guest does not answer, as one without ACPI."""
        domain, _ = self._live(vm_id)
        root, wanted = fromstring(domain.live_xml), fromstring(device_xml)
        devices = root.find("devices")
        assert devices is not None, "a live domain has devices"
        for device in devices.findall(wanted.tag):
            if _place(device) == _place(wanted):
                if not domain.keeps_devices:
                    devices.remove(device)
                    domain.live_xml = tostring(root, encoding="unicode")
                return
        raise HypervisorFailed("there is no such device")

    # Power

    def start_paused(self, vm_id: VmId) -> None:
        domain = self.domain(vm_id)
        if domain.qemu is not None:
            raise HypervisorFailed(f"domain '{domain.name}' is already running")
        refusal = self._gate(vm_id)
        if refusal is not None:
            # Real libvirt sends no event for a start that its hook refused.
            domain.state, domain.reason = DomainState.SHUTOFF, "failed"
            raise GateRefused(refusal)
        self._next_pid += 1
        self.processes += 1
        domain.qemu = Qemu(self._next_pid, self._clock() // 10, self._clock())
        domain.live_xml = domain.xml
        if self.starts_that_fail:
            self.starts_that_fail -= 1
            self._stop(domain, "failed", reason="failed")
            raise HypervisorFailed("QEMU exited while it was set up")
        domain.state, domain.reason = DomainState.PAUSED, "starting_up"
        domain.managed_save = False
        self._say(vm_id, Kind.STARTED, "booted")
        self._say(vm_id, Kind.SUSPENDED, "paused")

    def run(self, vm_id: VmId) -> None:
        domain, qemu = self._live(vm_id)
        if qemu.running:
            return
        if not qemu.whole:
            raise HypervisorFailed(f"domain '{domain.name}' is still on its way")
        qemu.running = True
        if not qemu.ran:
            qemu.ran, qemu.guest_boot_ms = True, self._clock()
        domain.state, domain.reason = DomainState.RUNNING, "unpaused"
        self.on_running(vm_id, True)
        self._say(vm_id, Kind.RESUMED, "unpaused")

    def pause(self, vm_id: VmId) -> None:
        domain, qemu = self._live(vm_id)
        if qemu.running:
            self._suspend(domain, qemu, "user", "paused")

    def shutdown(self, vm_id: VmId) -> None:
        """Only asks; whether the guest obeys is up to ``guest_shutdown``."""
        self._live(vm_id)

    def reset(self, vm_id: VmId) -> None:
        _, qemu = self._live(vm_id)
        self._reboot_guest(vm_id, qemu, bootstatus=0)

    def destroy(self, vm_id: VmId) -> None:
        domain = self.domain(vm_id)
        if domain.qemu is not None:
            self._stop(domain, "destroyed", reason="destroyed")

    # Live migration, one side each: ``virtha.sim.migration`` leads it

    def receive(self, vm_id: VmId, *, uptime_ms: int) -> Qemu:
        """An empty QEMU that waits for a guest; ``uptime_ms``: how long that has been up."""
        domain = self.domain(vm_id)
        if domain.qemu is not None:
            raise HypervisorFailed(f"domain '{domain.name}' is already running")
        refusal = self.incoming_gate(vm_id)
        if refusal is not None:
            raise GateRefused(refusal)
        self._next_pid += 1
        self.processes += 1
        qemu = domain.qemu = Qemu(self._next_pid, self._clock() // 10, self._clock())
        qemu.guest_boot_ms, qemu.ran, qemu.whole = self._clock() - uptime_ms, True, False
        domain.state, domain.reason = DomainState.PAUSED, "migration"
        self._say(vm_id, Kind.STARTED, "migrated")
        return qemu

    def stand_still(self, vm_id: VmId) -> None:
        """The source, when all of it was sent."""
        domain, qemu = self._live(vm_id)
        self._suspend(domain, qemu, "migration", "migrated")

    def go_on(self, vm_id: VmId) -> None:
        """The target, now that it has all; or the source, for the target said no."""
        domain, qemu = self._live(vm_id)
        qemu.running = True
        domain.state, domain.reason = DomainState.RUNNING, "migrated"
        domain.managed_save = False
        self.on_running(vm_id, True)
        self._say(vm_id, Kind.RESUMED, "migrated")

    def handed_over(self, vm_id: VmId) -> None:
        self._stop(self.domain(vm_id), "migrated", reason="migrated")

    def drop_part(self, vm_id: VmId) -> None:
        """The target, whose guest will not come."""
        self._stop(self.domain(vm_id), "failed", reason="failed")

    # What happens to QEMU and its guest

    def kill_qemu(self, vm_id: VmId) -> None:
        self._live(vm_id)
        self._stop(self.domain(vm_id), "failed", reason="crashed")

    def stun(self, vm_id: VmId) -> None:
        """Killed, and not reaped yet: its processors are gone, libvirt sees nothing."""
        _, qemu = self._live(vm_id)
        if qemu.running:
            qemu.running = False
            self.on_running(vm_id, False)

    def terminate_qemu(self, vm_id: VmId) -> None:
        domain, _ = self._live(vm_id)
        self._shut_down(domain, "host")

    def guest_shutdown(self, vm_id: VmId) -> None:
        domain, _ = self._live(vm_id)
        self._shut_down(domain, "guest")

    def guest_reboot(self, vm_id: VmId) -> None:
        self.reset(vm_id)

    def panic(self, vm_id: VmId) -> None:
        domain, qemu = self._running(vm_id)
        self._say(vm_id, Kind.PANICKED, "panicked")
        match domain.on_crash:
            case "preserve":
                qemu.running = False
                self.on_running(vm_id, False)
                domain.state, domain.reason = DomainState.CRASHED, "panicked"
            case "restart":
                self._reboot_guest(vm_id, qemu, bootstatus=0)
            case _:
                self._stop(domain, "crashed", reason="crashed")

    def fire_watchdog(self, vm_id: VmId) -> None:
        """As the domain's card says; a shutdown is only asked for, a dump ends by ``end_dump``."""
        domain, qemu = self._running(vm_id)
        action = domain.watchdog_action
        assert action is not None, f"{domain.name} has no watchdog"
        self._say(vm_id, Kind.WATCHDOG, "pause" if action == "dump" else action)
        match action:
            case "reset":
                self._reboot_guest(vm_id, qemu, bootstatus=32)
            case "poweroff":
                self._stop(domain, "failed", reason="crashed")
            case "pause" | "dump":
                self._suspend(domain, qemu, "watchdog", "watchdog")
                domain.dumping = action == "dump"

    def end_dump(self, vm_id: VmId) -> None:
        domain = self.find(vm_id)
        if domain is not None and domain.qemu is not None and domain.dumping:
            domain.dumping = False
            self.run(vm_id)

    def io_error(self, vm_id: VmId) -> None:
        domain, qemu = self._live(vm_id)
        self._say(vm_id, Kind.IO_ERROR, "vda")
        self._suspend(domain, qemu, "ioerror", "ioerror")

    def connect_agent(self, vm_id: VmId) -> None:
        domain = self.find(vm_id)
        if domain is not None and domain.qemu is not None and not domain.qemu.agent_connected:
            domain.qemu.agent_connected = True
            self._say(vm_id, Kind.AGENT, "connected")

    def end_silently(self, vm_id: VmId, reason: str) -> None:
        """It ended while libvirt itself was down: no event, only the state that is found."""
        domain = self.domain(vm_id)
        self._gone(domain)
        domain.state, domain.reason = DomainState.SHUTOFF, reason

    # Inside

    def _live(self, vm_id: VmId) -> tuple[Domain, Qemu]:
        domain = self.domain(vm_id)
        if domain.qemu is None:
            raise HypervisorFailed(f"domain '{domain.name}' is not running")
        return domain, domain.qemu

    def _running(self, vm_id: VmId) -> tuple[Domain, Qemu]:
        """A guest whose processors stand still neither panics nor lets its card run out."""
        domain, qemu = self._live(vm_id)
        if not qemu.running:
            raise HypervisorFailed(f"domain '{domain.name}' is paused")
        return domain, qemu

    def _gone(self, domain: Domain) -> None:
        self.processes += 1
        domain.qemu, domain.dumping = None, False
        self.on_running(domain.vm_id, False)

    def _suspend(self, domain: Domain, qemu: Qemu, reason: str, detail: str) -> None:
        qemu.running = False
        self.on_running(domain.vm_id, False)
        domain.state, domain.reason = DomainState.PAUSED, reason
        self._say(domain.vm_id, Kind.SUSPENDED, detail)

    def _reboot_guest(self, vm_id: VmId, qemu: Qemu, *, bootstatus: int) -> None:
        qemu.guest_boot_ms = self._clock()
        qemu.bootstatus = bootstatus
        if qemu.agent_connected:
            qemu.agent_connected = False
            self._say(vm_id, Kind.AGENT, "disconnected")
        # Twice, as the real one was seen to: SeaBIOS resets the machine once more, 30 to 40 ms later.
        self._say(vm_id, Kind.REBOOTED)
        self._say(vm_id, Kind.REBOOTED)

    def _shut_down(self, domain: Domain, who: str) -> None:
        domain.state = DomainState.SHUTTING_DOWN
        self._say(domain.vm_id, Kind.SHUTDOWN, who)
        self._stop(domain, "shutdown", reason="shutdown")

    def _stop(self, domain: Domain, detail: str, *, reason: str) -> None:
        self._gone(domain)
        domain.state, domain.reason = DomainState.SHUTOFF, reason
        self._say(domain.vm_id, Kind.STOPPED, detail)
        if not domain.persistent:
            del self._domains[domain.vm_id]

    def _say(self, vm_id: VmId, kind: DomainEventKind, detail: str = "") -> None:
        self._emit(DomainEvent(vm_id=vm_id, kind=kind, detail=detail))
