"""What a what-if question came to, per host and per VM: when each step was reached, and the reason where one
was not. Times count from the failure, in ms. Everything is read from what the engine told."""

from collections.abc import Sequence
from enum import StrEnum

from virtha.engine.events import Notice, OrderPower, Poison
from virtha.model.codes import REGISTRY, render
from virtha.model.policy.budget import Way
from virtha.model.power import PowerAction
from virtha.model.proof import ProofKind
from virtha.model.value import Value
from virtha.model.vm import Reason
from virtha.scenario.inventory import InventoryVm
from virtha.scenario.timeline import Happening, Mood, State, Timeline, make_timeline
from virtha.sim.picture import BLOCKED, STARTING, reasons_text
from virtha.sim.what_if import Reasons, WhatIf


class Outcome(StrEnum):
    RETURNS = "returns"
    STAYS_DOWN = "stays down"
    """For as long as was looked."""
    NOT_PROTECTED = "not protected"
    """Not highly available, or taken out of automatic action: nobody starts it."""


class HostStory(Value, frozen=True, kw_only=True):
    """None: it did not come to that."""

    name: str
    rack: str
    vms: int
    silent_ms: int
    suspected_ms: int | None = None
    judged_ms: int | None = None
    ordered_ms: int | None = None
    poisoned_ms: int | None = None
    proven_ms: int | None = None
    proof: ProofKind | None = None
    reasons: tuple[Reason, ...] = ()
    """At the end."""


class VmStory(Value, frozen=True, kw_only=True):
    name: str
    priority: int
    was_on: str
    outcome: Outcome
    runs_on: str | None = None
    ordered_ms: int | None = None
    runs_ms: int | None = None
    agent_ms: int | None = None
    attempts: int = 0
    waited_for: tuple[Reason, ...] = ()
    """The last thing that it waited for when its old copy was proven dead already."""
    reasons: tuple[Reason, ...] = ()
    """Why it is down, at the end."""


class Story(Value, frozen=True, kw_only=True):
    what_if: WhatIf
    hosts: tuple[HostStory, ...]
    vms: tuple[VmStory, ...]

    @property
    def cluster_notices(self) -> tuple[tuple[int, Notice], ...]:
        """What was told of no single host or VM: that the brake holds power orders back."""
        return tuple(
            (entry.at_ms, entry.notice)
            for entry in self.what_if.log
            if entry.notice is not None and (entry.notice.host_id or entry.notice.vm_id) is None
        )

    def with_outcome(self, outcome: Outcome) -> tuple[VmStory, ...]:
        return tuple(vm for vm in self.vms if vm.outcome is outcome)


WAY_OF: dict[ProofKind, Way] = {
    ProofKind.POWER_OFF: Way.POWER_CUT_SILENT,
    ProofKind.LEASE: Way.LEASE,
}
"""Which sum of the policy's budget a proof is to be held against, when a host has lost its power."""


def tell_story(what_if: WhatIf) -> Story:
    affected = [vm for vm in what_if.inventory.vms if vm.on in what_if.failure.hosts]
    of_host: dict[str, list[tuple[int, Notice]]] = {}
    of_vm: dict[str, list[tuple[int, Notice]]] = {}
    for entry in what_if.log:
        if entry.notice is not None and entry.notice.vm_id is not None:
            of_vm.setdefault(entry.notice.vm_id, []).append((entry.at_ms, entry.notice))
        elif entry.notice is not None and entry.notice.host_id is not None:
            of_host.setdefault(entry.notice.host_id, []).append((entry.at_ms, entry.notice))
    return Story(
        what_if=what_if,
        hosts=tuple(
            _host(what_if, name, of_host.get(name, ()), affected) for name in what_if.failure.hosts
        ),
        vms=tuple(_vm(what_if, vm, of_vm.get(vm.name, ())) for vm in affected),
    )


def _first(told: Sequence[tuple[int, Notice]], code: str) -> int | None:
    return next((at_ms for at_ms, notice in told if notice.code == code), None)


