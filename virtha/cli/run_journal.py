"""What a long run has done so far, so that one that was killed goes on: one line of JSON for each thing done, the
first line says of which run."""

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from virtha import __version__
from virtha.model.errors import Conflict, InvalidInput

T = TypeVar("T")

FORMAT = 1
_PACKAGE = Path(__file__).resolve().parents[1]


def code_digest(extra: Sequence[Path] = ()) -> str:
    """Of the package's sources and what else decides: what another version did can't be counted with ours."""
    whole = hashlib.sha256()
    for path in (*sorted(_PACKAGE.rglob("*.py")), *sorted(extra)):
        whole.update(path.name.encode() + b"\0")
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


class RunJournal:
    """Open for one run at a time. ``lines``: what earlier runs did."""

    def __init__(self, path: Path, *, what: str, code: str, field: str = "--resume") -> None:
        """``what``: ``seeds 1..20000``. Raises InvalidInput for a file of another run or version, Conflict while
        another run writes it, OSError where there is no room or right."""
        self.path = path
        self.lines: tuple[bytes, ...] = ()
        self._what = what
        self._code = code
        self._field = field
        if path.is_dir():
            raise InvalidInput(f"{path} is a directory", field=field, fix="name a file")
        if not path.parent.is_dir():
            raise InvalidInput(
                f"there is no directory {path.parent}", field=field, fix="make it first"
            )
        self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._load()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another run writes {self.path}",
                field=self._field,
                fix="wait for it, or name another file",
            ) from None

    def _load(self) -> None:
        self._file.seek(0)
        data = self._file.read() or b""
        header = self._header()
        # A line that was cut when the run was killed is no line: that is done again.
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].splitlines()
        if lines:
            self._check(lines[0])
            for number, line in enumerate(lines[1:], 2):
                try:
                    json.loads(line)
                except ValueError:
                    raise self._foreign(f"line {number} can't be read") from None
            self._file.truncate(whole)
            self.lines = tuple(lines[1:])
        elif not header.startswith(data):
            raise self._foreign("its first line does not say so")
        else:
            self._file.truncate(0)
            self.add(header)

    def _header(self) -> bytes:
        said = {
            "virtha_run": FORMAT,
            "what": self._what,
            "version": __version__,
            "code": self._code,
        }
        return json.dumps(said).encode()

    def _check(self, line: bytes) -> None:
        try:
            theirs = json.loads(line)
        except ValueError:
            raise self._foreign("its first line does not say so") from None
        if not isinstance(theirs, dict) or "virtha_run" not in theirs:
            raise self._foreign("its first line does not say so")
        if theirs.get("what") != self._what:
            raise InvalidInput(
                f"{self.path} is of {theirs.get('what')}, not of {self._what}",
                field=self._field,
                fix="ask for the same, or name another file",
            )
        version, code = theirs.get("version"), theirs.get("code")
        if (theirs["virtha_run"], version, code) != (FORMAT, __version__, self._code):
            raise InvalidInput(
                f"{self.path} was written by virtha {version} (code {code}), "
                f"this is {__version__} (code {self._code})",
                field=self._field,
                fix="what another version did proves nothing of this one: name another file",
            )

    def decoded(self, wanted: type[T]) -> list[T]:
        """What earlier runs did. Raises InvalidInput for a line that says something else."""
        found = []
        for number, line in enumerate(self.lines, 2):
            try:
                found.append(msgspec.json.decode(line, type=wanted))
            except msgspec.DecodeError as error:
                self.close()
                raise self._foreign(f"line {number}: {error}") from None
        return found

    def _foreign(self, why: str) -> InvalidInput:
        return InvalidInput(
            f"{self.path} is no file of such a run: {why}",
            field=self._field,
            fix="name another file; this one is left as it is",
        )

    def add(self, line: bytes) -> None:
        """Raises OSError, which names the file: then nothing of the line is in it."""
        before, rest = os.fstat(self._file.fileno()).st_size, line + b"\n"
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError as error:
            with suppress(OSError):  # a line that was cut is passed over as well
                self._file.truncate(before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def count(self) -> int:
        """Of what is done by now, earlier runs included."""
        self._file.seek(0)
        return (self._file.read() or b"").count(b"\n") - 1

    def close(self) -> None:
        self._file.close()
