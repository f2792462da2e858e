"""An installation of many VMs and years of events, in its database. Made once, by the store's own functions; events, which are too many
for those, in bulk, through the store's own tables."""

import asyncio
import random
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import insert, text, update

from virtha.control.history import message_of, severity_of
from virtha.drivers.machine_clock import MachineClock
from virtha.model.event import Event
from virtha.model.facts import StorageReport
from virtha.model.host import Cluster, Host, HostCapabilities, HostState, HostStatus, StorageDomain
from virtha.model.ids import (
    BootId,
    ClusterId,
    DiskId,
    HostId,
    Incarnation,
    NicId,
    Revision,
    StorageDomainId,
    VmId,
)
from virtha.model.time import UtcMillis
from virtha.model.vm import Disk, Nic, Vm, VmState, VmStatus
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel
from virtha.server.config import ServerPaths
from virtha.server.setup import InitAnswers, set_up
from virtha.store import Store, open_store, schema
from virtha.store.body import encode
from virtha.store.clusters import save_cluster, save_report, save_storage
from virtha.store.events import RANK
from virtha.store.hosts import add_host, save_host_status
from virtha.store.installations import the_installation
from virtha.store.vms import save_vm, save_vm_status

T = TypeVar("T")
MADE_BY = 2
"""To be raised with each change here: databases of other numbers are made anew."""
ADMINISTRATOR, PASSWORD = "admin", "only for this benchmark"
HOSTS_PER_CLUSTER = 40
GIB = 1 << 30
DAY_MS = 86_400_000
EVENTS_OF = 365
"""Days over which the events are spread, until now."""
IN_ONE_WRITE = 500
EVENTS_IN_ONE_WRITE = 50_000
CUSTOMERS = 1_500
ROLES = ("web", "db", "app", "mail", "build", "cache", "queue", "desk")
CODES = (
    # code, how often among a thousand, fields
    ("vm.started", 380, {"host": "", "incarnation": 7}),
    ("vm.stopped", 350, {"cause": "shut down by its guest", "by": "guest"}),
    ("vm.watchdog.fired", 60, {"action": "reset", "model": "i6300esb", "count": 3}),
    ("host.agent.down", 60, {"name": ""}),
    ("host.agent.up", 60, {"name": ""}),
    ("host.unreachable", 40, {"name": ""}),
    ("host.reachable", 40, {"name": ""}),
    ("host.clock.wrong", 10, {"name": "", "offset_ms": 900}),
)


@dataclass(frozen=True, kw_only=True)
class Size:
    vms: int
    hosts: int
    events: int

    @property
    def name(self) -> str:
        return f"{self.vms}-vms-{self.hosts}-hosts-{self.events}-events-{MADE_BY}"

    def holds(self, other: "Size") -> bool:
        """As many of each and, since events are of VMs, as many events of each VM."""
        return (
            self.vms >= other.vms
            and self.hosts >= other.hosts
            and self.events * other.vms >= other.events * self.vms
        )


def host_name(number: int) -> str:
    return f"h{number:04}"


def vm_name(number: int) -> str:
    return f"{ROLES[number % len(ROLES)]}-{number:05}"


def installation(directory: Path, size: Size) -> ServerPaths:
    """That of this size, which is made where it isn't there yet. One that was left half made is made anew."""
    root = directory / size.name
    if not root.is_dir():
        half = directory / f"{size.name}.half"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        asyncio.run(_make(ServerPaths(half), size))
        half.rename(root)
    return ServerPaths(root)


