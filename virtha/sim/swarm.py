"""Random faults of whole clusters from a seed: a phase in which anything may break, then all is well again and
every protected VM must run, or say why it never will.

    python -m virtha.sim.swarm --seeds 200 --first 1

As ``virtha.sim.chaos``, which plays single hosts without an engine; a failing seed is printed with the shortest
story that still fails.
"""

import argparse
import random
import re
import sys
from collections.abc import Callable, Sequence

from virtha.scenario.language import parse
from virtha.sim.chaos import applies, shrink
from virtha.sim.checkers import Violation
from virtha.sim.leader import POINTS
from virtha.sim.play import Player

HEALED_MS = 600_000
"""Until everything must be right again: the longest pause between two attempts is half of it."""
PAUSES = ("100ms", "1s", "2s", "5s", "5s", "10s", "20s", "60s")
LASTING = (
    "recovery.blocked.quarantine",
    "recovery.blocked.attempts",
    "vm.down.",
    "vm.paused.",
    "restart.blocked.",
)
"""Reasons that only a person ends."""
_FAILURES = (Violation, AssertionError)


def write_story(chance: random.Random, *, steps: int) -> list[str]:
    hosts = [f"h{number}" for number in range(1, chance.randint(2, 6) + 1)]
    vms = [f"vm{number}" for number in range(1, chance.randint(1, 5) + 1)]
    profile = chance.choice(("fast", "balanced", "balanced"))
    lines = ["engine", f"policy profile={profile}"]
    named = " named" if chance.random() < 0.3 else ""
    lines += [f"host {host}{named} power={chance.choice(_POWER)}" for host in hosts]
    lines.append("advance 2s")
    for vm in vms:
        lines.append(f"vm {vm} on={chance.choice(hosts)} ha")
    lines += [f"start {vm}" for vm in vms]
    lines.append("advance 10s")
    for _ in range(steps):
        lines += _fault(chance, hosts, vms)
        lines.append(f"advance {chance.choice(PAUSES)}")
    return lines


_POWER = ("bmc", "bmc", "bmc,outlets", "outlets", "none")


def _fault(chance: random.Random, hosts: Sequence[str], vms: Sequence[str]) -> list[str]:
    kind = chance.random()
    if kind < 0.2:
        return _leader_fault(chance)
    if kind < 0.3:
        return ["heal-all"]
    return [_host_fault(chance, chance.choice(hosts), chance.choice(vms))]


def _host_fault(chance: random.Random, host: str, vm: str) -> str:
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(
            (
                f"power-cut {host}",
                f"power-cut {host}",
                f"hang {host}",
                f"hang {host}",
                f"boot {host}",
                f"thaw {host}",
            )
        )
    if kind < 0.55:
        network = chance.choice(("net", "net", "storage", "bmc"))
        one_way = f" to {_centre(network)}" if chance.random() < 0.3 else ""
        return f"{chance.choice(('cut', 'cut', 'heal'))} {network} {host}{one_way}"
    if kind < 0.7:
        process = chance.choice(("agent", "guardian"))
        verbs = (f"freeze {host} {process}", f"thaw {host}", f"stop-{process} {host}")
        return chance.choice((*verbs, f"start-{process} {host}", f"crash-agent {host}"))
    if kind < 0.8:
        return f"bmc {host} {chance.choice(('dead', 'refuses', 'nothing', 'slow 1s', 'slow 5s', 'ok'))}"
    return chance.choice(
        (
            f"kill-qemu {vm}",
            f"slow-start {host} {chance.choice(('5s', '20s', '90s'))}",
            f"fail-starts {host} 1",
            f"stop-libvirt {host}",
            f"start-libvirt {host}",
            f"maintenance {host} {chance.choice(('on', 'off'))}",
            "stall-storage",
            "resume-storage",
        )
    )


def _centre(network: str) -> str:
    return "storage" if network == "storage" else "server"


def _leader_fault(chance: random.Random) -> list[str]:
    """Each comes to an end, or the rest of the story would have no leader."""
    at = f" at={chance.choice(POINTS)}" if chance.random() < 0.6 else ""
    pause = f"advance {chance.choice(PAUSES)}"
    return chance.choice(
        (
            [f"kill-server{at}", pause, "start-server"],
            [f"freeze-server{at}", pause, "thaw-server"],
            [f"freeze-server{at}", pause, "second-server", pause, "thaw-server"],
            ["second-server"],
            ["stop-database", pause, "start-database"],
        )
    )


def play(lines: Sequence[str]) -> Player:
    """Raises what a checker found."""
    scenario = parse("# random faults\n" + "\n".join(lines))
    player = Player(tolerant=True)
    for step in scenario.steps:
        if applies(player, step):
            player.do(step)
    for step in parse("# healed\nheal-all\n").steps:
        player.do(step)
    for host in player.world.hosts:
        player.do(parse(f"# healed\nmaintenance {host} off\n").steps[0])
    player.world.kernel.advance(HEALED_MS)
    player.at_end()
    demand_liveness(player)
    return player


def demand_liveness(player: Player) -> None:
    """Every protected VM runs, or its reason is one that only a person ends."""
    world = player.world
    failover = world.gateway.failover
    if failover is None:
        raise ValueError("a story without an engine")
    if not failover.leader.alive:
        raise Violation("nobody leads after all was healed")
    for vm_id, known in world.server.vms.items():
        if not (known.vm.ha and known.wanted_up) or world.running_on(vm_id):
            continue
        codes = [why.code for why in failover.engine.explain_vm(vm_id)]
        if known.report is not None:
            codes += [why.code for why in known.report.reasons]
        if not any(code.startswith(LASTING) for code in codes):
            raise Violation(f"{known.vm.name} does not run though all is well: {codes}")


def run_seed(seed: int, *, steps: int = 25) -> list[str]:
    """The trace of that seed. Raises Violation or AssertionError."""
    return play(write_story(random.Random(seed), steps=steps)).world.trace_lines  # noqa: S311 - a seed, to be repeated


def kind_of(failure: BaseException) -> str:
    """The same for the same rule broken by other hosts at another time."""
    return re.sub(r"[\w-]*\d[\w-]*", "#", str(failure))


def fails_like(failure: BaseException) -> Callable[[list[str]], bool]:
    """Whether a story breaks the same rule: another one it breaks would be another finding."""

    def fails(lines: list[str]) -> bool:
        try:
            play(lines)
        except _FAILURES as other:
            return kind_of(other) == kind_of(failure)
        except Exception:
            # The shortened story no longer makes sense.
            return False
        return False

    return fails


def main() -> int:
    parser = argparse.ArgumentParser(description="random faults of clusters on the simulator")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    failed = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            run_seed(seed, steps=arguments.steps)
        except _FAILURES as failure:
            failed += 1
            lines = write_story(random.Random(seed), steps=arguments.steps)  # noqa: S311 - a seed, to be repeated
            story = "\n".join(shrink(lines, fails_like(failure)))
            sys.stdout.write(f"seed {seed}: {failure}\n{story}\n\n")
    sys.stdout.write(f"swarm: {arguments.seeds} seeds, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
