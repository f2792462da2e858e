"""`virtha replay`: run an engine's journal through this version, see what it decides, and where that differs."""

import sys
import time
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import typer

from virtha import __version__
from virtha.cli.options import Options, options
from virtha.cli.output import chosen_output, note, print_table, stderr_console, write_data
from virtha.cli.replay_redact import redact_segments
from virtha.cli.replay_view import (
    EXPLAIN_TITLES,
    TITLES,
    explain_data,
    explain_row,
    fault_data,
    header_data,
    rows_of,
    turn_data,
)
from virtha.cli.text import clean
from virtha.engine.journal import MAGIC, Fault, FaultKind, Header, SegmentReader
from virtha.engine.replay import Names, Replay, ReplayedTurn, explain
from virtha.model.errors import Failed, InvalidInput, NotFound, VirthaError
from virtha.model.ids import HostId, VmId
from virtha.model.time import parse_duration_ms, parse_utc
from virtha.server.journal import SUFFIX, segment_paths

TABLE_ROWS_MAX = 5_000
"""A longer table would take longer to lay out than the segment to replay; it comes as plain lines."""

app = typer.Typer()


class Subject(NamedTuple):
    """``vm/web1`` or ``host/h1``."""

    kind: str
    name: str

    def found(self, names: Names) -> tuple[HostId | None, VmId | None]:
        if self.kind == "host":
            return names.host_called(self.name), None
        return None, names.vm_called(self.name)


@app.command()
def replay(
    ctx: typer.Context,
    journal: Path = typer.Argument(
        metavar="FILE|DIR", help="A segment, or the directory of all of them."
    ),
    explained: str | None = typer.Option(
        None,
        "--explain",
        metavar="vm/NAME|host/NAME",
        help="Show when and why its state changed, instead of all decisions.",
    ),
    until: str | None = typer.Option(
        None,
        "--until",
        metavar="TIME",
        help="Stop there: 90s after the first segment's beginning, or 2026-01-31T12:00:00Z.",
    ),
    redact: Path | None = typer.Option(
        None,
        "--redact",
        metavar="DIR",
        help="Write copies there in which ids stand for names, to go with a bug report.",
    ),
) -> None:
    """Run an engine's journal through this version. Shows its decisions, and where they differ from those recorded.

    Works offline, also while the server writes. Exit code 1: something is decided differently, or a file is damaged.
    """
    given = options(ctx)
    subject = None if explained is None else _subject(explained)
    paths = _paths(journal)
    if redact is not None:
        written = redact_segments(paths, redact)
        note(given, f"{written} segments without names are in {redact}")
        return
    Session(given, paths, subject, until).run()


def _subject(text: str) -> Subject:
    kind, slash, name = text.partition("/")
    if not slash or kind not in ("vm", "host") or not name:
        raise InvalidInput(
            f"'{text}' names nothing", field="--explain", allowed=("vm/NAME", "host/NAME")
        )
    return Subject(kind, name)


def _paths(journal: Path) -> list[Path]:
    if journal.is_dir():
        paths = segment_paths(journal)
        if not paths:
            raise NotFound(
                f"{journal} has no segments of a journal",
                field="FILE|DIR",
                fix=f"name a directory with files called 00000001{SUFFIX}",
            )
        return paths
    if not journal.exists():
        raise NotFound(f"there is no {journal}", field="FILE|DIR", fix="name a file or a directory")
    return [journal]


def read_segment(path: Path) -> SegmentReader:
    """Raises OSError. A file that is none of ours is not read beyond its first bytes."""
    with path.open("rb") as file:
        first = file.read(len(MAGIC))
        data = first if first != MAGIC else first + file.read()
    return SegmentReader(data)


class Found(NamedTuple):
    """A segment's outcome."""

    path: Path
    header: Header | None
    fault: Fault | None
    turns: int
    differ: int
    broke_off: str
    rows: list[Any]
    """For a table or for programs, as was asked."""


