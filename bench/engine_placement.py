"""How long the planner takes when a rack dies, and how that grows with the cluster.

Worlds of 100, 1,000 and 10,000 hosts, 20 VMs on each, in racks of 40. One rack dies: its 800 VMs are to be placed, of
which 100 fit nowhere (they want more memory than any host has). Measured is the full plan with all reasons, on a capacity that
the engine kept up to date, as it does: first ``settled`` (the plan alone), then with the changes of the rack's death
still unsorted. Two worlds more at full size: every VM in affinity groups, and every host a class of its own, by a tag
that only it has. The best of several runs, for other work on the machine only ever adds.
"""

import gc
import random
import sys
import time
from collections.abc import Callable

from msgspec.structs import replace
from report import Figure, at_most, finish, shown
from rich.console import Console
from rich.table import Table

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.capacity import Capacity, Feature, FeatureKind, HeldVm, TargetHost, Unfit
from virtha.engine.placement import Plan, VmToPlace, plan_placements
from virtha.model.ids import HostId, VmId
from virtha.model.policy import RecoveryPolicy
from virtha.model.time import Millis

GIB = 1 << 30
RACK = 40
VMS_PER_HOST = 20
TOO_LARGE = 100
ROUNDS = 15
POLICY = RecoveryPolicy()
STORAGE = Feature(FeatureKind.STORAGE, "ds1")
SSD = Feature(FeatureKind.TAG, "ssd")


