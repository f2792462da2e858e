"""Three hosts with leases on one storage domain, h1 runs web: in the simulator, and on a real store with played guardians.

What the suite in ``test_lease_desks.py`` asks of both. Only h1 is ever lost; nobody has power devices that answer.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from led_world import LedWorld, led_world
from msgspec.structs import replace
from whole_promise import whole_promise

from virtha.model.ids import HostId
from virtha.model.orders import StartVm
from virtha.model.policy import LeasePolicy
from virtha.model.slot import (
    BlockFault,
    Mailbox,
    Poison,
    Slot,
    SlotReading,
    Unreadable,
)
from virtha.model.slot_round import LeaseDuty, SlotRound
from virtha.scenario.language import parse
from virtha.sim.play import Player
from virtha.store.installations import the_installation
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseKept,
    ReadSlots,
    StopReading,
    WaiveLease,
    told_round,
)
from virtha.wire.witness_messages import DisksLooked, LookAtDisks

LEASE = LeasePolicy()
STEP_MS = 500


class DeskBench(ABC):
    @abstractmethod
    async def advance(self, duration_ms: int) -> None: ...

    @abstractmethod
    async def lose(self, name: str) -> None:
        """Without power; nobody is told."""

    @abstractmethod
    async def lose_guardian(self, name: str) -> None:
        """Its guardian's session ends, its agent's goes on."""

    @abstractmethod
    async def lose_storage(self, *names: str) -> None:
        """They can't reach it any more, and their agents say so."""

    @abstractmethod
    async def storage_back(self, *names: str) -> None: ...

    @abstractmethod
    def readers(self) -> dict[str, set[str]]:
        """Whom they are to poison, by reader: as their guardians know it."""

    @abstractmethod
    def waived(self) -> set[str]:
        """Who was told that its lease is waived, and not that it is to keep it again."""

    @abstractmethod
    def runs_on(self) -> str | None:
        """Where web was ordered to run last."""


class SimDesk(DeskBench):
    def __init__(self) -> None:
        self._player = Player()
        self._do("engine", "lease", "hosts h1 h2 h3", "vm web on=h1 ha", "start web", "advance 10s")
        self._do("cut bmc h1")
        self.world = self._player.world

    def _do(self, *lines: str) -> None:
        for step in parse("\n".join(("# a story", *lines, ""))).steps:
            self._player.do(step)

    async def advance(self, duration_ms: int) -> None:
        self._do(f"advance {duration_ms}ms")

    async def lose(self, name: str) -> None:
        self._do(f"power-cut {name}")

    async def lose_guardian(self, name: str) -> None:
        self._do(f"stop-guardian {name}")

    async def lose_storage(self, *names: str) -> None:
        self._do(*(f"stall-storage on={name}" for name in names))

    async def storage_back(self, *names: str) -> None:
        self._do(*(f"resume-storage on={name}" for name in names))

    def readers(self) -> dict[str, set[str]]:
        return {
            name: {str(poisoned) for poisoned in duty.poisons}
            for name, host in self.world.hosts.items()
            if host.guardian is not None and host.lease is not None
            for duty in host.lease.duties.values()
        }

    def waived(self) -> set[str]:
        return {
            record.host_id
            for record in self.world.server.table.hosts.values()
            if any(not waiver.ending for waiver in record.waived)
        }

    def runs_on(self) -> str | None:
        hosts = self.world.running_on(self.world.ids["web"])
        return hosts[0] if hosts else None


class PlayedSlots:
    """The storage domain's blocks."""

    def __init__(self) -> None:
        self.slots: dict[HostId, Slot] = {}
        self.mailboxes: dict[HostId, Mailbox] = {}

    def read_slot(self, host_id: HostId) -> SlotReading:
        return self.slots.get(host_id, Unreadable(fault=BlockFault.EMPTY))


