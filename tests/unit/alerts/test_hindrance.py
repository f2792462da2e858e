"""What no silence and no rule may hide: alerts, errors without an end, and whatever is graver than what explains it."""

import pytest
from routed_story import S, Story, by_cause, route, rule, silence

from virtha.model.codes import (
    EVENTS,
    MAY_RUN_TWICE,
    RECOVERY_ENDED,
    REGISTRY,
    SOLVED_BY,
    Severity,
)
from virtha.model.ids import SubscriptionId
from virtha.model.routing import FateState, GroupBy, QuietHours, Same

NIGHT = (QuietHours(begins="22:00", ends="07:00"),)
TO_NIGHT = 11 * 3_600 + 60
"""From the story's beginning to a minute past ten in the evening."""
WITHOUT_END = sorted(
    code.name
    for code in EVENTS
    if code.severity in (Severity.ERROR, Severity.ALERT)
    and code.name not in SOLVED_BY
    and code.name not in MAY_RUN_TWICE
    and not code.name.startswith("notify.")
)
EVERYTHING = rule("host.unreachable", "*", same=Same.ANYTHING)


@pytest.mark.req("W7", "X1")
@pytest.mark.parametrize("group_by", [GroupBy.NONE, GroupBy.CAUSE])
@pytest.mark.parametrize("code", sorted(MAY_RUN_TWICE))
def test_that_a_vm_may_run_twice_is_told_whatever_is_silenced(code: str, group_by: GroupBy) -> None:
    """Also where another problem explains all, at night, and after as grave a message of the same cause."""
    grouped = route(group_by=group_by, group_interval_ms=86_400 * S, quiet=NIGHT)
    story = Story(grouped, inhibitions=(EVERYTHING,))
    story.happens("host.unreachable", "h1")
    story.happens("host.lease.lost", "h1", domain="d")
    story.after(TO_NIGHT)
    story.messages()
    story.configure(silences=(silence(ends=86_400, codes=("*",)),))
    vm = "v1" if code.startswith("vm.") else None
    told = story.happens(code, "h1", vm)
    story.after(10)
    assert story.fate(told) == "told"
    assert [codes for _, codes in story.messages()] == [[code]]


def test_a_silence_delays_only_the_repeats_of_it() -> None:
    story = Story(
        route(repeat_ms=3_600 * S), silences=(silence(codes=("host.*",), ends=5 * 3_600),)
    )
    story.happens("host.lives_cut_off", "h1")
    story.after(4 * 3_600)
    assert [why for why, _ in story.messages()] == ["alone"]
    story.after(3_600 + 1_800)
    assert [why for why, _ in story.messages()] == ["repeat"]


@pytest.mark.parametrize("code", WITHOUT_END)
def test_an_error_without_an_end_is_told_when_the_silence_is_over(code: str) -> None:
    story = Story(route(), silences=(silence(ends=600),))
    vm = "v1" if code.startswith("vm.") else None
    made = story.happens(code, "h1", vm)
    assert (story.fate(made), story.fates[made, "r"].state) == ("silenced", FateState.PARKED)
    story.after(600)
    assert [codes for _, codes in story.messages()] == [[code]]


def test_an_error_without_an_end_is_told_when_what_explains_it_is_over() -> None:
    story = Story(route(), inhibitions=(EVERYTHING,))
    story.happens("host.unreachable", "h1")
    failed = story.happens("vm.pause_failed", "h1", "v1")
    fired = story.happens("vm.watchdog.fired", "h1", "v1")
    assert (story.fate(failed), story.fate(fired)) == ("inhibited", "inhibited_for_good")
    story.happens("host.reachable", "h1")
    story.after(60)
    assert story.fate(failed) == "told"


def test_what_keeps_vms_down_ends_with_the_hosts_failure() -> None:
    for code in ("fence.capped", "fence.held_by_disks", "fence.left_alone", "fence.orders_late"):
        assert SOLVED_BY[code] == ("host.incident_over", "host.returned")


def test_what_waits_for_the_morning_explains_nothing_that_is_told_at_night() -> None:
    """Nobody was told of the host; the alert was hidden behind it until the morning, and longer."""
    story = Story(route(quiet=NIGHT), inhibitions=(EVERYTHING,))
    story.after(TO_NIGHT)
    story.happens("host.unreachable", "h1")
    story.happens("vm.quarantined", "h1", "v1")
    lost = story.happens("vm.agent.lost", "h1", "v2")
    assert [codes for _, codes in story.messages()] == [["vm.quarantined"]]
    story.after(9 * 3_600)
    assert [codes for _, codes in story.messages()] == [["host.unreachable"]]
    assert story.fate(lost) == "inhibited"


def test_what_waits_for_its_interval_explains_nothing_that_is_told_before_it() -> None:
    """A group that told something may keep quiet for a day."""
    story = Story(
        by_cause(group_by=GroupBy.HOST, group_interval_ms=86_400 * S),
        inhibitions=(rule("host.libvirt.lost", "vm.*", same=Same.CLUSTER),),
    )
    story.happens("host.gate.missing", "h1")
    story.after(10)
    story.messages()
    story.happens("host.libvirt.lost", "h1")
    alert = story.happens("vm.recovery_given_up", "h2", "v1")
    error = story.happens("vm.crashed", "h2", "v2")
    story.after(10)
    assert story.fate(alert) == story.fate(error) == "told"
    with_it = story.happens("vm.agent.lost", "h1", "v3")
    assert story.fate(with_it) == "inhibited", "it goes out with the group of its cause"
    story.after(3_600)
    assert story.fate(with_it) == "inhibited"


