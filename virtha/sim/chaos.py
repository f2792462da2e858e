"""Random faults from a seed: a phase in which anything may break, then all is healed and must come right.

    python -m virtha.sim.chaos --seeds 200 --first 1

A failing seed is printed together with the shortest scenario that still fails. The same seed gives the
same trace on every machine and under every hash seed.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence

from virtha.model.vm import VmState
from virtha.scenario.language import Scenario, Step, parse
from virtha.sim.checkers import Violation
from virtha.sim.host import CRASH_POINTS
from virtha.sim.play import Player

ACTIONS = ("reset", "poweroff", "pause", "dump", "none", "shutdown")
GUEST_FAULTS = (
    "kill-qemu",
    "kill-qemu",
    "term-qemu",
    "fire",
    "fire",
    "panic",
    "guest-shutdown",
    "guest-reboot",
    "io-error",
)
ORDERS = ("start", "start", "shutdown", "power-off", "reset", "pause", "resume")
HOST_FAULTS = (
    "crash-agent",
    "crash-agent",
    "stop-agent",
    "start-agent",
    "stop-libvirt",
    "start-libvirt",
    "cut-net",
    "heal-net",
    "stop-guardian",
    "start-guardian",
    "empty-run",
)
LINK_FAULTS = ("cut-link", "cut-link", "heal-link", "heal-link", "reset-link")
SERVER_FAULTS = ("stop-server", "start-server", "start-server")
"""No restore: what it forgets is caught by the claim on the VM's storage (G4), which this world has not."""
BYTES = (0, 3, 20, 200)
PAUSES = ("1ms", "50ms", "150ms", "300ms", "1s", "2s", "5s", "30s")
FAILURES = (Violation, AssertionError)


def write_scenario(chance: random.Random, *, steps: int) -> list[str]:
    """The lines of one random story."""
    hosts = [f"h{number}" for number in range(1, chance.randint(1, 3) + 1)]
    vms = [f"vm{number}" for number in range(1, chance.randint(1, 4) + 1)]
    lines = [f"hosts {' '.join(hosts)}"]
    for vm in vms:
        ha = "ha " if chance.random() < 0.8 else ""
        agent = "" if chance.random() < 0.8 else " no-agent"
        card = f"watchdog=i6300esb:{chance.choice(ACTIONS)}"
        lines.append(f"vm {vm} on={chance.choice(hosts)} {ha}{card}{agent}")
    lines += [f"start {vm}" for vm in vms]
    lines.append("advance 4s")
    for _ in range(steps):
        lines.append(_fault(chance, hosts, vms))
        lines.append(f"advance {chance.choice(PAUSES)}")
    return lines


def _fault(chance: random.Random, hosts: Sequence[str], vms: Sequence[str]) -> str:
    host, vm = chance.choice(hosts), chance.choice(vms)
    kind = chance.random()
    if kind < 0.45:
        return f"{chance.choice(GUEST_FAULTS)} {vm}"
    if kind < 0.6:
        return f"{chance.choice(ORDERS)} {vm}"
    if kind < 0.68:
        return _link_fault(chance, host)
    if kind < 0.72:
        return chance.choice(SERVER_FAULTS)
    if kind < 0.87:
        verb = chance.choice(HOST_FAULTS)
        at = f" at={chance.choice(CRASH_POINTS)}" if verb == "crash-agent" else ""
        return f"{verb} {host}{at if chance.random() < 0.7 else ''}"
    return chance.choice(
        (
            f"fail-starts {host} 1",
            f"blind-starts {host} 1",
            f"slow-start {host} {chance.choice(('10s', '20s', '90s'))}",
            f"virsh destroy {vm}",
            f"virsh start {vm}",
            f"migrating {vm} yes",
            f"migrating {vm} no",
            "hold",
            "unhold",
            f"set {vm} ha={chance.choice(('yes', 'no'))}",
            f"start {vm} on={host}",
            f"power-cut {host}",
            f"boot {host}",
        )
    )


def _link_fault(chance: random.Random, host: str) -> str:
    """One way only, or torn in the middle of a frame."""
    verb = chance.choice(LINK_FAULTS)
    ends = f"{host} server" if chance.random() < 0.5 else f"server {host}"
    torn = verb != "heal-link" and chance.random() < 0.5
    if not torn:
        return f"{verb} {ends}"
    role = chance.choice(("agent", "agent", "guardian"))
    return f"{verb} {ends} after={chance.choice(BYTES)} of={role}"


