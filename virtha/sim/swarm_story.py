"""The story of one world, from a seed: what it consists of, and what happens to it.

``KINDS`` is the table of everything that may happen; a new kind is one line of it. Each world draws some of the kinds
and leaves the others out (swarm testing): faults that hide each other meet in no world that has both.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from virtha.model.value import Value
from virtha.scenario.verbs import VERBS
from virtha.sim.host import CRASH_POINTS
from virtha.sim.leader import POINTS

CLUSTER_PAUSES = ("100ms", "1s", "2s", "5s", "5s", "10s", "20s", "60s")
SINGLE_PAUSES = ("1ms", "50ms", "150ms", "300ms", "1s", "2s", "5s", "30s")
CLUSTER_STEPS, SINGLE_STEPS = 25, 40
SINGLE_PERCENT = 10
"""Worlds without an engine: nobody but the hosts themselves restarts a VM there."""
KEPT_PERCENT = 45
"""How likely a kind is to be among those of one world."""
LIARS_PERCENT = 25
"""Worlds in which power devices may lie."""
CARD_ACTIONS = ("reset", "poweroff", "pause", "dump", "none", "shutdown")
POWER = ("bmc", "bmc", "bmc", "bmc,outlets", "outlets", "none")
LEASED_PERCENT = 45
WATCHDOGS = ("armed", "armed", "armed", "armed", "way-out", "none")
GUARDIAN_POINTS = ("renew", "kill", "reset", "feed", "arm", "allow", "read", "poison", "waiver")
TORN_BYTES = (0, 3, 20, 200)


class Story(Value, frozen=True, kw_only=True):
    """``lines`` in the scenario language; ``kinds``: (number of the line, counted from 1, and its kind)."""

    lines: tuple[str, ...]
    kinds: tuple[tuple[int, str], ...]


class Draw:
    """What a kind's lines are made of."""

    def __init__(
        self, chance: random.Random, hosts: Sequence[str], vms: Sequence[str], pauses: Sequence[str]
    ) -> None:
        self._chance = chance
        self._hosts = hosts
        self._vms = vms
        self._pauses = pauses

    @property
    def host(self) -> str:
        return self._chance.choice(self._hosts)

    @property
    def vm(self) -> str:
        return self._chance.choice(self._vms)

    @property
    def pause(self) -> str:
        return f"advance {self._chance.choice(self._pauses)}"

    def one(self, *choices: str) -> str:
        return self._chance.choice(choices)

    def at(self, points: Sequence[str]) -> str:
        """At a point, or now."""
        return f" at={self._chance.choice(points)}" if self._chance.random() < 0.6 else ""

    def number(self, least: int, most: int) -> int:
        return self._chance.randint(least, most)


class Kind(NamedTuple):
    """Weights in worlds with an engine and without. ``basic``: in each world, or little could come of it.

    ``lies``: a power device says *off* of a host that is on. A tested device is believed (P1) until the host gives a
    sign of life; so these kinds meet none that ``hides`` every sign: no such world could be decided right.
    ``leased``: only in worlds with storage leases.
    """

    name: str
    cluster: int
    single: int
    write: Callable[[Draw], list[str]]
    basic: bool = False
    lies: bool = False
    hides: bool = False
    leased: bool = False


def _network(verb: str, network: str, draw: Draw) -> list[str]:
    return [f"{verb} {network} {draw.host}"]


def _one_way(network: str, draw: Draw) -> list[str]:
    centre, host = "storage" if network == "storage" else "server", draw.host
    ends = draw.one(f"{host} to {centre}", f"{centre} to {host}")
    return [f"cut {network} {ends}"]


def _flaps(draw: Draw) -> list[str]:
    host, lines = draw.host, []
    for _ in range(draw.number(2, 5)):
        lines += [f"cut net {host}", draw.pause, f"heal net {host}", draw.pause]
    return lines


