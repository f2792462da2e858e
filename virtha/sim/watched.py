"""A played scenario, watched: what was true of each host and VM, what the server made of it, and why; as a story of
one of them, or as a picture of all. Times are the scenario's, in ms."""

from collections.abc import Callable
from typing import NamedTuple

from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.codes import render
from virtha.model.ids import HostId, VmId
from virtha.model.time import parse_duration_ms
from virtha.model.vm import Reason
from virtha.scenario.language import Scenario, Step
from virtha.scenario.timeline import Happening, Mood, State, Timeline, make_timeline
from virtha.sim.checkers import Violation
from virtha.sim.faults import explain_host
from virtha.sim.host import SimHost
from virtha.sim.picture import BLOCKED, STARTING, reasons_text
from virtha.sim.play import Player

LOOK_MS = 100
"""How often it is looked; what comes and goes in between is not seen."""
STEP_SHOWN_MS = LOOK_MS


class Seen(NamedTuple):
    """Since ``at_ms``. ``text`` says the state as a sentence; ``reasons`` are the server's."""

    at_ms: int
    state: State
    text: str
    reasons: tuple[Reason, ...]


class Watched(NamedTuple):
    """``steps``: (when, the command). ``believed``: what the server made of each host; empty without an engine.
    ``violation``: what a checker found, empty where all was right."""

    player: Player
    steps: tuple[tuple[int, str], ...]
    hosts: dict[str, list[Seen]]
    believed: dict[str, list[Seen]]
    vms: dict[str, list[Seen]]
    violation: str


def play_watched(
    scenario: Scenario,
    *,
    until_ms: int | None = None,
    told: Callable[[int], None] = lambda _at_ms: None,
) -> Watched:
    """``until_ms``: stop there. ``told``: how far it is, now and then."""
    watch = _Watch(told)
    violation = ""
    try:
        for step in scenario.steps:
            if until_ms is not None and watch.now >= until_ms:
                break
            watch.do(step, until_ms)
        if until_ms is None:
            watch.player.at_end()
    except Violation as error:
        violation = str(error)
        watch.look()
    return watch.seen(violation)


class _Watch:
    def __init__(self, told: Callable[[int], None]) -> None:
        self.player = Player()
        self._told = told
        self._steps: list[tuple[int, str]] = []
        self._hosts: dict[str, list[Seen]] = {}
        self._believed: dict[str, list[Seen]] = {}
        self._vms: dict[str, list[Seen]] = {}

    @property
    def now(self) -> int:
        return self.player.world.kernel.now

    def do(self, step: Step, until_ms: int | None) -> None:
        if step.verb != "advance":
            self._steps.append((max(self.now, 0), step.text()))
            self.player.do(step)
            self.look()
            return
        end_ms = self.now + parse_duration_ms(step.words[0], field=f"line {step.line}")
        if until_ms is not None:
            end_ms = min(end_ms, until_ms)
        # In pieces, so that it can be looked; the world does not notice.
        while self.now < end_ms:
            self.player.world.kernel.advance(min(LOOK_MS, end_ms - self.now))
            self.look()
            self._told(self.now)
        self.player.truth.look()

    def seen(self, violation: str) -> Watched:
        return Watched(
            player=self.player,
            steps=tuple(self._steps),
            hosts=self._hosts,
            believed=self._believed,
            vms=self._vms,
            violation=violation,
        )

    def look(self) -> None:
        world = self.player.world
        failover = world.gateway.failover
        for name, host in world.hosts.items():
            self._note(self._hosts, name, *_true_host(self.player, host), ())
            verdict = None if failover is None else failover.engine.verdict(HostId(name))
            if failover is not None and verdict is not None:
                reasons = explain_host(world, name)
                if world.gateway.running and failover.leader.alive:
                    self._note(self._believed, name, *_believed(verdict, reasons), reasons)
                else:
                    self._note(self._believed, name, _NOBODY, _NOBODY.meaning, ())
        for name, vm_id in world.ids.items():
            reasons = reasons_of(self.player, vm_id)
            self._note(self._vms, name, *_true_vm(self.player, vm_id, reasons), reasons)

    def _note(
        self,
        lanes: dict[str, list[Seen]],
        name: str,
        state: State,
        text: str,
        reasons: tuple[Reason, ...],
    ) -> None:
        lane = lanes.setdefault(name, [])
        codes = [why.code for why in reasons]
        same = lane and lane[-1].state == state and lane[-1].text == text
        if not same or [why.code for why in lane[-1].reasons] != codes:
            lane.append(Seen(max(self.now, 0), state, text, reasons))


