"""Everything that may happen to a random world: ``KINDS`` is the table, a new kind is one line of it.

A kind is a fault, an order, or a whole scene: a failure that reaches what single faults in any order hardly ever do
(a lease that must prove, a power device that is caught lying), with the time that it needs.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from virtha.scenario.verbs import VERBS
from virtha.sim.host import CRASH_POINTS
from virtha.sim.leader import POINTS

CLUSTER_PAUSES = ("100ms", "1s", "2s", "5s", "5s", "10s", "20s", "60s")
SINGLE_PAUSES = ("1ms", "50ms", "150ms", "300ms", "1s", "2s", "5s", "30s")
LONG_PAUSES = ("40s", "60s", "60s", "90s", "120s")
"""Until a lease has proven its host dead, under most policies."""
GUARDIAN_POINTS = ("renew", "kill", "reset", "feed", "arm", "allow", "read", "poison", "waiver")
TORN_BYTES = (0, 3, 20, 200)
HOME_PERCENT = 60
"""Hosts that are drawn because a VM was started there: what happens to the others moves little."""
_PROTECTION = (
    "ha=yes",
    "ha=no",
    "on-io-error=leave_paused",
    "on-io-error=auto_resume",
    "on-io-error=kill",
)


class Draw:
    """What a kind's lines are made of."""

    def __init__(
        self,
        chance: random.Random,
        hosts: Sequence[str],
        vms: Sequence[str],
        pauses: Sequence[str],
        *,
        homes: Sequence[str] = (),
        domains: Sequence[str] = (),
    ) -> None:
        """``homes``: a host for each VM. ``domains``: of storage, where there are several."""
        self._chance = chance
        self.hosts = hosts
        self._vms = vms
        self._pauses = pauses
        self._homes = homes or hosts
        self._domains = domains

    @property
    def host(self) -> str:
        home = self._chance.randrange(100) < HOME_PERCENT
        return self._chance.choice(self._homes if home else self.hosts)

    @property
    def domain(self) -> str:
        """One storage domain, as an option, or all."""
        return f" domain={self._chance.choice(self._domains)}" if self._domains else ""

    @property
    def long(self) -> str:
        return f"advance {self._chance.choice(LONG_PAUSES)}"

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
    """Cut off towards the server while its BMC says off: its disks are written, and there are hosts to see that."""
    host = draw.host
    lines = [
        "heal-all",
        "advance 10s",
        f"bmc {host} lies",
        f"cut net {host}",
        draw.pause,
        draw.pause,
    ]
    return [*lines, f"heal net {host}", f"bmc {host} ok"]


def _sleeping_liar(draw: Draw) -> list[str]:
    """Ordered off and said to be off, while its disks are written, and there are hosts to see that; then its processes
    go on."""
    host = draw.host
    lines = [
        "heal-all",
        "advance 10s",
        f"bmc {host} lies",
        f"freeze {host} agent",
        f"freeze {host} guardian",
        "advance 20s",
    ]
    return [*lines, draw.pause, f"thaw {host}", draw.pause, f"bmc {host} ok"]


def _liar_that_wakes(draw: Draw) -> list[str]:
    """Hangs, its BMC says off and does nothing, and the order wakes it: no reading of before its next sign may prove
    anything."""
    host = draw.host
    lines = ["heal-all", "advance 10s", f"bmc {host} lies", f"hang {host} until=off", "advance 20s"]
    return [*lines, draw.pause, f"thaw {host}", draw.pause, f"bmc {host} ok"]


def _asleep_between(draw: Draw) -> list[str]:
    """Between what a guardian decided and what it does."""
    host = draw.host
    verb = draw.one(f"freeze {host} guardian", f"hang {host}")
    return [f"{verb} at={draw.one(*GUARDIAN_POINTS)}", draw.pause, f"thaw {host}"]


def _one_stalls(draw: Draw) -> list[str]:
    where = f" on={draw.host}{draw.domain}"
    return [f"stall-storage{where}", draw.pause, f"resume-storage{where}"]


def _storage_errors(draw: Draw) -> list[str]:
    where = draw.one("", f" on={draw.host}") + draw.domain
    broken = f"break-storage {draw.one('errors', 'read-only')}{where}"
    return [broken, draw.pause, f"resume-storage{where}"]


def _ended_on_errors(draw: Draw) -> list[str]:
    """Long enough for one that asks for it to be ended, and another host takes it; now and then that one fails it, too."""
    vm, well = draw.vm, draw.host
    lines = [f"set {vm} on-io-error=kill"]
    lines += [f"break-storage errors on={host}" for host in draw.hosts if host != well]
    lines.append("advance 70s")
    if draw.one("well", "well", "fails too") == "fails too":
        lines += [f"break-storage errors on={well}", draw.pause]
    return [*lines, draw.pause, *(f"resume-storage on={host}" for host in draw.hosts)]


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


