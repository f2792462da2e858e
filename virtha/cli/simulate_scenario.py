"""`virtha simulate FILE`: one story in the scenario language, played; what came of it, and why."""

import sys
import time
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from virtha.cli.file_errors import read_text_within
from virtha.cli.options import Options
from virtha.cli.output import note, write_data
from virtha.cli.simulate_report import bullets, readable, shown, write_picture
from virtha.model.codes import render
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.time import format_duration_ms, parse_duration_ms
from virtha.model.vm import Reason

if TYPE_CHECKING:
    from virtha.scenario.language import Scenario
    from virtha.sim.watched import Watched

PROGRESS_EVERY_S = 2.0


SCENARIO_BYTES_MAX = 16 << 20


class Thing(NamedTuple):
    """What ``--explain`` names; ``until_ms``: None: the story's end."""

    kind: str
    name: str
    until_ms: int | None


def parse_thing(text: str) -> Thing:
    """``vm/web1`` or ``host/h3``, either with ``@30s``. Raises InvalidInput."""
    named, at, moment = text.partition("@")
    kind, slash, name = named.partition("/")
    if not slash or kind not in ("vm", "host") or not name:
        raise InvalidInput(
            f"'{text}' names nothing",
            field="--explain",
            allowed=("vm/NAME", "host/NAME", "either with @30s"),
            fix="write for example vm/web1@30s",
        )
    return Thing(kind, name, parse_duration_ms(moment, field="--explain") if at else None)


def read_scenario(path: Path) -> "Scenario":
    """Raises NotFound or InvalidInput that names file and line."""
    from virtha.scenario.language import parse

    try:
        text = read_text_within(path, SCENARIO_BYTES_MAX)
    except FileNotFoundError:
        raise NotFound(
            f"there is no file {path}",
            field="FILE",
            fix="docs/reference/scenarios.md shows how to write one",
        ) from None
    except IsADirectoryError:
        raise InvalidInput(f"{path} is a directory", field="FILE") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text", field="FILE") from None
    try:
        return parse(text)
    except InvalidInput as error:
        raise placed(error, path) from None


def placed(error: InvalidInput, path: Path) -> InvalidInput:
    """With the file beside the line."""
    field = str(error.field or "")
    where = f"{path}:{field.removeprefix('line ')}" if field.startswith("line ") else str(path)
    other = "" if field.startswith("line ") or not field else f" ({field})"
    return InvalidInput(
        f"{where}: {error.message}{other}", field="FILE", allowed=error.allowed, fix=error.fix
    )


def play_file(
    given: Options,
    path: Path,
    *,
    explain: Thing | None,
    timeline: bool,
    svg: Path | None,
    digest: bool,
) -> int:
    """Exit code 1: a rule was broken, or the outcome is not the one that the file expects."""
    scenario = read_scenario(path)
    until_ms = None if explain is None else explain.until_ms
    try:
        if explain is None and not timeline and svg is None:
            return _show_outcome(given, path, scenario, digest=digest)
        from virtha.sim.watched import play_watched

        watched = play_watched(scenario, until_ms=until_ms, told=_watcher(given))
    except InvalidInput as error:
        raise placed(error, path) from None
    if svg is not None:
        from virtha.scenario.timeline import timeline_svg
        from virtha.sim.watched import watched_timeline

        write_picture(given, svg, timeline_svg(watched_timeline(scenario.story[0], watched)))
    if explain is not None:
        _show_thing(given, watched, explain)
    elif timeline or svg is not None:
        _show_picture(given, scenario, watched, only_svg=not timeline)
    if watched.violation:
        note(given, f"a rule is broken: {watched.violation}")
    return 1 if watched.violation else 0