def _torn(verb: str, draw: Draw) -> list[str]:
    """One way only, in the middle of a frame."""
    host = draw.host
    ends = draw.one(f"{host} server", f"server {host}")
    role = draw.one("agent", "agent", "guardian")
    return [f"{verb} {ends} after={draw.one(*map(str, TORN_BYTES))} of={role}"]


def _link(verb: str, draw: Draw) -> list[str]:
    host = draw.host
    return [f"{verb} {draw.one(f'{host} server', f'server {host}')}"]


def _several(verb: str, draw: Draw) -> list[str]:
    """A rack: at the same moment."""
    return [f"{verb} {draw.host}" for _ in range(draw.number(2, 4))]


def _sleeper(process: str, draw: Draw) -> list[str]:
    host = draw.host
    return [f"freeze {host} {process}", draw.pause, f"thaw {host}"]


def _libvirt_away(draw: Draw) -> list[str]:
    host = draw.host
    return [f"stop-libvirt {host}", draw.pause, f"start-libvirt {host}"]


def _isolated_liar(draw: Draw) -> list[str]:
    """Cut off towards the server while its BMC says off: its disks are written."""
    host = draw.host
    lines = [f"bmc {host} lies", f"cut net {host}", draw.pause, draw.pause]
    return [*lines, f"heal net {host}", f"bmc {host} ok"]


def _sleeping_liar(draw: Draw) -> list[str]:
    """Ordered off and said to be off, while its disks are written; then its processes go on."""
    host = draw.host
    lines = [f"bmc {host} lies", f"freeze {host} agent", f"freeze {host} guardian", "advance 20s"]
    return [*lines, draw.pause, f"thaw {host}", draw.pause, f"bmc {host} ok"]


def _asleep_between(draw: Draw) -> list[str]:
    """Between what a guardian decided and what it does."""
    host = draw.host
    verb = draw.one(f"freeze {host} guardian", f"hang {host}")
    return [f"{verb} at={draw.one(*GUARDIAN_POINTS)}", draw.pause, f"thaw {host}"]


def _one_stalls(draw: Draw) -> list[str]:
    host = draw.host
    return [f"stall-storage on={host}", draw.pause, f"resume-storage on={host}"]


def _storage_errors(draw: Draw) -> list[str]:
    where = draw.one("", f" on={draw.host}")
    broken = f"break-storage {draw.one('errors', 'read-only')}{where}"
    return [broken, draw.pause, f"resume-storage{where}"]


def _cancelled(draw: Draw) -> list[str]:
    vm = draw.vm
    return [f"migrate {vm}", "advance 100ms", f"cancel-migration {vm}"]


def _busy(draw: Draw) -> list[str]:
    vm = draw.vm
    return [f"busy {vm} yes", f"migrate {vm}", draw.pause, draw.pause, f"busy {vm} no"]


def _stale(draw: Draw) -> list[str]:
    reader = draw.host
    return [
        f"stale-slots {reader}{draw.one('', f' of={draw.host}')}",
        draw.pause,
        f"fresh-slots {reader}",
    ]


def _in_migration(draw: Draw) -> list[str]:
    vm, host = draw.vm, draw.host
    phase = draw.one("begun", "copying", "stands", "runs", "over")
    what = draw.one(
        f"power-cut {host}",
        f"crash-agent {host}",
        f"hang {host}",
        f"cut net {host}",
        f"stop-libvirt {host}",
        "kill-server",
    )
    lines = [f"in-migration {vm} {phase} {what}", f"migrate {vm}", draw.pause]
    return [*lines, "start-server"] if what == "kill-server" else lines


def _thaws_under_fence(draw: Draw) -> list[str]:
    """Hangs until it is ordered off by a BMC that does nothing, then goes on."""
    host = draw.host
    lines = [f"bmc {host} nothing", f"hang {host}", "advance 20s"]
    return [*lines, draw.pause, f"thaw {host}", draw.pause, f"bmc {host} ok"]