def _host(
    what_if: WhatIf,
    name: str,
    told: Sequence[tuple[int, Notice]],
    affected: Sequence[InventoryVm],
) -> HostStory:
    rack = next(one.rack for one in what_if.inventory.hosts if one.name == name)
    proofs = [
        str(notice.fields["proof"]) for _, notice in told if notice.code == "host.proven_dead"
    ]
    kept = what_if.host_reasons[name]
    ordered = poisoned = None
    for entry in what_if.log:
        match entry.command:
            case OrderPower(host_id=host_id, action=PowerAction.OFF) if host_id == name:
                ordered = entry.at_ms if ordered is None else ordered
            case Poison(host_id=host_id) if host_id == name:
                poisoned = entry.at_ms if poisoned is None else poisoned
            case _:
                pass
    return HostStory(
        name=name,
        rack=rack,
        vms=sum(vm.on == name for vm in affected),
        silent_ms=what_if.silent_ms.get(name, 0),
        suspected_ms=_first(told, "host.suspected"),
        judged_ms=_first(told, "host.judged_dead"),
        ordered_ms=ordered,
        poisoned_ms=poisoned,
        proven_ms=_first(told, "host.proven_dead"),
        proof=ProofKind(proofs[0]) if proofs else None,
        reasons=kept[-1].reasons if kept else (),
    )


def _vm(what_if: WhatIf, vm: InventoryVm, told: Sequence[tuple[int, Notice]]) -> VmStory:
    assert vm.on is not None
    kept = what_if.vm_reasons[vm.name]
    orders = [(at_ms, notice) for at_ms, notice in told if notice.code == "vm.recovery_started"]
    runs_ms = _first(told, "vm.recovered")
    reasons = kept[-1].reasons if kept else ()
    if runs_ms is not None:
        outcome, reasons = Outcome.RETURNS, ()
    elif not vm.ha or vm.ignore:
        outcome = Outcome.NOT_PROTECTED
        reasons = (Reason(code="protection.ignored" if vm.ignore else "protection.no_ha"),)
    else:
        outcome = Outcome.STAYS_DOWN
    return VmStory(
        name=vm.name,
        priority=vm.priority,
        was_on=vm.on,
        outcome=outcome,
        runs_on=str(orders[-1][1].fields["host"]) if runs_ms is not None else None,
        ordered_ms=orders[-1][0] if orders else None,
        runs_ms=runs_ms,
        agent_ms=what_if.agent_ms.get(vm.name),
        attempts=len(orders),
        waited_for=_waited_for(kept),
        reasons=reasons,
    )


def _waited_for(kept: Sequence[Reasons]) -> tuple[Reason, ...]:
    for entry in reversed(kept):
        waits = [one for one in entry.reasons if one.code.startswith("recovery.waiting.")]
        if waits and waits[0].code != "recovery.waiting.proof":
            return tuple(waits)
    return ()


def reason_text(reason: Reason) -> str:
    return render(reason.code, reason.fields)


def reason_help(reason: Reason) -> str:
    """What to do about it; empty where nothing can be said."""
    code = REGISTRY.get(reason.code)
    return "" if code is None else code.help


# The picture

_UP = State(name="up", mark="-", mood=Mood.GOOD, meaning="the host beats")
_SILENT = State(
    name="silent", mark=".", mood=Mood.WAIT, tint_percent=40, meaning="no beat comes any more"
)
_SUSPECTED = State(
    name="suspected", mark="?", mood=Mood.WAIT, tint_percent=80, meaning="witnesses are asked"
)
_JUDGED = State(
    name="judged",
    mark="!",
    mood=Mood.BAD,
    tint_percent=80,
    meaning="held for dead; proof is sought",
)
_POISONED = State(
    name="poisoned",
    mark="p",
    mood=Mood.WORK,
    tint_percent=45,
    meaning="its storage lease has to expire",
)
_ORDERED = State(
    name="ordered off",
    mark="o",
    mood=Mood.WORK,
    tint_percent=70,
    meaning="then its power is read, twice",
)
_PROVEN = State(
    name="proven dead",
    mark="x",
    mood=Mood.OVER,
    tint_percent=60,
    meaning="its VMs may start elsewhere",
)

