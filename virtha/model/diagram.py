"""A transition table as a Mermaid state diagram, for the documentation."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

TriggerT = TypeVar("TriggerT", bound=StrEnum)
StateT = TypeVar("StateT", bound=StrEnum)


def mermaid(transitions: Mapping[TriggerT, Mapping[StateT, StateT]], *, start: StateT) -> str:
    """Arrows between two states carry all triggers that move between them; loops are left out."""
    arrows: dict[tuple[StateT, StateT], list[str]] = {}
    for trigger, rows in transitions.items():
        for source, target in rows.items():
            if source is not target:
                arrows.setdefault((source, target), []).append(trigger.value)
    lines = ["stateDiagram-v2", f"    [*] --> {start}"]
    for (source, target), triggers in sorted(arrows.items()):
        lines.append(f"    {source} --> {target}: {', '.join(triggers)}")
    return "\n".join(lines) + "\n"
