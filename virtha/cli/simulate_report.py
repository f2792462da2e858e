"""The answer to a what-if question, for people and for programs."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from virtha.cli.options import Options
from virtha.cli.output import chosen_output, note, print_table, write_data
from virtha.model.codes import render
from virtha.model.errors import Failed
from virtha.model.policy.budget import budget
from virtha.model.policy.profiles import profile_of
from virtha.model.time import format_duration_ms
from virtha.model.vm import Reason

if TYPE_CHECKING:
    from virtha.sim.what_if_story import HostStory, Outcome, Story, VmStory

ASSUMED = (
    "The server runs elsewhere and keeps its sight of the other hosts, the storage lives, and whatever "
    "is dark stays dark. Connections fall silent rather than break. A start takes its start_time, a guest "
    "its boot_time, a power device its answer_time, as the inventory says."
)


NAMES_MAX = 8
"""More names in one line are read by nobody."""


class Wanted(NamedTuple):
    """What ``--explain`` names; ``until_ms``: the story was told up to then, None: to its end."""

    is_vm: bool
    name: str
    until_ms: int | None


_MILLISECONDS = re.compile(r"\b(\d+) ms\b")


def told(reason: Reason) -> str:
    """Its text, with times as people read them."""
    return readable(render(reason.code, reason.fields))


def readable(text: str) -> str:
    return _MILLISECONDS.sub(lambda found: shown(int(found[1])), text)


def shown(at_ms: int | None) -> str:
    """To a tenth of a second: what comes after that is chance in a real cluster."""
    if at_ms is None:
        return ""
    rounded = round(abs(at_ms) / 100) * 100
    text = "0s" if rounded == 0 else format_duration_ms(rounded)
    return f"-{text}" if at_ms < 0 and rounded else text


def write_picture(given: Options, path: Path, picture: str) -> None:
    """Raises Failed where there is no room or right."""
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise Failed(
            f"{path} can't be written: {error.strerror}",
            field="--svg",
            fix="name a file in a directory where you may write",
        ) from None
    note(given, f"the picture is in {path}")


# For programs


def answer_data(story: "Story") -> dict[str, Any]:
    """Times in ms from the failure."""
    what_if = story.what_if
    return {
        "cluster": what_if.inventory.cluster,
        "policy": _policy_name(story),
        "failed": {
            "racks": list(what_if.failure.racks),
            "hosts": list(what_if.failure.hosts),
        },
        "looked_ms": what_if.ended_ms,
        "counts": {
            outcome.value.replace(" ", "_"): len(story.with_outcome(outcome))
            for outcome in _outcomes()
        },
        "cluster_events": [
            {"at_ms": at_ms, "code": notice.code, "text": readable(render(notice.code, notice.fields))}
            for at_ms, notice in story.cluster_notices
        ],
        "hosts": [_host_data(host) for host in story.hosts],
        "vms": [_vm_data(vm) for vm in story.vms],
        "budget": [
            {"way": one.way, "hosts": list(one.hosts), "typical_ms": one.typical_ms,
             "worst_ms": one.worst_ms, "first_vm_ms": one.first_ms}
            for one in _sums(story)
        ],
    }  # fmt: skip


def _outcomes() -> "Iterable[Outcome]":
    from virtha.sim.what_if_story import Outcome

    return Outcome


def _host_data(host: "HostStory") -> dict[str, Any]:
    return {
        "name": host.name,
        "rack": host.rack,
        "vms": host.vms,
        "silent_ms": host.silent_ms,
        "suspected_ms": host.suspected_ms,
        "judged_ms": host.judged_ms,
        "ordered_off_ms": host.ordered_ms,
        "poisoned_ms": host.poisoned_ms,
        "proven_ms": host.proven_ms,
        "proof": None if host.proof is None else host.proof.value,
        "reasons": [_reason_data(one) for one in host.reasons],
    }


def _vm_data(vm: "VmStory") -> dict[str, Any]:
    return {
        "name": vm.name,
        "priority": vm.priority,
        "was_on": vm.was_on,
        "outcome": vm.outcome.value,
        "runs_on": vm.runs_on,
        "ordered_ms": vm.ordered_ms,
        "runs_ms": vm.runs_ms,
        "guest_agent_ms": vm.agent_ms,
        "attempts": vm.attempts,
        "waited_for": [_reason_data(one) for one in vm.waited_for],
        "reasons": [_reason_data(one) for one in vm.reasons],
    }


def _reason_data(reason: Reason) -> dict[str, Any]:
    from virtha.sim.what_if_story import reason_help

    return {
        "code": reason.code,
        "text": told(reason),
        "fields": dict(reason.fields),
        "what_to_do": reason_help(reason),
    }


def _policy_name(story: "Story") -> str:
    found = profile_of(story.what_if.inventory.policy)
    return "times of its own" if found is None else f"profile {found}"


# The answer


def show_answer(given: Options, story: "Story") -> None:
    from virtha.sim.what_if_story import Outcome

    if write_data(given, answer_data(story)):
        return
    if given.quiet:
        for vm in story.with_outcome(Outcome.STAYS_DOWN):
            typer.echo(vm.name)
        return
    if chosen_output(given) is None:
        rows = [
            [vm.name, vm.outcome.value, vm.was_on, vm.runs_on or "", shown(vm.runs_ms),
             "; ".join(told(one) for one in vm.reasons), " ".join(one.code for one in vm.reasons)]
            for vm in story.vms
        ]  # fmt: skip
        titles = ("vm", "outcome", "was on", "runs on", "after", "why", "codes")
        print_table(titles, rows, plain=True)
        return
    _show_sum(story)
    _show_hosts(story)
    _show_returning(story)
    _show_down(story)
    _show_left(story)
    _show_budget(story)
    typer.echo(f"\nWhat this rests on: {ASSUMED}")


def _show_sum(story: "Story") -> None:
    from virtha.sim.what_if_story import Outcome, failure_text

    what_if = story.what_if
    inventory = what_if.inventory
    typer.echo(f"What if {failure_text(what_if)}?")
    typer.echo(
        f"Cluster {inventory.cluster}: {len(inventory.hosts)} hosts, {len(inventory.vms)} VMs; "
        f"policy with {_policy_name(story)}. Times count from the failure."
    )
    ran = f"{_count(len(story.vms), 'VM')} ran on {_count(len(story.hosts), 'host')} that went dark"
    typer.echo(f"\n{ran}:")
    returning = story.with_outcome(Outcome.RETURNS)
    if returning:
        times = [vm.runs_ms for vm in returning if vm.runs_ms is not None]
        span = f"the first after {shown(min(times))}, the last after {shown(max(times))}"
        verb = "returns by itself" if len(returning) == 1 else "return by themselves"
        typer.echo(f"  {len(returning):>4} {verb}, {span}")
    down = story.with_outcome(Outcome.STAYS_DOWN)
    if down:
        looked = shown(what_if.ended_ms)
        typer.echo(
            f"  {len(down):>4} stay down for as long as was looked ({looked}): see why below"
        )
    left = story.with_outcome(Outcome.NOT_PROTECTED)
    if left:
        verb = "is" if len(left) == 1 else "are"
        typer.echo(f"  {len(left):>4} {verb} not protected: somebody has to start what is needed")


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _show_hosts(story: "Story") -> None:
    typer.echo("\nThe hosts: from the last beat to certainty that nothing runs there any more")
    titles = ("host", "VMs", "last beat", "suspected", "judged", "ordered off", "lease poisoned",
              "proven dead", "by")  # fmt: skip
    rows = []
    for host in story.hosts:
        times = (host.silent_ms, host.suspected_ms, host.judged_ms, host.ordered_ms,
                 host.poisoned_ms)  # fmt: skip
        proven = "never" if host.proven_ms is None else shown(host.proven_ms)
        proof = "" if host.proof is None else host.proof.value.replace("_", " ")
        rows.append([host.name, str(host.vms), *(shown(one) for one in times), proven, proof])
    print_table(titles, rows, plain=False)
    if story.cluster_notices:
        typer.echo()
    for at_ms, notice in story.cluster_notices:
        typer.echo(f"At {shown(at_ms)}: {readable(render(notice.code, notice.fields))}")
    alike: dict[tuple[str, ...], list[HostStory]] = {}
    for host in story.hosts:
        if host.proven_ms is None and host.reasons:
            alike.setdefault(tuple(one.code for one in host.reasons), []).append(host)
    for hosts in alike.values():
        verb, whose = ("is", "its") if len(hosts) == 1 else ("are", "their")
        typer.echo(
            f"\n{_names([one.name for one in hosts])} {verb} not proven dead, so {whose} VMs may start "
            "nowhere else:"
        )
        bullets(hosts[0].reasons)


def _names(names: Sequence[str]) -> str:
    if len(names) <= NAMES_MAX:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES_MAX])} and {len(names) - NAMES_MAX} more"


def _show_returning(story: "Story") -> None:
    from virtha.sim.what_if_story import Outcome

    returning = story.with_outcome(Outcome.RETURNS)
    if not returning:
        return
    typer.echo("\nWhat returns")
    titles = ("VM", "was on", "runs on", "process after", "guest after", "what it waited for last")
    rows = [
        [vm.name, vm.was_on, vm.runs_on or "", shown(vm.runs_ms), shown(vm.agent_ms),
         "; ".join(told(one) for one in vm.waited_for)]
        for vm in sorted(returning, key=lambda vm: vm.runs_ms or 0)
    ]  # fmt: skip
    print_table(titles, rows, plain=False)


def _show_down(story: "Story") -> None:
    from virtha.sim.what_if_story import Outcome, reason_help

    down = story.with_outcome(Outcome.STAYS_DOWN)
    if not down:
        return
    typer.echo("\nWhat stays down, and why")
    rows = [
        [vm.name, vm.was_on, "; ".join(told(one) for one in vm.reasons),
         vm.reasons[0].code if vm.reasons else ""]
        for vm in down
    ]  # fmt: skip
    print_table(("VM", "was on", "why", "code"), rows, plain=False)
    helps = dict.fromkeys(reason_help(one) for vm in down for one in vm.reasons)
    for text in helps:
        if text:
            typer.echo(f"  what to do: {text}")


def _show_left(story: "Story") -> None:
    from virtha.sim.what_if_story import Outcome

    left = story.with_outcome(Outcome.NOT_PROTECTED)
    if left:
        typer.echo(
            f"\nNot protected (not highly available, or ignored): {', '.join(vm.name for vm in left)}"
        )


class _Sum(NamedTuple):
    way: str
    meaning: str
    hosts: tuple[str, ...]
    typical_ms: int
    worst_ms: int
    first_ms: int
    """When the first VM of these hosts ran."""


def _sums(story: "Story") -> list[_Sum]:
    """The policy's own sum for each way on which hosts were proven dead, and what came of it here."""
    from virtha.sim.what_if_story import WAY_OF

    found = []
    sums = budget(story.what_if.inventory.policy)
    for proof, way in WAY_OF.items():
        hosts = tuple(host.name for host in story.hosts if host.proof is proof)
        runs = [vm.runs_ms for vm in story.vms if vm.was_on in hosts and vm.runs_ms is not None]
        if runs:
            one = sums.of(way)
            found.append(
                _Sum(way.value, one.meaning, hosts, one.typical_ms, one.worst_ms, min(runs))
            )
    return found