KINDS: tuple[Kind, ...] = (
    # Whole hosts
    Kind("power cut", 8, 3, lambda d: [f"power-cut {d.host}"], basic=True),
    Kind("power back", 6, 3, lambda d: [f"boot {d.host}"], basic=True),
    Kind("rack without power", 2, 0, lambda d: _several("power-cut", d)),
    Kind("host hangs", 6, 0, lambda d: [f"hang {d.host}"], hides=True),
    Kind("several hosts hang", 2, 0, lambda d: _several("hang", d), hides=True),
    Kind("host goes on", 5, 0, lambda d: [f"thaw {d.host}"], basic=True),
    Kind("host shut down", 2, 0, lambda d: [f"shutdown-host {d.host}"]),
    # Networks and storage
    Kind("network cut", 5, 0, lambda d: _network("cut", "net", d)),
    Kind("network cut one way", 4, 0, lambda d: _one_way("net", d)),
    Kind("network back", 4, 0, lambda d: _network("heal", "net", d)),
    Kind("network flaps", 3, 0, _flaps),
    Kind("host's network cut", 1, 4, lambda d: [f"cut-net {d.host}"]),
    Kind("host's network back", 1, 4, lambda d: [f"heal-net {d.host}"]),
    Kind("link cut", 2, 6, lambda d: _link("cut-link", d)),
    Kind("link back", 2, 6, lambda d: _link("heal-link", d)),
    Kind("link reset", 2, 4, lambda d: _link("reset-link", d)),
    Kind("link torn in a frame", 2, 5, lambda d: _torn(d.one("cut-link", "reset-link"), d)),
    Kind("storage cut", 4, 0, lambda d: _network("cut", "storage", d), hides=True),
    Kind("storage cut one way", 2, 0, lambda d: _one_way("storage", d), hides=True),
    Kind("storage back", 3, 0, lambda d: _network("heal", "storage", d)),
    Kind(
        "storage stalls", 3, 0, lambda d: ["stall-storage", d.pause, "resume-storage"], hides=True
    ),
    Kind("one host's storage stalls", 3, 0, _one_stalls, hides=True),
    Kind("storage errors", 2, 0, _storage_errors, hides=True),
    Kind("slot write torn", 2, 0, lambda d: [f"tear-slot {d.host}"], leased=True),
    Kind("slot write late", 2, 0, lambda d: [f"late-slot {d.host} 25s"], leased=True),
    Kind("stale slots", 3, 0, _stale, leased=True),
    # Clocks, and sleep between a decision and its act
    Kind("clock drifts", 2, 0, lambda d: [f"drift {d.host} {d.one('10000', '-10000', '5000')}"]),
    Kind("clock jumps", 2, 0, lambda d: [f"jump-clock {d.host} {d.one('1d', '-1d', '10s')}"]),
    Kind("sleep before an act", 4, 0, _asleep_between, leased=True, hides=True),
    # Migrations
    Kind("migration", 5, 0, lambda d: [f"migrate {d.vm}"]),
    Kind("migration to a host", 3, 0, lambda d: [f"migrate {d.vm} to={d.host}"]),
    Kind("migration cancelled", 2, 0, _cancelled),
    Kind("migration that never ends", 2, 0, _busy),
    Kind("fault in mid-migration", 6, 0, _in_migration, hides=True),
    # Power devices
    Kind("BMC network cut", 3, 0, lambda d: _network("cut", "bmc", d)),
    Kind("BMC network back", 2, 0, lambda d: _network("heal", "bmc", d)),
    Kind("BMC dead", 3, 0, lambda d: [f"bmc {d.host} dead"]),
    Kind("BMC refuses", 3, 0, lambda d: [f"bmc {d.host} refuses"]),
    Kind("BMC does nothing", 3, 0, lambda d: [f"bmc {d.host} nothing"]),
    Kind("BMC slow", 3, 0, lambda d: [f"bmc {d.host} slow {d.one('1s', '5s', '20s')}"]),
    Kind("BMC switches late", 2, 0, lambda d: [f"bmc {d.host} late {d.one('5s', '60s')}"]),
    Kind("driver stops before its packet", 2, 0, lambda _d: ["stop-driver"]),
    Kind("BMC works again", 3, 0, lambda d: [f"bmc {d.host} ok"]),
    Kind("BMC lies of an isolated host", 4, 0, _isolated_liar, lies=True),
    Kind("BMC lies of a host whose processes sleep", 8, 0, _sleeping_liar, lies=True),
    Kind("host thaws in mid-fence", 4, 0, _thaws_under_fence, hides=True),
    # Processes of a host
    Kind("agent killed", 3, 9, lambda d: [f"crash-agent {d.host}"]),
    Kind("agent killed at a point", 3, 9, lambda d: [f"crash-agent {d.host}{d.at(CRASH_POINTS)}"]),
    Kind("agent stopped", 3, 4, lambda d: [f"stop-agent {d.host}"]),
    Kind("agent started", 3, 5, lambda d: [f"start-agent {d.host}"], basic=True),
    Kind("agent sleeps", 3, 0, lambda d: _sleeper("agent", d)),
    Kind("guardian stopped", 2, 3, lambda d: [f"stop-guardian {d.host}"]),
    Kind("guardian started", 2, 3, lambda d: [f"start-guardian {d.host}"]),
    Kind("guardian sleeps", 3, 0, lambda d: _sleeper("guardian", d)),
    Kind("libvirt stopped", 3, 4, lambda d: [f"stop-libvirt {d.host}"]),
    Kind("libvirt restarted", 3, 4, _libvirt_away),
    Kind("starts fail", 3, 4, lambda d: [f"fail-starts {d.host} {d.one('1', '2')}"]),
    Kind("starts without result", 2, 4, lambda d: [f"blind-starts {d.host} 1"]),
    Kind("start hangs", 3, 4, lambda d: [f"slow-start {d.host} {d.one('5s', '20s', '90s')}"]),
    Kind("grants wiped", 1, 2, lambda d: [f"empty-run {d.host}"]),
    # Guests and their processes
    Kind("QEMU killed", 4, 18, lambda d: [f"kill-qemu {d.vm}"]),
    Kind("QEMU ended", 1, 9, lambda d: [f"term-qemu {d.vm}"]),
    Kind("watchdog fires", 2, 18, lambda d: [f"fire {d.vm}"], hides=True),
    Kind("guest panics", 2, 9, lambda d: [f"panic {d.vm}"]),
    Kind("guest shuts down", 1, 9, lambda d: [f"guest-shutdown {d.vm}"]),
    Kind("guest reboots", 2, 9, lambda d: [f"guest-reboot {d.vm}"]),
    Kind("I/O error", 1, 9, lambda d: [f"io-error {d.vm}"], hides=True),
    # The server
    Kind("server killed", 5, 0, lambda d: [f"kill-server{d.at(POINTS)}", d.pause, "start-server"]),
    Kind("server sleeps", 4, 0, lambda d: [f"freeze-server{d.at(POINTS)}", d.pause, "thaw-server"]),
    Kind(
        "server sleeps, another leads",
        4,
        0,
        lambda d: [
            f"freeze-server{d.at(POINTS)}",
            d.pause,
            "second-server",
            d.pause,
            "thaw-server",
        ],
    ),
    Kind("another server leads", 2, 0, lambda _d: ["second-server"]),
    Kind("server stopped", 2, 4, lambda d: ["stop-server", d.pause, "start-server"]),
    Kind("database away", 3, 0, lambda d: ["stop-database", d.pause, "start-database"]),
    # People
    Kind("ordered start", 2, 14, lambda d: [f"start {d.vm}"]),
    Kind("ordered start elsewhere", 2, 3, lambda d: [f"start {d.vm} on={d.host}"]),
    Kind("ordered shutdown", 1, 7, lambda d: [f"shutdown {d.vm}"]),
    Kind("ordered power-off", 1, 7, lambda d: [f"power-off {d.vm}"]),
    Kind("ordered reboot", 1, 7, lambda d: [f"{d.one('reset', 'reboot')} {d.vm}"]),
    Kind("ordered pause", 1, 7, lambda d: [f"pause {d.vm}", d.pause, f"resume {d.vm}"], hides=True),
    Kind("libvirt's own tools", 2, 6, lambda d: [f"virsh {d.one('destroy', 'start')} {d.vm}"]),
    Kind("started outside elsewhere", 2, 0, lambda d: [f"virsh start {d.vm} on={d.host}"]),
    Kind("autostart turned on", 2, 2, lambda d: [f"autostart {d.vm}"]),
    Kind("migration marked", 0, 6, lambda d: [f"migrating {d.vm} {d.one('yes', 'no')}"]),
    Kind("held", 2, 3, lambda d: ["hold", d.pause, "unhold"]),
    Kind("protection changed", 1, 3, lambda d: [f"set {d.vm} ha={d.one('yes', 'no')}"]),
    Kind("maintenance", 3, 0, lambda d: [f"maintenance {d.host} on"]),
    Kind("maintenance over", 3, 0, lambda d: [f"maintenance {d.host} off"]),
    Kind("policy changed", 1, 0, lambda d: [f"policy profile={d.one('fast', 'balanced')}"]),
    Kind("operator's word", 2, 0, lambda d: [f"confirm-dead {d.host}"]),
    Kind("brake lifted", 1, 0, lambda _d: ["lift-brake"]),
    Kind("VM freed", 1, 0, lambda d: [f"free {d.vm}"]),
    Kind("all healed", 5, 0, lambda _d: ["heal-all"], basic=True),
)

