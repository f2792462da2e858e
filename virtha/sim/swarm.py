"""Random worlds from seeds: a phase in which anything may break, then all is well again and every protected VM must
run, or say why it never will. ``virtha simulate --seed 1..1000`` plays many of them.

A world is a function of its seed: the same seed gives the same digest on every machine and under every hash seed.
"""

import hashlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from virtha.engine.events import Command, Intent, OrderPower, SaveHost
from virtha.engine.machine import Verdict
from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId, Term
from virtha.model.power import PowerAction
from virtha.model.value import Value
from virtha.ports.hypervisor import HypervisorError
from virtha.scenario.language import Step, parse
from virtha.sim.checkers import Violation
from virtha.sim.engine_table import Lead
from virtha.sim.faults import explain_host
from virtha.sim.host import SimHost
from virtha.sim.liveness import Late, NotLive, must_run
from virtha.sim.play import ASKED, Player
from virtha.sim.swarm_story import Story, write_story
from virtha.sim.world import World

TRIES_MAX = 300
CONTRADICTIONS = (
    "fence.contradicted",
    "host.alive_though_proven_dead",
    "vm.migration_contradicted",
)
RECOVERED = "vm.recovered"
SEEN: dict[str, tuple[str, ...]] = {
    "a waiver": ("host.lease.waived",),
    "self-fencing": ("host.lease.killed_vm", "host.lease.reset"),
    "a storage outage": ("storage.outage",),
    "an isolated host": ("host.isolated",),
    "the brake": ("fence.brake.tripped",),
    "the cap": ("fence.blocked.cap",),
    "a fence given up": ("fence.failed",),
    "a device of another host": ("fence.device_of_another",),
    "disks written against an off": ("proof.blocked.disks_change",),
    "an operator refused": ("host.confirmation_refused",),
    "a host back after its recovery": ("host.returned",),
    "a reboot unseen": ("host.rebooted_unseen",),
    "a migration done": ("vm.migrated",),
    "a migration in doubt": ("vm.migration_doubtful",),
    "a copy found": ("vm.found",),
    "a quarantine": ("vm.quarantined",),
    "a resume after an I/O error": ("vm.io_error.resumed",),
    "an end for an I/O error": ("vm.io_error.killing",),
    "no room for a VM": ("recovery.blocked.no_capacity",),
}
"""What came of a world, by the codes of its history and of the reasons that were given on the way."""
GUEST_FAULTS = (
    "kill-qemu",
    "term-qemu",
    "fire",
    "panic",
    "guest-shutdown",
    "guest-reboot",
    "io-error",
)
ANYTIME = (
    "maintenance",
    "heal-net",
    "cut-net",
    "set",
    "free",
    "migrate",
    "cancel-migration",
    "busy",
    "in-migration",
    "stale-slots",
    "fresh-slots",
    "drift",
    "jump-clock",
)
"""They need no host that is on."""
BUILDING = ("engine", "hosts", "host", "vm", "policy", "advance", "must-run")
FENCED_BY = "60s"
"""What helpers were asked for is done by then, or failed."""


class Failure(NamedTuple):
    """``rule``: ``safety``, ``liveness``, or ``broken`` where the world itself came apart."""

    rule: str
    message: str

    @property
    def shape(self) -> str:
        """The same for the same rule broken by other hosts at another time."""
        return re.sub(r"[\w-]*\d[\w-]*", "#", self.message)


class WorldResult(Value, frozen=True, kw_only=True):
    """What came of one seed. ``kinds``: of what really happened in it. ``proofs``: kinds of what proved hosts dead.
    ``seen``: names of ``SEEN``. ``reasons``: all codes that explained a host or a VM on the way. ``story``: the shortest
    that still fails, in the scenario language."""

    seed: int
    virtual_ms: int
    digest: str
    kinds: tuple[str, ...] = ()
    fenced: bool = False
    recovered: bool = False
    contradicted: bool = False
    proofs: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    late: tuple[Late, ...] = ()
    rule: str = ""
    message: str = ""
    story: str = ""