def _show_budget(story: "Story") -> None:
    sums = _sums(story)
    if not sums:
        return
    typer.echo("\nAgainst the policy's time budget (`virtha policy budget`)")
    for one in sums:
        typer.echo(
            f"  {one.meaning} {shown(one.typical_ms)} to expect, {shown(one.worst_ms)} at worst, for "
            f"the first VM; here {shown(one.first_ms)}."
        )


def bullets(reasons: Sequence[Reason]) -> None:
    from virtha.sim.what_if_story import reason_help

    for one in reasons:
        typer.echo(f"  - {told(one)} ({one.code})")
        if reason_help(one):
            typer.echo(f"    what to do: {reason_help(one)}")


# One thing's story


def show_explained(given: Options, story: "Story", wanted: Wanted) -> None:
    lines, reasons = _story_of(story, wanted)
    data = {
        "kind": "vm" if wanted.is_vm else "host",
        "name": wanted.name,
        "at_ms": wanted.until_ms if wanted.until_ms is not None else story.what_if.ended_ms,
        "story": [{"at_ms": at_ms, "code": code, "text": text} for at_ms, code, text in lines],
        "reasons": [_reason_data(one) for one in reasons],
    }
    if write_data(given, data):
        return
    if not lines and not reasons:
        typer.echo(f"{wanted.name} is not touched by it.")
        return
    for at_ms, _, text in lines:
        typer.echo(f"{shown(at_ms):>8}  {text}")
    moment = "at the end" if wanted.until_ms is None else f"at {shown(wanted.until_ms)}"
    if reasons:
        typer.echo(f"\nWhy it is so {moment}:")
        bullets(reasons)
    else:
        typer.echo(f"\nNothing is awaited {moment}.")


