"""The rounds that were played, on disk: a run that is killed goes on where it was, as long as what is measured is the same.
And the replays of the engine's journal: each is of the rounds that stand before it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from host_failures.cases import Case
from host_failures.played import Round, decoded, encoded
from virtha.lab.journals import Replayed

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("virtha", "bench/host_failures")
DIRECTORY = ROOT / ".stamp" / "failover"


def program_state() -> str:
    """Of all files of ``virtha/`` and of what measures it: a change of either begins every case anew."""
    content = hashlib.sha256()
    for path in sorted(path for place in PLACES for path in (ROOT / place).rglob("*.py")):
        content.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]


class Ledger:
    """One file per case; a line per round, each with what it was measured on. Lines of other programs stay, and are not read."""

    def __init__(self, program: str, directory: Path = DIRECTORY) -> None:
        self.program = program
        self._directory = directory

    def rounds(self, case: Case) -> list[Round]:
        """In the order in which they were played. A last line that was cut off is none."""
        return [decoded(entry["round"]) for entry in self._entries(case) if "round" in entry]

    def replays(self, case: Case) -> list[Replayed]:
        """Of the engine's journal while its rounds were played."""
        found = [entry["replayed"] for entry in self._entries(case) if "replayed" in entry]
        return [msgspec.convert(one, Replayed) for one in found]

    def rounds_not_replayed(self, case: Case) -> int:
        """The last ones: nobody has looked at what the engine decided in them."""
        number = 0
        for entry in self._entries(case):
            number = number + 1 if "round" in entry else 0
        return number

    def _entries(self, case: Case) -> Iterator[dict[str, Any]]:
        try:
            lines = self._path(case).read_text().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["program"] == self.program and entry["case"] == case.state:
                yield entry

    def add(self, case: Case, played: Round) -> None:
        self._append(case, {"round": encoded(played)})

    def add_replay(self, case: Case, replayed: Replayed) -> None:
        self._append(case, {"replayed": msgspec.to_builtins(replayed)})

    def _append(self, case: Case, what: dict[str, Any]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        entry = {"program": self.program, "case": case.state, **what}
        with self._path(case).open("a+b") as file:
            # What a killed run left half written must not spoil this line.
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")

    def _path(self, case: Case) -> Path:
        return self._directory / f"{case.name}.jsonl"
