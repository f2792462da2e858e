"""What the scenarios tell, told to a route: of no VM that runs in the end a problem goes on for ever."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from routed_story import START, S, Story, route

from virtha.model.codes import EVENTS, Severity
from virtha.model.routing import MemberState

SCENARIOS = Path(__file__).parents[2] / "scenarios"
CODES = {one.name for one in EVENTS}
_TOLD = re.compile(r"\s*(\d+\.\d+) (?:(\S+) )?(\S+\.\S+)(.*)$")
_FIELD = re.compile(r"(\w+)=(.*?)(?= \w+=|$)")
OF_A_SUPERSEDED_COPY = {("superseded-copy-crashes-while-held", "vm.crashed")}
"""The server records it as history (``control/facts.py``), the simulator's log does not."""


def _played(text: str) -> tuple[Story, dict[str, str]]:
    """The route after all of it, and how each VM ended."""
    asked, told = text.split("----", 1)
    ends: dict[str, str] = dict(re.findall(r"^end (\S+) (\S+)", told, re.MULTILINE))
    hosts = set(re.findall(r"^host (\S+)", asked, re.MULTILINE))
    for several in re.findall(r"^hosts (.*)$", asked, re.MULTILINE):
        hosts |= {*several.split()}
    story, runs_on = Story(route(severity=Severity.WARNING)), dict[str, str]()
    for line in told.splitlines():
        found = _TOLD.match(line)
        if found is None or found[3] not in CODES:
            continue
        who, fields = found[2], dict(_FIELD.findall(found[4]))
        story.now = START + int(float(found[1]) * S)
        host, vm = who if who in hosts else None, who if who in ends else None
        if _is_history(found[3], host, vm, fields, runs_on):
            continue
        for name in ("host", "vm", "code"):
            fields.pop(name, None)
        story.happens(found[3], host, vm, **fields)
    return story, ends


def _is_history(
    code: str, host: str | None, vm: str | None, fields: dict[str, str], runs_on: dict[str, str]
) -> bool:
    """What the server records as such (``control/facts.py``), which the simulator's log doesn't: a host that returns says that it starts
    its VMs no more, of those too that run elsewhere by then. ``runs_on``: where each is seen to run; follows the event."""
    if code in ("host.suspected", "host.returned"):
        for one in [one for one, on in runs_on.items() if on == host]:
            del runs_on[one]
    elif vm is not None and code in ("vm.found", "vm.migrated", "vm.recovered"):
        runs_on[vm] = fields["host"]
    of_a_boot_that_ended = fields.get("reason") == "restart.blocked.other_boot"
    return code == "vm.restart.blocked" and of_a_boot_that_ended and vm in runs_on


def _left_open() -> Iterator[tuple[str, str]]:
    """Scenario and code."""
    for path in sorted(SCENARIOS.glob("*.txt")):
        text = path.read_text()
        if "----" not in text:
            continue
        story, ends = _played(text)
        for group in story.groups.values():
            for one in group.members:
                vm = one.event.vm_id
                if one.state is MemberState.OPEN and vm and ends.get(vm) == "running":
                    yield path.stem, one.event.code


@pytest.mark.req("W7", "F4")
def test_of_a_vm_that_runs_no_problem_goes_on() -> None:
    assert set(_left_open()) == OF_A_SUPERSEDED_COPY