def reasons_of(player: Player, vm_id: VmId) -> tuple[Reason, ...]:
    """Why it is as it is: the engine's, then its host's last word."""
    world = player.world
    failover, known = world.gateway.failover, world.server.vms[vm_id]
    stage = None if failover is None else failover.engine.stage(vm_id)
    told: list[Reason] = []
    if failover is not None and stage is not None:
        told += failover.engine.explain_vm(vm_id)
    # While it is on its way elsewhere, what its host said last is no longer how it is.
    settled = stage in (None, VmStage.SETTLED)
    if settled and known.report is not None and known.host in known.holders:
        told += known.report.reasons
    return tuple(told)


# States

_UP = State(name="up", mark="-", mood=Mood.GOOD, meaning="powered, its processes run")
_CUT = State(
    name="cut off", mark="/", mood=Mood.BAD, tint_percent=50, meaning="its way to the server is cut"
)
_NO_DISKS = State(
    name="no storage", mark="%", mood=Mood.BAD, tint_percent=40, meaning="its disks don't answer"
)
_ASLEEP = State(
    name="half awake",
    mark="z",
    mood=Mood.WAIT,
    tint_percent=80,
    meaning="its agent or its guardian is down or sleeps",
)
_HANGS = State(
    name="hangs", mark="h", mood=Mood.BAD, tint_percent=70, meaning="powered, nothing in it moves"
)
_OFF = State(name="off", mark="x", mood=Mood.BAD, meaning="without power")

_SEEN = {
    Verdict.UNKNOWN: State(
        name="not heard yet", mark="?", mood=Mood.WAIT, tint_percent=30, meaning="since this server"
    ),
    Verdict.ALIVE: State(
        name="alive", mark=".", mood=Mood.GOOD, tint_percent=50, meaning="seen alive"
    ),
    Verdict.AGENT_DOWN: State(
        name="agent down",
        mark="a",
        mood=Mood.WAIT,
        tint_percent=60,
        meaning="its guardian beats, its agent is silent",
    ),
    Verdict.SUSPECT: State(
        name="suspect", mark="s", mood=Mood.WAIT, meaning="silent; witnesses are asked"
    ),
    Verdict.ISOLATED: State(
        name="isolated",
        mark="i",
        mood=Mood.WAIT,
        tint_percent=90,
        meaning="silent to the server, alive to others",
    ),
    Verdict.DEAD_UNPROVEN: State(
        name="held for dead", mark="!", mood=Mood.BAD, tint_percent=80, meaning="proof is sought"
    ),
    Verdict.DEAD_PROVEN: State(
        name="proven dead",
        mark="X",
        mood=Mood.OVER,
        tint_percent=60,
        meaning="its VMs may start elsewhere",
    ),
}
_FENCED = State(
    name="being fenced",
    mark="o",
    mood=Mood.WORK,
    tint_percent=70,
    meaning="its power is ordered off",
)
_NOBODY = State(
    name="nobody leads", mark=",", mood=Mood.OVER, tint_percent=25, meaning="no server decides"
)

_DOWN = State(name="down", mark="_", mood=Mood.BAD, tint_percent=60, meaning="does not run")
_PAUSED = State(name="paused", mark="p", mood=Mood.WAIT, tint_percent=70, meaning="does not move")
_PROOF = State(
    name="waits for proof",
    mark="w",
    mood=Mood.BAD,
    tint_percent=80,
    meaning="its old copy may still be alive",
)
_WAITS = State(name="waits", mark="~", mood=Mood.WAIT, tint_percent=50, meaning="not yet its turn")
_TWO = State(name="two writers", mark="#", mood=Mood.BAD, meaning="what must never be")

_STEP = State(name="step", mark="*", mood=Mood.WORK, tint_percent=40, meaning="a line of the story")
_QUIET = State(name="quiet", mark=" ", mood=Mood.OVER, tint_percent=5, meaning="time passes")
_MARKS = "123456789ACDEFGHIJKLMNOPQRSTUVWYZ"


def _on(player: Player, host: str) -> State:
    """A state of its own for each host, so that a move is seen."""
    number = list(player.world.hosts).index(host)
    mark = _MARKS[number] if number < len(_MARKS) else "="
    tint = 100 - 12 * (number % 6)
    return State(
        name=f"on {host}", mark=mark, mood=Mood.GOOD, tint_percent=tint, meaning=f"runs on {host}"
    )


def _true_host(player: Player, host: SimHost) -> tuple[State, str]:
    world = player.world
    if not host.powered:
        return _OFF, "has no power"
    if host.kernel.frozen:
        return _HANGS, "hangs"
    if not all(link.carries for link in world.network.links_of(host.name)):
        return _CUT, "its management network is cut"
    if not world.storage.reaches(host.name):
        return _NO_DISKS, "its storage does not answer"
    down = [
        name
        for name, process in (("agent", host.agent), ("guardian", host.guardian))
        if process is None or process.kernel.frozen
    ]
    if not host.libvirt_up:
        down.append("libvirt")
    if down:
        return _ASLEEP, f"{' and '.join(down)} down or asleep"
    return _UP, "up"