def applies(player: Player, step: Step) -> bool:
    """Whether the step makes sense in the world as it is."""
    world = player.world
    if not step.words or step.words[0] not in world.hosts:
        if step.verb in ("migrating",):
            host = world.hosts[world.server.vms[world.ids[step.words[0]]].host]
            return host.agent is not None
        return _powered(player, step)
    host = world.hosts[step.words[0]]
    match step.verb:
        case "boot":
            return not host.powered
        case "stop-libvirt":
            return host.powered and host.libvirt_up
        case "start-libvirt":
            return host.powered and not host.libvirt_up
        case "crash-agent":
            return host.agent is not None
        case _:
            return host.powered


def _powered(player: Player, step: Step) -> bool:
    """Commands for VMs need a host that is on; the building and time need nothing."""
    world = player.world
    named = [word for word in step.words if word in world.ids]
    if not named:
        return True
    known = world.server.vms[world.ids[named[0]]]
    if step.verb in ("fire", "virsh", *GUEST_FAULTS):
        return world.hosts[known.host].powered
    target = step.options.get("on", known.host)
    return step.verb in ("set", "vm") or world.hosts[target].powered


def play(lines: Sequence[str]) -> Player:
    """Raises what a checker found. The safety phase, then healing, then liveness."""
    scenario: Scenario = parse("# random faults\n" + "\n".join(lines))
    player = Player(tolerant=True)
    for step in scenario.steps:
        if applies(player, step):
            player.do(step)
    _heal(player)
    player.advance("20m")
    player.checkers.at_end()
    _demand_liveness(player)
    return player


def _heal(player: Player) -> None:
    player.world.start_server()
    for host in player.world.hosts.values():
        host.crash_after = None
        if host.agent is not None:
            host.agent.crash_at = None
        host.libvirt.starts_that_fail = host.blind_starts = host.slow_start_ms = 0
        for link in player.world.network.links_of(host.name):
            link.heal()
        if not host.powered:
            host.power_on()
        if not host.libvirt_up:
            host.start_libvirt()
        host.start_guardian()
        host.start_agent()
    player.world.server.hold = None
    player.world.push_settings()


def _demand_liveness(player: Player) -> None:
    """What is protected runs, or its reason is one that lasts; no order stays open."""
    server = player.world.server
    if server.pending:
        raise Violation(f"orders never ended: {sorted(server.pending)}")
    for known in server.vms.values():
        report = known.report
        if report is None or report.state is not VmState.DOWN or not known.vm.ha:
            continue
        codes = [why.code for why in report.reasons]
        if any(code.startswith("restart.waiting") for code in codes):
            raise Violation(f"{known.vm.name} still waits: {codes}")
        held = player.world.hosts[known.host].name in known.holders
        migrating = "restart.blocked.migrating" in codes
        if held and not migrating:
            raise Violation(f"{known.vm.name} is down, given up, and still held: {codes}")


def run_seed(seed: int, *, steps: int = 40) -> list[str]:
    """The trace of that seed. Raises Violation or AssertionError."""
    return play(write_scenario(random.Random(seed), steps=steps)).world.trace_lines  # noqa: S311 - a seed, to be repeated


def shrink(lines: list[str], fails: Callable[[list[str]], bool] | None = None) -> list[str]:
    """Leave out what is not needed for the failure, larger pieces first. ``fails``: with this world's faults."""
    still_fails = fails or _fails
    size = len(lines) // 2
    while size >= 1:
        start = 0
        while start < len(lines):
            shorter = lines[:start] + lines[start + size :]
            if still_fails(shorter):
                lines = shorter
            else:
                start += size
        size //= 2
    return lines


def _fails(lines: list[str]) -> bool:
    try:
        play(lines)
    except FAILURES:
        return True
    except (KeyError, ValueError):
        # The shortened story no longer makes sense.
        return False
    except Exception as error:
        return error.__class__.__name__ not in ("InvalidInput", "HypervisorFailed", "DomainMissing")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description="random faults on the simulator")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    failed = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            run_seed(seed, steps=arguments.steps)
        except FAILURES as failure:
            failed += 1
            lines = write_scenario(random.Random(seed), steps=arguments.steps)  # noqa: S311 - a seed, to be repeated
            story = "\n".join(shrink(lines))
            sys.stdout.write(f"seed {seed}: {failure}\n{story}\n\n")
    sys.stdout.write(f"chaos: {arguments.seeds} seeds, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
