"""What the pictures of a watched story and of a what-if question share: states of VMs, and how reasons are said."""

from collections.abc import Iterable

from virtha.model.codes import render
from virtha.model.vm import Reason
from virtha.scenario.timeline import Mood, State

BLOCKED = State(name="blocked", mark="B", mood=Mood.BAD, meaning="may not start, or has no place")
STARTING = State(name="starting", mark=">", mood=Mood.WORK, meaning="its start is ordered")


def reasons_text(reasons: Iterable[Reason]) -> str:
    """Empty where there are none."""
    return "; ".join(render(why.code, why.fields) for why in reasons)