# Scenes: failures with the time that they need


def _unreachable(host: str, draw: Draw) -> tuple[list[str], list[str]]:
    """What makes its power devices prove nothing, and what ends that."""
    if draw.one("cut", "broken") == "cut":
        return [f"cut bmc {host}"], [f"heal bmc {host}"]
    return [f"bmc {host} {draw.one('dead', 'dead', 'refuses', 'nothing')}"], [f"bmc {host} ok"]


def _dead_with_its_bmc(draw: Draw) -> list[str]:
    host = draw.host
    silent, heard = _unreachable(host, draw)
    return [*silent, f"power-cut {host}", draw.long, *heard, draw.pause, f"boot {host}"]


def _hangs_without_bmc(draw: Draw) -> list[str]:
    host = draw.host
    silent, heard = _unreachable(host, draw)
    return [*silent, f"hang {host}", draw.long, f"thaw {host}", draw.pause, *heard]


def _guardian_gone_without_bmc(draw: Draw) -> list[str]:
    """Nobody renews its slot, feeds its watchdog or says that it lives; its VMs write on."""
    host = draw.host
    silent, heard = _unreachable(host, draw)
    gone = draw.one(f"stop-guardian {host}", f"freeze {host} guardian")
    agent = draw.one(f"stop-agent {host}", f"freeze {host} agent")
    return [*silent, gone, agent, draw.long, f"thaw {host}", *heard]


def _cut_from_everything(draw: Draw) -> list[str]:
    host = draw.host
    networks = ["net", "bmc", "storage"]
    cut = [f"cut {network} {host}" for network in networks]
    return [*cut, draw.long, *(f"heal {network} {host}" for network in networks)]


def _storage_out(draw: Draw) -> list[str]:
    """For all: leases are waived, then perhaps a host dies under its waiver."""
    where = draw.domain
    host = draw.host
    dies = draw.one("", f"power-cut {host}", f"cut net {host}", f"freeze {host} guardian")
    under = ["advance 10s", dies, draw.long] if dies else [draw.one("advance 10s", draw.long)]
    back = {"cut": [f"heal net {host}"], "freeze": [f"thaw {host}"]}.get(dies.partition(" ")[0], [])
    out = f"stall-storage{where}"
    return [out, "advance 20s", *under, f"resume-storage{where}", draw.pause, *back]


def _bmc_of_another(draw: Draw) -> list[str]:
    """Swapped after it was tested: its orders strike, and its readings tell of, another host. Others see the disks of the
    host that sleeps."""
    host = draw.host
    other = draw.one(*(one for one in draw.hosts if one != host))
    lines = [
        "heal-all",
        "advance 10s",
        f"bmc {host} of {other}",
        f"freeze {host} agent",
        f"freeze {host} guardian",
    ]
    return [*lines, "advance 20s", draw.pause, f"thaw {host}", draw.pause, f"bmc {host} of {host}"]


def _word_for_the_dead(draw: Draw) -> list[str]:
    """An operator who looked."""
    host = draw.host
    silent, heard = _unreachable(host, draw)
    lines = [
        *silent,
        f"power-cut {host}",
        draw.long,
        f"confirm-dead {host}{draw.one('', ' force=seen')}",
    ]
    return [*lines, draw.pause, *heard, f"boot {host}"]


def _confirmed_wrongly(draw: Draw) -> list[str]:
    """By a person who did not look: it lives, cut off from all, and is heard again (G4)."""
    host = draw.host
    dark = ["net", "bmc", *([] if draw.one("", "storage") == "" else ["storage"])]
    return [
        f"believed-dead {host}",
        *(f"cut {one} {host}" for one in dark),
        draw.long,
        f"confirm-dead {host} force=wrong",
        draw.pause,
        *(f"heal {one} {host}" for one in dark),
        draw.pause,
    ]


def _hang_in_turn(draw: Draw) -> list[str]:
    """More than the cap lets be ordered off."""
    return [line for host in draw.hosts[:6] for line in (f"hang {host}", "advance 40s")]


def _no_mains(draw: Draw) -> list[str]:
    cut = [f"power-cut {host}" for host in draw.hosts]
    return [*cut, draw.pause, *(f"boot {host}" for host in draw.hosts)]


def _started_in_mid_failure(draw: Draw) -> list[str]:
    host = draw.host
    fails = draw.one(f"power-cut {host}", f"cut net {host}")
    return [fails, draw.one("advance 5s", "advance 20s"), f"start {draw.vm} on={draw.host}"]