class Recorder:
    """The decisions of a world's leaders, beside what its checkers make of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hash = hashlib.sha256()
        self._encoder = msgspec.json.Encoder(order="deterministic")
        self.offs = 0
        """Orders to switch a host off."""
        self.proofs: set[str] = set()
        self.reasons: set[str] = set()
        on_command, on_written = world.on_engine_command, world.on_written

        def command(lead: Lead, given: Command) -> None:
            self._take("command", lead.term, given)
            self.offs += isinstance(given, OrderPower) and given.action is PowerAction.OFF
            on_command(lead, given)

        def written(lead: Lead, intents: Sequence[Intent]) -> None:
            if intents:
                self._take("written", lead.term, tuple(intents))
                self._note_proofs(intents)
            on_written(lead, intents)

        world.on_engine_command, world.on_written = command, written

    def _note_proofs(self, intents: Sequence[Intent]) -> None:
        for intent in intents:
            if isinstance(intent, SaveHost) and intent.record.incident is not None:
                self.proofs |= {proof.kind.value for proof in intent.record.incident.proofs}

    def ask_why(self) -> None:
        """Why hosts and VMs are as they are now: not all that holds up a proof is ever an event."""
        failover = self._world.gateway.failover
        if failover is None or not failover.leader.alive:
            return
        engine = failover.engine
        for name in self._world.hosts:
            if engine.verdict(HostId(name)) not in (None, Verdict.ALIVE):
                self.reasons |= {why.code for why in explain_host(self._world, name)}
        for vm_id in self._world.server.vms:
            if engine.stage(vm_id) is not None:
                self.reasons |= {why.code for why in engine.explain_vm(vm_id)}

    def _take(self, what: str, term: Term, value: object) -> None:
        self._hash.update(f"{self._world.kernel.now} {what} {term} ".encode())
        self._hash.update(self._encoder.encode(value))

    def digest(self, outcome: Iterable[str]) -> str:
        """Of all decisions, of the world's trace, and of what was recorded in the end."""
        whole = self._hash.copy()
        for line in (*self._world.trace_lines, *outcome):
            whole.update(line.encode() + b"\n")
        return whole.hexdigest()


class Played(NamedTuple):
    """``done``: the lines that applied, as numbers from 1. ``last``: the one that was played last, done or not.
    ``healed``: the lines that made all well again; none where a failure came before."""

    player: Player
    recorder: Recorder
    done: tuple[int, ...]
    last: int
    late: tuple[Late, ...]
    failure: Failure | None
    healed: tuple[str, ...]


def play(lines: Sequence[str], *, strict: bool = False) -> Played:
    """The lines, then healing, then what must run. ``strict``: lines that don't apply are errors, and the healing is
    the lines' own."""
    player = Player()
    recorder = Recorder(player.world)
    done: list[int] = []
    last = 0
    late: tuple[Late, ...] = ()
    failure = None
    healed: list[str] = []
    try:
        for step in parse("# random faults\n" + "\n".join(lines)).steps:
            last = step.line - 1
            if strict:
                _do_if_it_makes_sense(player, step)
                done.append(step.line - 1)
            elif do_if_it_applies(player, step):
                done.append(step.line - 1)
            if step.verb == "advance":
                recorder.ask_why()
        if not strict:
            for line in healing(player.world):
                healed.append(line)
                player.do(parse(f"# healed\n{line}\n").steps[0])
            late = must_run(player.world)
        player.at_end()
    except NotLive as error:
        failure = Failure("liveness", str(error))
    except Violation as error:
        failure = Failure("safety", str(error))
    except Exception as error:  # one broken world must not end the run of the others
        if strict and isinstance(error, InvalidInput):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({place.name})"
        failure = Failure("broken", told)
    return Played(player, recorder, tuple(done), last, late, failure, tuple(healed))


def _do_if_it_makes_sense(player: Player, step: Step) -> None:
    """Shortened, a story must not become one of an operator who did not look, or of a lie that nobody could catch."""
    if (step.verb == "confirm-dead" or "lies" in step.words) and not applies(player, step):
        raise InvalidInput(
            "nobody would confirm that, or could see through it", field=f"line {step.line}"
        )
    player.do(step)


def healing(world: World) -> Iterator[str]:
    """Of what no kind of fault ends by itself, by the world as it is when each line is asked for."""
    yield "heal-all"
    if world.with_engine:
        yield from [f"maintenance {name} off" for name in world.hosts]
    if world.ceph is None:
        return
    yield f"advance {FENCED_BY}"
    for name, host in world.hosts.items():
        if host.powered and world.ceph.is_listed(name):
            # What it needs, as it was told (``host.lives_cut_off``).
            yield f"power-cut {name}"
            yield f"boot {name}"


def do_if_it_applies(player: Player, step: Step) -> bool:
    """False: it makes no sense in the world as it is, and was passed over."""
    if step.verb in ASKED and not player.world.gateway.running:
        return False
    if not applies(player, step):
        return False
    try:
        player.do(step)
    except HypervisorError:
        return False
    except InvalidInput:
        if step.verb != "restore-server":
            raise
        return False  # nobody could be asked for a backup
    return True


def applies(player: Player, step: Step) -> bool:
    """Whether the step makes sense in the world as it is."""
    world = player.world
    if step.verb in BUILDING or not step.words:
        return True
    if step.verb in ANYTIME:
        return True
    if step.words[0] not in world.hosts:
        return _applies_to_vm(player, step)
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
        case "bmc":
            may_be_caught = "lies" not in step.words or _is_seen_writing(world, host)
            return bool(world.power.of(host.name)) and may_be_caught
        case "confirm-dead":
            return host.name in player.checkers.believed or _may_be_confirmed(world, host)
        case _:
            return host.powered


