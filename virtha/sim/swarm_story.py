"""The story of one world, from a seed: what it consists of, and what happens to it.

Each world draws some of the kinds and leaves the others out (swarm testing): faults that hide each other meet in no
world that has both.
"""

import random
from collections.abc import Mapping, Sequence

from virtha.model.time import parse_duration_ms
from virtha.model.value import Value
from virtha.sim.swarm_ceph import ceph_kinds, ceph_of, on_ceph
from virtha.sim.swarm_kinds import CLUSTER_PAUSES, KINDS, SINGLE_PAUSES, Draw, Kind

SINGLE_STEPS = 40
SINGLE_PERCENT = 10
"""Worlds without an engine: nobody but the hosts themselves restarts a VM there."""
KEPT_PERCENT = 45
"""How likely a kind is to be among those of one world."""
LEASED_KEPT_PERCENT = 65
LIARS_PERCENT = 25
"""Worlds in which power devices may lie."""
CARD_ACTIONS = ("reset", "poweroff", "pause", "dump", "none", "shutdown")
POWER = ("bmc", "bmc", "bmc", "bmc,outlets", "outlets", "none")
LEASED_PERCENT = 50
TWO_DOMAINS_PERCENT = 15
HOSTS = {2: 18, 3: 32, 4: 24, 5: 14, 6: 8, 9: 2, 12: 2}
"""How many worlds of a hundred have so many hosts."""
SMALL_HOSTS = 6
TIGHT_PERCENT = 30
"""Worlds in which not each VM fits everywhere."""
HOST_MEMORY = "4GiB"
VM_MEMORY = ("1GiB", "2GiB", "3GiB")
FAULTS_MS = (240_000, 480_000)
"""How long faults go on: with the healing and what is waited for after it, a world takes ten minutes and more."""
STEPS_MAX = 60
WATCHDOGS = ("armed", "armed", "armed", "armed", "armed", "armed", "way-out", "none")


class Story(Value, frozen=True, kw_only=True):
    """``lines`` in the scenario language; ``kinds``: (number of the line, counted from 1, and its kind)."""

    lines: tuple[str, ...]
    kinds: tuple[tuple[int, str], ...]


def kinds_for(*, cluster: bool) -> tuple[Kind, ...]:
    """That can happen in such a world."""
    return tuple(kind for kind in KINDS if (kind.cluster if cluster else kind.single))


def write_story(seed: int, *, cluster: bool | None = None, steps: int | None = None) -> Story:
    """``cluster``: a world with an engine or without; None: the seed decides. ``steps``: so many kinds, instead of as
    many as fill the time that the seed draws."""
    chance = random.Random(seed)  # noqa: S311 - a seed, to be repeated
    drawn = chance.randrange(100) >= SINGLE_PERCENT
    return (
        _clustered(chance, steps, ceph_of(seed))
        if (drawn if cluster is None else cluster)
        else _alone(chance, steps)
    )


def _clustered(chance: random.Random, steps: int | None, ceph: random.Random | None) -> Story:
    """``ceph``: by what its cluster is drawn, where it has one."""
    hosts, homes = _size(chance)
    domains = _domains(chance)
    lines = _cluster(chance, hosts, homes, domains)
    kinds = _some_of(chance, kinds_for(cluster=True), leased=bool(domains))
    if ceph is not None:
        lines = on_ceph(ceph, lines, domains)
        kinds += ceph_kinds(kinds)
    several = domains if len(domains) > 1 else ()
    draw = Draw(
        chance, hosts, tuple(homes), CLUSTER_PAUSES, homes=tuple(homes.values()), domains=several
    )
    weights = [kind.cluster for kind in kinds]
    until_ms = chance.randint(*FAULTS_MS)
    told = _Told(lines)
    count = 0
    while count < steps if steps is not None else told.lasts_ms < until_ms and count < STEPS_MAX:
        (kind,) = chance.choices(kinds, weights)
        told.add(kind, draw)
        count += 1
    return told.story()


def _alone(chance: random.Random, steps: int | None) -> Story:
    """Without an engine."""
    hosts = [f"h{number}" for number in range(1, chance.randint(1, 3) + 1)]
    vms = [f"vm{number}" for number in range(1, chance.randint(1, 4) + 1)]
    told = _Told(_single(chance, hosts, vms))
    kinds = _some_of(chance, kinds_for(cluster=False), leased=False)
    draw = Draw(chance, hosts, vms, SINGLE_PAUSES)
    weights = [kind.single for kind in kinds]
    for _ in range(SINGLE_STEPS if steps is None else steps):
        (kind,) = chance.choices(kinds, weights)
        told.add(kind, draw)
    return told.story()


