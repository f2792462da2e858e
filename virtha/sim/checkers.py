"""Checkers: they read the world's truth, never the sentinel's own state."""

from collections.abc import Sequence

from virtha.model.codes import REGISTRY
from virtha.model.ids import VmId
from virtha.model.orders import StartVm
from virtha.model.vm import VmState
from virtha.sentinel.events import Command, GatherEvidence, Restart
from virtha.sentinel.guardian import PULSE_FRESH_MS
from virtha.sim.host import SimHost
from virtha.sim.world import World
from virtha.wire.messages import Beat

TOLD_FIRING = ("vm.watchdog.fired", "vm.watchdog.reconstructed")
TOLD_UNCLEAR = (
    "vm.restart.unknown",
    "vm.history.gap",
    "vm.stop.reconstructed",
    "vm.migration_source_ended",
    "vm.restart.failed",
    "vm.start_failed",
)


class Violation(AssertionError):
    """A rule of safety.md or of the requirements is broken in the simulated world."""


class Checkers:
    """``outside``: VMs whose second copy the scenario itself made, ungranted, for the guardian; or may make, by a proof that is
    wrong (``may_run_twice``): of those at most one copy is left at the end (G4)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.outside: set[VmId] = set()
        self.may_run_twice: set[VmId] = set()
        self.believed: set[str] = set()
        """Hosts that a wrong proof may be about."""
        for host in world.hosts.values():
            self.watch_host(host)
        world.on_run = self.one_writer_of
        world.on_beat = self.beat_is_true

    def watch_host(self, host: SimHost) -> None:
        host.on_start = self.start_is_granted
        host.on_release = self.release_leaves_nothing
        host.on_commands = self.evidence_comes_last

    def one_writer(self) -> None:
        for vm_id in self.world.server.vms:
            self.one_writer_of(vm_id)

    def one_writer_of(self, vm_id: VmId) -> None:
        """Asked whenever processors begin to run: only then can there be a second writer."""
        hosts = self.world.may_write_on(vm_id)
        if len(hosts) > 1 and vm_id not in self.outside:
            raise Violation(f"{vm_id} runs on {hosts} at {self.world.kernel.now}")

    def start_is_granted(self, host: SimHost, vm_id: VmId) -> None:
        """Asked when our own agent lets processors run: the host must hold the current incarnation."""
        known = self.world.server.vms[vm_id]
        record = self.world.records(host).get(vm_id)
        if record is None:
            raise Violation(f"{vm_id} is run on {host.name} without a record")
        if record.boot != host.boot:
            raise Violation(f"{vm_id} is run by a record of {record.boot}")
        if self.world.server.untold(host.name):
            return  # restored records don't know what it was granted; nothing starts elsewhere until it has told (M2)
        if host.name not in known.holders:
            if host.name in self.believed:
                return  # it was proven dead, and can't know: what crashes there is restarted until it is told
            raise Violation(f"{vm_id} is run on {host.name}, which does not hold it")
        # A start order that has not arrived yet: the former incarnation's host is the same.
        underway = any(
            isinstance(order.body, StartVm) and order.body.vm.id == vm_id
            for order in self.world.server.pending.values()
        )
        # The source of a migration that did not come about runs what it always held.
        source = self.world.with_engine and record.incarnation in known.of(host.name)
        if record.incarnation != known.incarnation and not underway and not source:
            raise Violation(f"{vm_id} is run as {record.incarnation}, not {known.incarnation}")

    def release_leaves_nothing(self, host: SimHost, vm_id: VmId) -> None:
        """P5: whoever gives a copy back has no write of it left, not even one that waits in the kernel."""
        if self.world.storage.outstanding(vm_id, host.name):
            raise Violation(f"{vm_id} is released by {host.name}, which has writes of it queued")

    def beat_is_true(self, name: str, beat: Beat) -> None:
        """Section 3: a guardian never says of a dead agent that it lives, but for one pulse's time."""
        host = self.world.hosts[name]
        dead_ms = beat.monotonic_ms - host.agent_since_ms if host.agent is None else 0
        if beat.boot == host.boot and beat.agent_alive and dead_ms > PULSE_FRESH_MS:
            raise Violation(f"{name}'s guardian says that its agent lives")

    def evidence_comes_last(self, commands: Sequence[Command]) -> None:
        """W12: gathering never delays a restart."""
        kinds = [type(command) for command in commands]
        if GatherEvidence in kinds and Restart in kinds[kinds.index(GatherEvidence) :]:
            raise Violation("evidence is gathered before a restart")

    # At the end, with all links healed

    def at_end(self) -> None:
        for vm_id in self.world.server.vms:
            self.old_copy_is_over(vm_id)
            self.down_has_a_reason(vm_id)
            self.nothing_up_is_released(vm_id)
            self.report_is_true(vm_id)
            self.release_is_told(vm_id)
            self.firings_are_told(vm_id)
        for host in self.world.hosts.values():
            self.history_is_whole(host)
        for entry in self.world.server.history:
            if entry.code not in REGISTRY:
                raise Violation(f"unknown code {entry.code}")
            undeclared = set(entry.fields) - set(REGISTRY[entry.code].fields)
            if undeclared:
                raise Violation(f"{entry.code} has undeclared fields {sorted(undeclared)}")

    def old_copy_is_over(self, vm_id: VmId) -> None:
        """G4, of a proof that was wrong."""
        hosts = self.world.running_on(vm_id)
        if vm_id in self.may_run_twice and len(hosts) > 1:
            raise Violation(f"{vm_id} still runs on {hosts}")

    def _settled(self, vm_id: VmId) -> SimHost | None:
        """Its host, if that could have told the server everything."""
        host = self.world.hosts[self.world.server.vms[vm_id].host]
        can_tell = self._tells(host) and host.libvirt_up
        return host if can_tell else None

    def _tells(self, host: SimHost) -> bool:
        """A live session, of a process that could have said everything."""
        return host.powered and host.agent is not None and self.world.connected(host)

    def down_has_a_reason(self, vm_id: VmId) -> None:
        known = self.world.server.vms[vm_id]
        if not known.vm.ha or not known.wanted_up or self._settled(vm_id) is None:
            return
        if self.world.with_engine:
            return  # whose reasons count as well: see ``truth``
        if self.world.running_on(vm_id):
            return
        report = known.report
        codes = [why.code for why in report.reasons] if report else []
        if not any(code.startswith(("vm.down", "vm.paused", "restart.")) for code in codes):
            raise Violation(f"{known.vm.name} is down without an open reason: {codes}")
        unknown = [code for code in codes if code not in REGISTRY]
        if unknown:
            raise Violation(f"{known.vm.name} has unknown reasons {unknown}")

    def nothing_up_is_released(self, vm_id: VmId) -> None:
        known = self.world.server.vms[vm_id]
        for name in self.world.may_write_on(vm_id):
            if name not in known.holders and vm_id not in self.outside:
                raise Violation(f"{known.vm.name} runs on {name}, which holds nothing")

    def report_is_true(self, vm_id: VmId) -> None:
        known, host = self.world.server.vms[vm_id], self._settled(vm_id)
        if host is None or known.report is None:
            return
        if self.world.with_engine and host.name not in known.holders:
            return  # of a copy that is proven dead: the engine's stage speaks
        domain = host.libvirt.find(vm_id)
        exists = domain is not None and domain.qemu is not None
        said_up = known.report.state not in (VmState.DOWN, VmState.UNKNOWN)
        if exists != said_up:
            raise Violation(f"{known.vm.name} is said to be {known.report.state}")
        runs = bool(self.world.running_on(vm_id))
        if known.report.state is VmState.RUNNING and not runs:
            raise Violation(f"{known.vm.name} is said to run")

    def release_is_told(self, vm_id: VmId) -> None:
        """A host that will never start it again must not keep it from being started elsewhere."""
        known, host = self.world.server.vms[vm_id], self._settled(vm_id)
        record = self.world.records(host).get(vm_id) if host else None
        if host is None or record is None or record.incarnation != known.incarnation:
            return
        if record.released and host.name in known.holders:
            raise Violation(f"{known.vm.name} is released by {host.name}, which still holds it")

    def history_is_whole(self, host: SimHost) -> None:
        """Each event of the host is recorded once, in its order, whatever happened to its sessions."""
        if not self._tells(host):
            return
        told = [
            (entry.sequence, entry.code)
            for entry in self.world.server.history
            if entry.host == host.name
        ]
        if told != host.disk.history:
            lost = [each for each in host.disk.history if each not in told]
            doubled = [each for each in told if told.count(each) > 1]
            raise Violation(f"history of {host.name}: lost {lost}, doubled {doubled}")

    def firings_are_told(self, vm_id: VmId) -> None:
        """None lost, none invented (W7)."""
        known = self.world.server.vms[vm_id]
        if self._settled(vm_id) is None:
            return
        happened = self.world.expected_firings(vm_id)
        all_firings = self.world.fired.get(vm_id, 0)
        history = [
            entry.code for entry in self.world.server.history if entry.subject == known.vm.name
        ]
        told = sum(history.count(code) for code in TOLD_FIRING)
        unclear = sum(history.count(code) for code in TOLD_UNCLEAR)
        if told + unclear < happened:
            raise Violation(f"{known.vm.name} fired {happened} times, {told} are told")
        if history.count("vm.watchdog.fired") > all_firings:
            raise Violation(f"{known.vm.name} fired {happened} times, more are told")