def _held_in_mid_failure(draw: Draw) -> list[str]:
    return ["hold", f"power-cut {draw.host}", draw.pause, draw.pause, "unhold"]


def _commits_lost(draw: Draw) -> list[str]:
    """The database fails over to a replica that had not heard of what came last."""
    happens = draw.one(f"power-cut {draw.host}", f"migrate {draw.vm}", f"start {draw.vm}")
    return ["backup-server", happens, draw.pause, "restore-server"]


def _terms_lost(draw: Draw) -> list[str]:
    """Leaders among what the database forgets: the next ones come to their numbers. One of them may only sleep (M1)."""
    leaders = [
        line
        for _ in range(draw.number(1, 3))
        for line in draw.one("second-server", "freeze-server second-server").split()
    ]
    happens = draw.one(f"power-cut {draw.host}", f"cut net {draw.host}", f"crash-agent {draw.host}")
    again = draw.one("", draw.pause)
    restored = ["restore-server", *([again, "restore-server"] if again else [])]
    return ["backup-server", *leaders, happens, draw.pause, *restored, draw.pause, "thaw-server"]


def _well_for_long(draw: Draw) -> list[str]:
    return ["heal-all", draw.long]


KINDS: tuple[Kind, ...] = (
    # Scenes
    Kind("host and BMC dead", 7, 0, _dead_with_its_bmc, basic=True),
    Kind("host hangs, BMC out of reach", 4, 0, _hangs_without_bmc, hides=True),
    Kind("guardian gone, BMC out of reach", 4, 0, _guardian_gone_without_bmc, hides=True),
    Kind("cut from everything", 4, 0, _cut_from_everything, hides=True),
    Kind("storage out for all", 6, 0, _storage_out, leased=True, hides=True),
    Kind("BMC of another host", 6, 0, _bmc_of_another, lies=True),
    Kind("operator's word for the dead", 4, 0, _word_for_the_dead),
    Kind("hosts hang in turn", 3, 0, _hang_in_turn, hides=True),
    Kind("no power anywhere", 2, 0, _no_mains),
    Kind("started elsewhere in mid-failure", 3, 0, _started_in_mid_failure),
    Kind("failure on hold", 3, 0, _held_in_mid_failure),
    Kind("database loses commits", 3, 0, _commits_lost),
    Kind("database loses terms", 3, 0, _terms_lost),
    Kind("well for long", 3, 0, _well_for_long, basic=True),
    # Whole hosts
    Kind("power cut", 8, 3, lambda d: [f"power-cut {d.host}"], basic=True),
    Kind("power back", 6, 3, lambda d: [f"boot {d.host}"], basic=True),
    Kind("rack without power", 2, 0, lambda d: _several("power-cut", d)),
    Kind("host hangs", 6, 0, lambda d: [f"hang {d.host}"], hides=True),
    Kind("several hosts hang", 3, 0, lambda d: _several("hang", d), hides=True),
    Kind("host goes on", 4, 0, lambda d: [f"thaw {d.host}"], basic=True),
    Kind("host shut down", 3, 0, lambda d: [f"shutdown-host {d.host}"]),
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
    Kind("storage errors until it is ended", 2, 0, _ended_on_errors, hides=True),
    Kind("slot write torn", 4, 0, lambda d: [f"tear-slot {d.host}"], leased=True),
    Kind("slot write late", 4, 0, lambda d: [f"late-slot {d.host} 25s"], leased=True),
    Kind("stale slots", 4, 0, _stale, leased=True),
    # Clocks, and sleep between a decision and its act
    Kind("clock drifts", 3, 0, lambda d: [f"drift {d.host} {d.one('10000', '-10000', '5000')}"]),
    Kind("clock jumps", 3, 0, lambda d: [f"jump-clock {d.host} {d.one('1d', '-1d', '10s')}"]),
    Kind("sleep before an act", 5, 0, _asleep_between, leased=True, hides=True),
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
    Kind("BMC switches late", 3, 0, lambda d: [f"bmc {d.host} late {d.one('5s', '60s')}"]),
    Kind("driver stops before its packet", 2, 0, lambda _d: ["stop-driver"]),
    Kind("BMC works again", 3, 0, lambda d: [f"bmc {d.host} ok"]),
    Kind("BMC lies of an isolated host", 4, 0, _isolated_liar, lies=True),
    Kind("BMC lies of a host whose processes sleep", 8, 0, _sleeping_liar, lies=True),
    Kind("BMC lies of a host that its order wakes", 8, 0, _liar_that_wakes, lies=True),
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
    Kind(
        "start hangs",
        3,
        4,
        lambda d: [f"slow-start {d.host} {d.one('5s', '20s', '90s')}"],
        hides=True,
    ),
    Kind("grants wiped", 2, 2, lambda d: [f"empty-run {d.host}"]),
    # Guests and their processes
    Kind("QEMU killed", 4, 18, lambda d: [f"kill-qemu {d.vm}"]),
    Kind("QEMU ended", 2, 9, lambda d: [f"term-qemu {d.vm}"]),
    Kind("watchdog fires", 2, 18, lambda d: [f"fire {d.vm}"], hides=True),
    Kind("guest panics", 2, 9, lambda d: [f"panic {d.vm}"]),
    Kind("guest shuts down", 2, 9, lambda d: [f"guest-shutdown {d.vm}"]),
    Kind("guest reboots", 2, 9, lambda d: [f"guest-reboot {d.vm}"]),
    Kind("I/O error", 2, 9, lambda d: [f"io-error {d.vm}"], hides=True),
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
    Kind("another server leads", 3, 0, lambda _d: ["second-server"]),
    Kind("server stopped", 2, 4, lambda d: ["stop-server", d.pause, "start-server"]),
    Kind("database away", 3, 0, lambda d: ["stop-database", d.pause, "start-database"]),
    # People
    Kind("ordered start", 2, 14, lambda d: [f"start {d.vm}"]),
    Kind("ordered start elsewhere", 2, 3, lambda d: [f"start {d.vm} on={d.host}"]),
    Kind("ordered shutdown", 2, 7, lambda d: [f"shutdown {d.vm}"]),
    Kind("ordered power-off", 2, 7, lambda d: [f"power-off {d.vm}"]),
    Kind("ordered reboot", 2, 7, lambda d: [f"{d.one('reset', 'reboot')} {d.vm}"]),
    Kind("ordered pause", 3, 7, lambda d: [f"pause {d.vm}", d.pause, f"resume {d.vm}"], hides=True),
    Kind("libvirt's own tools", 3, 6, lambda d: [f"virsh {d.one('destroy', 'start')} {d.vm}"]),
    Kind("started outside elsewhere", 3, 0, lambda d: [f"virsh start {d.vm} on={d.host}"]),
    Kind("autostart turned on", 2, 2, lambda d: [f"autostart {d.vm}"]),
    Kind("migration marked", 0, 14, lambda d: [f"migrating {d.vm} {d.one('yes', 'no')}"]),
    Kind("held", 2, 3, lambda d: ["hold", d.pause, "unhold"]),
    Kind("protection changed", 2, 3, lambda d: [f"set {d.vm} {d.one(*_PROTECTION)}"]),
    Kind("maintenance", 3, 0, lambda d: [f"maintenance {d.host} on"]),
    Kind("maintenance over", 3, 0, lambda d: [f"maintenance {d.host} off"]),
    Kind("policy changed", 2, 0, lambda d: [f"policy profile={d.one('fast', 'balanced')}"]),
    Kind("operator's word", 2, 0, lambda d: [f"confirm-dead {d.host}"]),
    Kind("wrong word", 2, 0, _confirmed_wrongly),
    Kind("brake lifted", 2, 0, lambda _d: ["lift-brake"]),
    Kind("VM freed", 2, 0, lambda d: [f"free {d.vm}"]),
    Kind("all healed", 4, 0, lambda _d: ["heal-all"], basic=True),
)

