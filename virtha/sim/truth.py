"""Checkers of what the engine does to hosts and VMs: they read the world's truth, never the engine's state.

What may be asked of the engine is only its answer to *why is this VM down* (``explain_vm``).
"""

from collections.abc import Sequence

from virtha.engine.events import Command, Intent, SaveHost, StartCommand
from virtha.engine.machine import Verdict
from virtha.engine.records import Fence, OrderId
from virtha.model.codes import REGISTRY
from virtha.model.ids import BootId, HostId, Term, VmId
from virtha.model.orders import LetInHost
from virtha.model.proof import Proof, ProofKind
from virtha.sim.checkers import Checkers, Violation
from virtha.sim.engine_table import Lead
from virtha.sim.host import SimHost
from virtha.sim.network import Network
from virtha.sim.power import Mood, PowerDevice
from virtha.sim.world import World

MINUTE_MS = 60_000
POWER_ORDERS = 20
"""For one host within a minute. The longest ladder that a story has is one round of two levels, two attempts
each, and the next round half a minute later."""


class Truth:
    """``checkers.outside``: VMs whose second copy the scenario itself made."""

    def __init__(self, world: World, checkers: Checkers) -> None:
        self._world = world
        self._checkers = checkers
        self._lead = Lead(0, Term(0))
        self._seen_since: dict[str, int] = {}
        """Hosts that most of the others can reach, and since when."""
        self._lease_proofs: set[Proof] = set()
        self._struck: dict[tuple[str, BootId], int] = {}
        self._minute = 0
        self._power_orders: dict[HostId, set[OrderId]] = {}
        """In this minute."""
        world.storage.on_breach = self.writes_interleave
        world.on_engine_command = self.command_given
        world.on_written = self.written_under
        world.power.on_off = self.off_arrives
        world.on_let_in = self.let_in

    # One writer

    def writes_interleave(self, vm_id: VmId, what: str) -> None:
        if vm_id not in self._checkers.outside:
            raise Violation(f"disk of {vm_id} at {self._world.kernel.now}: {what}")

    def written_under(self, lead: Lead, intents: Sequence[Intent]) -> None:
        """M1: once a later term has begun, nothing of an earlier one is written; nor, in the timeline of a restored
        database, anything of one before it, where terms may have the same numbers."""
        if lead < self._lead:
            raise Violation(f"records were written under {_shown(lead)} after {_shown(self._lead)}")
        self._lead = lead
        for intent in intents:
            if isinstance(intent, SaveHost) and intent.record.incident is not None:
                self._fence_written(intent.record.host_id, intent.record.incident.fence)
                for proof in intent.record.incident.proofs:
                    if proof.kind is ProofKind.LEASE and proof not in self._lease_proofs:
                        self._lease_proof_written(proof)

    def _lease_proof_written(self, proof: Proof) -> None:
        """P2: from here on no copy of that boot can write, and nothing that one wrote is still to land."""
        host = self._world.hosts[proof.host_id]
        self._lease_proofs.add(proof)
        if not host.powered or host.boot != proof.boot:
            return
        for domain in host.libvirt:
            runs = domain.qemu is not None and domain.qemu.running
            late = self._world.storage.outstanding(domain.vm_id, host.name)
            if (runs or late) and domain.vm_id not in self._checkers.outside:
                what = "it runs there" if runs else "a write of it waits there"
                raise Violation(
                    f"{host.name} is proven dead by its lease, and of {domain.vm_id} {what}"
                )

    # Starts need proof for every holder (G1)

    def command_given(self, lead: Lead, command: Command) -> None:
        """Agents refuse what an earlier term orders; power devices know of no terms."""
        match command:
            case StartCommand() if lead == self._world.server.lead:
                self._start_given(command)
            case _:
                pass

    def _start_given(self, start: StartCommand) -> None:
        world, vm_id = self._world, start.vm_id
        if vm_id in self._checkers.outside:
            return
        for host in world.hosts.values():
            if host.name == start.host_id or self._is_shut_out(start, host):
                continue
            domain = host.libvirt.find(vm_id)
            if domain is not None and domain.qemu is not None:
                raise Violation(f"{vm_id} is started on {start.host_id} while {host.name} has it")
            if world.storage.outstanding(vm_id, host.name):
                raise Violation(
                    f"{vm_id} is started on {start.host_id} while {host.name} has writes of it queued"
                )

    def _is_shut_out(self, start: StartCommand, host: SimHost) -> bool:
        """P3: by a proof about that very boot, of a VM whose disk is there; it may live, and writes nothing more once the
        target has the map."""
        ceph = self._world.ceph
        cited = any(
            proof.kind is ProofKind.STORAGE_FENCE
            and (proof.host_id, proof.boot) == (host.name, host.boot)
            for proof in start.proofs
        )
        if not cited or ceph is None:
            return False
        if not ceph.is_listed(host.name):
            raise Violation(f"{start.vm_id} is started by a fence of {host.name}, which is let in")
        if self._world.storage.domain_of(start.vm_id) not in ceph.domains:
            raise Violation(f"{start.vm_id} is started by a fence, and has its disk elsewhere")
        return True

    def let_in(self, order: LetInHost) -> None:
        """P3: only a host that is in another boot."""
        host = self._world.hosts[order.host_id]
        if host.boot == order.boot:
            raise Violation(f"{host.name} is let in again in the boot that was shut out")

    # No endless fast loop (F9)

    def _fence_written(self, host_id: HostId, fence: Fence | None) -> None:
        """Also an order that is too late to be sent was one."""
        if fence is None:
            return
        minute = self._world.kernel.now // MINUTE_MS
        if minute != self._minute:
            self._minute = minute
            self._power_orders.clear()
        orders = self._power_orders.setdefault(host_id, set())
        orders.add(fence.order_id)
        if len(orders) > POWER_ORDERS:
            raise Violation(f"{len(orders)} power orders were written for {host_id} in a minute")

    # Fencing

    def look(self) -> None:
        """After each change of the world that a story makes."""
        if not self._world.with_engine:
            return
        for host in self._world.hosts.values():
            if not self._seen_by_most(host):
                self._seen_since.pop(host.name, None)
            else:
                self._seen_since.setdefault(host.name, self._world.kernel.now)

    def _seen_by_most(self, host: SimHost) -> bool:
        if not self._answers(host):
            return False
        networks = (self._world.network, self._world.storage_network)
        others = [
            other
            for other in self._world.hosts.values()
            if other is not host and self._answers(other)
        ]
        seen = sum(
            any(_joined(network, host.name, other.name) for network in networks) for other in others
        )
        return 2 * seen > len(others)

    def _answers(self, host: SimHost) -> bool:
        processes = (host.guardian, host.agent)
        return (
            host.powered
            and not host.kernel.frozen
            and any(one is not None and not one.kernel.frozen for one in processes)
        )

    def _may_be_struck(self, host: SimHost) -> None:
        """J2, J4: nobody is shot whom most of the others have seen alive for as long as evidence counts, where any of them has
        a session to tell it by: an agent that takes the server for a second one has none (M1)."""
        if not any(
            self._world.connected(other)
            for other in self._world.hosts.values()
            if other is not host and self._answers(other)
        ):
            return
        since = self._seen_since.get(host.name)
        age_ms = self._world.server.policy.detection.evidence_max_age_ms
        if since is not None and self._answers(host) and self._world.kernel.now - since > age_ms:
            raise Violation(f"{host.name} is ordered off while most others see it alive")

    def off_arrives(self, device: PowerDevice) -> None:
        """Whoever decided it, and however long ago. F7: the cap holds for hosts that had power, whoever led. Not where the
        device says that it is off: such an order isn't counted (J6), and one that lies takes it without effect."""
        host = device.host
        self._may_be_struck(host)
        if not host.powered or device.mood is Mood.LIES:
            return
        fencing, now = self._world.server.policy.fencing, self._world.kernel.now
        self._struck.setdefault((host.name, host.boot), now)
        recent = [at for at in self._struck.values() if at > now - fencing.cap_window_ms]
        if len(recent) > fencing.cap_count:
            raise Violation(f"{len(recent)} hosts were ordered off, {fencing.cap_count} may be")

    def forget_since(self, backed_up_ms: int) -> None:
        """A restored database knows nothing of orders after its backup, and its cap can't count them (F7): the limit holds
        for what each line of records could know."""
        self._struck = {boot: at for boot, at in self._struck.items() if at <= backed_up_ms}

    # The second rule

    def at_end(self) -> None:
        failover = self._world.gateway.failover
        if failover is None or not failover.leader.alive:
            return
        for vm_id, known in self._world.server.vms.items():
            protected = known.vm.ha and known.wanted_up and known.managed
            if not protected or self._world.running_on(vm_id):
                continue
            told = [why.code for why in failover.engine.explain_vm(vm_id)]
            host = self._world.hosts[known.host]
            if failover.engine.verdict(HostId(known.host)) is Verdict.ISOLATED:
                # It is taken to run, out of reach: what is said of its host is said of it.
                told += [why.code for why in failover.engine.explain_host(HostId(known.host))]
            if known.report is not None and self._world.connected(host):
                told += [why.code for why in known.report.reasons]
            if not told:
                raise Violation(f"{known.vm.name} is down and nobody says why")
            unknown = [code for code in told if code not in REGISTRY]
            if unknown:
                raise Violation(f"{known.vm.name} has unknown reasons {unknown}")


def _joined(network: Network, one: str, other: str) -> bool:
    return network.link(one, other).carries and network.link(other, one).carries


def _shown(lead: Lead) -> str:
    return f"term {lead.term}" + (f" of timeline {lead.timeline}" if lead.timeline else "")
