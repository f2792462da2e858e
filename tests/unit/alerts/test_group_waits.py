"""How long a group waits with what: what is grave never for its interval, what says that a VM may run twice for seconds."""

import pytest
from routed_story import START, S, Story, by_cause

from virtha.model.codes import MAY_RUN_TWICE, Severity
from virtha.model.routing import GroupBy, QuietHours

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


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("ahead_s", [HOUR, 365 * DAY])
@pytest.mark.parametrize("was_quiet", [True, False])
@pytest.mark.parametrize(
    ("code", "waits_s"),
    [
        ("vm.quarantined", 0),
        ("vm.unmanaged_copy", 0),
        ("vm.recovery_blocked", 2 * HOUR),
        ("vm.agent.lost", 2 * HOUR),
        ("vm.stopped", 2 * HOUR),
    ],
)
def test_a_clock_set_back_into_quiet_hours_loses_nothing_and_no_alert_waits(
    code: str, waits_s: int, was_quiet: bool, ahead_s: int
) -> None:
    """An alert is told at once, all else when these quiet hours end: they are from 10 to 13, and it is 11 in truth."""
    hours = QuietHours(begins="10:00", ends="13:00")
    story = Story(by_cause(severity=Severity.INFO, quiet=(hours,) if was_quiet else ()))
    story.now = START + ahead_s * S
    revision = story.happens(code, "h1", "v1")
    story.now = START
    story.configure(routes=(by_cause(severity=Severity.INFO, quiet=(hours,)),))
    early = [codes for _, codes in story.messages()]
    story.after(2 * HOUR)
    assert [*early, *(codes for _, codes in story.messages())] == [[code]]
    assert early == ([] if waits_s else [[code]])
    assert story.fates[revision, "r"].at == START + waits_s * S
