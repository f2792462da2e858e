"""Runs the system's programs for the lab: each with a deadline, and with its own words on failure."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from virtha.model.errors import Failed


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float = 30.0,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    fix: str = "",
) -> str:
    """Run a program to its end and return its standard output.

    Raises Failed, with the program's last words, when it fails, is missing or takes too long.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=cwd,
            env={**os.environ, **environment} if environment else None,
            check=False,
        )
    except FileNotFoundError as error:
        raise Failed(
            f"{words[0]}: program not found", fix=fix or "see 'virtha lab check'"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(words)}: still not done after {timeout_s:g} s", fix=fix) from error
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise Failed(f"{' '.join(words)}: exit code {done.returncode}: {last}", fix=fix)
    return done.stdout
