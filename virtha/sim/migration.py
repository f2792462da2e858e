"""Live migration between simulated hypervisors: what two libvirts and two QEMUs do, with agents or without.

As libvirt's peer-to-peer migration: the source's libvirt leads it, and goes on when its agent dies. Phases:

- **begun**: the target's gate was asked, its QEMU stands there empty; nothing flows yet.
- **copying**: the source runs and its memory flows, at the network's speed. A busy guest writes as fast as that.
- **stands**: no I/O in flight, all of it was sent: both stand still, and the word to run is on its way to the target.
- **runs**: the target runs it, the source stands still with what it had; the answer is on its way.
- **over**: the source's QEMU has ended, or goes on.

The one thing that libvirt must not do by itself is here as it has to be (G6): a source that sent the word and hears nothing
stands still for good. So does a complete copy on a target that never got the word. A connection is lost when nothing
was exchanged for ``LOST_MS``; what is on its way when both still hold it, arrives late.
"""

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

from virtha.model.domain import DomainState
from virtha.model.facts import Result
from virtha.model.ids import BootId, VmId
from virtha.ports.hypervisor import HypervisorError, HypervisorFailed
from virtha.sentinel.moves import CopySeen
from virtha.sim.libvirt import Domain, Qemu

if TYPE_CHECKING:
    from virtha.sim.host import SimHost
    from virtha.sim.world import World

BYTES_PER_MS = 117_000
"""1 Gbit/s, as a stream of memory pages gets it."""
TICK_MS = 100
PREPARE_MS = 150
"""Until the target's QEMU stands there."""
FINISH_MS = 20
"""Until its processors run."""
LOST_MS = 30_000
"""libvirt's keepalive: five missed answers, five seconds apart, and the sixth."""
FAILED = "migration.failed"
PAUSED, IO_ERROR = "migration.ended.paused", "migration.ended.io_error"


class Phase(IntEnum):
    BEGUN = 0
    COPYING = 1
    STANDS = 2
    RUNS = 3
    OVER = 4


class Side:
    """One host's part in it, bound to one QEMU of one boot."""

    def __init__(self, host: "SimHost", vm_id: VmId, qemu: Qemu | None) -> None:
        self.host = host
        self.vm_id = vm_id
        self.boot: BootId = host.boot
        self.qemu = qemu
        self.closed = False
        """Its libvirt has done with the connection."""

    @property
    def domain(self) -> Domain | None:
        """None: that QEMU is gone."""
        domain = self.host.libvirt.find(self.vm_id)
        same = domain is not None and domain.qemu is not None and domain.qemu is self.qemu
        return domain if same and self.host.boot == self.boot else None

    @property
    def stands(self) -> bool:
        domain = self.domain
        return domain is not None and _stands(domain)

    @property
    def dead(self) -> bool:
        return not self.host.powered or self.host.boot != self.boot

    @property
    def acts(self) -> bool:
        """Its libvirt can do something."""
        return not (self.dead or self.host.kernel.frozen) and self.host.libvirt_up

    @property
    def works(self) -> bool:
        """And it still listens."""
        return self.acts and not self.closed


class LiveMigration:
    def __init__(self, source: Side, target: Side, *, memory_bytes: int, before: int) -> None:
        self.source = source
        self.target = target
        self.left_bytes = memory_bytes
        self.number = before + 1
        self.phase = Phase.BEGUN
        self.code: str | None = None
        """Why it is ended."""
        self.result = Result.UNKNOWN
        """As the source's libvirt has it in the end."""
        self.quiet_ms = 0

    @property
    def vm_id(self) -> VmId:
        return self.source.vm_id


