"""Hosts, the server and the network between them, under virtual time; and the truth about all of it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from virtha.engine.events import Command as EngineCommand
from virtha.engine.events import Intent, PowerTested
from virtha.model.domain import DomainEvent, DomainEventKind
from virtha.model.ids import ClusterId, Incarnation, StorageDomainId, VmId
from virtha.model.orders import LetInHost, OrderBody, StartVm
from virtha.model.policy import Policy
from virtha.model.value import Value
from virtha.model.vm import Vm, VmState
from virtha.model.watchdog import Watchdog
from virtha.sentinel.events import VmRecord
from virtha.sentinel.lease_events import HostNature
from virtha.sim.ceph import SimCeph
from virtha.sim.engine_table import Lead
from virtha.sim.failover import Failover
from virtha.sim.gateway import SimGateway
from virtha.sim.host import EVENT_MS, SimHost
from virtha.sim.kernel import Kernel
from virtha.sim.lease import HostLease
from virtha.sim.line import SERVER
from virtha.sim.migration import SimMigrations
from virtha.sim.network import Network
from virtha.sim.power import PowerDevices
from virtha.sim.server import ServerVm, SimServer
from virtha.sim.slots import SlotDomain
from virtha.sim.storage import SHARED, HostPath, PathState, SharedStorage, Writer
from virtha.sim.world_time import WALL_EPOCH_MS
from virtha.wire.messages import Beat

STORAGE = "storage"
"""Its name on its network."""
AGENT_NOTICES_MS = 1_000
"""Until an agent has noticed that its storage went or came."""
FIRMWARE_MS = 30_000
"""From a reset to the next boot's first process."""
CONNECTING_MS = 1_000
"""A story begins at 0, when the hosts of its first line have been on for so long and are connected."""
TRACELESS = ("none", "shutdown", "inject-nmi")
"""Firings that change nothing a later list or the guest's uptime could show."""


class GuestKind(Value, frozen=True, kw_only=True):
    boot_ms: int = 2_000
    has_agent: bool = True
    ignores_shutdown: bool = False


