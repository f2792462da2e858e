"""The rounds that were played, on disk: a run that is killed goes on where it was, as long as what is measured is the same."""

import hashlib
import json
from pathlib import Path

from host_failures.cases import Case
from host_failures.played import Round, decoded, encoded

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
        self._program = program
        self._directory = directory

    def rounds(self, case: Case) -> list[Round]:
        """In the order in which they were played. A last line that was cut off is none."""
        found = []
        try:
            lines = self._path(case).read_text().splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["program"] == self._program and entry["case"] == case.state:
                found.append(decoded(entry["round"]))
        return found

    def add(self, case: Case, played: Round) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        entry = {"program": self._program, "case": case.state, "round": encoded(played)}
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