_RUNS = State(name="runs", mark="=", mood=Mood.GOOD, meaning="its guest agent answers")
_DOWN = State(
    name="down", mark="_", mood=Mood.BAD, tint_percent=60, meaning="went down with its host"
)
_WAITS = State(name="waits", mark="~", mood=Mood.WAIT, meaning="has a place, not yet its turn")
_BOOTS = State(
    name="boots", mark="+", mood=Mood.GOOD, tint_percent=50, meaning="its process runs again"
)
_LEFT = State(name="left down", mark="n", mood=Mood.OVER, meaning="not protected")


def story_timeline(story: Story, *, vms_max: int) -> Timeline:
    """Hosts, then VMs: those that are protected first; ``vms_max`` of them."""
    order = list(Outcome)
    vms = sorted(story.vms, key=lambda vm: order.index(vm.outcome))[:vms_max]
    ends = [one.at_ms for host in story.hosts for one in _host_lane(host)]
    ends += [one.at_ms for vm in vms for one in _vm_lane(story.what_if, vm)]
    before_ms = -max(max(ends, default=0) // 20, 1_000)
    happenings: list[Happening] = []
    for host in story.hosts:
        happenings.append(
            Happening(at_ms=min(before_ms, host.silent_ms - 1), lane=host.name, state=_UP)
        )
        happenings += _host_lane(host)
    for vm in vms:
        happenings.append(Happening(at_ms=before_ms, lane=vm.name, state=_RUNS))
        happenings += _vm_lane(story.what_if, vm)
    return make_timeline(f"What if {failure_text(story.what_if)}?", happenings)


def failure_text(what_if: WhatIf) -> str:
    """``rack r3 loses power``."""
    failure = what_if.failure
    racked = {one.name for one in what_if.inventory.hosts if one.rack in failure.racks}
    alone = [name for name in failure.hosts if name not in racked]
    named = [f"rack {name}" for name in failure.racks]
    named += [f"host {name}" for name in alone[:4]]
    if len(alone) > 4:
        named[-1] = f"{len(alone) - 3} more hosts"
    joined = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    return f"{joined} {'loses' if len(named) == 1 else 'lose'} power"


def _host_lane(host: HostStory) -> list[Happening]:
    proof = "" if host.proof is None else f"proven dead by {host.proof.value}"
    steps = [
        (host.silent_ms, _SILENT, ""),
        (host.suspected_ms, _SUSPECTED, ""),
        (host.judged_ms, _JUDGED, ""),
        (host.poisoned_ms, _POISONED, ""),
        (host.ordered_ms, _ORDERED, ""),
        (host.proven_ms, _PROVEN, proof),
    ]
    return [
        Happening(at_ms=at_ms, lane=host.name, state=state, text=text)
        for at_ms, state, text in sorted(
            (step for step in steps if step[0] is not None), key=lambda step: step[0] or 0
        )
        if at_ms is not None
    ]


def _vm_lane(what_if: WhatIf, vm: VmStory) -> list[Happening]:
    found = [Happening(at_ms=0, lane=vm.name, state=_DOWN, text=f"went down with {vm.was_on}")]
    for entry in what_if.vm_reasons[vm.name]:
        state = _vm_state(entry, vm)
        if state is None:
            continue
        text = reasons_text(entry.reasons)
        if state is not found[-1].state:
            found.append(Happening(at_ms=entry.at_ms, lane=vm.name, state=state, text=text))
    if vm.agent_ms is not None:
        found.append(Happening(at_ms=vm.agent_ms, lane=vm.name, state=_RUNS))
    return found


def _vm_state(entry: Reasons, vm: VmStory) -> State | None:
    if not entry.reasons:
        if vm.runs_ms is not None and entry.at_ms >= vm.runs_ms:
            return _BOOTS
        return _LEFT if vm.outcome is Outcome.NOT_PROTECTED else None
    code = entry.reasons[0].code
    if code == "recovery.waiting.proof":
        return _DOWN
    if code == "recovery.starting":
        return STARTING
    return _WAITS if code.startswith("recovery.waiting.") else BLOCKED