NOT_DRAWN: dict[str, str] = {
    "engine": "builds the world",
    "lease": "builds the world",
    "hosts": "builds the world",
    "host": "builds the world",
    "vm": "builds the world",
    "adopt": "of VMs that are not ours; these worlds have none",
    "forget": "what is given back is nobody's to judge",
    "supersede": "says that the server has a proof, which here it would not",
    "vanish-qemu": "needs libvirt to be down: told by its own story",
    "hide-records": "a guardian that can't read kills nothing: told by its own story",
    "backup-server": "goes with the restore",
    "restore-server": "what it forgets is caught by the claim on the VM's storage (G4), which this world has not",
    "explain": "asks, and changes nothing",
    "must-run": "the end of each world",
    "crash-points": "marks a story",
}
"""Verbs that no kind draws, and why. A verb in neither table is forgotten: a test says so."""


def kinds_for(*, cluster: bool) -> tuple[Kind, ...]:
    """That can happen in such a world."""
    return tuple(kind for kind in KINDS if (kind.cluster if cluster else kind.single))


def write_story(seed: int, *, cluster: bool | None = None, steps: int | None = None) -> Story:
    """``cluster``: a world with an engine or without; None: the seed decides."""
    chance = random.Random(seed)  # noqa: S311 - a seed, to be repeated
    drawn = chance.randrange(100) >= SINGLE_PERCENT
    with_engine = drawn if cluster is None else cluster
    hosts = [f"h{number}" for number in range(1, chance.randint(*_hosts(with_engine)) + 1)]
    vms = [f"vm{number}" for number in range(1, chance.randint(1, 5 if with_engine else 4) + 1)]
    lines = _cluster(chance, hosts, vms) if with_engine else _single(chance, hosts, vms)
    kinds = _some_of(chance, kinds_for(cluster=with_engine), leased="lease" in lines)
    weights = [kind.cluster if with_engine else kind.single for kind in kinds]
    draw = Draw(chance, hosts, vms, CLUSTER_PAUSES if with_engine else SINGLE_PAUSES)
    marked: list[tuple[int, str]] = []
    for _ in range(steps or (CLUSTER_STEPS if with_engine else SINGLE_STEPS)):
        (kind,) = chance.choices(kinds, weights)
        for line in kind.write(draw):
            lines.append(line)
            if not line.startswith("advance "):
                marked.append((len(lines), kind.name))
        lines.append(draw.pause)
    return Story(lines=tuple(lines), kinds=tuple(marked))