def _believed(verdict: Verdict, reasons: tuple[Reason, ...]) -> tuple[State, str]:
    state = _SEEN[verdict]
    if verdict is Verdict.DEAD_UNPROVEN and any(
        why.code.startswith("fence.waiting.") for why in reasons
    ):
        state = _FENCED
    return state, state.name


def _true_vm(player: Player, vm_id: VmId, reasons: tuple[Reason, ...]) -> tuple[State, str]:
    world = player.world
    where = world.running_on(vm_id)
    if len(where) > 1:
        return _TWO, f"runs on {' and '.join(where)}"
    if where and world.hosts[where[0]].kernel.frozen:
        return _PAUSED, f"stands still on {where[0]}, which hangs"
    if where:
        return _on(player, where[0]), f"runs on {where[0]}"
    for host in world.hosts.values():
        domain = host.libvirt.find(vm_id)
        if domain is not None and domain.qemu is not None:
            return _PAUSED, f"is paused on {host.name}"
    codes = [why.code for why in reasons]
    if "recovery.waiting.proof" in codes:
        return _PROOF, "waits for proof"
    if any(code.startswith("recovery.starting") for code in codes):
        return STARTING, "is being started"
    if any(code.startswith(("recovery.waiting.", "restart.waiting.")) for code in codes):
        return _WAITS, "waits"
    if any(code.startswith(("recovery.blocked.", "restart.blocked.")) for code in codes):
        return BLOCKED, "is blocked"
    return _DOWN, "is down"


# The story of one


class Line(NamedTuple):
    """``code``: empty where the story or the world did it."""

    at_ms: int
    code: str
    text: str


def story_of(watched: Watched, *, host: str | None, vm: str | None) -> list[Line]:
    """What was done to it, what was told of it, and when its state or its reasons changed."""
    name = vm or host or ""
    lines = [Line(at_ms, "", f"> {text}") for at_ms, text in watched.steps if name in text.split()]
    for entry in watched.player.world.server.history:
        if entry.subject in (name, "cluster"):
            known = {"vm": name, "host": entry.host or "?"} if vm is not None else {"host": name}
            text = render(entry.code, {**known, **entry.fields})
            lines.append(Line(entry.at_ms, entry.code, text))
    if host is not None:
        lines += _changes(watched.hosts.get(host, []), "")
        lines += _changes(watched.believed.get(host, []), "the server: ")
    if vm is not None:
        lines += _changes(watched.vms.get(vm, []), "")
    return sorted(lines, key=lambda line: line.at_ms)


def _changes(lane: list[Seen], who: str) -> list[Line]:
    lines: list[Line] = []
    before, known = "", frozenset[str]()
    for seen in lane:
        if seen.text != before:
            lines.append(Line(seen.at_ms, "", f"{who}{seen.text}"))
            before = seen.text
        lines += [
            Line(seen.at_ms, why.code, render(why.code, why.fields))
            for why in seen.reasons
            if why.code not in known
        ]
        known = frozenset(why.code for why in seen.reasons)
    return lines


# The picture


def watched_timeline(title: str, watched: Watched) -> Timeline:
    """The story's own lane, then two per host (how it is; what the server makes of it), then one per VM."""
    happenings = [Happening(at_ms=0, lane="story", state=_QUIET)]
    together: dict[int, list[str]] = {}
    for at_ms, text in watched.steps:
        together.setdefault(at_ms, []).append(text)
    for at_ms, texts in together.items():
        told = "; ".join(texts)
        happenings.append(Happening(at_ms=at_ms, lane="story", state=_STEP, text=told))
        if at_ms + STEP_SHOWN_MS not in together:
            happenings.append(Happening(at_ms=at_ms + STEP_SHOWN_MS, lane="story", state=_QUIET))
    for name, lane in watched.hosts.items():
        happenings += _lane(name, lane)
        happenings += _lane(f"{name} seen", watched.believed.get(name, []))
    for name, lane in watched.vms.items():
        happenings += _lane(name, lane)
    end_ms = max(watched.player.world.kernel.now, 1)
    return make_timeline(title, happenings, end_ms=end_ms)


def _lane(name: str, lane: list[Seen]) -> list[Happening]:
    return [
        Happening(at_ms=seen.at_ms, lane=name, state=seen.state, text=_told(seen)) for seen in lane
    ]


def _told(seen: Seen) -> str:
    reasons = reasons_text(seen.reasons)
    return f"{seen.text}: {reasons}" if reasons else seen.text
