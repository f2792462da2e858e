"""Copies of a journal without names, for a bug report."""

import os
from collections.abc import Sequence
from pathlib import Path

from virtha.engine.journal import SegmentReader
from virtha.engine.redaction import Redactor
from virtha.model.errors import Conflict, InvalidInput


def redact_segments(paths: Sequence[Path], directory: Path) -> int:
    """Write a copy of each under its name into ``directory``; returns how many. A damaged segment's copy ends
    where it can't be read any more.

    Raises Conflict where a copy would overwrite something, InvalidInput where nothing can be read, OSError.
    """
    taken = next((path.name for path in paths if (directory / path.name).exists()), None)
    if taken is not None:
        raise Conflict(
            f"{directory / taken} is there already", field="--redact", fix="name an empty directory"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    redactor = Redactor()
    written = 0
    for path in paths:
        data = redactor.segment(SegmentReader(path.read_bytes()))
        if data:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(directory / path.name, flags, 0o600), "wb") as file:
                file.write(data)
            written += 1
    if not written:
        raise InvalidInput(
            f"nothing in {', '.join(map(str, paths))} can be read as an engine's journal",
            code="problem.journal.foreign",
            field="FILE|DIR",
            fix="replay it first: that says what is wrong with it",
        )
    return written
