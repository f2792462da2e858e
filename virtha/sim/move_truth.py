"""Checkers of live migrations: they read the world's truth, never what the engine or a sentinel holds of them."""

from virtha.engine.events import Command, MigrateCommand, SettleMigration
from virtha.model.ids import VmId
from virtha.model.orders import MigrationWord
from virtha.model.policy import Failback
from virtha.sim.checkers import Checkers, Violation
from virtha.sim.engine_table import Lead
from virtha.sim.host import SimHost
from virtha.sim.migration import LiveMigration
from virtha.sim.truth import Truth
from virtha.sim.world import World


class MoveTruth:
    """``emptied`` and ``asked``: what operators wanted moved, as the story's verbs say."""

    def __init__(self, world: World, checkers: Checkers, truth: Truth) -> None:
        self._world = world
        self._checkers = checkers
        self._truth = truth
        self.emptied: set[str] = set()
        self.asked: set[VmId] = set()
        world.on_engine_command = self.command_given
        world.migrations.on_commit = self.committed

    def command_given(self, lead: Lead, command: Command) -> None:
        """Agents refuse what an earlier term orders."""
        self._truth.command_given(lead, command)
        if lead != self._world.server.lead:
            return
        match command:
            case MigrateCommand(vm_id=vm_id) if vm_id not in self._checkers.outside:
                self._ordered(command)
            case SettleMigration(vm_id=vm_id, word=MigrationWord.RUN):
                self._let_run(vm_id, self._world.hosts[command.host_id])
            case _:
                pass

    def _ordered(self, command: MigrateCommand) -> None:
        world, vm_id = self._world, command.vm_id
        for host in world.hosts.values():
            if host.name == command.source or self._is_shut_out(host, vm_id):
                continue
            if _has(host, vm_id):
                raise Violation(f"{vm_id} is moved from {command.source} while {host.name} has it")
        home = world.server.policy.recovery.failback is Failback.AUTOMATIC
        if command.source not in self.emptied and vm_id not in self.asked and not home:
            # Healthy VMs are never reshuffled.
            raise Violation(f"{vm_id} is moved from {command.source}, and nobody wanted that")

    def _is_shut_out(self, host: SimHost, vm_id: VmId) -> bool:
        """P3: the target of an earlier move, of a host that hangs. What it has never ran, and could write nothing."""
        ceph = self._world.ceph
        if ceph is None or not ceph.is_listed(host.name):
            return False
        return self._world.storage.domain_of(vm_id) in ceph.domains

    def _let_run(self, vm_id: VmId, host: SimHost) -> None:
        """G6: nothing is left of the other side, as far as what was proven of it is true, and nothing was written since this one
        stood still."""
        world = self._world
        for other in world.hosts.values():
            if other is host or other.name in self._checkers.believed:
                continue
            if _has(other, vm_id) or world.storage.outstanding(vm_id, other.name):
                raise Violation(
                    f"{vm_id} is let run on {host.name} while {other.name} has some of it"
                )
        number, writers = world.runs_as(host, vm_id), world.storage.disk(vm_id).writers
        if not _has(host, vm_id) or number is None or not writers:
            return
        newest = writers[-1]
        if number < newest.incarnation:
            raise Violation(f"{vm_id} is let run on {host.name}; its disks are {newest.host}'s")

    def committed(self, migration: LiveMigration) -> None:
        """As the target begins to run it: the source stands still, and all that it wrote has landed."""
        world, vm_id = self._world, migration.vm_id
        source, target = migration.source.host, migration.target.host
        qemu = migration.source.qemu
        if migration.source.domain is not None and qemu is not None and qemu.running:
            raise Violation(f"{vm_id} begins to run on {target.name} while {source.name} runs it")
        if world.storage.outstanding(vm_id, source.name):
            raise Violation(f"{vm_id} begins to run on {target.name} before {source.name}'s writes")
        held = target.name in world.server.vms[vm_id].holders
        if not held and not world.server.timeline:
            # A restored database may have forgotten it; the hosts tell it before anything is started (M2).
            raise Violation(f"{vm_id} begins to run on {target.name}, which does not hold it")
        number, former = world.runs_as(target, vm_id), world.storage.disk(vm_id).writers
        if number is None:
            raise Violation(f"{vm_id} came to {target.name}, which was not told of it")
        if former and number <= former[-1].incarnation:
            raise Violation(f"{vm_id} came to {target.name} as {number}, not above {former[-1]}")


def _has(host: SimHost, vm_id: VmId) -> bool:
    domain = host.libvirt.find(vm_id)
    return domain is not None and domain.qemu is not None