def _in_lots(values: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(values)
    while lot := list(islice(left, size)):
        yield lot


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


async def _make(paths: ServerPaths, size: Size) -> None:
    clock = MachineClock()
    _tell(f"making {size.name} in {paths.root.parent}")
    answers = InitAnswers(
        admin=ADMINISTRATOR, password=PASSWORD, listen="127.0.0.1:0", names=("127.0.0.1",)
    )
    await set_up(paths, answers, clock)
    store = await open_store(f"sqlite:///{paths.database}", clock=clock)
    try:
        chance = random.Random(size.vms)
        clusters = await _clusters(store, size)
        hosts = await _hosts(store, size, clusters)
        _tell("its VMs")
        vms = await _vms(store, size, hosts, chance, clock.wall_ms())
        _tell("its events")
        await _events(store, size, vms, hosts, chance, clock.wall_ms())
    finally:
        await store.close()


@dataclass(frozen=True)
class _Place:
    cluster: ClusterId
    storage: StorageDomainId


async def _clusters(store: Store, size: Size) -> list[_Place]:
    made = []
    async with store.write() as tx:
        for number in range(1, -(-size.hosts // HOSTS_PER_CLUSTER) + 1):
            cluster = Cluster(id=ClusterId(f"cluster-{number:03}"), name=f"c{number:03}")
            domain = StorageDomain(
                id=StorageDomainId(f"storage-{number:03}"),
                name=f"nfs{number:03}",
                cluster_id=cluster.id,
                path="/srv/vms",
            )
            await save_cluster(tx, cluster)
            await save_storage(tx, domain)
            made.append(_Place(cluster.id, domain.id))
    return made


_ABLE = HostCapabilities(
    cpus=64,
    memory_bytes=512 * GIB,
    libvirt_version=9_000_000,
    qemu_version=7_002_000,
    watchdog_models=tuple(WatchdogModel),
    bridges=("br0",),
    agent_version="1",
    gate_in_force=True,
    libvirt_connected=True,
)


async def _hosts(store: Store, size: Size, places: Sequence[_Place]) -> list[Host]:
    hosts = []
    async with store.write() as tx:
        timeline = (await the_installation(tx)).timeline
        for number in range(1, size.hosts + 1):
            place = places[(number - 1) // HOSTS_PER_CLUSTER]
            host = Host(
                id=HostId(f"host-{number:04}"),
                name=host_name(number),
                number=number,
                cluster_id=place.cluster,
            )
            await add_host(tx, host, libvirt_uuid=None, timeline=timeline)
            status = HostStatus(
                host_id=host.id,
                state=HostState.UP,
                boot=BootId(f"boot-{number:04}"),
                capabilities=_ABLE,
            )
            await save_host_status(tx, status)
            report = StorageReport(
                storage_domain_id=place.storage,
                usable=True,
                size_bytes=100_000 * GIB,
                free_bytes=60_000 * GIB,
            )
            await save_report(tx, host.id, report)
            hosts.append(host)
    return hosts


async def _vms(
    store: Store, size: Size, hosts: Sequence[Host], chance: random.Random, now: int
) -> list[Vm]:
    made = []
    for numbers in _in_lots(range(1, size.vms + 1), IN_ONE_WRITE):
        async with store.write() as tx:
            for number in numbers:
                # All roles on each host: `number % len(hosts)` would give a host one role, or two.
                host = hosts[number // len(ROLES) % len(hosts)]
                vm = _vm(number, host, chance)
                await save_vm(tx, vm)
                await save_vm_status(tx, _status(vm, host, chance, now))
                made.append(vm)
    return made


def _vm(number: int, host: Host, chance: random.Random) -> Vm:
    storage = StorageDomainId(f"storage-{host.cluster_id.removeprefix('cluster-')}")
    card = Watchdog(model=WatchdogModel.I6300ESB, action=WatchdogAction.RESET)
    return Vm(
        id=VmId(f"vm-{number:05}"),
        name=vm_name(number),
        cluster_id=host.cluster_id,
        description=f"{chance.choice(ROLES)} of customer {chance.randrange(CUSTOMERS)}",
        memory_bytes=chance.choice((1, 2, 2, 4, 8)) * GIB,
        vcpus=chance.choice((1, 2, 4)),
        watchdog=card if chance.random() < 0.5 else None,
        ha=chance.random() < 0.7,
        disks=(
            Disk(
                id=DiskId(f"disk-{number:05}"),
                name="disk",
                storage_domain_id=storage,
                path=f"vms/{number:05}/disk.qcow2",
                size_bytes=20 * GIB,
            ),
        ),
        nics=(
            Nic(
                id=NicId(f"nic-{number:05}"),
                bridge="br0",
                mac=f"52:54:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
            ),
        ),
    )


def _status(vm: Vm, host: Host, chance: random.Random, now: int) -> VmStatus:
    is_up = chance.random() < 0.9
    fired = chance.random() < 0.15
    return VmStatus(
        vm_id=vm.id,
        state=VmState.RUNNING if is_up else VmState.DOWN,
        host_id=host.id,
        holders=(host.id,) if is_up else (),
        incarnation=Incarnation(7),
        wanted_up=is_up,
        last_watchdog=UtcMillis(now - chance.randrange(EVENTS_OF * DAY_MS)) if fired else None,
        watchdog_count=chance.randrange(1, 5) if fired else 0,
    )


async def _events(
    store: Store,
    size: Size,
    vms: Sequence[Vm],
    hosts: Sequence[Host],
    chance: random.Random,
    now: int,
) -> None:
    """Their indexes are made at the end: entry by entry they would take most of an hour."""
    indexes = sorted(schema.event.indexes, key=lambda one: str(one.name))
    async with store.write() as tx:
        first = await tx.revision_now() + 1
        await tx.connection.execute(text("PRAGMA cache_size = -400000"))
        for index in indexes:
            await tx.connection.run_sync(index.drop)
    rows = _rows(first, size, vms, hosts, chance, now)
    for some in _in_lots(rows, EVENTS_IN_ONE_WRITE):
        async with store.write() as tx:
            await tx.connection.execute(insert(schema.event), some)
    async with store.write() as tx:
        await tx.connection.execute(
            update(schema.installation).values(revision=first + size.events)
        )
        for index in indexes:
            await tx.connection.run_sync(index.create)


def _rows(
    first: int,
    size: Size,
    vms: Sequence[Vm],
    hosts: Sequence[Host],
    chance: random.Random,
    now: int,
) -> Iterator[dict[str, Any]]:
    began, apart = now - EVENTS_OF * DAY_MS, EVENTS_OF * DAY_MS / size.events
    drawn = [code for code in CODES for _ in range(code[1])]
    for number in range(size.events):
        code, _, fields = drawn[int(chance.random() * len(drawn))]
        host = hosts[int(chance.random() * len(hosts))]
        vm = vms[int(chance.random() * len(vms))] if code.startswith("vm.") else None
        told: dict[str, Any] = {**fields, "vm": vm.name} if vm is not None else {**fields}
        told |= {name: host.name for name in ("host", "name") if name in told}
        event = Event(
            revision=Revision(first + number),
            code=code,
            severity=severity_of(code),
            message=message_of(code, told),
            fields=told,
            cluster_id=vm.cluster_id if vm is not None else host.cluster_id,
            host_id=host.id if vm is None or "host" in told else None,
            vm_id=vm.id if vm is not None else None,
            at=UtcMillis(int(began + number * apart)),
        )
        yield {
            "revision": event.revision,
            "code": code,
            "severity": RANK[event.severity],
            "cluster_id": event.cluster_id,
            "host_id": event.host_id,
            "vm_id": event.vm_id,
            "at": event.at,
            "body": encode(event),
        }
