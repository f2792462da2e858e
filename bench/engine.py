"""The engine under load: beats folded per second, and the step in which a rack's death is proven.

Clusters of 100, 1,000 and 10,000 hosts with 20 VMs each. First all hosts beat for a while; then a rack of 40 falls silent, is
judged and fenced, and the proofs of all 40 arrive in one step: 800 VMs become ready, 700 of them fit. Measured is that
step, from the events to the decision with all reasons, and the longest of all steps of the run (of a beat interval with
all beats, of the rack's silence, or that one; the first step, which reads a whole inventory once, is shown by itself).
CPU time of this process.

    python bench/engine.py [--plot docs/images/engine-growth.svg]
    python bench/engine.py --instructions

The second counts the interpreter's instructions instead, which no other load on the machine changes: whether a beat or the
plan has come to cost more, or to grow with the cluster. Work inside of C (sorting, hashing, copies) is not in it.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

from report import Figure, Series, at_least, at_most, finish, growth_svg, shown
from rich.console import Console
from rich.table import Table

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    Decision,
    EngineEvent,
    HostConfigured,
    HostSurveyed,
    LeaseRenewed,
    ProofFound,
    StartCommand,
    VmConfigured,
    VmSeen,
)
from virtha.engine.records import ClusterRecord, EngineRecords
from virtha.model.ids import BootId, HostId, Incarnation, Term, VmId
from virtha.model.policy import Policy
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import Millis
from virtha.model.vm import VmState

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from counted_opcodes import opcodes

GIB = 1 << 30
RACK = 40
VMS_PER_HOST = 20
TOO_LARGE = 100
BEAT_ROUNDS = 20
RUNS = 3
BEGAN_MS = 1_000_000_000
NEVER = float("inf")

Meter = Callable[[Callable[[], Decision]], tuple[Decision, float]]


def cpu_ms(step: Callable[[], Decision]) -> tuple[Decision, float]:
    began = time.process_time_ns()
    decision = step()
    return decision, (time.process_time_ns() - began) / 1e6


class Bench:
    """One cluster, up and well."""

    def __init__(self, hosts: int) -> None:
        self.now = BEGAN_MS
        self.policy = Policy()
        self.ids = [HostId(f"h{number:05}") for number in range(1, hosts + 1)]
        records = EngineRecords(cluster=ClusterRecord(term=Term(1)))
        self.engine = Engine(policy=self.policy, records=records, now=Millis(self.now))
        self.meter: Meter = cpu_ms
        self.longest_ms = 0.0
        ssd = frozenset({Feature(FeatureKind.TAG, "ssd")})
        events: list[EngineEvent] = [LeaseRenewed(until_ms=BEGAN_MS * 2)]
        for number, host_id in enumerate(self.ids, 1):
            host = EngineHost(
                host_id=host_id,
                name=host_id,
                number=number,
                memory_bytes=256 * GIB,
                cpus=64,
                features=ssd if number % 5 else frozenset(),
            )
            events.append(HostConfigured(host=host))
        for at in range(hosts * VMS_PER_HOST):
            events.append(VmConfigured(vm=self._vm(at)))
        for host_id in self.ids:
            events += self._beats([host_id])
            events.append(
                HostSurveyed(
                    host_id=host_id,
                    boot=BootId(f"{host_id}b1"),
                    gate_in_force=True,
                    libvirt_connected=True,
                )
            )
        for at in range(hosts * VMS_PER_HOST):
            host_id = self.ids[at // VMS_PER_HOST]
            events.append(
                VmSeen(
                    host_id=host_id,
                    boot=BootId(f"{host_id}b1"),
                    vm_id=_vm_id(at),
                    incarnation=Incarnation(1),
                    state=VmState.RUNNING,
                )
            )
        self.inventory_ms = self.step(events)[1]
        self.longest_ms = 0.0

    def _vm(self, at: int) -> EngineVm:
        in_rack = at < RACK * VMS_PER_HOST
        large = in_rack and at % (RACK * VMS_PER_HOST // TOO_LARGE) == 0
        return EngineVm(
            vm_id=_vm_id(at),
            name=f"vm{at:06}",
            memory_bytes=300 * GIB + at * GIB // 8 if large else (2, 4, 4, 8, 8, 16)[at % 6] * GIB,
            ha=True,
            wanted_up=True,
            priority=at % 5,
            features=frozenset({Feature(FeatureKind.TAG, "ssd")}) if at % 3 == 0 else frozenset(),
        )

    def step(self, events: list[EngineEvent]) -> tuple[Decision, float]:
        """The measure is CPU time in ms, or what ``meter`` counts."""
        decision, took = self.meter(lambda: self.engine.step(Millis(self.now), events))
        self.longest_ms = max(self.longest_ms, took)
        return decision, took

    def _beats(self, ids: list[HostId]) -> list[EngineEvent]:
        return [
            BeatSeen(host_id=host_id, boot=BootId(f"{host_id}b1"), agent_alive=True)
            for host_id in ids
        ]

    def per_beat(self) -> float:
        """Folded in steps of one beat interval's worth."""
        beats = self._beats(self.ids)
        spent = 0.0
        for _ in range(BEAT_ROUNDS):
            self.now += self.policy.detection.beat_interval_ms
            spent += self.step(beats)[1]
        return spent / BEAT_ROUNDS / len(beats)

    def rack_dies(self) -> float:
        """What the step with the proofs takes."""
        alive = self._beats(self.ids[RACK:])
        for _ in range(60):
            self.now += self.policy.detection.beat_interval_ms
            self.step(alive)
        self.now += 1
        proofs: list[EngineEvent] = [
            ProofFound(
                proof=Proof(
                    kind=ProofKind.LEASE,
                    host_id=host_id,
                    boot=BootId(f"{host_id}b1"),
                    at_ms=self.now,
                )
            )
            for host_id in self.ids[:RACK]
        ]
        gc.collect()
        decision, took_ms = self.step(proofs)
        self._check(decision)
        return took_ms

    def _check(self, decision: Decision) -> None:
        """The step is the one that was meant to be measured: every VM is started, or has its reason."""
        started = sum(isinstance(command, StartCommand) for command in decision.commands)
        codes: dict[str, int] = {}
        for at in range(RACK * VMS_PER_HOST):
            reasons = self.engine.explain_vm(_vm_id(at))
            assert reasons, f"vm {at} waits and nobody knows why"
            codes[reasons[0].code] = codes.get(reasons[0].code, 0) + 1
        assert started == codes.pop("recovery.starting"), codes
        assert started == self.policy.recovery.starts_per_cluster, started
        assert codes.pop("recovery.blocked.no_capacity") == TOO_LARGE, codes
        waiting = codes.pop("recovery.waiting.cluster_limit", 0)
        waiting += codes.pop("recovery.waiting.host_limit", 0)
        assert waiting == RACK * VMS_PER_HOST - TOO_LARGE - started, codes
        assert not codes, codes