def _is_seen_writing(world: World, host: SimHost) -> bool:
    """Who is said to be off, and sleeps, is only given away by the disks of a VM that runs there (P1, F2)."""
    return any(host.name in world.running_on(vm_id) for vm_id in world.server.vms)


def _may_be_confirmed(world: World, host: SimHost) -> bool:
    """An operator who says of a host that lives unseen that it is dead is outside of what P6 can hold: this one has
    looked, or errs about a host that the server hears, and must be refused."""
    return not host.powered or world.connected(host)


def _applies_to_vm(player: Player, step: Step) -> bool:
    """Commands for VMs need a host that is on; networks, the building and time need nothing."""
    world = player.world
    named = [word for word in step.words if word in world.ids]
    if not named:
        return True
    known = world.server.vms[world.ids[named[0]]]
    host = world.hosts[step.options.get("on", known.host)]
    match step.verb:
        case "migrating":
            return world.hosts[known.host].agent is not None
        case "fire":
            return known.vm.watchdog is not None and host.powered
        case verb if verb in GUEST_FAULTS:
            return world.hosts[known.host].powered
        case _:
            return host.powered


# One seed


def run_seed(seed: int, *, cluster: bool | None = None, steps: int | None = None) -> WorldResult:
    """``cluster``, ``steps``: not as the seed would have them."""
    story = write_story(seed, cluster=cluster, steps=steps)
    played = play(story.lines)
    player = played.player
    codes = {entry.code for entry in player.world.server.history}
    told = codes | played.recorder.reasons
    failure = played.failure
    return WorldResult(
        seed=seed,
        virtual_ms=player.world.kernel.now,
        digest=played.recorder.digest(() if failure is not None else player.outcome()),
        kinds=_kinds(story, played.done),
        fenced=played.recorder.offs > 0,
        recovered=RECOVERED in codes,
        contradicted=not codes.isdisjoint(CONTRADICTIONS),
        proofs=tuple(sorted(played.recorder.proofs)),
        seen=tuple(name for name, any_of in SEEN.items() if not told.isdisjoint(any_of)),
        reasons=tuple(sorted(played.recorder.reasons)),
        late=played.late,
        rule="" if failure is None else failure.rule,
        message="" if failure is None else failure.message,
        story="" if failure is None else _failing_story(seed, story, played, failure),
    )


def _kinds(story: Story, done: Sequence[int]) -> tuple[str, ...]:
    happened = set(done)
    return tuple(sorted({kind for line, kind in story.kinds if line in happened}))


# Shrinking


def _failing_story(seed: int, story: Story, played: Played, failure: Failure) -> str:
    """A scenario that fails in the same way, with as few lines as were found to do."""
    applied = set(played.done)
    lines = [line for number, line in enumerate(story.lines, 1) if number in applied]
    ends = [*played.healed, "must-run"]
    if not played.healed:
        # The line that failed was not counted among those that were done.
        if played.last not in applied:
            lines.append(story.lines[played.last - 1])
        ends = []
    fails = fails_like(failure)
    head = f"# Seed {seed} of the swarm, shortened. {failure.rule}: {failure.message}"
    if not fails([*lines, *ends]):
        return "\n".join((head, "# It fails in the swarm only:", *story.lines)) + "\n"
    # What heals stays: a story that ends in the middle of a failure is another one.
    shortest = shrink(lines, lambda shorter: fails([*shorter, *ends]))
    return "\n".join((head, *shortest, *ends)) + "\n"


def fails_like(failure: Failure) -> Callable[[list[str]], bool]:
    """Whether a story breaks the same rule: another one it breaks would be another finding."""

    def fails(lines: list[str]) -> bool:
        try:
            found = play(lines, strict=True).failure
        except InvalidInput:
            # The shortened story no longer makes sense.
            return False
        return found is not None and found[0] == failure.rule and found.shape == failure.shape

    return fails


def shrink(lines: list[str], fails: Callable[[list[str]], bool]) -> list[str]:
    """Leave out what is not needed for the failure, larger pieces first, until no single line can go, or until
    ``TRIES_MAX`` plays: each takes about as long as a world."""
    size, tries = len(lines) // 2, 0
    while size >= 1 and tries < TRIES_MAX:
        before, start = len(lines), 0
        while start < len(lines) and tries < TRIES_MAX:
            tries += 1
            shorter = lines[:start] + lines[start + size :]
            if fails(shorter):
                lines = shorter
            else:
                start += size
        if size > 1 or len(lines) == before:
            size //= 2
    return lines