class World:
    def __init__(self) -> None:
        self.kernel = Kernel(began_ms=-CONNECTING_MS)
        self.network = Network(self.kernel, "management")
        self.storage_network = Network(self.kernel, "storage")
        self.bmc_network = Network(self.kernel, "bmc")
        self.network.attach(SERVER)
        self.bmc_network.attach(SERVER)
        self.storage_network.attach(STORAGE)
        self.storage = SharedStorage(self.kernel)
        self.storage.on_failed = self._write_failed
        self.power = PowerDevices(self.kernel, self.bmc_network)
        self.power_tests: dict[str, tuple[PowerTested, ...]] = {}
        """Of each host's devices, as the database has them."""
        self.migrations = SimMigrations(self)
        self.with_engine = False
        self.database_up = True
        self.domains: list[StorageDomainId] = [SHARED]
        self.ceph: SimCeph | None = None
        """Where its domains are pools of a cluster."""
        self.slots: dict[StorageDomainId, SlotDomain] = {}
        """Where this world has leases."""
        self.storage_faults: dict[tuple[str, StorageDomainId], PathState] = {}
        """By host, "" for all, and domain."""
        self.server = SimServer(lambda: self.kernel.now, wall_epoch_ms=WALL_EPOCH_MS)
        self.hosts: dict[str, SimHost] = {}
        self.guests: dict[VmId, GuestKind] = {}
        self.ids: dict[str, VmId] = {}
        self.trace_lines: list[str] = []
        self.fired: dict[VmId, int] = {}
        self.firings: dict[VmId, list[tuple[str, int] | None]] = {}
        """Each firing: None when an agent was there to see it, else the gap in which it happened."""
        self.on_run: Callable[[VmId], None] = lambda _vm_id: None
        """Whenever the processors of a VM begin to run somewhere."""
        self.on_processors: Callable[[VmId, bool], None] = lambda _vm_id, _runs: None
        """Whenever those of a copy begin or cease to run, as its host's libvirt has it."""
        self.on_beat: Callable[[str, Beat], None] = lambda _host, _beat: None
        """Whenever the server takes one."""
        self.on_engine_command: Callable[[Lead, EngineCommand], None] = lambda _lead, _command: None
        self.on_written: Callable[[Lead, Sequence[Intent]], None] = lambda _lead, _intents: None
        """After each of a leader's transactions."""
        self.on_leader_point: Callable[[str, Sequence[EngineCommand]], None] = (
            lambda _point, _sent: None
        )
        """Whenever a leader passes a point of its turn (``leader.POINTS``), and what it sends there."""
        self.on_let_in: Callable[[LetInHost], None] = lambda _order: None
        """Whenever a host is taken from the list of its cluster."""
        self._server_starts = 0
        self._backup: dict[str, Any] | None = None
        self.backed_up_ms = 0
        self.gateway = self._new_gateway()

    def trace(self, line: str) -> None:
        self.trace_lines.append(f"{self.kernel.now} {line}")

    # Building

    def add_host(self, name: str) -> SimHost:
        host = SimHost(self.kernel, self.network, name, trace=self.trace)
        host.migrations = self.migrations
        host.on_event = self._domain_event
        host.outstanding = lambda vm_id: self.storage.outstanding(vm_id, name)
        host.storage_hangs = lambda vm_id: self._path(name, vm_id).hangs
        host.disk_objection = lambda vm_id: (
            None if self._path(name, vm_id).lands else f"it is {self._path(name, vm_id).state}"
        )
        host.stubborn = lambda vm_id: self.guests[vm_id].ignores_shutdown
        host.on_power = self._power_changed
        host.on_libvirt = self._libvirt_changed
        host.libvirt.on_running = lambda vm_id, runs: self._running(host, vm_id, runs=runs)
        self.hosts[name] = host
        for known in self.server.vms.values():
            host.libvirt.define(_domain_xml(known.vm))
        self.storage_network.attach(name)
        self.bmc_network.attach(name)
        for domain_id in self.domains:
            self.storage.path(name, domain_id)
        if self.ceph is not None:
            self.ceph.add(name)
            host.ceph = self.ceph
        return host

    def keep_on_ceph(self, domains: Sequence[StorageDomainId]) -> None:
        """Before there are hosts."""
        self.domains += [one for one in domains if one not in self.domains]
        self.ceph = SimCeph(self.kernel, self.storage, domains)
        self.ceph.on_change = self._storage_noticed
        self.ceph.on_let_in = lambda order: self.on_let_in(order)

    def keep_leases(self, domains: Sequence[StorageDomainId]) -> None:
        """From here on each new host has a slot on each of these domains: before there are hosts."""
        self.domains = list(domains)
        self.slots = {domain_id: SlotDomain(domain_id) for domain_id in domains}
        if self.gateway.failover is not None:
            self.gateway.failover.keep_leases()

    def give_lease(self, host: SimHost, *, nature: HostNature, watchdog: str) -> None:
        """Before it is switched on."""
        host.lease = HostLease(
            self.kernel,
            host,
            self.storage,
            list(self.slots.values()),
            index=list(self.hosts).index(host.name),
            nature=nature,
            watchdog=watchdog,
            reset=lambda why: self.reset(host, why),
        )

    def connect_host(self, host: SimHost) -> None:
        """Switch it on, once the operator has told the server of it and of its power devices."""
        if self.gateway.failover is not None:
            self.gateway.failover.host_known(host)
        host.power_on()

    def lead_with_engine(self) -> None:
        """From the server's next start on, which is now: before there are hosts."""
        self.with_engine = True
        self.gateway.kill()
        self.gateway = self._new_gateway()

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
        self.push_settings()
        return vm_id

    # The server's process

    def _new_gateway(self) -> SimGateway:
        self._server_starts += 1
        gateway = SimGateway(self.kernel, self.network, self.server, number=self._server_starts)
        gateway.on_beat = lambda host, beat: self.on_beat(host, beat)
        gateway.on_later_term = self._lead_anew
        gateway.start()
        if self.with_engine:
            failover = Failover(self, gateway, gateway.kernel)
            gateway.failover = failover
            self.server.on_fact = lambda host, fact, made_after: failover.fact(
                host, fact, made_after=made_after
            )
            self.server.on_grant = failover.granted
            failover.begin()
        return gateway

    def _lead_anew(self) -> None:
        """What this leader decided and wrote, it did under a term that is over (M1): its process ends, as a leader's
        does that finds itself deposed, and the next one reads the records anew."""
        self.trace(f"term {self.server.term} begins: a host followed a later one than was known")
        self.gateway.kill()
        self.gateway = self._new_gateway()

    def stop_server(self) -> None:
        """Killed: sessions and beats are gone with it, its database is not."""
        self.gateway.kill()

    def start_server(self) -> None:
        if not self.gateway.running:
            self.gateway = self._new_gateway()

    def second_server(self) -> None:
        """Another takes over the address and the lead; the first is not told."""
        self.gateway.lose_address()
        self.gateway = self._new_gateway()

    def backup_server(self) -> None:
        self._backup = self.server.backup()
        self.backed_up_ms = self.kernel.now

    def restore_server(self) -> bool:
        """What was recorded since the backup is lost. False: there is none."""
        if self._backup is None:
            return False
        self.gateway.kill()
        self.server.restore(self._backup)
        self.power.restored()
        self.gateway = self._new_gateway()
        return True

    # The operator

    def order(self, host: str, body: OrderBody) -> None:
        self.gateway.deliver(self.server.order(host, body, by_person=True))

    def start(self, vm_id: VmId, host: str) -> bool:
        """False: refused, as placement and the holder rule would (G1, G2, M2)."""
        objection = self.server.objection(vm_id, host)
        grant = self.gateway.make_grant(host, vm_id, Incarnation(0))
        if objection is None and (grant is None or not self.gateway.agent_connected(host)):
            objection = "its host is not connected"
        if objection is not None or grant is None:
            self.trace(f"start of {vm_id} on {host} refused: {objection}")
            return False
        grant = self.server.grant(vm_id, host, grant)
        self.order(host, StartVm(vm=self.server.vms[vm_id].vm, grant=grant, by="admin"))
        return True

    def change_policy(self, policy: Policy) -> None:
        self.server.policy = policy
        self.push_settings()

    def push_settings(self) -> None:
        self.server.changed()
        self.gateway.carry_out()

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
            case DomainEventKind.RESUMED:
                self.on_run(event.vm_id)
                arrives = event.detail == "migrated"
                self._boot_guest(host, event.vm_id, boot_ms=EVENT_MS if arrives else None)
            case DomainEventKind.REBOOTED:
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

    def _boot_guest(self, host: SimHost, vm_id: VmId, *, boot_ms: int | None = None) -> None:
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

        self.kernel.after(guest.boot_ms if boot_ms is None else boot_ms, up)

    # Storage and power

    def _running(self, host: SimHost, vm_id: VmId, *, runs: bool) -> None:
        self.on_processors(vm_id, runs)
        if not runs:
            self.storage.stands(vm_id, host.name)
            return
        incarnation = self.runs_as(host, vm_id)
        if incarnation is not None:
            self.storage.runs(vm_id, Writer(host.name, incarnation))

    def runs_as(self, host: SimHost, vm_id: VmId) -> Incarnation | None:
        """The number that a copy there bears; its record's where somebody took the grants away."""
        grant = host.grants.get(vm_id)
        if grant is not None:
            return grant.incarnation
        record = self.records(host).get(vm_id)
        return None if record is None else record.incarnation

    def _power_changed(self, host: SimHost) -> None:
        self.storage.power_lost(host.name)
        if host.lease is not None:
            host.lease.power_lost()

    def reset(self, host: SimHost, why: str) -> None:
        """Its boot ends here and now; the next one begins when its firmware is through."""
        if not host.powered:
            return
        self.trace(f"{host.name} is reset: {why}")
        host.power_cut()
        host.resetting = True
        boots = host.boots

        def begin() -> None:
            if host.resetting and host.boots == boots:
                host.power_on()

        self.kernel.after(FIRMWARE_MS, begin)

    def _libvirt_changed(self, host: SimHost) -> None:
        failover, up = self.gateway.failover, host.libvirt_up
        if up:
            self.migrations.libvirt_back(host)
        if failover is not None:
            self.kernel.after(AGENT_NOTICES_MS, partial(failover.libvirt_noticed, host.name))

    def storage_changed(self) -> None:
        """Links of the storage network, or the storage itself, changed."""
        for host in self.hosts.values():
            ways = (
                self.storage_network.link(host.name, STORAGE),
                self.storage_network.link(STORAGE, host.name),
            )
            cut = not all(way.carries for way in ways)
            for domain_id in self.domains:
                self.storage.set_state(
                    host.name,
                    PathState.STALLED if cut else self._fault(host.name, domain_id),
                    domain_id,
                )
            if host.lease is not None:
                host.lease.paths_changed()
        self._storage_noticed()

    def _storage_noticed(self) -> None:
        failover = self.gateway.failover
        if failover is not None:
            for name in self.hosts:
                self.kernel.after(AGENT_NOTICES_MS, partial(failover.storage_noticed, name))

    def _path(self, host: str, vm_id: VmId) -> HostPath:
        return self.storage.path(host, self.storage.domain_of(vm_id))

    def _fault(self, host: str, domain_id: StorageDomainId) -> PathState:
        """The worst that was done to it."""
        found = [self.storage_faults.get((name, domain_id), PathState.WELL) for name in ("", host)]
        return max(found, key=list(PathState).index)

    def _write_failed(self, vm_id: VmId, name: str) -> None:
        """Its QEMU stops it at its next write."""
        host = self.hosts[name]

        def stop() -> None:
            domain = host.libvirt.find(vm_id)
            path = self._path(name, vm_id)
            if domain is None or domain.qemu is None or not domain.qemu.running:
                return
            if not path.lands and not path.hangs:
                host.libvirt.io_error(vm_id)

        self.kernel.after(self.storage.disk(vm_id).interval_ms, stop)

    def hang(self, host: SimHost) -> None:
        """Powered, and nothing in it moves."""
        host.kernel.freeze()
        self.storage.set_awake(host.name, awake=False)

    def thaw(self, host: SimHost) -> None:
        self.storage.set_awake(host.name, awake=True)
        host.kernel.thaw()
        if host.lease is not None:
            host.lease.paths_changed()

    # Truth

    def connected(self, host: SimHost) -> bool:
        """Whether its agent and the server have a session, and nothing holds up what they say."""
        links = (self.network.link(host.name, SERVER), self.network.link(SERVER, host.name))
        return self.gateway.agent_connected(host.name) and all(link.carries for link in links)

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

    def may_write_on(self, vm_id: VmId) -> list[str]:
        """Those of them that are not on their cluster's list."""
        on_ceph = self.ceph is not None and self.storage.domain_of(vm_id) in self.ceph.domains
        return [
            name
            for name in self.running_on(vm_id)
            if not (on_ceph and self.ceph is not None and self.ceph.is_listed(name))
        ]


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