class Session:
    """One run of the command over all segments."""

    def __init__(
        self, given: Options, paths: list[Path], subject: Subject | None, until: str | None
    ) -> None:
        self._given = given
        self._paths = paths
        self._subject = subject
        self._until_text = until
        self._until_ms: int | None = None
        self._as_data = given.output is not None and given.output.value in ("json", "yaml")
        self._known: set[str] = set()
        self._seen_subject = False
        self._explained_last: tuple[str, tuple[str, ...]] | None = None
        self._over = False
        self._before: Header | None = None

    def run(self) -> None:
        """Raises VirthaError for what is damaged or differs, when all has been shown."""
        found: list[Found] = []
        progress = _progress(self._given, len(self._paths))
        try:
            for path in self._paths:
                try:
                    reader = read_segment(path)
                except FileNotFoundError:
                    note(self._given, f"{path.name} went out of the ring meanwhile")
                    continue
                found.append(self._segment(path, reader, progress))
                if not self._as_data:
                    progress.pause()
                    self._show(found[-1], first=len(found) == 1)
                    found[-1] = found[-1]._replace(rows=[])
                if self._over:
                    break
        finally:
            progress.close()
        readable = any(one.header is not None for one in found)
        if self._subject is not None and not self._seen_subject and readable:
            raise self._unknown_subject()
        if self._as_data:
            write_data(
                self._given, {"version": __version__, "segments": [_data(one) for one in found]}
            )
        self._sum_up(found)

    def _segment(self, path: Path, reader: SegmentReader, progress: "_Progress") -> Found:
        rows: list[Any] = []
        turns = differ = 0
        broke_off = ""
        if reader.snapshot is not None:
            if self._until_ms is None and self._until_text is not None:
                self._until_ms = _until(self._until_text, reader.snapshot.now)
            assert reader.header is not None
            replay = Replay(reader)
            if not reader.header.follows:
                self._explained_last = None
            for turn in replay.turns():
                if self._until_ms is not None and turn.now > self._until_ms:
                    self._over = True
                    break
                turns += 1
                differ += turn.difference is not None
                broke_off = turn.failure
                progress.at(reader.share, turn)
                if self._subject is None:
                    rows += self._decisions(turn, replay.names)
                else:
                    self._explain(turn, replay, self._subject, rows)
            self._known |= {f"vm/{name}" for name in replay.names.vms.values()}
            self._known |= {f"host/{name}" for name in replay.names.hosts.values()}
        progress.done()
        fault = None if self._over else reader.fault
        return Found(path, reader.header, fault, turns, differ, broke_off, rows)

    def _decisions(self, turn: ReplayedTurn, names: Names) -> Iterator[Any]:
        if not self._as_data:
            yield from rows_of(turn, names)
            return
        decision = turn.decision
        says = decision is None or decision.notices or decision.commands
        if says or turn.difference is not None or turn.unfinished:
            yield turn_data(turn)

    def _explain(
        self, turn: ReplayedTurn, replay: Replay, subject: Subject, rows: list[Any]
    ) -> None:
        """One row whenever its state, or the code of a reason, changes: numbers in them change all the time."""
        host, vm = subject.found(replay.names)
        if host is None and vm is None:
            return
        self._seen_subject = True
        state, reasons = explain(replay.engine, host=host, vm=vm)
        now = (state, tuple(one.code for one in reasons))
        if now != self._explained_last:
            shown = explain_data if self._as_data else explain_row
            rows.append(shown(turn, state, reasons))
            self._explained_last = now

    def _unknown_subject(self) -> VirthaError:
        assert self._subject is not None
        word = "/".join(self._subject)
        near = get_close_matches(word, sorted(self._known), 1)
        return NotFound(
            f"{word} is not in the journal",
            field="--explain",
            fix=f"did you mean {near[0]}?" if near else "name a VM or a host that it knows",
        )

    def _show(self, one: Found, *, first: bool) -> None:
        if self._given.quiet:
            return
        plain = chosen_output(self._given) is None or len(one.rows) > TABLE_ROWS_MAX
        if one.header is not None:
            note(self._given, _about_segment(one.path, one.header, self._before))
            self._before = one.header
        titles = TITLES if self._subject is None else EXPLAIN_TITLES
        rows = [[clean(cell) for cell in row] for row in one.rows]
        if plain:
            # One table over all segments, so that a program needs to skip one line only.
            for row in ([list(titles)] if first else []) + rows:
                typer.echo("\t".join(row))
        elif rows:
            print_table(titles, rows, plain=False)

    def _sum_up(self, found: list[Found]) -> None:
        turns = sum(one.turns for one in found)
        differ = sum(one.differ for one in found)
        broken = [one for one in found if one.broke_off]
        faults = [one for one in found if one.fault is not None]
        said: list[str] = []
        if differ:
            said.append(
                f"{differ} of {turns} turns are decided differently by virtha {__version__}"
            )
        said += [f"{one.path}: the engine breaks off: {one.broke_off}" for one in broken]
        said += [_fault_text(one.path, one.fault) for one in faults if one.fault is not None]
        if not said:
            note(self._given, f"{turns} turns in {len(found)} segments are decided the same")
            return
        raise _error(said, [one.fault for one in faults if one.fault is not None])


