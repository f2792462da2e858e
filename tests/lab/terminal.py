"""A program at a terminal of its own, with somebody who answers its questions."""

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

Answers = Sequence[tuple[str, str]]
"""What the last line asks (a regular expression), and what is typed then; each time that it is asked."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Said:
    code: int
    text: str
    """All that the terminal showed, without colours, as lines."""


def at_terminal(words: Sequence[str], answers: Answers = (), *, timeout_s: float) -> Said:
    """Run it to its end. Raises AssertionError with what it has said when it takes longer."""
    ours, its = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words], stdin=its, stdout=its, stderr=its, cwd="/"
    )
    os.close(its)
    said, looked, deadline = "", 0, time.monotonic() + timeout_s
    try:
        while True:
            if not select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"still not done after {timeout_s:g} s: {said[-3_000:]}")
            try:
                more = os.read(ours, 65_536)
            except OSError:  # EIO: nobody has the other end any more
                break
            said += _CODES.sub("", more.decode(errors="replace")).replace("\r", "")
            last = said[looked:].rpartition("\n")[2]
            for asked, answer in answers:
                if re.search(asked, last):
                    looked = len(said)
                    os.write(ours, answer.encode() + b"\n")
                    break
        return Said(process.wait(60), said)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
