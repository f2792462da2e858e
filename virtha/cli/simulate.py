"""`virtha simulate`: a story, many random ones, or these hosts without power: what would come of it. Needs no server."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from virtha.cli.file_errors import read_text_within
from virtha.cli.options import Options, options
from virtha.cli.output import note
from virtha.cli.simulate_report import (
    Wanted,
    show_answer,
    show_explained,
    show_timeline,
    write_picture,
)
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.policy.profiles import Profile
from virtha.model.policy.text import (
    apply_changes,
    changes_from_assignment,
    document_of,
    policy_of,
)
from virtha.model.time import format_duration_ms, parse_duration_ms, parse_utc

if TYPE_CHECKING:
    from virtha.scenario.inventory import Inventory

app = typer.Typer()

NOON = "2026-01-07T12:00:00Z"
"""A Wednesday."""
FOR = "10m"
SAVE = "swarm-failures"
JOBS_MAX = 256
INVENTORY_BYTES_MAX = 16 << 20
"""A hundred times what two thousand VMs take."""
PROGRESS_EVERY_S = 2.0
FOR_MS_MAX = 604_800_000
"""As the longest window that a policy can have."""
LANES_MAX = 400
"""VMs in one picture: more is no picture any more."""


@app.command()
def simulate(
    ctx: typer.Context,
    scenario: Path | None = typer.Argument(
        None,
        metavar="[FILE]",
        help="A story in the scenario language: played, and compared with what it expects.",
    ),
    seed: str | None = typer.Option(
        None, metavar="N|FIRST..LAST", help="Random worlds with random faults, from these seeds."
    ),
    inventory: str | None = typer.Option(
        None, metavar="FILE", help="The cluster: hosts, racks, power, VMs, policy (YAML)."
    ),
    fail: list[str] | None = typer.Option(
        None, metavar="WHAT", help="What loses power: rack=r3, host=h1,host=h2; may be repeated."
    ),
    profile: Profile | None = typer.Option(None, help="As if the policy had this profile's times."),
    values: list[str] | None = typer.Option(
        None, "--set", metavar="FIELD=VALUE", help="As if this were set in the policy; repeatable."
    ),
    explain: str | None = typer.Option(
        None, metavar="WHAT", help="Only this one's story: vm/web-1, host/h3, vm/web-1@30s."
    ),
    timeline: bool = typer.Option(False, "--timeline", help="Only the picture, as text."),
    svg: Path | None = typer.Option(None, metavar="FILE", help="Write the picture as SVG."),
    at: str | None = typer.Option(
        None, metavar="TIME", help=f"When: quiet times look at it. Default: {NOON}."
    ),
    duration: str | None = typer.Option(
        None,
        "--for",
        metavar="DURATION",
        help=f"How long to look on if something stays down. Default: {FOR}.",
    ),
    digest: bool = typer.Option(
        False, "--digest", help="Print the digest of each world: the same wherever it is played."
    ),
    jobs: int | None = typer.Option(
        None, metavar="N", help="With --seed: processes. Default: one per processor."
    ),
    resume: Path | None = typer.Option(
        None, metavar="FILE", help="With --seed: keep what was played there; go on from it."
    ),
    save: Path | None = typer.Option(
        None,
        metavar="DIR",
        help=f"With --seed: where failing seeds go, shrunk to a story each. Default: {SAVE}.",
    ),
    time_limit: str | None = typer.Option(
        None, "--time", metavar="DURATION", help="With --seed: begin no world after so long."
    ),
) -> int:
    """What if? Plays a story (FILE), many random ones (--seed), or the failure of hosts of yours (--inventory).

    Asks the engine that decides in production, under virtual time. Nothing is touched.
    Exit code 1: a rule was broken, or the outcome is not what FILE expects.
    """  # fmt: skip
    given = options(ctx)
    only_for: dict[str, dict[str, object]] = {
        "--inventory": {"--fail": fail, "--profile": profile, "--set": values, "--at": at, "--for": duration},
        "--seed": {"--jobs": jobs, "--resume": resume, "--save": save, "--time": time_limit},
    }  # fmt: skip
    chosen = _chosen_way({"FILE": scenario, "--seed": seed, "--inventory": inventory})
    for way, theirs in only_for.items():
        for name, value in theirs.items():
            if way != chosen and value:
                raise InvalidInput(f"{name} goes with {way}", field=name, fix=f"leave out {name}")
    if chosen == "--inventory" and digest:
        raise InvalidInput("--digest goes with FILE or --seed", field="--digest")
    if explain is not None and timeline:
        raise InvalidInput("two views are asked for", field="--timeline", fix="leave one out")
    if svg is not None and (svg.is_dir() or not svg.parent.is_dir()):
        raise InvalidInput(
            f"{svg} can't be written there", field="--svg", fix="name a file in a directory"
        )
    if seed is not None:
        views: dict[str, object] = {"--explain": explain, "--timeline": timeline, "--svg": svg}
        for name, view in views.items():
            if view:
                raise InvalidInput(
                    f"{name} shows one story, not many worlds",
                    field=name,
                    fix="play a saved story: virtha simulate FILE",
                )
        return _swarm(given, seed, jobs, resume, save, time_limit, digest=digest)
    if scenario is not None:
        from virtha.cli.simulate_scenario import parse_thing, play_file

        thing = None if explain is None else parse_thing(explain)
        return play_file(given, scenario, explain=thing, timeline=timeline, svg=svg, digest=digest)
    assert inventory is not None
    _what_if(
        given,
        _with_policy(_read(inventory), profile, values or []),
        fail or [],
        explain=explain,
        timeline=timeline,
        svg=svg,
        at_ms=parse_utc(at or NOON, field="--at"),
        for_ms=_length(duration or FOR, "--for"),
    )
    return 0


def _chosen_way(ways: Mapping[str, object]) -> str:
    found = [name for name, value in ways.items() if value is not None]
    if len(found) != 1:
        raise InvalidInput(
            f"{' and '.join(found)} are asked for at once" if found else "nothing is asked for",
            field=found[-1] if found else "FILE",
            allowed=tuple(ways),
            fix="leave one out"
            if found
            else "name a scenario file, --seed 1..100, or --inventory FILE",
        )
    return found[0]


def _swarm(
    given: Options,
    seed: str,
    jobs: int | None,
    resume: Path | None,
    save: Path | None,
    time_limit: str | None,
    *,
    digest: bool,
) -> int:
    from virtha.cli.simulate_swarm import parse_seeds, swarm, usable_processors

    seeds = parse_seeds(seed)
    if jobs is not None and not 1 <= jobs <= JOBS_MAX:
        raise InvalidInput(f"{jobs} processes", field="--jobs", allowed=(f"1 to {JOBS_MAX}",))
    seconds = None if time_limit is None else _length(time_limit, "--time") // 1_000
    return swarm(
        given,
        seeds,
        jobs=min(jobs or usable_processors(), seeds.worlds),
        resume=resume,
        save=save or Path(SAVE),
        seconds=seconds,
        digest=digest,
    )


def _what_if(
    given: Options,
    known: "Inventory",
    fail: list[str],
    *,
    explain: str | None,
    timeline: bool,
    svg: Path | None,
    at_ms: int,
    for_ms: int,
) -> None:
    from virtha.scenario.inventory_check import check_inventory
    from virtha.sim.what_if import parse_failure, run_what_if
    from virtha.sim.what_if_story import story_timeline, tell_story

    check_inventory(known)
    if not fail:
        raise InvalidInput(
            "is missing: nothing would fail", field="--fail", allowed=("rack=NAME", "host=NAME"),
            fix="write for example --fail host=h1",
        )  # fmt: skip
    failure = parse_failure(fail, known)
    wanted = None if explain is None else _explained(explain, known)
    if wanted is not None and wanted.until_ms is not None:
        for_ms = wanted.until_ms
    watch = _watcher(given)
    story = tell_story(run_what_if(known, failure, at_ms=at_ms, for_ms=for_ms, watch=watch))
    if svg is not None:
        from virtha.scenario.timeline import timeline_svg

        picture = timeline_svg(story_timeline(story, vms_max=LANES_MAX))
        write_picture(given, svg, picture)
    if wanted is not None:
        show_explained(given, story, wanted)
    elif timeline:
        show_timeline(given, story, vms_max=LANES_MAX)
    else:
        show_answer(given, story)


def _watcher(given: Options) -> Callable[[int], None]:
    """On a terminal a long run says how far it is, every few seconds."""
    last_s = time.monotonic()

    def watch(at_ms: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s > PROGRESS_EVERY_S and sys.stderr.isatty():
            last_s = now_s
            note(given, f"… {format_duration_ms(max(at_ms, 0) // 1_000 * 1_000)} after the failure")

    return watch


def _read(path: str) -> "Inventory":
    from virtha.scenario.inventory import read_inventory

    try:
        text = read_text_within(Path(path), INVENTORY_BYTES_MAX)
    except FileNotFoundError:
        raise NotFound(
            f"there is no file {path}",
            field="--inventory",
            fix="the guide shows how to write one: docs/guide/simulate.md",
        ) from None
    except IsADirectoryError:
        raise InvalidInput(f"{path} is a directory", field="--inventory") from None
    except UnicodeDecodeError:
        raise InvalidInput(
            f"{path} is not UTF-8 text", field="--inventory", fix="save it as UTF-8"
        ) from None
    return read_inventory(text, file=path)


def _with_policy(known: "Inventory", profile: Profile | None, values: list[str]) -> "Inventory":
    from msgspec.structs import replace

    changes = [] if profile is None else changes_from_assignment(f"profile={profile}")
    changes += [change for text in values for change in changes_from_assignment(text)]
    document = apply_changes(document_of(known.policy), changes)
    return replace(known, policy=policy_of(document))


def _length(text: str, field: str) -> int:
    length_ms = parse_duration_ms(text, field=field)
    if not 1_000 <= length_ms <= FOR_MS_MAX:
        raise InvalidInput(f"'{text}' does not fit here", field=field, allowed=("1s to 7d",))
    return length_ms


def _explained(text: str, known: "Inventory") -> Wanted:
    from virtha.scenario.section import nearest

    thing, at, moment = text.partition("@")
    kind, slash, name = thing.partition("/")
    if not slash or kind not in ("vm", "host"):
        raise InvalidInput(
            f"'{text}' names nothing",
            field="--explain",
            allowed=("vm/NAME", "host/NAME", "either with @30s"),
            fix="write for example vm/web-1",
        )
    names = [one.name for one in (known.vms if kind == "vm" else known.hosts)]
    if name not in names:
        raise NotFound(
            f"there is no {'VM' if kind == 'vm' else 'host'} '{name}' in this inventory",
            field="--explain",
            fix=nearest(name, names),
        )
    until_ms = _length(moment, "--explain") if at else None
    return Wanted(is_vm=kind == "vm", name=name, until_ms=until_ms)
