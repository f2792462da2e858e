"""How long a group waits with what: what is grave never for its interval, what says that a VM may run twice for seconds."""

import pytest
from routed_story import S, Story, by_cause

from virtha.model.codes import MAY_RUN_TWICE
from virtha.model.routing import GroupBy

HOUR = 3_600
DAY = 86_400


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("solved", [True, False])
def test_an_alert_never_waits_for_the_interval(solved: bool) -> None:
    """Though as grave a one was told of this group before, and is over or not."""
    story = Story(by_cause(group_interval_ms=DAY * S))
    story.happens("fence.failed", "h1")
    story.after(10)
    if solved:
        story.happens("host.returned", "h1")
        story.after(10)
    story.messages()
    story.happens("vm.quarantined", "h1", "v1")
    story.after(10)
    assert [codes for _, codes in story.messages()] == [["vm.quarantined"]]


@pytest.mark.req("W7", "X1")
@pytest.mark.parametrize("code", sorted(MAY_RUN_TWICE))
def test_that_a_vm_may_run_twice_waits_for_seconds(code: str) -> None:
    """However long the groups of its route wait for what belongs to them; what waited there goes with it."""
    story = Story(by_cause(group_wait_ms=HOUR * S, group_interval_ms=DAY * S))
    story.happens("host.unreachable", "h1")
    story.after(60)
    assert story.messages() == []
    told = story.happens(code, "h1", "v1" if code.startswith("vm.") else None)
    story.after(10)
    assert story.fate(told) == "told"
    assert sorted(story.messages()[0][1]) == sorted([code, "host.unreachable"])


def test_where_groups_wait_for_less_it_waits_for_less() -> None:
    story = Story(by_cause(group_wait_ms=0))
    story.happens("vm.unmanaged_copy", "h1", "v1")
    assert [codes for _, codes in story.messages()] == [["vm.unmanaged_copy"]]


def test_after_all_was_well_an_error_is_worse_and_a_warning_is_not() -> None:
    story = Story(by_cause(group_by=GroupBy.HOST, group_interval_ms=DAY * S))
    story.happens("host.judged_dead", "h1")
    story.after(10)
    story.happens("host.returned", "h1")
    story.after(10)
    assert [why for why, _ in story.messages()] == ["first", "well"]
    story.happens("host.suspected", "h1")
    story.after(HOUR)
    assert story.messages() == []
    story.happens("host.judged_dead", "h1")
    story.after(10)
    assert story.messages() == [("worse", ["host.judged_dead", "host.suspected"])]