def _vm_id(at: int) -> VmId:
    return VmId(f"vm{at:06}")


def measure(hosts: int) -> dict[str, float]:
    beats, proofs, longest, inventory = 0.0, NEVER, NEVER, NEVER
    for _ in range(RUNS):
        gc.collect()
        bench = Bench(hosts)
        gc.freeze()
        beats = max(beats, 1e3 / bench.per_beat())
        proofs = min(proofs, bench.rack_dies())
        longest = min(longest, bench.longest_ms)
        inventory = min(inventory, bench.inventory_ms)
        gc.unfreeze()
    return {
        "beats_per_s": beats,
        "interval_ms": hosts / beats * 1e3,
        "proofs_ms": proofs,
        "longest_ms": longest,
        "inventory_ms": inventory,
    }


def count_instructions() -> int:
    """One run of each size is enough: the next would count the same."""
    figures: dict[str, Figure] = {}
    for hosts in (100, 1_000):
        bench = Bench(hosts)
        bench.meter, bench.longest_ms = opcodes, 0.0
        figures[f"beat_{hosts}_hosts"] = shown(bench.per_beat(), "instructions", "each")
        figures[f"proofs_{hosts}_hosts"] = shown(
            bench.rack_dies(), "instructions", "40 proofs, 800 VMs planned"
        )
        figures[f"longest_{hosts}_hosts"] = shown(bench.longest_ms, "instructions", "of all steps")
    return finish("engine_instructions", figures)


def plot(rows: dict[int, dict[str, float]], path: Path) -> None:
    names = {
        "proofs_ms": "40 proofs, 800 VMs planned",
        "longest_ms": "longest single step",
        "interval_ms": "one beat of every host",
    }
    series = [
        Series(name, [(hosts, row[key]) for hosts, row in rows.items()])
        for key, name in names.items()
    ]
    targets = [(1_000, 100.0), (10_000, 1_000.0)]
    path.write_text(
        growth_svg("The engine's steps, CPU time", "hosts, 20 VMs each", "ms", series, targets),
        encoding="utf-8",
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot", type=Path, help="write the growth as an SVG picture")
    parser.add_argument("--instructions", action="store_true", help="count them, take no time")
    arguments = parser.parse_args()
    if arguments.instructions:
        return count_instructions()
    rows = {hosts: measure(hosts) for hosts in (100, 1_000, 10_000)}
    table = Table(title="a rack of 40 dies, CPU time", title_justify="left")
    for column in (
        "hosts",
        "VMs",
        "beats/s",
        "proofs and plan, ms",
        "longest step, ms",
        "inventory, ms",
    ):
        table.add_column(column, justify="right")
    for hosts, row in rows.items():
        table.add_row(
            f"{hosts:,}",
            f"{hosts * VMS_PER_HOST:,}",
            f"{row['beats_per_s']:,.0f}",
            f"{row['proofs_ms']:,.1f}",
            f"{row['longest_ms']:,.1f}",
            f"{row['inventory_ms']:,.0f}",
        )
    if arguments.plot is not None:
        plot(rows, arguments.plot)
    Console().print(table)
    figures: dict[str, Figure] = {
        "beats_per_s_1000_hosts": at_least(100_000, rows[1_000]["beats_per_s"], "/s", "our own"),
        "plan_1000_hosts_ms": at_most(100, rows[1_000]["proofs_ms"], "ms", "800 VMs of 20,000"),
        "plan_10000_hosts_ms": at_most(1_000, rows[10_000]["proofs_ms"], "ms", "of 200,000"),
    }
    for hosts, row in rows.items():
        figures[f"longest_step_{hosts}_hosts_ms"] = shown(row["longest_ms"], "ms")
    return finish("engine", figures)


if __name__ == "__main__":
    sys.exit(main())