def _watcher(given: Options) -> Callable[[int], None]:
    """On a terminal a long story says how far it is."""
    last_s = time.monotonic()

    def watch(at_ms: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > PROGRESS_EVERY_S and sys.stderr.isatty():
            last_s = time.monotonic()
            note(given, f"… {format_duration_ms(at_ms // 1_000 * 1_000)} of the story")

    return watch


def _show_outcome(given: Options, path: Path, scenario: "Scenario", *, digest: bool) -> int:
    from virtha.sim.checkers import Violation
    from virtha.sim.play import Player
    from virtha.sim.swarm import Recorder

    player, violation = Player(), ""
    recorder = Recorder(player.world)
    try:
        outcome = player.play(scenario)
    except Violation as error:
        # A world that came to a stop in the middle has no end to tell.
        violation, outcome = str(error), []
    differs = bool(scenario.expected) and not violation and tuple(outcome) != scenario.expected
    found = recorder.digest(outcome)
    data = {
        "story": list(scenario.story),
        "outcome": outcome,
        "expected": list(scenario.expected) or None,
        "as_expected": None if not scenario.expected else not differs,
        "violation": violation or None,
        "digest": found,
    }
    if not write_data(given, data) and not given.quiet:
        if differs:
            lines = unified_diff(
                scenario.expected, outcome, f"{path} expects", "what came of it", lineterm="", n=2
            )
        else:
            lines = iter(outcome)
        for line in lines:
            typer.echo(line)
        if digest:
            typer.echo(f"digest {found}")
    if violation:
        note(given, f"a rule is broken: {violation}")
    elif differs:
        note(given, "it came otherwise than the file expects")
    elif scenario.expected:
        note(given, "as the file expects")
    return 1 if differs or violation else 0


def _show_thing(given: Options, watched: "Watched", thing: Thing) -> None:
    from virtha.scenario.section import nearest
    from virtha.sim.watched import reasons_of, story_of

    world = watched.player.world
    names = sorted(world.ids if thing.kind == "vm" else world.hosts)
    if thing.name not in names:
        raise NotFound(
            f"there is no {'VM' if thing.kind == 'vm' else 'host'} '{thing.name}' in this story",
            field="--explain",
            fix=nearest(thing.name, names) or f"there are: {', '.join(names)}",
        )
    is_vm = thing.kind == "vm"
    lines = story_of(watched, vm=thing.name if is_vm else None, host=None if is_vm else thing.name)
    lane = watched.vms[thing.name] if is_vm else watched.hosts[thing.name]
    reasons: tuple[Reason, ...]
    if is_vm:
        reasons = reasons_of(watched.player, world.ids[thing.name])
    else:
        believed = watched.believed.get(thing.name)
        reasons = believed[-1].reasons if believed else ()
    now_ms = max(world.kernel.now, 0)
    data = {
        "kind": thing.kind,
        "name": thing.name,
        "at_ms": now_ms,
        "state": lane[-1].text,
        "story": [{"at_ms": line.at_ms, "code": line.code, "text": line.text} for line in lines],
        "reasons": [
            {"code": one.code, "text": render(one.code, one.fields), "fields": dict(one.fields)}
            for one in reasons
        ],
    }
    if write_data(given, data):
        return
    for line in lines:
        code = f" ({line.code})" if line.code else ""
        typer.echo(f"{shown(line.at_ms):>8}  {readable(line.text)}{code}")
    typer.echo(f"\nAt {shown(now_ms)} {thing.name} {lane[-1].text}.")
    if reasons:
        typer.echo("Why:")
        bullets(reasons)


def _show_picture(
    given: Options, scenario: "Scenario", watched: "Watched", *, only_svg: bool
) -> None:
    from virtha.scenario.timeline import timeline_text
    from virtha.sim.watched import watched_timeline

    picture = watched_timeline(scenario.story[0], watched)
    data: list[dict[str, Any]] = [
        {"lane": lane.name, "from_ms": begin, "until_ms": until, "state": happening.state.name,
         "text": happening.text}
        for lane in picture.lanes
        for begin, until, happening in lane.parts
        if happening.text
    ]  # fmt: skip
    if write_data(given, data) or only_svg:
        return
    typer.echo(timeline_text(picture), nl=False)
    typer.echo("\nThe story:")
    for at_ms, text in watched.steps:
        typer.echo(f"{shown(at_ms):>8}  {text}")
