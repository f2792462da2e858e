"""What work costs the interpreter: no other load on the machine changes it."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

Found = TypeVar("Found")


def opcodes(work: Callable[[], Found]) -> tuple[Found, int]:
    """Not what is done inside of C (sorting, hashing, copies)."""
    counted = 0

    def count(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal counted
        counted += event == "opcode"
        return count

    def called(frame: FrameType, _event: str, _arg: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return count

    before = sys.gettrace()
    sys.settrace(called)
    try:
        found = work()
    finally:
        sys.settrace(before)
    return found, counted
