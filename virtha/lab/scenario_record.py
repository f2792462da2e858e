"""What a scenario file expects, as far as a real lab can be held to it; what a lab recorded, put the same way. Pure.

Compared, for each host and VM alone, is the order of codes, with the fields that say what was decided (``FIELDS``):

- of a host: the engine's verdict and its fencing; and whether people saw it up, without its agent, or gone;
- of a VM: its starts, ends, restarts and recoveries; and what a host that boots says of a VM that it had before;
- of all: no recovery began before a proof that the story has before it.

And the end: each VM's state, how often it was placed, and that it runs where the story says, on exactly one host or on none; each
host's verdict with its open reasons; what ``explain`` was answered.

Not compared, because both may be right: times, and how codes of different hosts and VMs, or of those two kinds of each, lie between each
other (in the lab they are several programs' words); which of several hosts was chosen or saw something (memory and chance are others); texts
of libvirt and of devices; evidence files and guests that boot once more or twice; leases and watchdogs of a lab whose hosts lived before the story.
A story without ``engine`` is of a server that decides nothing about hosts. The lab's has its engine, held to restarts in place; what it
thinks of a silent host is not held against such a story.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from virtha.model.codes.failover import FAILOVER_EVENTS
from virtha.model.errors import InvalidInput
from virtha.model.value import Value

FIELDS: dict[str, tuple[str, ...]] = {
    "fence.began": ("action",),
    "fence.level_failed": ("attempt", "level", "why"),
    "host.proven_dead": ("proof",),
    "vm.recovery_started": ("attempt",),
    "vm.restart.ordered": ("attempt", "cause"),
    "vm.restarted": ("attempt",),
    "vm.restart.blocked": ("reason",),
    "vm.watchdog.fired": ("action",),
}
"""What was decided; the other fields are numbers and names of this one run."""
PROOFS = ("host.proven_dead", "host.returned")
RECOVERY = "vm.recovery_started"

VERDICT, PRESENCE, WAY, FORMER = "verdict", "presence", "way", "former copies"
_PRESENCE = {
    "host.agent.down": "agent down",
    "host.agent.up": "up",
    "host.unreachable": "gone",
    "host.reachable": "back",
}
_FORMER = ("vm.stop.reconstructed", "vm.restart.blocked")
_WAY = (
    "vm.started",
    "vm.start_failed",
    "vm.stopped",
    "vm.stopped_unexpectedly",
    "vm.crashed",
    "vm.panicked",
    "vm.rebooted",
    "vm.paused",
    "vm.resumed",
    "vm.watchdog.fired",
    "vm.restart.ordered",
    "vm.restarted",
    "vm.restart.failed",
    "vm.restart.exhausted",
    "vm.superseded",
)
_ENGINES = frozenset(code.name for code in FAILOVER_EVENTS) - {"host.incident_over"}
"""That one is the record of incidents', which a simulated server does not keep."""
_EVENT = re.compile(r"\s*(-?[0-9]+\.[0-9]{3}) (\S+) (\S+)(?: (.*))?")
_END = re.compile(
    r"end (\S+) (\S+) runs_on=(\S+) held_by=(\S+) incarnation=(\d+) \[(.*)\]",
)
_END_OF_HOST = re.compile(r"end-host (\S+) (\S+) \[(.*)\]")

Lane = tuple[str, str]
"""Of a host or VM: which of its two stories."""
Lanes = dict[Lane, list[str]]


class Told(Value, frozen=True, kw_only=True):
    """One event, of a file or of a lab. ``at_ms``: when the file's server knew of it; 0: a lab's."""

    at_ms: int = 0
    subject: str
    code: str
    fields: dict[str, str] = {}

    @property
    def words(self) -> str:
        """All that is compared of it."""
        kept = [f"{name}={self.fields.get(name, '')}" for name in FIELDS.get(self.code, ())]
        return " ".join((_PRESENCE.get(self.code, self.code), *kept))


class EndOfVm(Value, frozen=True, kw_only=True):
    name: str
    state: str
    runs_on: tuple[str, ...]
    held_by: tuple[str, ...]
    incarnation: int


class EndOfHost(Value, frozen=True, kw_only=True):
    name: str
    verdict: str
    reasons: tuple[str, ...]
    """Sorted."""


class Expectation(Value, frozen=True, kw_only=True):
    """``explained``: whom, and the codes of the answer, sorted; in the order of the story."""

    with_engine: bool
    told: tuple[Told, ...]
    explained: tuple[tuple[str, tuple[str, ...]], ...]
    vms: tuple[EndOfVm, ...]
    hosts: tuple[EndOfHost, ...]

    def due(self, at_ms: int) -> tuple[Told, ...]:
        """What the server knew by then."""
        return tuple(one for one in self.told if one.at_ms <= at_ms)