def _hosts(with_engine: bool) -> tuple[int, int]:
    return (2, 6) if with_engine else (1, 3)


def _some_of(chance: random.Random, kinds: Sequence[Kind], *, leased: bool) -> list[Kind]:
    kept = [kind for kind in kinds if chance.randrange(100) < KEPT_PERCENT or kind.basic]
    honest = chance.randrange(100) >= LIARS_PERCENT or not any(kind.lies for kind in kinds)
    return [
        kind
        for kind in kept
        if not (kind.lies if honest else kind.hides) and (leased or not kind.leased)
    ]


def _cluster(chance: random.Random, hosts: Sequence[str], vms: Sequence[str]) -> list[str]:
    profile = chance.choice(("fast", "balanced", "balanced", "conservative"))
    lines = ["engine", f"policy profile={profile}"]
    leased = chance.randrange(100) < LEASED_PERCENT
    if leased:
        lines.append("lease")
    named = " named" if chance.random() < 0.3 else ""
    for host in hosts:
        power = chance.choice(POWER)
        feed = " shares-feed" if power != "none" and chance.random() < 0.2 else ""
        slot = f" watchdog={chance.choice(WATCHDOGS)}" if leased else ""
        slot += " cached-io" if leased and chance.random() < 0.1 else ""
        lines.append(f"host {host}{named} power={power}{feed}{slot}")
    lines.append("advance 2s")
    for number, vm in enumerate(vms):
        options = [f"on={chance.choice(hosts)}"]
        if chance.random() < 0.9:
            options.append("ha")
        if chance.random() < 0.3:
            options.append(f"watchdog=i6300esb:{chance.choice(CARD_ACTIONS)}")
        if chance.random() < 0.2:
            options.append(f"priority={chance.randint(1, 9)}")
        if chance.random() < 0.15:
            options.append(chance.choice(("apart=a", "prefer-apart=b")))
        if number and chance.random() < 0.15:
            options.append(f"depends={vms[0]}")
        lines.append(f"vm {vm} {' '.join(options)}")
    return [*lines, *(f"start {vm}" for vm in vms), "advance 10s"]


def _single(chance: random.Random, hosts: Sequence[str], vms: Sequence[str]) -> list[str]:
    lines = [f"hosts {' '.join(hosts)}"]
    for vm in vms:
        ha = "ha " if chance.random() < 0.8 else ""
        agent = "" if chance.random() < 0.8 else " no-agent"
        card = f"watchdog=i6300esb:{chance.choice(CARD_ACTIONS)}"
        lines.append(f"vm {vm} on={chance.choice(hosts)} {ha}{card}{agent}")
    return [*lines, *(f"start {vm}" for vm in vms), "advance 4s"]


def drawn_verbs() -> frozenset[str]:
    """All that some kind can draw."""
    found: set[str] = set()
    for kind in KINDS:
        for seed in range(20):
            chance = random.Random(seed)  # noqa: S311 - a seed, to be repeated
            draw = Draw(chance, ("h1", "h2"), ("vm1",), CLUSTER_PAUSES)
            found |= {line.split()[0] for line in kind.write(draw)}
    unknown = sorted(found - set(VERBS))
    if unknown:
        raise ValueError(f"no verb is called {unknown}")
    return frozenset(found)
