"""What the replays of a run's journals found: an error where something else is decided, and each told at the run's end."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtha.lab.journals import Replayed, replayed_lab
from virtha.lab.lab import Lab

_REPLAYS = pytest.StashKey[dict[str, str]]()


def tell_replay(config: pytest.Config, whose: str, replayed: Replayed | None) -> None:
    config.stash.setdefault(_REPLAYS, {})[whose] = str(replayed)


def replays_of(config: pytest.Config) -> list[str]:
    return [
        f"the journal of {whose}: {told}" for whose, told in config.stash.get(_REPLAYS, {}).items()
    ]


@contextlib.contextmanager
def told_in_the_end(
    request: pytest.FixtureRequest, whose: str, directory: Path, *, hosts: int
) -> Iterator[Lab]:
    """A lab. An error in the end, unless its engine's journal, replayed, decides the same."""
    keep_files = bool(os.environ.get("VIRTHA_LAB_KEEP_FILES"))
    with replayed_lab(directory, hosts=hosts, keep_files=keep_files) as journals:
        yield journals.lab
        if request.session.exitstatus == pytest.ExitCode.INTERRUPTED:
            journals.leave_unread()
    tell_replay(request.config, whose, journals.replayed)