class SimMigrations:
    """All of a world. ``on_phase`` hears of each new phase at once."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._last: dict[VmId, LiveMigration] = {}
        self._begun = 0
        self.busy: set[VmId] = set()
        """Guests that write memory faster than it flows."""
        self.on_phase: Callable[[VmId, Phase], None] = lambda _vm_id, _phase: None
        self.on_commit: Callable[[LiveMigration], None] = lambda _migration: None
        """Just before the target runs it."""

    # What an agent, or virsh, asks libvirt

    def begin(self, source: "SimHost", vm_id: VmId, target: str) -> None:
        """Raises HypervisorFailed when it doesn't run there, or moves already."""
        domain = source.libvirt.domain(vm_id)
        still = _still(domain)
        if still is None and (domain.qemu is None or not domain.qemu.running):
            raise HypervisorFailed(f"domain '{domain.name}' is not running")
        if self.under_way(source, vm_id):
            raise HypervisorFailed(f"domain '{domain.name}' is being moved already")
        other = self._world.hosts[target]
        migration = LiveMigration(
            Side(source, vm_id, domain.qemu),
            Side(other, vm_id, None),
            memory_bytes=self._world.server.vms[vm_id].vm.memory_bytes,
            before=self._begun,
        )
        self._begun = migration.number
        self._last[vm_id] = migration
        self._trace(migration, f"begins to {target}")
        if still is not None:
            migration.code = still
            self._end(migration, Result.FAILED)
            return
        self._send(migration, migration.source, migration.target, self._prepare)
        self._tick_later(migration)

    def abort(self, source: "SimHost", vm_id: VmId, code: str) -> None:
        """Not any more when all of it was sent."""
        migration = self._of(source, vm_id)
        if migration is not None and migration.phase <= Phase.COPYING:
            self._fail(migration, code)

    def under_way(self, host: "SimHost", vm_id: VmId) -> bool:
        """Whether that host's libvirt still works at it, as source or as target."""
        migration = self._last.get(vm_id)
        if migration is None or migration.phase is Phase.OVER:
            return False
        sides = (migration.source, migration.target)
        return any(side.host is host and side.works for side in sides)

    def result(self, source: "SimHost", vm_id: VmId) -> tuple[Result, str | None]:
        """Of the last one that left from there; UNKNOWN: libvirt has no word on it."""
        migration = self._last.get(vm_id)
        if migration is None or migration.source.host is not source:
            return Result.UNKNOWN, None
        return migration.result, migration.code

    def seen(self, host: "SimHost", vm_id: VmId) -> CopySeen:
        domain = host.libvirt.find(vm_id)
        if domain is None or domain.qemu is None:
            return CopySeen(under_way=self.under_way(host, vm_id))
        return CopySeen(
            active=True,
            stands=_stands(domain),
            under_way=self.under_way(host, vm_id),
            whole=domain.qemu.whole,
        )

    def _of(self, source: "SimHost", vm_id: VmId) -> LiveMigration | None:
        migration = self._last.get(vm_id)
        ours = migration is not None and migration.source.host is source
        return migration if ours and migration is not None and migration.source.works else None

    # Time

    def _tick_later(self, migration: LiveMigration) -> None:
        self._world.kernel.after(TICK_MS, partial(self._tick, migration))

    def _tick(self, migration: LiveMigration) -> None:
        """Of the world, not of a process: whoever sleeps does nothing in here."""
        sides = (migration.source, migration.target)
        if migration.phase is Phase.OVER or all(side.closed or side.dead for side in sides):
            return
        self._look_at_connection(migration)
        if migration.phase is Phase.COPYING and self._exchange(migration):
            self._copy(migration)
        if self._last.get(migration.vm_id) is migration:
            self._tick_later(migration)

    def _exchange(self, migration: LiveMigration) -> bool:
        source, target = migration.source, migration.target
        network = self._world.network
        ways = (
            network.link(source.host.name, target.host.name),
            network.link(target.host.name, source.host.name),
        )
        return source.works and target.works and all(way.carries for way in ways)

    def _look_at_connection(self, migration: LiveMigration) -> None:
        if self._exchange(migration):
            migration.quiet_ms = 0
            return
        migration.quiet_ms += TICK_MS
        source, target = migration.source, migration.target
        # A process that ends closes its connections; a machine that is cut off or without power says nothing.
        hung_up = any(
            side.closed or (not side.dead and not side.host.libvirt_up) for side in (source, target)
        )
        if not hung_up and migration.quiet_ms < LOST_MS:
            return
        source.host.kernel.deliver(partial(self._source_lost_it, migration))
        target.host.kernel.deliver(partial(self._target_lost_it, migration))

    def _source_lost_it(self, migration: LiveMigration) -> None:
        """Also when its libvirt comes back: a migration that was not sent whole is undone then."""
        source = migration.source
        if source.closed or source.dead or migration.phase is Phase.OVER:
            return
        if migration.phase <= Phase.COPYING:
            self._fail(migration, FAILED)
        else:
            self._trace(migration, "the source hears nothing any more")
            source.closed = True

    def _target_lost_it(self, migration: LiveMigration) -> None:
        if not migration.target.closed:
            migration.target.closed = True
            self._drop_part(migration)

    # Phases

    def _prepare(self, migration: LiveMigration) -> None:
        """On the target: its gate is asked (G3), and QEMU made."""
        target = migration.target
        if migration.phase is not Phase.BEGUN or not target.works:
            return
        try:
            guest = migration.source.qemu
            assert guest is not None
            target.qemu = target.host.libvirt.receive(
                migration.vm_id, uptime_ms=migration.source.host.clock() - guest.guest_boot_ms
            )
        except HypervisorError as error:
            self._trace(migration, f"the target refuses: {error.message}")
            refused = partial(self._refused, error.message)
            self._send(migration, migration.target, migration.source, refused)
            return
        self._enter(migration, Phase.BEGUN)
        target.host.kernel.after(PREPARE_MS, lambda: self._prepared(migration))

    def _prepared(self, migration: LiveMigration) -> None:
        if migration.target.works:
            self._send(migration, migration.target, migration.source, self._flow)

    def _refused(self, why: str, migration: LiveMigration) -> None:
        if migration.phase is Phase.BEGUN:
            self._fail(migration, FAILED)

    def _flow(self, migration: LiveMigration) -> None:
        if migration.phase is Phase.BEGUN and migration.source.works:
            self._enter(migration, Phase.COPYING)

    def _copy(self, migration: LiveMigration) -> None:
        source, target = migration.source, migration.target
        domain = source.domain
        if domain is None or source.qemu is None or not source.qemu.running:
            # It ended, or something else paused it: a VM that stands still for another reason is not moved.
            self._fail(migration, FAILED if domain is None else _still(domain) or FAILED)
        elif target.domain is None:
            self._fail(migration, FAILED)
        elif migration.vm_id not in self.busy:
            migration.left_bytes -= BYTES_PER_MS * TICK_MS
        if migration.phase is Phase.COPYING and migration.left_bytes <= 0:
            self._stand_still(migration)

    def _stand_still(self, migration: LiveMigration) -> None:
        """All I/O has ended first: nothing of it can land after the target runs."""
        source, target, storage = migration.source, migration.target, self._world.storage
        path = storage.path(source.host.name, storage.domain_of(migration.vm_id))
        if not path.lands:
            return
        source.host.libvirt.stand_still(migration.vm_id)
        assert target.qemu is not None
        target.qemu.whole = True
        self._enter(migration, Phase.STANDS)
        source.host.kernel.deliver(partial(self._say, migration, source, target, self._finish))

    def _finish(self, migration: LiveMigration) -> None:
        """The word to run. What a libvirt has read of it it does, whether its peer still waits or not."""
        if migration.target.works:
            later = partial(self._run_there, migration)
            migration.target.host.kernel.after(FINISH_MS, later)

    def _run_there(self, migration: LiveMigration) -> None:
        target = migration.target
        if migration.phase is not Phase.STANDS or not target.acts:
            return
        if target.domain is None:
            # There is nothing to let run: its libvirt says so, for certain.
            self._send(migration, target, migration.source, self._go_on)
            return
        if target.stands:
            self.on_commit(migration)
            target.host.libvirt.go_on(migration.vm_id)
        self._enter(migration, Phase.RUNS)
        answer = partial(self._say, migration, target, migration.source, self._hand_over)
        target.host.kernel.deliver(answer)

    def _hand_over(self, migration: LiveMigration) -> None:
        source = migration.source
        if migration.phase is Phase.OVER or not source.works:
            return
        if source.stands:
            source.host.libvirt.handed_over(migration.vm_id)
        self._end(migration, Result.OK)

    def _go_on(self, migration: LiveMigration) -> None:
        source = migration.source
        if migration.phase is not Phase.STANDS or not source.works:
            return
        if source.stands:
            source.host.libvirt.go_on(migration.vm_id)
        migration.code = migration.code or FAILED
        self._end(migration, Result.FAILED)

    # Ends

    def _fail(self, migration: LiveMigration, code: str) -> None:
        """Before all of it was sent: the source just goes on."""
        migration.code = code
        migration.source.closed = True
        self._send(migration, migration.source, migration.target, self._drop_part)
        self._end(migration, Result.FAILED)

    def _drop_part(self, migration: LiveMigration) -> None:
        target = migration.target
        domain = target.domain
        part = domain is not None and target.qemu is not None and not target.qemu.whole
        if part and target.host.libvirt_up:
            target.host.libvirt.drop_part(migration.vm_id)

    def _end(self, migration: LiveMigration, result: Result) -> None:
        migration.result = result
        self._trace(migration, f"ends at the source: {result}")
        self._enter(migration, Phase.OVER)

    def libvirt_back(self, host: "SimHost") -> None:
        """What a libvirt does at its start with what it finds: part of a copy is dropped, an attempt of its own undone."""
        for vm_id in sorted(self._last):
            migration = self._last[vm_id]
            if migration.target.host is host:
                self._drop_part(migration)
            if migration.source.host is host and migration.phase is not Phase.OVER:
                self._source_lost_it(migration)

    # Inside

    def _enter(self, migration: LiveMigration, phase: Phase) -> None:
        migration.phase = phase
        self._trace(migration, phase.name.lower())
        self.on_phase(migration.vm_id, phase)

    def _say(
        self,
        migration: LiveMigration,
        sender: Side,
        receiver: Side,
        action: Callable[[LiveMigration], None],
    ) -> None:
        if sender.works:
            self._send(migration, sender, receiver, action)

    def _send(
        self,
        migration: LiveMigration,
        sender: Side,
        receiver: Side,
        action: Callable[[LiveMigration], None],
    ) -> None:
        """Over the management network. What a host sleeps through it reads when it wakes."""
        host, boot = receiver.host, receiver.boot

        def arrive() -> None:
            if host.powered and host.boot == boot:
                host.kernel.deliver(lambda: action(migration))

        self._world.network.link(sender.host.name, host.name).carry(arrive)

    def _trace(self, migration: LiveMigration, what: str) -> None:
        self._world.trace(f"migration {migration.number} of {migration.vm_id}: {what}")


def _stands(domain: Domain) -> bool:
    return domain.state is DomainState.PAUSED and domain.reason == "migration"


def _still(domain: Domain) -> str | None:
    """As what one that stands still is not moved."""
    if domain.state is not DomainState.PAUSED:
        return None
    return IO_ERROR if domain.reason == "ioerror" else PAUSED