class ServerDesk(DeskBench):
    def __init__(self, world: LedWorld) -> None:
        self.world = world
        self.blocks = PlayedSlots()
        self.mounted_elsewhere: dict[HostId, PlayedSlots] = {}
        """Other blocks that a host has in their place."""
        self.duties: dict[HostId, LeaseDuty] = {}
        self.told: dict[HostId, str] = {}
        self.waivers: dict[HostId, WaiveLease] = {}
        self.lost: set[str] = set()
        self.without_storage: set[str] = set()
        self.declared = whole_promise(LEASE)
        """By all of them."""
        self._heard = 0
        self._passed_ms = 0

    async def begin(self) -> None:
        world = self.world
        for name in ("h1", "h2", "h3"):
            await world.join(name)
        await world.add_storage()
        await world.add_vm("web")
        await world.settle()
        await world.run_vm("web", "h1")
        async with world.store.read() as tx:
            self.installation_id = (await the_installation(tx)).installation.id
        (self.domain_id,) = world.feed.storage_domains()
        for host in world.hosts.values():
            self.blocks.mailboxes[host.id] = self._mailbox(host.id, 0, None)
        await world.settle()
        await self.advance(10_000)

    def _mailbox(self, host_id: HostId, counter: int, poison: Poison | None) -> Mailbox:
        return Mailbox(
            installation_id=self.installation_id,
            domain_id=self.domain_id,
            index=0,
            host_id=host_id,
            counter=counter,
            poison=poison,
        )

    # The guardians

    def _hear(self) -> None:
        orders = self.world.gateway.lease_orders
        for host_id, order in orders[self._heard :]:
            match order:
                case ReadSlots(duty=duty):
                    self.duties[host_id] = duty
                case StopReading():
                    self.duties.pop(host_id, None)
                case WaiveLease():
                    self.waivers[host_id] = order
                case KeepLease(waiver_id=waiver_id, boot=boot, domain_id=domain_id):
                    self.waivers.pop(host_id, None)
                    self._tell(
                        host_id, LeaseKept(waiver_id=waiver_id, boot=boot, domain_id=domain_id)
                    )
        self._heard = len(orders)

    def _tell(self, host_id: HostId, answer: LeaseKept) -> None:
        watcher = self.world.gateway.watcher
        assert watcher is not None
        watcher.lease(host_id, answer)

    def _blocks_of(self, host_id: HostId) -> PlayedSlots:
        return self.mounted_elsewhere.get(host_id, self.blocks)

    def _renew(self) -> None:
        for name, host in self.world.hosts.items():
            if name in self.lost | self.without_storage:
                continue
            blocks = self._blocks_of(host.id)
            before = blocks.slots.get(host.id)
            blocks.slots[host.id] = Slot(
                installation_id=self.installation_id,
                domain_id=self.domain_id,
                index=0,
                host_id=host.id,
                boot=host.boot,
                counter=before.counter + 1 if before is not None else 1,
                declaration=self.declared,
            )
            duty = self.duties.get(host.id)
            if duty is not None and self.world.gateway.lease_boot(host.id) is not None:
                self._read(host.id, duty)

    def _read(self, host_id: HostId, duty: LeaseDuty) -> None:
        for poisoned, poison in duty.poisons.items():
            box = self.blocks.mailboxes[poisoned]
            if box.poison != poison:
                self.blocks.mailboxes[poisoned] = replace(
                    box, counter=box.counter + 1, poison=poison
                )
        blocks = self._blocks_of(host_id)
        own, now = blocks.slots[host_id], self.world.clock.now
        seen = SlotRound(
            reader_id=host_id,
            reader_boot=own.boot,
            domain_id=duty.domain_id,
            began_ms=now,
            ended_ms=now,
            own_counter=own.counter,
            direct_io=True,
            slots={one: blocks.read_slot(one) for one in duty.places},
            mailboxes={one: self.blocks.mailboxes[one] for one in duty.poisons},
        )
        watcher = self.world.gateway.watcher
        assert watcher is not None
        watcher.lease(host_id, told_round(seen))

    # The bench

    async def advance(self, duration_ms: int) -> None:
        world = self.world
        for _ in range(duration_ms // STEP_MS):
            alive = tuple(name for name in world.hosts if name not in self.lost)
            await world.pass_time(STEP_MS, beating=alive)
            self._passed_ms += STEP_MS
            if self._passed_ms % LEASE.read_period_ms == 0:
                self._renew()
            self._look_at_disks()
            self._hear()
        await world.settle(rounds=2)
        self._hear()

    def _look_at_disks(self) -> None:
        """All of them are quiet."""
        gateway = self.world.gateway
        for host_id, order in gateway.questions:
            if isinstance(order, LookAtDisks):
                gateway.answer(
                    host_id, DisksLooked(question=order.question, changed=False, disks=1)
                )
        gateway.questions.clear()

    async def lose(self, name: str) -> None:
        self.lost.add(name)
        self.world.hosts[name].vanish()

    async def lose_guardian(self, name: str) -> None:
        gateway, host = self.world.gateway, self.world.hosts[name]
        role = next(role for role in gateway.up[host.id] if role.value == "guardian")
        boot = gateway.up[host.id].pop(role)
        assert gateway.watcher is not None
        gateway.watcher.session(host.id, role, boot, up=False, broken=True)

    async def lose_storage(self, *names: str) -> None:
        for name in names:
            self.without_storage.add(name)
            await self.world.tell_storage(name, usable=False)
            await self.world.settle()

    async def storage_back(self, *names: str) -> None:
        for name in names:
            self.without_storage.discard(name)
            await self.world.tell_storage(name, usable=True)
            await self.world.settle()

    def readers(self) -> dict[str, set[str]]:
        names = {host.id: name for name, host in self.world.hosts.items()}
        return {
            names[host_id]: {names[one] for one in duty.poisons}
            for host_id, duty in self.duties.items()
            if self.world.gateway.lease_boot(host_id) is not None
        }

    def waived(self) -> set[str]:
        return {name for name, host in self.world.hosts.items() if host.id in self.waivers}

    def runs_on(self) -> str | None:
        starts = [
            host_id
            for host_id, order in self.world.gateway.delivered
            if isinstance(order.body, StartVm) and order.body.grant.duration_ms
        ]
        names = {host.id: name for name, host in self.world.hosts.items()}
        return names[starts[-1]] if starts else None


@asynccontextmanager
async def sim_desk(_directory: Path) -> AsyncIterator[DeskBench]:
    yield SimDesk()


@asynccontextmanager
async def server_desk(directory: Path) -> AsyncIterator[ServerDesk]:
    async with led_world(directory) as world:
        bench = ServerDesk(world)
        await bench.begin()
        yield bench