class World:
    """A cluster whose first rack is about to die. ``grouped``: VMs in soft and hard affinity groups.
    ``distinct``: no two hosts are of one class."""

    def __init__(self, hosts: int, *, grouped: bool = False, distinct: bool = False) -> None:
        self.chance = random.Random(hosts)
        self.capacity = Capacity()
        self.hosts = [self._host(number, distinct) for number in range(1, hosts + 1)]
        self.rack = self.hosts[:RACK]
        self.lost: list[tuple[HostId, HeldVm]] = []
        self.to_place: list[VmToPlace] = []
        for host in self.hosts:
            self.capacity.host_changed(host)
        for at in range(hosts * VMS_PER_HOST):
            self._vm(at, self.hosts[at // VMS_PER_HOST], grouped)
        self.capacity.settle()

    def _host(self, number: int, distinct: bool) -> TargetHost:
        # Four of five have fast disks; sizes differ by what the kernel kept.
        tags = {SSD} if number % 5 else set()
        own = {Feature(FeatureKind.TAG, f"host{number}")} if distinct else set()
        return TargetHost(
            id=HostId(f"h{number:05}"),
            name=f"h{number:05}",
            number=number,
            memory_bytes=256 * GIB - self.chance.randrange(GIB),
            reserved_bytes=2 * GIB,
            cpus=64,
            features=frozenset({STORAGE} | tags | own),
        )

    def _vm(self, at: int, host: TargetHost, grouped: bool) -> None:
        vm_id = VmId(f"vm{at:06}")
        memory = self.chance.choice((2, 4, 4, 8, 8, 16)) * GIB
        groups = self._groups(at) if grouped else ()
        held = HeldVm(id=vm_id, memory_bytes=memory, groups=tuple(one.id for one in groups))
        self.capacity.vm_started(host.id, held)
        if host.number > RACK:
            return
        self.lost.append((host.id, held))
        large = at % (RACK * VMS_PER_HOST // TOO_LARGE) == 0
        self.to_place.append(
            VmToPlace(
                id=vm_id,
                name=vm_id,
                memory_bytes=300 * GIB + at * GIB // 8 if large else memory,
                vcpus=self.chance.choice((1, 2, 4)),
                priority=self.chance.randrange(5),
                features=frozenset({STORAGE, SSD} if at % 3 == 0 else {STORAGE}),
                groups=groups,
            )
        )

    def _groups(self, at: int) -> tuple[AffinityGroup, ...]:
        kinds = list(AffinityKind)
        return tuple(
            AffinityGroup(
                id=AffinityGroupId(f"g{number}"),
                name=f"g{number}",
                kind=AffinityKind.APART if number % 3 else kinds[0],
                hard=number % 2 == 0 and number % 3 != 0,
            )
            for number in {at // 7, at % 997 + 1_000_000}
        )

    def rack_dies(self) -> None:
        for host in self.rack:
            self.capacity.host_changed(replace(host, unfit=Unfit.DOWN))
        for host_id, held in self.lost:
            self.capacity.vm_ended(host_id, held.id)

    def rack_returns(self) -> None:
        for host in self.rack:
            self.capacity.host_changed(host)
        for host_id, held in self.lost:
            self.capacity.vm_started(host_id, held)
        self.capacity.settle()

    def plan(self) -> Plan:
        return plan_placements(
            self.capacity, self.to_place, policy=POLICY, now=Millis(0), progress={}
        )


def best_ms(
    work: Callable[[], object],
    before: Callable[[], object] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> float:
    times = []
    for _ in range(ROUNDS):
        if before is not None:
            before()
        gc.collect()
        began = clock()
        work()
        times.append((clock() - began) / 1e6)
    return min(times)


def checked(world: World) -> Plan:
    """The plan is the one that was meant to be measured."""
    plan = world.plan()
    assert len(plan.placements) + len(plan.waiting) == len(world.to_place) - TOO_LARGE
    assert len(plan.blocked) == TOO_LARGE
    codes = {one.reasons[0].code for one in plan.blocked}
    assert codes == {"recovery.blocked.no_capacity"}, codes
    return plan


def updates_per_s(world: World) -> float:
    """The rack's death told to the capacity, per second and change, and put in its place each time."""

    def change() -> None:
        for host_id, held in world.lost:
            world.capacity.vm_ended(host_id, held.id)
            world.capacity.settle()
            world.capacity.vm_started(host_id, held)
            world.capacity.settle()

    return 2 * len(world.lost) / (best_ms(change) / 1e3)


def measure(hosts: int) -> dict[str, float]:
    world = World(hosts)
    row = {"updates_per_s": updates_per_s(world)}
    dying = best_ms(lambda: (world.rack_dies(), world.plan()), world.rack_returns)
    checked(world)
    row |= {"dying_ms": dying, "plan_ms": best_ms(world.plan)}
    row["plan_cpu_ms"] = best_ms(world.plan, clock=time.process_time_ns)
    single = World.__new__(World)
    single.capacity, single.to_place = world.capacity, world.to_place[1:2]
    row["one_vm_ms"] = best_ms(single.plan)
    return row


def main() -> int:
    rows = {hosts: measure(hosts) for hosts in (100, 1_000, 10_000)}
    grouped, distinct = World(10_000, grouped=True), World(10_000, distinct=True)
    for world in (grouped, distinct):
        world.rack_dies()
    checked(distinct)
    table = Table(title="a rack of 40 dies", title_justify="left")
    for column in (
        "hosts",
        "VMs",
        "plan, ms",
        "of it CPU, ms",
        "death and plan, ms",
        "one VM, ms",
        "updates/s",
    ):
        table.add_column(column, justify="right")
    for hosts, row in rows.items():
        figures = [
            f"{row[name]:,.2f}" for name in ("plan_ms", "plan_cpu_ms", "dying_ms", "one_vm_ms")
        ]
        updates = f"{row['updates_per_s']:,.0f}"
        table.add_row(f"{hosts:,}", f"{hosts * VMS_PER_HOST:,}", *figures, updates)
    Console().print(table)
    largest = rows[10_000]
    figures: dict[str, Figure] = {
        "plan_1000_hosts_ms": at_most(100, rows[1_000]["dying_ms"], "ms", "20,000 VMs"),
        "plan_10000_hosts_ms": at_most(1_000, largest["dying_ms"], "ms", "200,000 VMs"),
        "plan_10000_hosts_grouped_ms": at_most(
            1_000, best_ms(grouped.plan), "ms", "each VM in two affinity groups"
        ),
        "plan_10000_hosts_distinct_ms": at_most(
            1_000, best_ms(distinct.plan), "ms", "each host a class of its own"
        ),
        "plan_1000_hosts_cpu_ms": shown(rows[1_000]["plan_cpu_ms"], "ms", "processor time alone"),
        "growth_100_to_10000": shown(
            largest["plan_cpu_ms"] / rows[100]["plan_cpu_ms"],
            "x",
            "processor time; hosts and VMs grow by 100",
        ),
        "one_vm_10000_hosts_ms": shown(largest["one_vm_ms"], "ms"),
        "updates_per_s_10000_hosts": shown(largest["updates_per_s"], "/s"),
    }
    return finish("engine_placement", figures)


if __name__ == "__main__":
    sys.exit(main())
