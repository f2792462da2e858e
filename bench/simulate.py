"""The simulator's speed: simulated seconds per second of CPU time, for 16 hosts with 200 VMs under the balanced profile.

Always on: real sessions with their frames and codec, guardians, sentinels, the leader's turns and records, a power
device per host that is read at set-up and in every suspicion, probes by neighbours in every suspicion, all checkers
of the world's truth. In quiet times nobody is suspected, so nobody is probed: the counts say what happened.
``bare`` leaves out the storage leases; ``quiet`` has them, with real blocks (each guardian renews its slot and reads
its mailbox each second, two hosts read all slots every two seconds) and armed host watchdogs; ``faults`` is the
same with hosts that lose power, hang, are cut off or lose their agents, one after the other. No beat, renewal or frame is elided.

The machine is rarely quiet: of many short stretches the best shows what the code costs, the median what one gets.
Function calls per simulated second, by the profiler, don't depend on what else runs.
"""

import cProfile
import gc
import pstats
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence

from report import Figure, at_least, finish, shown
from rich.console import Console
from rich.table import Table

from virtha.engine.events import Command
from virtha.model.ids import HostId, Term
from virtha.model.slot import Slot
from virtha.scenario.language import parse
from virtha.sim.play import Player
from virtha.sim.swarm import do_if_it_applies
from virtha.wire.messages import Beat

HOSTS = 16
VMS = 200
TARGET = 1_000
WORLDS = 2
STRETCHES = 20
STRETCH_S = 30
FAULTS = (
    "power-cut h1",
    "advance 60s",
    "boot h1",
    "hang h2",
    "advance 60s",
    "thaw h2",
    "cut net h3",
    "advance 40s",
    "heal net h3",
    "freeze h4 agent",
    "advance 20s",
    "thaw h4",
    "crash-agent h5",
    "stop-libvirt h6",
    "advance 20s",
    "start-libvirt h6",
    "cut storage h7",
    "advance 40s",
    "heal storage h7",
    "kill-qemu vm8",
    "advance 20s",
    "kill-server",
    "advance 10s",
    "start-server",
    "heal-all",
    "advance 90s",
)
"""A cycle of six minutes."""


class Counts:
    """What happened in a world since it was made."""

    def __init__(self, player: Player) -> None:
        world = self._world = player.world
        self._told: Counter[str] = Counter()
        checked_beat, checked_command = world.on_beat, world.on_engine_command

        def beat(host: str, told: Beat) -> None:
            self._told["beats"] += 1
            checked_beat(host, told)

        def command(term: Term, given: Command) -> None:
            self._told[type(given).__name__] += 1
            checked_command(term, given)

        world.on_beat, world.on_engine_command = beat, command

    def read(self) -> Counter[str]:
        """Slots: by the counters that the blocks themselves show."""
        world, renewed = self._world, 0
        for domain in world.slots.values():
            for host_id in domain.places:
                slot = domain.read_slot("bench", HostId(host_id))
                renewed += slot.counter if isinstance(slot, Slot) else 0
        return self._told + Counter({"events": world.kernel.done, "renewals": renewed})


def build(*, leases: bool) -> Player:
    """All hosts up, all VMs running, for half a minute."""
    lines = ["engine", "policy profile=balanced"]
    if leases:
        lines.append("lease")
    watchdog = " watchdog=armed" if leases else ""
    lines += [f"host h{number} power=bmc{watchdog}" for number in range(1, HOSTS + 1)]
    lines.append("advance 2s")
    lines += [f"vm vm{number} on=h{number % HOSTS + 1} ha" for number in range(1, VMS + 1)]
    lines += [f"start vm{number}" for number in range(1, VMS + 1)]
    lines.append("advance 30s")
    player = Player(tolerant=True)
    play(player, lines)
    running = sum(bool(player.world.running_on(vm_id)) for vm_id in player.world.server.vms)
    assert running == VMS, f"{running} of {VMS} run"
    return player


def play(player: Player, lines: Sequence[str]) -> None:
    for step in parse("# bench\n" + "\n".join(lines)).steps:
        do_if_it_applies(player, step)


