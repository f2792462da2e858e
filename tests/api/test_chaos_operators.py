"""What chaos' operators do, against a real server with a host that is played: what they stop runs again in the end."""

from pathlib import Path

import pytest
from story import Story

from virtha.lab import state
from virtha.lab.chaos_operators import Operators
from virtha.lab.chaos_plan import FaultKind, Strike
from virtha.lab.lab import Lab


def _lab(story: Story, directory: Path) -> Lab:
    """One whose server is the story's."""
    (directory / "s1").mkdir()
    (directory / "s1/root").symlink_to(story.directory / "server")
    server = state.NodeState(name="s1", number=1, kind="server")
    state.write_state(state.LabState(id="vl1", directory=str(directory), nodes=(server,)))
    lab = Lab.open(directory)
    if _state(lab) != "running":
        story.ok("vm", "start", "web1")
    return lab


def _state(lab: Lab) -> str:
    with lab.api() as api:
        return str(api.vm("web1")["status"]["state"])


@pytest.mark.req("X1")
def test_operators_stop_and_start_and_leave_what_they_are_refused(
    story: Story, tmp_path: Path
) -> None:
    lab = _lab(story, tmp_path)
    operators = Operators(lab)
    stop = Strike(at_ms=0, kind=FaultKind.VM_STOPPED, target="web1", lasts_ms=0)
    assert not operators.has_stopped()
    assert operators.work(stop) == "done; started: done"
    assert _state(lab) == "running" and operators.has_stopped()
    assert operators.free_what_is_quarantined(["web1", "web9"]) == []
    assert operators.start_what_they_stopped() == [], "it runs, and nothing of it is open"
    assert not operators.has_stopped()
    # Stopped, and by then nobody could start it: that is for later.
    story.ok("vm", "power-off", "web1")
    none = Strike(at_ms=0, kind=FaultKind.VM_STOPPED, target="web9", lasts_ms=0)
    assert "404" in operators.work(none)
    moved = operators.work(Strike(at_ms=0, kind=FaultKind.VM_MOVED, target="web1"))
    assert "problem." in moved, "it is down"
    assert _state(lab) == "down"


def test_a_vm_that_is_still_down_after_the_healing_is_started_by_them(
    story: Story, tmp_path: Path
) -> None:
    lab = _lab(story, tmp_path)
    operators = Operators(lab)
    operators.work(Strike(at_ms=0, kind=FaultKind.VM_STOPPED, target="web1", lasts_ms=0))
    story.ok("vm", "power-off", "web1")
    assert operators.start_what_they_stopped() == ["web1 started: done"]
    assert operators.start_what_they_stopped() == [] and not operators.has_stopped()
    assert _state(lab) == "running"


def test_a_server_that_is_away_is_asked_again(tmp_path: Path, story: Story) -> None:
    lab = _lab(story, tmp_path)
    operators = Operators(lab)
    operators.work(Strike(at_ms=0, kind=FaultKind.VM_STOPPED, target="web1", lasts_ms=0))
    (tmp_path / "s1/root").unlink()
    assert operators.start_what_they_stopped() == [] and operators.has_stopped()
    (tmp_path / "s1/root").symlink_to(story.directory / "server")
    operators.start_what_they_stopped()
    assert not operators.has_stopped()