NOT_DRAWN: dict[str, str] = {
    "engine": "builds the world",
    "lease": "builds the world",
    "ceph": "builds the world",
    "hosts": "builds the world",
    "host": "builds the world",
    "vm": "builds the world",
    "adopt": "of VMs that are not ours; these worlds have none",
    "forget": "what is given back is nobody's to judge",
    "supersede": "says that the server has a proof, which here it would not",
    "vanish-qemu": "needs libvirt to be down: told by its own story",
    "hide-records": "a guardian that can't read kills nothing: told by its own story",
    "explain": "asks, and changes nothing",
    "must-run": "the end of each world",
    "crash-points": "marks a story",
}
"""Verbs that no kind draws, and why. A verb in neither table is forgotten: a test says so."""


def drawn_verbs(kinds: Sequence[Kind] = KINDS) -> frozenset[str]:
    """All that some kind can draw."""
    found: set[str] = set()
    for kind in kinds:
        for seed in range(20):
            chance = random.Random(seed)  # noqa: S311 - a seed, to be repeated
            draw = Draw(chance, ("h1", "h2"), ("vm1",), CLUSTER_PAUSES)
            found |= {line.split()[0] for line in kind.write(draw)}
    unknown = sorted(found - set(VERBS))
    if unknown:
        raise ValueError(f"no verb is called {unknown}")
    return frozenset(found)
