"""A simulated host: power, libvirt, disk, the grants of this boot, and who runs on it."""

from collections.abc import Callable, Sequence

from virtha.model.domain import DomainEvent
from virtha.model.facts import Fact, Happened, Outcome
from virtha.model.ids import BootId, Incarnation, OperationId, VmId
from virtha.model.orders import HostSettings
from virtha.model.value import Value
from virtha.ports.hypervisor import GateRefused
from virtha.sentinel.events import Command
from virtha.sentinel.guardian import AgentGone
from virtha.sim.agent import SimAgent
from virtha.sim.ceph import SimCeph
from virtha.sim.clock import HostClock
from virtha.sim.guardian import SimGuardian
from virtha.sim.kernel import Actor, Kernel
from virtha.sim.lease import HostLease
from virtha.sim.libvirt import SimLibvirt
from virtha.sim.migration import SimMigrations
from virtha.sim.network import Network

EVENT_MS = 1
CRASH_POINTS = ("history", "intents", "commands", "states")


class SimGrant(Value, frozen=True, kw_only=True):
    """A file below ``/run/virtha/grants``. ``held``: its processors run; it keeps the guardian off and
    starts nothing. Else it may be started until ``until_ms`` of the host's clock (G2)."""

    incarnation: Incarnation
    held: bool
    until_ms: int = 0
    incoming: bool = False
    """It lets in what comes from another host, and starts nothing."""


class HostDisk:
    """What survives a crash of the agent and a power cut. Records are kept encoded, as on disk."""

    def __init__(self) -> None:
        self.records: dict[VmId, bytes] = {}
        self.watched: bytes | None = None
        self.settings: HostSettings | None = None
        self.gate_managed: frozenset[VmId] = frozenset()
        """The gate's records: every managed VM of the cluster."""
        self.facts: list[Fact] = []
        """The outbox, with what was acknowledged and has not been deleted yet."""
        self.history: list[tuple[int, str]] = []
        """(sequence, code) of all that ever happened here: the world's truth, read by checkers only."""
        self.acknowledged = 0
        self.sequence = 0
        self.inventory_revision = 0
        self.outcomes: dict[OperationId, Outcome] = {}
        self.reports: list[Happened] = []
        """The guardian's, for the agent to tell."""


def _nowhere(_decision: int, _point: str, _changes: bool) -> bool:
    return False