class _Told:
    """A story as far as it is written. ``lasts_ms``: of its own time."""

    def __init__(self, lines: list[str]) -> None:
        self._lines: list[str] = []
        self._kinds: list[tuple[int, str]] = []
        self.lasts_ms = 0
        for line in lines:
            self._add(line)

    def _add(self, line: str) -> None:
        self._lines.append(line)
        verb, _, duration = line.partition(" ")
        if verb == "advance":
            self.lasts_ms += parse_duration_ms(duration, field=verb)

    def add(self, kind: Kind, draw: Draw) -> None:
        for line in kind.write(draw):
            self._add(line)
            if not line.startswith("advance "):
                self._kinds.append((len(self._lines), kind.name))
        self._add(draw.pause)

    def story(self) -> Story:
        return Story(lines=tuple(self._lines), kinds=tuple(self._kinds))


def _size(chance: random.Random) -> tuple[list[str], dict[str, str]]:
    """Hosts, and VMs with the host of each. Many small worlds find more than few large ones; a rack now and then."""
    (count,) = chance.choices(tuple(HOSTS), tuple(HOSTS.values()))
    hosts = [f"h{number}" for number in range(1, count + 1)]
    vms = chance.randint(count // 2, count) if count > SMALL_HOSTS else chance.randint(1, 5)
    return hosts, {f"vm{number}": chance.choice(hosts) for number in range(1, vms + 1)}


def _domains(chance: random.Random) -> tuple[str, ...]:
    """Storage domains with leases; none: a world without."""
    if chance.randrange(100) >= LEASED_PERCENT:
        return ()
    return ("ds1", "ds2") if chance.randrange(100) < TWO_DOMAINS_PERCENT else ("shared",)


def _some_of(chance: random.Random, kinds: Sequence[Kind], *, leased: bool) -> list[Kind]:
    """Where devices lie, each way to lie is drawn: alone they seldom meet a VM. Of what needs leases more is kept, for
    only half of the worlds has them."""
    kept = [
        kind
        for kind in kinds
        if chance.randrange(100) < (LEASED_KEPT_PERCENT if kind.leased else KEPT_PERCENT)
        or kind.basic
        or kind.lies
    ]
    honest = chance.randrange(100) >= LIARS_PERCENT or not any(kind.lies for kind in kinds)
    return [
        kind
        for kind in kept
        if not (kind.lies if honest else kind.hides) and (leased or not kind.leased)
    ]


def _cluster(
    chance: random.Random, hosts: Sequence[str], homes: Mapping[str, str], domains: Sequence[str]
) -> list[str]:
    profile = chance.choice(("fast", "balanced", "balanced", "conservative"))
    action = " fencing.action=reboot" if chance.random() < 0.12 else ""
    cap = f" fencing.cap_count={chance.randint(1, 2)}" if chance.random() < 0.35 else ""
    lines = ["engine", f"policy profile={profile}{action}{cap}"]
    if domains:
        lines.append(" ".join(("lease", *domains)) if len(domains) > 1 else "lease")
    named = " named" if chance.random() < 0.4 else ""
    tight = chance.randrange(100) < TIGHT_PERCENT
    room = f" memory={HOST_MEMORY}" if tight else ""
    lines += [f"host {host}{named}{room}{_host(chance, leased=bool(domains))}" for host in hosts]
    lines.append("advance 2s")
    first = next(iter(homes))
    for vm, home in homes.items():
        options = [f"on={home}"]
        if chance.random() < 0.9:
            options.append("ha")
        if chance.random() < 0.3:
            options.append(f"watchdog=i6300esb:{chance.choice(CARD_ACTIONS)}")
        if chance.random() < 0.2:
            options.append(f"priority={chance.randint(1, 9)}")
        if chance.random() < 0.15:
            options.append(chance.choice(("apart=a", "prefer-apart=b")))
        if vm != first and chance.random() < 0.15:
            options.append(f"depends={first}")
        if len(domains) > 1:
            options.append(f"storage={chance.choice(domains)}")
        if tight:
            options.append(f"memory={chance.choice(VM_MEMORY)}")
        lines.append(f"vm {vm} {' '.join(options)}")
    return [*lines, *(f"start {vm}" for vm in homes), "advance 10s"]


def _host(chance: random.Random, *, leased: bool) -> str:
    power = chance.choice(POWER)
    options = f" power={power}"
    if power != "none" and chance.random() < 0.2:
        options += " shares-feed"
    if leased:
        options += f" watchdog={chance.choice(WATCHDOGS)}"
        options += " cached-io" if chance.random() < 0.1 else ""
        options += " virtual" if chance.random() < 0.05 else ""
    return options


def _single(chance: random.Random, hosts: Sequence[str], vms: Sequence[str]) -> list[str]:
    lines = [f"hosts {' '.join(hosts)}"]
    for vm in vms:
        ha = "ha " if chance.random() < 0.8 else ""
        agent = "" if chance.random() < 0.8 else " no-agent"
        card = f"watchdog=i6300esb:{chance.choice(CARD_ACTIONS)}"
        lines.append(f"vm {vm} on={chance.choice(hosts)} {ha}{card}{agent}")
    return [*lines, *(f"start {vm}" for vm in vms), "advance 4s"]
