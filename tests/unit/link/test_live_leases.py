"""A lease from end to end: real slots and guardians, TLS, gateway, judge and engine on a real store, in real time.

What is played: watchdogs, and of agents all but their looks at a silent host's disks.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from able_host import MIB
from hasty_policy import hasty_policy
from installed import ADMIN, Installed
from link_rig import until
from live_hosts import LiveHost, join
from msgspec.structs import replace

from virtha.control import Control
from virtha.control.requests import EventQuery, StorageCreate, VmCreate, VmStart
from virtha.model.ids import StorageDomainId
from virtha.model.policy import (
    LeasePolicy,
    Policy,
)
from virtha.model.slot import Slot
from virtha.sentinel.lease import LeaseState
from virtha.server.cluster_feed import ClusterFeed
from virtha.server.engines import Engines

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(400)]
"""Not because it needs a lab: its deadlines are many seconds of real time, which all that is played here share."""

LEASE = LeasePolicy(
    renew_ms=200, self_fence_after_ms=12_000, kill_ms=4_000, watchdog_ms=6_000, read_period_ms=200
)
_HASTY = hasty_policy(LEASE)
POLICY = replace(
    _HASTY,
    detection=replace(
        _HASTY.detection,
        stall_ms=5_000,
        suspect_after_ms=6_000,
        dead_after_ms=10_000,
        hung_after_ms=15_000,
        evidence_max_age_ms=9_000,
    ),
)
"""One process plays them all: on a machine that is late by seconds none of them is silent, and nobody loses a lease."""

PATIENT = replace(
    POLICY,
    lease=replace(LEASE, self_fence_after_ms=60_000),
    detection=replace(POLICY.detection, dead_after_ms=50_000, hung_after_ms=50_000),
)
"""However slow the machine: nobody is judged before its neighbours have answered."""


class Live:
    def __init__(self, control: Control, engines: Engines, hosts: list[LiveHost]) -> None:
        self.control = control
        self.hosts = hosts
        self._engines = engines
        self.domain_id = StorageDomainId("")

    @property
    def feed(self) -> ClusterFeed:
        (feed,) = self._engines.feeds.values()
        return feed

    async def begin(self, path: Path) -> None:
        """h1 runs web on a domain that all lease."""
        path.mkdir()
        await until(lambda: all(host.facts_acknowledged for host in self.hosts), "sessions")
        view = await self.control.storage.create(ADMIN, StorageCreate(name="ds1", path=str(path)))
        self.domain_id = view.domain.id
        await until(lambda: all(host.states == {LeaseState.HELD} for host in self.hosts), "leases")
        request = VmCreate(name="web", memory_bytes=512 * MIB, image="tiny", ha=True)
        await self._done((await self.control.vms.create(ADMIN, request)).id)
        await self._done((await self.control.vms.start(ADMIN, "web", VmStart(host="h1"))).id)

    async def _done(self, operation_id: str) -> None:
        async with asyncio.timeout(120):
            while not (await self.control.operations.get(operation_id)).is_over:
                await asyncio.sleep(0.02)

    async def events(self, code: str) -> int:
        return len((await self.control.events.list(EventQuery(code=code))).items)

    async def until_told(self, code: str) -> None:
        async with asyncio.timeout(120):
            while not await self.events(code):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def live(directory: Path, policy: Policy = POLICY) -> AsyncIterator[Live]:
    installed = Installed(directory)
    await installed.initialise()
    stopping = asyncio.Event()
    hosts: list[LiveHost] = []
    async with installed.led_server(directory / "journals", policy=policy) as (control, engines):
        run = asyncio.create_task(engines.run(stopping))
        try:
            for name in ("h1", "h2", "h3"):
                hosts.append(await join(installed, control, name, directory))
            yield Live(control, engines, hosts)
        finally:
            for host in hosts:
                await host.die()
            stopping.set()
            await asyncio.wait({run}, timeout=60)


@pytest.mark.req("F1", "F2", "F3")
def test_a_silent_hosts_lease_is_its_proof_and_its_vm_starts_elsewhere(tmp_path: Path) -> None:
    async def story() -> None:
        async with live(tmp_path) as world:
            h1, h2, h3 = world.hosts
            await world.begin(tmp_path / "ds1")
            await until(
                lambda: sum(bool(host.guardian.lease.duties) for host in world.hosts) == 2,
                "two readers",
            )
            await h1.die()
            last = h1.slot(tmp_path / "ds1", world.domain_id)
            assert isinstance(last, Slot) and last.declaration.armed
            await until(lambda: h2.starts or h3.starts, "its start elsewhere", seconds=200)
            (at_ms, start) = (h2.starts + h3.starts)[0]
            assert start.vm.name == "web"
            assert at_ms > last.submitted_ms + LEASE.host_side_ms, "sooner than it promised"
            assert len(h2.starts + h3.starts) == 1
            assert not any(host.watchdog.resets for host in world.hosts)

    asyncio.run(story())


@pytest.mark.req("F2", "S6")
def test_an_outage_for_all_is_waived_and_the_lease_kept_again_afterwards(tmp_path: Path) -> None:
    async def story() -> None:
        async with live(tmp_path) as world:
            h1 = world.hosts[0]
            await world.begin(tmp_path / "ds1")
            for host in world.hosts:
                host.slots[world.domain_id].fails = True
                host.tell_storage(world.domain_id, usable=False)
            await world.until_told("storage.outage")
            await until(lambda: h1.states == {LeaseState.WAIVED}, "the waiver")
            # Real guardians count it: nothing else shows that the time in which it would be lost has passed.
            await asyncio.sleep((LEASE.self_fence_after_ms + LEASE.kill_ms) / 1_000)
            assert h1.states == {LeaseState.WAIVED}
            for host in world.hosts:
                host.slots[world.domain_id].fails = False
                host.tell_storage(world.domain_id, usable=True)
            await world.until_told("storage.lease_again")
            assert h1.states == {LeaseState.HELD}
            assert await world.events("host.unreachable") == 0

    asyncio.run(story())


@pytest.mark.req("F1", "F2")
def test_a_host_that_lost_its_server_is_seen_by_its_neighbours_and_nothing_is_done_to_it(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with live(tmp_path, PATIENT) as world:
            h1, h2, h3 = world.hosts
            await world.begin(tmp_path / "ds1")
            await h1.lose_server()
            await world.until_told("host.isolated")
            assert await world.events("host.proven_dead") == 0
            assert h1.states == {LeaseState.HELD}
            assert not (h2.starts or h3.starts or any(host.watchdog.resets for host in world.hosts))

    asyncio.run(story())