class SimHost:
    def __init__(
        self, kernel: Kernel, network: Network, name: str, *, trace: Callable[[str], None]
    ) -> None:
        self.kernel = Actor(kernel)
        self.network = network
        self.name = name
        self.trace = trace
        self.endpoint = network.attach(name)
        self.boots = 0
        self.powered = False
        self.fed = True
        """Its mains are there."""
        self.resetting = False
        """It has power, and its next boot has not begun yet."""
        self.clocks = HostClock(kernel)
        self.clock = self.clocks.read
        """The host's boot-time clock."""
        self.lease: HostLease | None = None
        """Where this world has storage leases."""
        self.ceph: SimCeph | None = None
        """Where this world has a cluster."""
        self.libvirt_up = False
        self.shutting_down = False
        self.disk = HostDisk()
        self.memory_bytes = 8 << 30
        self.grants: dict[VmId, SimGrant] = {}
        self.grants_complete = False
        """The mark beside them: a missing grant is none. It goes when somebody empties /run."""
        self.records_hidden = False
        self.blind_starts = 0
        self.start_delay_ms = 0
        """How long after its next boot its guardian and agent begin."""
        self.slow_start_ms = 0
        """How long libvirt hangs before it begins to make the next QEMU."""
        self.lists = 0
        """Lists that an agent has got: what ends a gap."""
        self.decisions = 0
        """Of all its agents so far, counting those that say or order something."""
        self.is_struck: Callable[[int, str, bool], bool] = _nowhere
        """Asked at each (decision, point, whether anything was done there since the point before): whether a crash-point
        run kills the agent there."""
        self.agent: SimAgent | None = None
        self.agent_since_ms = 0
        """On the host's clock: since when there is one, or none."""
        self.guardian: SimGuardian | None = None
        self.stubborn: Callable[[VmId], bool] = lambda _vm_id: False
        """Whether its guest ignores a request to shut down."""
        self.on_event: Callable[[SimHost, DomainEvent], None] = lambda _host, _event: None
        self.on_commands: Callable[[Sequence[Command]], None] = lambda _commands: None
        self.on_start: Callable[[SimHost, VmId], None] = lambda _host, _vm_id: None
        self.outstanding: Callable[[VmId], bool] = lambda _vm_id: False
        """Whether something that the VM wrote here waits in the kernel."""
        self.storage_hangs: Callable[[VmId], bool] = lambda _vm_id: False
        """Whether what is asked of the storage of its disks here waits in the kernel."""
        self.disk_objection: Callable[[VmId], str | None] = lambda _vm_id: None
        """Why the storage of its disks can't be relied on here; None: it can be read and written."""
        self.on_release: Callable[[SimHost, VmId], None] = lambda _host, _vm_id: None
        """Just before it says that a copy is given back."""
        self.on_power: Callable[[SimHost], None] = lambda _host: None
        """Just before its processes begin, and after they have ended."""
        self.on_libvirt: Callable[[SimHost], None] = lambda _host: None
        """Whenever libvirt comes or goes."""
        self.libvirt = SimLibvirt(clock=self.clock, emit=self._emit, gate=self._gate)
        self.libvirt.incoming_gate = self._incoming_gate
        self.migrations: SimMigrations
        """Of the world."""

    def wall_ms(self) -> int:
        return self.clocks.wall_ms()

    @property
    def boot(self) -> BootId:
        return BootId(f"{self.name}-boot-{self.boots}")

    # Power

    def power_on(self) -> None:
        assert not self.powered
        self.boots += 1
        self.resetting = False
        self.clocks.boot()
        self.agent_since_ms = 0
        self.powered = self.endpoint.up = self.libvirt_up = True
        self.shutting_down = False
        self.grants.clear()
        self.grants_complete = False
        self.on_power(self)
        self._start_ours()
        for domain in list(self.libvirt):
            if domain.autostart:
                self._autostart(domain.vm_id)

    def _start_ours(self) -> None:
        delay_ms, self.start_delay_ms = self.start_delay_ms, 0
        if not delay_ms:
            self.start_guardian()
            self.start_agent()
            return
        boots = self.boots

        def later() -> None:
            if self.boots == boots:
                self.start_guardian()
                self.start_agent()

        self.kernel.after(delay_ms, later)

    def _autostart(self, vm_id: VmId) -> None:
        try:
            self.libvirt.start_paused(vm_id)
            self.libvirt.run(vm_id)
        except GateRefused as refusal:
            self.trace(f"gate {vm_id}: {refusal.message}")

    def power_cut(self) -> None:
        self.resetting = False
        if not self.powered:
            return
        self.powered = self.libvirt_up = False
        self.kernel.die()
        self.endpoint.power_off()
        self.stop_agent()
        self.stop_guardian()
        for domain in list(self.libvirt):
            if domain.qemu is not None:
                self.libvirt.end_silently(domain.vm_id, "unknown")
        self.on_power(self)

    def stop_libvirt(self) -> None:
        self.libvirt_up = False
        self.on_libvirt(self)
        if self.agent is not None:
            self.agent.libvirt_lost()

    def start_libvirt(self) -> None:
        assert self.powered
        self.libvirt_up = True
        self.on_libvirt(self)
        if self.agent is not None:
            self.agent.list_domains()

    def _emit(self, event: DomainEvent) -> None:
        self.on_event(self, event)
        agent = self.agent
        if agent is not None and self.libvirt_up:
            agent.kernel.after(EVENT_MS, lambda: agent.on_domain_event(event))

    # Grants and gate

    def _gate(self, vm_id: VmId) -> str | None:
        """All of a world's domains carry our mark, so each needs a grant."""
        grant = self.grants.get(vm_id)
        if grant is None or grant.held or grant.incoming:
            return f"gate.refused.no_grant for {vm_id}"
        return None if self.clock() < grant.until_ms else f"gate.refused.expired for {vm_id}"

    def _incoming_gate(self, vm_id: VmId) -> str | None:
        grant = self.grants.get(vm_id)
        if grant is None or grant.held or not grant.incoming:
            return f"gate.refused.no_grant for {vm_id}"
        return None if self.clock() < grant.until_ms else f"gate.refused.expired for {vm_id}"

    def expect(self, vm_id: VmId, incarnation: Incarnation, *, until_ms: int) -> None:
        self.grants[vm_id] = SimGrant(
            incarnation=incarnation, held=False, until_ms=until_ms, incoming=True
        )

    def hold(self, vm_id: VmId, incarnation: Incarnation) -> None:
        self.grants[vm_id] = SimGrant(incarnation=incarnation, held=True)

    def grant(self, vm_id: VmId, incarnation: Incarnation, *, until_ms: int) -> None:
        self.grants[vm_id] = SimGrant(incarnation=incarnation, held=False, until_ms=until_ms)

    def revoke(self, vm_id: VmId) -> None:
        self.grants.pop(vm_id, None)

    def released(self, vm_id: VmId, incarnation: Incarnation) -> None:
        """Take back the grant of that incarnation; a newer one stays, and one that is held by an older
        start, for what bears it may run."""
        self.on_release(self, vm_id)
        grant = self.grants.get(vm_id)
        if grant is None or grant.incarnation > incarnation:
            return
        if grant.incarnation == incarnation or not grant.held:
            self.revoke(vm_id)

    def empty_run(self) -> None:
        """Somebody cleaned /run: nobody knows any more who was granted what."""
        self.grants.clear()
        self.grants_complete = False

    # Agent and guardian

    def start_agent(self) -> None:
        if self.agent is None and self.powered:
            self.agent, self.agent_since_ms = SimAgent(self), self.clock()
            self.agent.begin()

    def stop_agent(self) -> None:
        if self.agent is not None:
            self.agent.die()
            self.agent, self.agent_since_ms = None, self.clock()
            if self.guardian is not None:
                self.guardian.tell(AgentGone())

    def crash_agent(self) -> None:
        """Its supervisor brings it back after a second."""
        self.stop_agent()
        boot = self.boots
        self.kernel.after(1_000, lambda: self.start_agent() if boot == self.boots else None)

    def start_guardian(self) -> None:
        if self.guardian is None and self.powered:
            self.guardian = SimGuardian(self)
            self.guardian.begin()

    def stop_guardian(self) -> None:
        if self.guardian is not None:
            self.guardian.die()
            self.guardian = None

    def settings_changed(self) -> None:
        """Its agent has written others."""
        if self.guardian is not None and self.guardian.lease is not None:
            self.guardian.lease.settings_changed()

    def lease_objection(self, vm_id: VmId) -> str | None:
        """Why its processors may not run here now; None: they may."""
        return None if self.lease is None else self.lease.objection(vm_id)