def _data(one: Found) -> dict[str, Any]:
    return {
        "file": str(one.path),
        "header": None if one.header is None else header_data(one.header),
        "turns": one.turns,
        "differ": one.differ,
        "fault": fault_data(one.fault),
        "failure": one.broke_off,
        "shown": one.rows,
    }


def _about_segment(path: Path, header: Header, before: Header | None) -> str:
    same_leader = before is not None and before.term == header.term
    gap = ", something is missing before it" if same_leader and not header.follows else ""
    return (
        f"{path.name}: cluster {header.cluster_id}, term {header.term}, "
        f"written by virtha {header.program}{gap}"
    )


def _fault_text(path: Path, fault: Fault) -> str:
    before = "" if fault.offset == 0 else "; what stands before it was replayed"
    return f"{path}, byte {fault.offset}: {fault.kind}: {fault.detail}{before}"


def _error(said: list[str], faults: list[Fault]) -> VirthaError:
    text = "\n".join(said)
    kinds = {fault.kind for fault in faults}
    if len(said) == len(faults) and kinds == {FaultKind.FOREIGN}:
        return InvalidInput(
            text,
            code="problem.journal.foreign",
            field="FILE|DIR",
            fix="name a segment of an engine's journal; a host's is read by: virtha agent replay",
        )
    if len(said) == len(faults) and kinds == {FaultKind.NEWER}:
        return InvalidInput(
            text,
            code="problem.journal.newer",
            field="FILE|DIR",
            fix="replay it with the version that wrote it, or with a later one",
        )
    if faults:
        return Failed(text, code="problem.journal.damaged")
    return Failed(
        text,
        code="problem.journal.differs",
        fix="lines marked - were recorded, lines marked + are what this version decides",
    )


def _until(text: str, began_ms: int) -> int:
    if "T" in text or "-" in text:
        return parse_utc(text, field="--until")
    try:
        return began_ms + parse_duration_ms(text, field="--until")
    except InvalidInput as error:
        raise InvalidInput(
            f"'{text}' is no time",
            field="--until",
            allowed=("a duration after the beginning, such as 90s", "2026-01-31T12:00:00Z"),
        ) from error


# Progress, on stderr


class _Progress(Protocol):
    def at(self, share: float, turn: ReplayedTurn) -> None: ...
    def done(self) -> None: ...
    def pause(self) -> None: ...
    def close(self) -> None: ...


class _Silent:
    def at(self, share: float, turn: ReplayedTurn) -> None:
        pass

    def done(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines(_Silent):
    """A line now and then: what a log wants to see."""

    every_s = 5.0

    def __init__(self, segments: int) -> None:
        self._segments = segments
        self._over = 0
        self._turns = 0
        self._told_s = time.monotonic()

    def at(self, share: float, turn: ReplayedTurn) -> None:
        self._turns += 1
        if time.monotonic() - self._told_s >= self.every_s:
            self._told_s = time.monotonic()
            self.tell(int(100 * (self._over + share) / self._segments))

    def tell(self, percent: int) -> None:
        typer.echo(f"replayed {percent} %, {self._turns} turns", err=True)

    def done(self) -> None:
        self._over += 1


class _Bar(_Lines):
    every_s = 0.3

    def __init__(self, segments: int) -> None:
        super().__init__(segments)
        self._shown: Any = None

    def tell(self, percent: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._shown is None:
            self._shown = Progress(
                TextColumn("replaying"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                console=stderr_console(),
                transient=True,
            )
            self._shown.start()
            self._shown.add_task("replaying", total=100)
        self._shown.update(self._shown.task_ids[0], completed=percent, refresh=True)

    def pause(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def close(self) -> None:
        self.pause()


def _progress(given: Options, segments: int) -> _Progress:
    if given.quiet:
        return _Silent()
    return _Bar(segments) if sys.stderr.isatty() else _Lines(segments)