def read_expectation(lines: Iterable[str], *, with_engine: bool) -> Expectation:
    """Of the part of a scenario below the separator. Raises InvalidInput for a line that it does not know."""
    told: list[Told] = []
    explained: list[tuple[str, tuple[str, ...]]] = []
    vms: list[EndOfVm] = []
    hosts: list[EndOfHost] = []
    known_ms = 0
    for line in lines:
        if found := _EVENT.fullmatch(line):
            at_ms = int(found[1].replace(".", ""))
            if found[2] == "explain":
                explained.append((found[3], _codes(found[4] or "")))
                continue
            # Hosts tell in their own time: what stands behind a later line of the server came after it.
            known_ms = max(known_ms, at_ms)
            told.append(
                Told(at_ms=known_ms, subject=found[2], code=found[3], fields=_fields(found[4]))
            )
        elif found := _END.fullmatch(line):
            vms.append(
                EndOfVm(
                    name=found[1],
                    state=found[2],
                    runs_on=_names(found[3], nobody="none"),
                    held_by=_names(found[4], nobody="nobody"),
                    incarnation=int(found[5]),
                )
            )
        elif found := _END_OF_HOST.fullmatch(line):
            hosts.append(EndOfHost(name=found[1], verdict=found[2], reasons=_codes(found[3])))
        else:
            raise InvalidInput(f"'{line}' is no line of an outcome", field="expected")
    return Expectation(
        with_engine=with_engine,
        told=tuple(told),
        explained=tuple(explained),
        vms=tuple(vms),
        hosts=tuple(hosts),
    )


def _fields(text: str | None) -> dict[str, str]:
    """``action=power_off``; values may have blanks."""
    parts = re.split(r" (?=[a-z_]+=)", text) if text else []
    return {name: value for name, _, value in (part.partition("=") for part in parts)}


def _codes(text: str) -> tuple[str, ...]:
    """Of reasons with or without fields."""
    return tuple(sorted(word for word in text.strip("[]").split() if "=" not in word))


def _names(text: str, *, nobody: str) -> tuple[str, ...]:
    return () if text == nobody else tuple(text.split(","))


# Lanes


def lane_of(code: str, *, with_engine: bool) -> str | None:
    """None: it is not compared."""
    if code in _PRESENCE:
        return PRESENCE
    if code in _FORMER:
        return FORMER
    if code in _WAY:
        return WAY
    if with_engine and (code in _ENGINES or code.startswith("fence.")):
        return WAY if code.startswith("vm.") else VERDICT
    return None


def lanes_of(told: Sequence[Told], *, with_engine: bool) -> Lanes:
    """What is compared, per host and VM and kind, in order."""
    lanes: Lanes = {}
    for one in told:
        kind = lane_of(one.code, with_engine=with_engine)
        if kind is not None:
            lanes.setdefault((one.subject, kind), []).append(one.words)
    return {
        lane: _seen_states(words) if lane[1] == PRESENCE else words for lane, words in lanes.items()
    }


def _seen_states(words: Sequence[str]) -> list[str]:
    """A host on its way to gone, or back from there, may or may not be seen with its guardian alone: by which of its two programs ends or
    begins first."""
    states: list[str] = []
    for word in words:
        if word == "gone" and states and states[-1] == "agent down":
            states.pop()
        if word in ("agent down", "up") and states and states[-1] == "back":
            continue
        states.append(word)
    return states


def missing(due: Lanes, came: Lanes) -> list[str]:
    """In words: what should have come by now, and did not yet."""
    return [
        f"{subject}: {', '.join(wanted[len(came.get((subject, kind), [])) :])}"
        for (subject, kind), wanted in due.items()
        if len(came.get((subject, kind), [])) < len(wanted)
    ]


def deviation(wanted: Lanes, came: Lanes) -> str:
    """Where what came is no beginning of what is wanted; ``''``: nowhere."""
    for lane, words in came.items():
        whole = wanted.get(lane, [])
        if words == whole[: len(words)] or _may_yet_fit(lane, words, whole):
            continue
        subject, kind = lane
        return f"{subject} ({kind}): the story has {whole}, the lab {words}"
    return ""


def _may_yet_fit(lane: Lane, words: list[str], whole: list[str]) -> bool:
    """Seen without its agent first, then gone: the story may have only the second."""
    before = words[:-1]
    return lane[1] == PRESENCE and words[-1:] == ["agent down"] and before == whole[: len(before)]


def early_recovery(wanted: Sequence[Told], came: Sequence[Told]) -> str:
    """A recovery that began before a proof which the story has before it; ``''``: none."""
    needed = _proofs_before(wanted)
    for lane, proofs in _proofs_before(came).items():
        lacking = needed.get(lane, frozenset()) - proofs
        if lacking:
            vm, number = lane
            return f"recovery {number} of {vm} began without {', '.join(sorted(lacking))}"
    return ""


def _proofs_before(told: Sequence[Told]) -> Mapping[tuple[str, int], frozenset[str]]:
    """Per VM and recovery, from 1 on."""
    proofs: set[str] = set()
    count: dict[str, int] = {}
    found = {}
    for one in told:
        if one.code in PROOFS:
            proofs.add(f"{one.code} of {one.subject}")
        if one.code == RECOVERY:
            count[one.subject] = count.get(one.subject, 0) + 1
            found[(one.subject, count[one.subject])] = frozenset(proofs)
    return found


def place_differs(wanted: EndOfVm, copies: Sequence[str], home: str) -> str:
    """``home``: the host on which the story started it last. Whoever had to leave it may have gone to any other."""
    if wanted.runs_on in ((), (home,)) or len(wanted.runs_on) > 1:
        holds = tuple(copies) == wanted.runs_on
    else:
        holds = len(copies) == 1 and copies[0] != home
    return "" if holds else f"{wanted.name} runs on {list(copies)}, not on {list(wanted.runs_on)}"
