"""Hosts, the server and the wires between them, under virtual time; and the truth about all of it."""

from collections.abc import Callable

import msgspec

from virtha.model.domain import DomainEvent, DomainEventKind
from virtha.model.ids import ClusterId, Incarnation, VmId
from virtha.model.orders import Grant, OrderBody, StartVm
from virtha.model.policy import Policy
from virtha.model.value import Value
from virtha.model.vm import Vm, VmState
from virtha.model.watchdog import Watchdog
from virtha.sentinel.events import Configured, VmRecord
from virtha.sentinel.guardian import SendBeat
from virtha.sim.host import EVENT_MS, SEND_MS, SimAgent, SimHost
from virtha.sim.kernel import Kernel
from virtha.sim.orders import OrderDesk
from virtha.sim.server import ServerVm, SimServer

SERVER_TICK_MS = 500
GRANT_MS = 30_000


TRACELESS = ("none", "shutdown", "inject-nmi")
"""Firings that change nothing a later list or the guest's uptime could show."""


class GuestKind(Value, frozen=True, kw_only=True):
    boot_ms: int = 2_000
    has_agent: bool = True
    ignores_shutdown: bool = False


class World:
    def __init__(self) -> None:
        self.kernel = Kernel()
        self.server = SimServer(lambda: self.kernel.now)
        self.hosts: dict[str, SimHost] = {}
        self.guests: dict[VmId, GuestKind] = {}
        self.ids: dict[str, VmId] = {}
        self.trace_lines: list[str] = []
        self.fired: dict[VmId, int] = {}
        self.firings: dict[VmId, list[tuple[str, int] | None]] = {}
        """Each firing: None when an agent was there to see it, else the gap in which it happened."""
        self._desks: dict[SimAgent, OrderDesk] = {}
        self._sent: dict[str, Configured] = {}
        self.kernel.after(SERVER_TICK_MS, self._tick)

    def trace(self, line: str) -> None:
        self.trace_lines.append(f"{self.kernel.now} {line}")

    # Building

    def add_host(self, name: str) -> SimHost:
        host = SimHost(self.kernel, name, trace=self.trace)
        host.on_event = self._domain_event
        host.managed = lambda: frozenset(self.server.vms)
        self.hosts[name] = host
        host.power_on()
        return host

    def add_vm(
        self, name: str, host: str, *, ha: bool, watchdog: Watchdog | None, guest: GuestKind
    ) -> VmId:
        """Known to the server, defined on all hosts (they share the storage), running nowhere."""
        vm_id = VmId(f"00000000-0000-4000-8000-{len(self.ids) + 1:012d}")
        vm = Vm(
            id=vm_id,
            name=name,
            cluster_id=ClusterId("cluster"),
            memory_bytes=1 << 27,
            watchdog=watchdog,
            ha=ha,
        )
        self.ids[name] = vm_id
        self.guests[vm_id] = guest
        self.server.vms[vm_id] = ServerVm(vm, host)
        for each in self.hosts.values():
            each.libvirt.define(_domain_xml(vm))
        return vm_id

    # Wires

    def _tick(self) -> None:
        self.server.judge_hosts()
        for host in self.hosts.values():
            self.exchange(host)
        self.kernel.after(SERVER_TICK_MS, self._tick)

    def exchange(self, host: SimHost) -> None:
        """What a session carries: facts up, settings and unfinished orders down."""
        guardian, agent = host.guardian, host.agent
        reachable = host.powered and host.net
        if guardian is not None:
            guardian.on_beat = lambda beat: self._beat(host, beat)
            guardian.link(up=reachable)
        if agent is None or not reachable:
            self._sent.pop(host.name, None)
            return
        acknowledged = self.server.receive(host, list(host.disk.outbox))
        host.disk.outbox = [entry for entry in host.disk.outbox if entry[1].sequence > acknowledged]
        self._configure(host, agent)
        for _, order in sorted(self.server.pending.items()):
            if order.host == host.name and host.agent is agent:
                self._desk(agent).take(order)

    def _configure(self, host: SimHost, agent: SimAgent) -> None:
        settings = self.server.settings_for(host.name)
        encoded = msgspec.msgpack.encode(settings)
        if self._sent.get(host.name) == settings and host.disk.settings == encoded:
            return
        self._sent[host.name] = settings
        host.disk.settings = encoded
        agent.tell(settings)

    def _desk(self, agent: SimAgent) -> OrderDesk:
        if agent not in self._desks:
            stubborn = frozenset(
                vm_id for vm_id, guest in self.guests.items() if guest.ignores_shutdown
            )
            self._desks[agent] = OrderDesk(agent, ignores_shutdown=stubborn)
        return self._desks[agent]

    def _beat(self, host: SimHost, beat: SendBeat) -> None:
        if host.net:
            alive = beat.agent_alive
            self.kernel.after(SEND_MS, lambda: self.server.beat(host.name, agent_alive=alive))

    # The operator

    def order(self, host: str, body: OrderBody) -> None:
        self.server.order(host, body)
        self.exchange(self.hosts[host])

    def start(self, vm_id: VmId, host: str) -> bool:
        """False: refused, another host may hold it (G1)."""
        incarnation = self.server.grant(vm_id, host)
        if incarnation is None:
            self.trace(f"start of {vm_id} on {host} refused: held elsewhere")
            return False
        target = self.hosts[host]
        grant = Grant(
            vm_id=vm_id,
            incarnation=incarnation,
            boot=target.boot,
            beat_monotonic_ms=target.clock(),
            duration_ms=GRANT_MS,
        )
        self.order(host, StartVm(vm=self.server.vms[vm_id].vm, grant=grant, by="admin"))
        return True

    def change_policy(self, policy: Policy) -> None:
        self.server.policy = policy
        self.push_settings()

    def push_settings(self) -> None:
        for host in self.hosts.values():
            self.exchange(host)

    def supersede(self, vm_id: VmId) -> None:
        """The server holds a proof and has counted on."""
        known = self.server.vms[vm_id]
        known.incarnation = Incarnation(known.incarnation + 1)
        self.push_settings()

    # Guests live on by themselves

    def _domain_event(self, host: SimHost, event: DomainEvent) -> None:
        detail = f" {event.detail}" if event.detail else ""
        self.trace(f"{host.name} libvirt {event.vm_id} {event.kind}{detail}")
        match event.kind:
            case DomainEventKind.WATCHDOG:
                self._count_firing(host, event.vm_id, event.detail)
            case DomainEventKind.RESUMED | DomainEventKind.REBOOTED:
                self._boot_guest(host, event.vm_id)
            case DomainEventKind.SUSPENDED if event.detail == "watchdog":
                self.kernel.after(3_000, lambda: host.libvirt.end_dump(event.vm_id))

    def _count_firing(self, host: SimHost, vm_id: VmId, action: str) -> None:
        """What is watched must be told one by one; of what happened in one gap, that it happened."""
        agent, gap = host.agent, host.lists

        def count() -> None:
            seen = agent is not None and not agent.dead and agent.last_steps > steps
            if seen or (action not in TRACELESS and not unprovable):
                self.firings.setdefault(vm_id, []).append(None if seen else (host.name, gap))

        domain = host.libvirt.domain(vm_id)
        # A dump that ends while nobody watches leaves its file, but no sign in libvirt or the guest.
        # A card that was reset is unarmed until its guest is up: a second firing before that is made
        # by the scenario only, and nobody could tell it from the first.
        booting = domain.qemu is not None and not domain.qemu.agent_connected
        unprovable = domain.watchdog_action == "dump" or (booting and self.guests[vm_id].has_agent)
        record = self.records(host).get(vm_id)
        # Somebody runs it behind our back, from a record that has it down: not protected, and if it
        # ends before an agent looks, there is no trace.
        unprovable = unprovable or record is None or record.state is VmState.DOWN
        self.fired[vm_id] = self.fired.get(vm_id, 0) + 1
        steps = agent.last_steps if agent is not None else 0
        self.kernel.after(EVENT_MS + 1, count)

    def expected_firings(self, vm_id: VmId) -> int:
        told = self.firings.get(vm_id, [])
        return sum(each is None for each in told) + len({each for each in told if each})

    def _boot_guest(self, host: SimHost, vm_id: VmId) -> None:
        domain = host.libvirt.find(vm_id)
        guest = self.guests.get(vm_id)
        if domain is None or domain.qemu is None or guest is None or not guest.has_agent:
            return
        qemu, began_ms = domain.qemu, domain.qemu.guest_boot_ms
        boots = host.boots

        def up() -> None:
            same = host.boots == boots and domain.qemu is qemu and qemu.guest_boot_ms == began_ms
            if same:
                host.libvirt.connect_agent(vm_id)

        self.kernel.after(guest.boot_ms, up)

    # Truth

    def records(self, host: SimHost) -> dict[VmId, VmRecord]:
        return {
            vm_id: msgspec.msgpack.decode(raw, type=VmRecord)
            for vm_id, raw in sorted(host.disk.records.items())
        }

    def running_on(self, vm_id: VmId) -> list[str]:
        """Hosts on which its processors run: who may write."""
        return [
            host.name
            for host in self.hosts.values()
            for domain in [host.libvirt.find(vm_id)]
            if domain is not None and domain.qemu is not None and domain.qemu.running
        ]

    def each_host(self, action: Callable[[SimHost], None]) -> None:
        for host in self.hosts.values():
            action(host)


def _domain_xml(vm: Vm) -> str:
    card = (
        f"<watchdog model='{vm.watchdog.model}' action='{vm.watchdog.action}'/>"
        if vm.watchdog
        else ""
    )
    return (
        f"<domain type='qemu'><name>{vm.name}</name><uuid>{vm.id}</uuid>"
        f"<on_crash>destroy</on_crash><devices>{card}</devices></domain>"
    )
