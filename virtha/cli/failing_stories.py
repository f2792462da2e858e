"""The stories of failing worlds as files, beside a long run that no full disk may end."""

from pathlib import Path

import typer

from virtha.cli.options import Options
from virtha.cli.output import note
from virtha.sim.swarm import WorldResult


class FailingStories:
    """``folder`` is made when the first comes. What finds no room is tried once more at the end, then told on stderr."""

    def __init__(self, given: Options, folder: Path) -> None:
        self._given = given
        self._folder = folder
        self._unsaved: dict[int, WorldResult] = {}

    def keep(self, result: WorldResult) -> None:
        """And tells that it failed."""
        told = f"seed {result.seed}: {result.rule}: {result.message}"
        try:
            path = self._write(result)
        except OSError as error:
            self._unsaved[result.seed] = result
            note(self._given, f"{told}; its story can't be saved yet: {error.strerror}")
        else:
            note(self._given, f"{told}; {path} tells it")

    def keep_again(self, result: WorldResult) -> None:
        """Of an earlier run, which may have ended before it was saved."""
        if result.rule and not self._path(result).exists():
            self.keep(result)

    def end(self) -> None:
        for result in self._unsaved.values():
            try:
                self._write(result)
            except OSError as error:
                where = self._path(result)
                typer.echo(f"{where} can't be written ({error.strerror}); it would be:", err=True)
                typer.echo(result.story, err=True)

    def _path(self, result: WorldResult) -> Path:
        return self._folder / f"seed-{result.seed}.txt"

    def _write(self, result: WorldResult) -> Path:
        """Whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(result)
        temporary = path.with_suffix(".part")
        try:
            temporary.write_text(result.story, encoding="utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return path
