"""`virtha simulate`: what would come of it if these hosts lost power. Needs no server."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from virtha.cli.options import Options, options
from virtha.cli.output import note
from virtha.cli.simulate_report import Wanted, show_answer, show_explained, show_timeline
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
PROGRESS_EVERY_S = 2.0
FOR_MS_MAX = 604_800_000
"""As the longest window that a policy can have."""
LANES_MAX = 400
"""VMs in one picture: more is no picture any more."""


@app.command()
def simulate(
    ctx: typer.Context,
    inventory: str = typer.Option(
        metavar="FILE", help="The cluster: hosts, racks, power, VMs, policy (YAML)."
    ),
    fail: list[str] = typer.Option(
        metavar="WHAT", help="What loses power: rack=r3, host=h1,host=h2; may be repeated."
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
    at: str = typer.Option(NOON, metavar="TIME", help="When: quiet times look at it."),
    duration: str = typer.Option(
        "10m", "--for", metavar="DURATION", help="How long to look on if something stays down."
    ),
) -> None:
    """What if these hosts lost power: which VMs return, where and when, and why others don't.

    Asks the engine that decides in production, under virtual time. Nothing is touched.
    """
    from virtha.scenario.inventory_check import check_inventory
    from virtha.sim.what_if import parse_failure, run_what_if
    from virtha.sim.what_if_story import story_timeline, tell_story

    given = options(ctx)
    if explain is not None and timeline:
        raise InvalidInput("two views are asked for", field="--timeline", fix="leave one out")
    if svg is not None and (svg.is_dir() or not svg.parent.is_dir()):
        raise InvalidInput(
            f"{svg} can't be written there", field="--svg", fix="name a file in a directory"
        )
    at_ms = parse_utc(at, field="--at")
    for_ms = _length(duration, "--for")
    known = _with_policy(_read(inventory), profile, values or [])
    check_inventory(known)
    failure = parse_failure(fail, known)
    wanted = None if explain is None else _explained(explain, known)
    if wanted is not None and wanted.until_ms is not None:
        for_ms = wanted.until_ms
    watch = _watcher(given)
    story = tell_story(run_what_if(known, failure, at_ms=at_ms, for_ms=for_ms, watch=watch))
    if svg is not None:
        from virtha.scenario.timeline import timeline_svg

        picture = timeline_svg(story_timeline(story, vms_max=LANES_MAX))
        svg.write_text(picture, encoding="utf-8")
        note(given, f"the picture is in {svg}")
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
        text = Path(path).read_text(encoding="utf-8")
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
