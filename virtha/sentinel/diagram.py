"""The transition table as a Mermaid state diagram, for the documentation."""

from virtha.model.vm import VmState
from virtha.sentinel.machine import TRANSITIONS


def mermaid() -> str:
    """Arrows between two states carry all triggers that move between them; loops are left out."""
    arrows: dict[tuple[VmState, VmState], list[str]] = {}
    for trigger, rows in TRANSITIONS.items():
        for source, target in rows.items():
            if source is not target:
                arrows.setdefault((source, target), []).append(trigger.value)
    lines = ["stateDiagram-v2", f"    [*] --> {VmState.DOWN}"]
    for (source, target), triggers in sorted(arrows.items()):
        lines.append(f"    {source} --> {target}: {', '.join(triggers)}")
    return "\n".join(lines) + "\n"
