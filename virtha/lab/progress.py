"""Tells what is being done, step by step, with seconds."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO


class Steps:
    """Prints to standard error unless told otherwise, so that programs can read the results."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._begin = time.monotonic()
        self._stream = stream

    def say(self, text: str) -> None:
        elapsed = time.monotonic() - self._begin
        print(f"[{elapsed:6.1f} s] {text}", file=self._stream or sys.stderr, flush=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.say(f"{text} …")
        begin = time.monotonic()
        yield
        self.say(f"{text}: done in {time.monotonic() - begin:.1f} s")
