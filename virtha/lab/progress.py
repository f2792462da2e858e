"""Tells what is being done, step by step, with seconds."""

import contextlib
import sys
import time
from collections.abc import Iterator


class Steps:
    """Prints to standard error, so that results on standard output can be read by programs."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._begin = time.monotonic()
        self._quiet = quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            elapsed = time.monotonic() - self._begin
            print(f"[{elapsed:6.1f} s] {text}", file=sys.stderr, flush=True)  # noqa: T201

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.say(f"{text} …")
        begin = time.monotonic()
        yield
        self.say(f"{text}: done in {time.monotonic() - begin:.1f} s")
