"""Live migrations under random faults in each of their phases: never two writers, and when all is well again everything
that is protected runs. Each seed is a story of its own; a failing one is printed."""

import random
from collections.abc import Sequence

import pytest

from virtha.scenario.language import parse
from virtha.sim.checkers import Violation
from virtha.sim.liveness import must_run
from virtha.sim.migration import Phase
from virtha.sim.play import Player
from virtha.sim.swarm import applies, healing

PHASES = tuple(phase.name.lower() for phase in Phase)
SEEDS_EACH = 6


def write_story(seed: int) -> list[str]:
    chance = random.Random(seed)
    one = chance.choice
    hosts = [f"h{number}" for number in range(1, chance.randint(2, 4) + 1)]
    vms = [f"vm{number}" for number in range(1, chance.randint(1, 3) + 1)]
    home = " recovery.failback=automatic recovery.failback_stable=60s"
    failback = home if chance.random() < 0.3 else ""
    lines = [
        "engine",
        f"policy profile={one(('fast', 'balanced'))} maintenance.migration_deadline=20s{failback}",
        *(f"host {host} power={one(('bmc', 'bmc', 'outlets', 'none'))}" for host in hosts),
        "advance 2s",
        *(f"vm {vm} on={one(hosts)} ha" for vm in vms),
        *(f"start {vm}" for vm in vms),
        "advance 10s",
    ]
    for _ in range(chance.randint(3, 9)):
        vm, host, other = one(vms), one(hosts), one(hosts)
        for _ in range(one((0, 1, 1, 2))):
            fault = one(_faults(one(vms), one(hosts), one(hosts)))
            lines.append(f"in-migration {vm} {one(PHASES)} {fault}")
        lines += [
            one(_wishes(vm, host, other)),
            f"advance {one(('100ms', '1s', '5s', '20s', '60s'))}",
        ]
        lines += [
            one(_mended(one(vms), one(hosts))),
            f"advance {one(('100ms', '1s', '5s', '20s'))}",
        ]
    return lines


def _wishes(vm: str, host: str, other: str) -> Sequence[str]:
    busy = (f"busy {vm} yes", f"busy {vm} no")
    return (f"migrate {vm} to={other}", f"migrate {vm}", f"maintenance {host} on", *busy)


def _faults(vm: str, host: str, other: str) -> Sequence[str]:
    apart = f"cut-link {host} {other}" if host != other else f"cut net {host}"
    hosts = (
        "power-cut",
        "hang",
        "cut net",
        "cut storage",
        "crash-agent",
        "stop-agent",
        "empty-run",
    )
    libvirt = (f"stop-libvirt {host}", f"stop-guardian {host}", f"freeze {host} agent", apart)
    guest = (f"kill-qemu {vm} on={host}", f"virsh destroy {vm} on={host}", f"guest-shutdown {vm}")
    leader = ("stop-server", "second-server", "freeze-server", "stop-database")
    operator = ("hold", f"cancel-migration {vm}")
    return (*(f"{fault} {host}" for fault in hosts), *libvirt, *guest, *leader, *operator)


def _mended(vm: str, host: str) -> Sequence[str]:
    hosts = ("start-agent", "start-libvirt", "heal net", "heal storage", "boot", "thaw")
    others = ("start-server", "thaw-server", "start-database", "unhold", "heal-all", "advance 1s")
    return (*(f"{verb} {host}" for verb in hosts), *others, f"cancel-migration {vm}")


def play(lines: Sequence[str]) -> Player:
    """The faults, then healing, then what must run. Raises what a checker found."""
    player = Player(tolerant=True)
    for step in parse("\n".join(("# random faults", *lines))).steps:
        if applies(player, step):
            player.do(step)
    player.moves.forget_what_waits()
    for line in (*healing(player.world), *(f"busy {name} no" for name in player.world.ids)):
        player.do(parse(f"# healed\n{line}\n").steps[0])
    must_run(player.world)
    player.at_end()
    return player


@pytest.mark.req("X3", "F4")
@pytest.mark.bad_input("death in a move")
@pytest.mark.parametrize("first", range(1, 1 + 5 * SEEDS_EACH, SEEDS_EACH))
def test_random_faults_in_the_middle_of_moves(first: int) -> None:
    told: set[str] = set()
    for seed in range(first, first + SEEDS_EACH):
        lines = write_story(seed)
        try:
            player = play(lines)
        except (Violation, AssertionError) as failure:
            pytest.fail("\n".join((f"seed {seed}: {failure}", *lines)))
        told.update(entry.code for entry in player.world.server.history)
    assert "vm.migrated" in told, "nothing was moved"
    assert (
        told & {"vm.migration_failed", "vm.migration_doubtful", "vm.migration_lost"}
        or {
            "host.suspected",
            "host.agent.down",
        }
        & told
    ), "no fault met a move"