class Measured:
    def __init__(self, name: str, story: Sequence[str], story_s: int, stretches: int) -> None:
        """``story``: played as one stretch, ``story_s`` long."""
        self.name = name
        self._story = story
        self._story_s = story_s
        self._stretches = stretches
        self.rates: list[float] = []
        self.per_s: dict[str, float] = {}
        self.calls_per_s = 0.0

    def run(self, *, leases: bool) -> "Measured":
        for _ in range(WORLDS):
            player = build(leases=leases)
            gc.collect()
            gc.freeze()
            for _ in range(self._stretches):
                began_ms, began = player.world.kernel.now, time.process_time()
                play(player, self._story)
                took = time.process_time() - began
                assert player.world.kernel.now - began_ms == self._story_s * 1_000
                self.rates.append(self._story_s / took)
            player.at_end()
            gc.unfreeze()
        self._count(build(leases=leases))
        return self

    def _count(self, player: Player) -> None:
        counts = Counts(player)
        before = counts.read()
        profile = cProfile.Profile()
        profile.enable()
        play(player, self._story)
        profile.disable()
        after = counts.read()
        self.per_s = {name: (after[name] - before[name]) / self._story_s for name in after}
        self.calls_per_s = pstats.Stats(profile).total_calls / self._story_s

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def best(self) -> float:
        return max(self.rates)


_SHOWN = (
    ("events", "events"),
    ("beats", "beats"),
    ("renewals", "slot renewals"),
    ("ReadPower", "device readings"),
    ("Investigate", "rounds of probes"),
    ("OrderPower", "power orders"),
    ("Poison", "poisons"),
    ("StartCommand", "starts"),
)


def table_of(rows: Sequence[Measured]) -> Table:
    table = Table(title=f"{HOSTS} hosts, {VMS} VMs, balanced", title_justify="left")
    table.add_column("per simulated second unless it says otherwise")
    for row in rows:
        table.add_column(row.name, justify="right")
    for title, value in (
        ("simulated s per CPU-s: worst", lambda row: f"{min(row.rates):,.0f}"),
        ("simulated s per CPU-s: median", lambda row: f"{row.median:,.0f}"),
        ("simulated s per CPU-s: best", lambda row: f"{row.best:,.0f}"),
        ("function calls", lambda row: f"{row.calls_per_s:,.0f}"),
    ):
        table.add_row(title, *(value(row) for row in rows))
    for name, title in _SHOWN:
        table.add_row(title, *(f"{row.per_s.get(name, 0):,.3g}" for row in rows))
    return table


def main() -> int:
    quiet = (f"advance {STRETCH_S}s",)
    cycle_s = sum(int(line.split()[1][:-1]) for line in FAULTS if line.startswith("advance"))
    bare = Measured("bare", quiet, STRETCH_S, STRETCHES).run(leases=False)
    leased = Measured("quiet", quiet, STRETCH_S, STRETCHES).run(leases=True)
    faults = Measured("faults", FAULTS, cycle_s, 1).run(leases=True)
    Console().print(table_of((bare, leased, faults)))
    figures: dict[str, Figure] = {
        "quiet_per_cpu_s": at_least(TARGET, leased.best, "s/s", "everything on; best stretch"),
        "quiet_median_per_cpu_s": shown(leased.median, "s/s"),
        "quiet_calls_per_s": shown(leased.calls_per_s, "calls", "function calls"),
        "bare_per_cpu_s": shown(bare.best, "s/s", "without storage leases; best stretch"),
        "bare_median_per_cpu_s": shown(bare.median, "s/s"),
        "bare_calls_per_s": shown(bare.calls_per_s, "calls", "function calls"),
        "faults_per_cpu_s": shown(faults.best, "s/s", "a cycle of faults, everything on"),
        "quiet_events_per_cpu_s": shown(leased.per_s["events"] * leased.best, "events/s"),
    }
    return finish("simulate", figures)


if __name__ == "__main__":
    sys.exit(main())
