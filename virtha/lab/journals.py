"""Each real journal of a lab or of another server, run through the very program that wrote it: the same has to be decided again (X2).

Journals are a bounded ring and go with their lab: what is not replayed before its `down` was never looked at.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from virtha.engine.journal import FaultKind
from virtha.lab import lab
from virtha.lab.lab import Lab
from virtha.lab.progress import Steps
from virtha.model.errors import Failed
from virtha.model.value import Value
from virtha.server.config import ServerPaths
from virtha.server.journal import segment_paths

REPLAY_S = 1_800
"""Of one segment, which has 16 MiB at most in a lab: a machine that runs other things takes its time."""
DIRECTORY = "replayed"
"""Below the lab's: what `virtha replay` said of each segment."""


class Replayed(Value, frozen=True, kw_only=True):
    """Of all engines' journals."""

    turns: int = 0
    differ: int = 0
    cut: int = 0
    """Segments whose last record was cut short by a kill -9 of the server."""
    gone: int = 0
    """Segments that went out of the ring before anybody replayed them."""
    broken: tuple[str, ...] = ()

    @property
    def is_the_same(self) -> bool:
        return self.turns > 0 and not self.differ and not self.gone and not self.broken

    def __add__(self, other: "Replayed") -> "Replayed":
        return Replayed(
            turns=self.turns + other.turns,
            differ=self.differ + other.differ,
            cut=self.cut + other.cut,
            gone=self.gone + other.gone,
            broken=self.broken + other.broken,
        )

    def __sub__(self, before: "Replayed") -> "Replayed":
        """What came since. A record that was cut short then may be whole now."""
        return Replayed(
            turns=self.turns - before.turns,
            differ=self.differ - before.differ,
            cut=max(0, self.cut - before.cut),
            gone=self.gone - before.gone,
            broken=tuple(one for one in self.broken if one not in before.broken),
        )

    def __str__(self) -> str:
        words = [f"{self.turns} turns replayed, {self.differ} of them decided differently"]
        if self.cut:
            words.append(f"{self.cut} segments cut short by a kill")
        if self.gone:
            words.append(f"{self.gone} segments gone from the ring unread")
        return "; ".join([*words, *self.broken])


class ServerJournals:
    """Of one server, wherever its files are. A segment that is complete is replayed once, however often all of them are asked for: so
    those of a long run don't go out of the ring unread. ``out``: where what `virtha replay` says is kept, a file per segment."""

    def __init__(self, root: Path, out: Path) -> None:
        self._rings = ServerPaths(root).journals
        self._out = out
        self.replayed: Replayed | None = None
        """The last time that all were."""
        self._known: dict[Path, Replayed] = {}
        self._complete: set[Path] = set()

    def replay(self) -> Replayed:
        """All that was written so far; the server may run. Raises Failed when a replay says nothing that can be read."""
        total = Replayed()
        for ring in sorted(self._rings.iterdir()) if self._rings.exists() else ():
            total += self._replay_ring(ring)
        self.replayed = total
        return total

    def _replay_ring(self, ring: Path) -> Replayed:
        paths = segment_paths(ring)
        for path in paths:
            # What was the last one may have grown since, and is complete when it is the last one no more.
            if path == paths[-1] or path not in self._complete:
                log = self._out / f"replay-{ring.name}-{path.stem}.json"
                self._known.pop(path, None)
                if (found := replay_segment(path, log)) is not None:
                    self._known[path] = found
        self._complete |= set(paths[:-1])
        known = [found for path, found in self._known.items() if path.parent == ring]
        # They are counted from 1 on over the ring's whole life.
        written = int(paths[-1].stem) if paths else 0
        return sum(known, Replayed(gone=written - len(known)))


class Journals(ServerJournals):
    """Of one lab."""

    def __init__(self, made: Lab, out: Path | None = None) -> None:
        super().__init__(made.server.root, out or made.directory / DIRECTORY)
        self.lab = made
        self._left_unread = False

    def leave_unread(self) -> None:
        """By a run that was interrupted, and has to end soon: it shows nothing anyway."""
        self._left_unread = True

    @property
    def are_wanted(self) -> bool:
        return not self._left_unread


def replay_segment(path: Path, log: Path) -> Replayed | None:
    """None: it went out of the ring meanwhile. Raises Failed when what `virtha replay` says in ``log`` can't be read."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "virtha.cli.main", "replay", str(path), "-o", "json"]
    with log.open("wb") as sink:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=sink, timeout=REPLAY_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"virtha replay {path}: still not done after {REPLAY_S} s") from error
    return None if not path.exists() else read_replay(log, done.returncode)


def read_replay(log: Path, code: int) -> Replayed:
    """``log``: what `virtha replay -o json` said, which ended with ``code``. Raises Failed when that can't be read."""
    try:
        segments = json.loads(log.read_bytes())["segments"]
    except (ValueError, KeyError) as error:
        raise Failed(
            f"virtha replay ended with {code}, and {log} can't be read: {error}"
        ) from error
    faults = [one for one in segments if one["fault"] is not None]
    cut = [one for one in faults if one["fault"]["kind"] == FaultKind.TRUNCATED.value]
    broken = [f"{one['file']}: {one['fault']}" for one in faults if one not in cut]
    broken += [f"{one['file']}: {one['failure']}" for one in segments if one["failure"]]
    return Replayed(
        turns=sum(one["turns"] for one in segments),
        differ=sum(one["differ"] for one in segments),
        cut=len(cut),
        broken=tuple(broken),
    )


@contextlib.contextmanager
def replayed_lab(
    directory: Path, *, hosts: int, steps: Steps | None = None, keep_files: bool = False
) -> Iterator[Journals]:
    """A lab that is gone afterwards, its journals replayed before that, and the number of turns told.

    Raises Failed, and leaves the lab's files, when something else is decided than was then.
    """
    steps, keep = steps or Steps(), keep_files
    try:
        journals = Journals(lab.up(directory, hosts=hosts, steps=steps))
        try:
            yield journals
        except Exception:
            # Whatever it was goes on its way; the journal of what failed is the one to look at.
            keep = keep or not replay_and_tell(journals, steps)
            raise
        if not replay_and_tell(journals, steps):
            keep = True
            raise Failed(f"the engine's journal is not decided the same; it is in {directory}")
    finally:
        lab.down(directory, keep_files=keep, steps=steps)


def replay_and_tell(journals: Journals, steps: Steps) -> bool:
    """Whether all was decided the same."""
    if not journals.are_wanted:
        steps.say("interrupted: the engine's journal is not replayed")
        return True
    with steps.step("the engine's journal is replayed"):
        try:
            replayed = journals.replay()
        except Failed as error:
            steps.say(f"replay: {error}")
            return False
    steps.say(f"replay: {replayed}")
    return replayed.is_the_same