def _story_of(
    story: "Story", wanted: Wanted
) -> tuple[list[tuple[int, str, str]], tuple[Reason, ...]]:
    """What was told of it (of a VM: and of the host that it was on) and of the whole cluster, when a reason
    began to hold, and what holds at the end. Codes are empty where the world, not the engine, did something."""
    what_if = story.what_if
    vm = next((one for one in story.vms if wanted.is_vm and one.name == wanted.name), None)
    host_name = wanted.name if vm is None else vm.was_on
    host = next((one for one in story.hosts if one.name == host_name), None)
    if host is None or (wanted.is_vm and vm is None):
        return [], ()
    lines = [
        (host.silent_ms, "", f"last beat of {host.name}"),
        (0, "", f"{host.name} loses power"),
    ]
    for entry in what_if.log:
        notice = entry.notice
        if notice is None:
            continue
        of_host = notice.host_id in (host.name, None) and notice.vm_id is None
        if of_host or (notice.vm_id == wanted.name and wanted.is_vm):
            lines.append((entry.at_ms, notice.code, readable(render(notice.code, notice.fields))))
    if host.poisoned_ms is not None:
        lines.append((host.poisoned_ms, "", f"the storage lease of {host.name} is poisoned"))
    kept = (what_if.vm_reasons if wanted.is_vm else what_if.host_reasons)[wanted.name]
    if wanted.is_vm:
        lines += [
            (entry.at_ms, one.code, told(one))
            for entry in kept
            for one in entry.reasons
            if one.code != "recovery.starting"
        ]
    if vm is not None and vm.agent_ms is not None:
        lines.append((vm.agent_ms, "", "its guest agent answers"))
    return sorted(lines, key=lambda line: line[0]), kept[-1].reasons if kept else ()


def show_timeline(given: Options, story: "Story", *, vms_max: int) -> None:
    from virtha.scenario.timeline import timeline_text
    from virtha.sim.what_if_story import story_timeline

    picture = story_timeline(story, vms_max=vms_max)
    data = [
        {"lane": lane.name, "from_ms": begin, "until_ms": until, "state": happening.state.name,
         "text": happening.text}
        for lane in picture.lanes
        for begin, until, happening in lane.parts
    ]  # fmt: skip
    if write_data(given, data):
        return
    typer.echo(timeline_text(picture), nl=False)
    if len(story.vms) > vms_max:
        typer.echo(
            f"\n{len(story.vms) - vms_max} more VMs are left out: -o json without --timeline has all"
        )