def test_an_alert_is_inhibited_by_what_was_told_only() -> None:
    story = Story(by_cause(), inhibitions=(EVERYTHING,))
    story.happens("host.unreachable", "h1")
    early = story.happens("vm.restart.exhausted", "h1", "v1")
    story.after(10)
    late = story.happens("vm.restart.exhausted", "h1", "v2")
    story.after(10)
    assert (story.fate(early), story.fate(late)) == ("told", "inhibited")


def test_what_has_no_end_explains_nothing() -> None:
    """It is open for no time; while it waits for its group it hid what came beside it, and nothing let that go."""
    story = Story(by_cause(), inhibitions=(rule("vm.watchdog.fired", "vm.agent.lost"),))
    story.happens("vm.watchdog.fired", "h1", "v1")
    lost = story.happens("vm.agent.lost", "h1", "v1")
    story.after(10)
    assert story.fate(lost) == "told"


def test_codes_that_say_that_a_vm_may_run_twice_are_no_good_news() -> None:
    assert all(REGISTRY[code].severity is not Severity.INFO for code in MAY_RUN_TWICE)


SILENCED_ALERTS = {
    "fence.brake.tripped",  # nothing is switched off
    "fence.capped",  # nothing is switched off
    "fence.device_of_another",  # found by a test, before any order
    "fence.failed",  # no proof, so no VM is started
    "fence.held_by_disks",  # taken for alive, so no VM is started
    "fence.orders_late",  # no proof, so no VM is started
    "host.guardian.killed_vm",  # over when it is told; the one that fails is `kill_unconfirmed`
    "host.lease.killed_vm",
    "host.lease.lost",
    "host.lease.poisoned",
    "host.lease.reset",
    "host.watchdog.broken",
    "storage.not_shared",  # no VM with disks there is started
    "storage.outage",
    "vm.guest_frozen",
    "vm.migration_keeps_failing",
    "vm.quarantined",
    "vm.recovery_given_up",
    "vm.restart.exhausted",
}
"""Alerts that an operator may silence: no VM may run twice by them, and no proof was wrong."""


@pytest.mark.req("W7", "X1")
def test_of_each_alert_it_is_decided_whether_it_may_be_silenced() -> None:
    """A new one fails here until somebody says which it is."""
    alerts = {code.name for code in EVENTS if code.severity is Severity.ALERT}
    assert alerts - MAY_RUN_TWICE == SILENCED_ALERTS


@pytest.mark.req("W7", "X1")
def test_that_an_order_off_was_no_proof_is_told_whatever_is_silenced() -> None:
    """Its power device lies, or struck another host: each of these says that a proof was wrong."""
    story = Story(route(), silences=(silence(ends=86_400, codes=("fence.*",)),))
    wrong = ("fence.disks_written", "fence.struck_another", "fence.failed_host_lives")
    told = [story.happens(code, "h1") for code in wrong]
    assert [story.fate(one) for one in told] == ["told"] * 3


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("group_by", [GroupBy.NONE, GroupBy.CAUSE])
@pytest.mark.parametrize("code", sorted(RECOVERY_ENDED))
def test_no_rule_explains_that_a_vm_stays_down(code: str, group_by: GroupBy) -> None:
    """The host stayed dead for days, and with it nobody was told of the VM that alone was not started elsewhere."""
    story = Story(
        route(group_by=group_by, repeat_ms=3_600 * S),
        inhibitions=(rule("host.judged_dead", "vm.*"),),
    )
    story.happens("host.judged_dead", "h1", incident="i1")
    story.after(60)
    story.messages()
    lost = story.happens("vm.agent.lost", "h1", "v2", incident="i1")
    told = story.happens(code, "h1", "v1", incident="i1")
    story.after(600)
    assert (story.fate(lost), story.fate(told)) == ("inhibited", "told")
    assert [codes for _, codes in story.messages()] == [[code]]


@pytest.mark.req("W7", "F4")
def test_a_silence_keeps_back_that_a_vm_stays_down_until_it_ends() -> None:
    story = Story(route(), silences=(silence(codes=("vm.*",), ends=600),))
    made = story.happens("vm.quarantined", "h1", "v1")
    assert story.fate(made) == "silenced"
    story.after(600)
    assert story.fate(made) == "told"


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("group_by", [GroupBy.NONE, GroupBy.CAUSE])
def test_what_was_told_in_vain_explains_nothing(group_by: GroupBy) -> None:
    """Its message was refused, or it expired: what it held back is told, and what comes after it."""
    story = Story(
        route(group_by=group_by), inhibitions=(rule("host.unreachable", "vm.agent.lost"),)
    )
    cause = story.happens("host.unreachable", "h1")
    story.after(60)
    before = story.happens("vm.agent.lost", "h1", "v1")
    assert story.fate(before) == "inhibited"
    story.messages()
    lost = {(SubscriptionId("r"), cause)}
    story.keep(story.router.step(story.now, story.config, (), lost))
    story.router = story.reopened()
    story.step()
    after = story.happens("vm.agent.lost", "h1", "v2")
    story.after(600)
    assert (story.fate(before), story.fate(after)) == ("told", "told")
    story.happens("host.reachable", "h1")
    story.after(600)
    assert "host.reachable" in [code for _, codes in story.messages() for code in codes]
