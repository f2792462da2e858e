"""Routes decide: what is told together, later, once, or not, and why."""

from typing import Any

import pytest
from routed_story import START, S, Story, by_cause, route, rule, silence

from virtha.alerts import match
from virtha.alerts.waits import RELEASE_WAIT_MS
from virtha.model.codes import Severity
from virtha.model.ids import ClusterId
from virtha.model.routing import (
    FateState,
    GroupBy,
    QuietHours,
    Same,
)

NIGHT = (QuietHours(begins="22:00", ends="07:00"),)
TO_NIGHT = 11 * 3_600 + 60
"""From the story's beginning to a minute past ten in the evening."""
PLAIN = {"solved": False, "severity": Severity.INFO}


@pytest.mark.req("W7", "F4")
def test_a_subscription_of_before_tells_each_event_at_once_and_keeps_nothing() -> None:
    story = Story(route(**PLAIN))
    for code in ("vm.crashed", "vm.restarted", "vm.crashed"):
        story.happens(code, "h1", "v1")
    assert story.messages() == [
        ("alone", ["vm.crashed"]),
        ("alone", ["vm.restarted"]),
        ("alone", ["vm.crashed"]),
    ]
    assert story.groups == {} and story.wake_at is None


def host_dies(story: Story, vms: int = 6) -> None:
    story.happens("host.unreachable", "h1")
    story.happens("host.suspected", "h1")
    story.after(3)
    story.happens("host.judged_dead", "h1", incident="I")
    story.happens("fence.began", "h1", incident="I")
    for number in range(vms):
        story.happens("vm.agent.lost", "h1", f"v{number}")
    story.after(20)
    story.happens("host.proven_dead", "h1", incident="I")
    for number in range(vms):
        story.happens("vm.recovered", "h2", f"v{number}", incident="I")
        story.happens("vm.agent.connected", "h2", f"v{number}")


@pytest.mark.req("W7", "F4", "X4")
def test_a_host_with_six_vms_dies_one_message_and_one_when_all_is_well() -> None:
    story = Story(by_cause())
    host_dies(story)
    ((why, codes),) = story.messages()
    assert why == "first" and codes[0] == "host.judged_dead"
    assert codes[1:] == [
        "host.unreachable",
        "host.suspected",
        "fence.began",
        *["vm.agent.lost"] * 6,
    ]
    story.after(60)
    story.happens("host.reachable", "h1")
    story.happens("host.rebooted", "h1")
    story.happens("host.returned", "h1", incident="I")
    story.after(60)
    assert story.messages() == [], "its VMs may not be seen to yet"
    story.happens("host.incident_over", "h1", incident="I")
    story.after(10)
    ((_, why, kind, codes),) = story.told
    assert (why, kind, codes[0]) == ("well", "solved", "host.incident_over")
    story.told.clear()
    assert codes.count("vm.agent.connected") == 6 and "host.proven_dead" in codes
    story.after(3_600)
    assert story.messages() == [] and story.groups == {} and story.wake_at is None


def test_the_end_of_the_hosts_failure_heads_the_message_also_when_its_agent_comes_after_it() -> (
    None
):
    story = Story(by_cause())
    host_dies(story)
    story.messages()
    story.after(60)
    story.happens("host.reachable", "h1")
    story.happens("host.rebooted", "h1")
    story.happens("host.agent.down", "h1")
    story.happens("host.returned", "h1", incident="I")
    story.happens("host.incident_over", "h1", incident="I")
    story.happens("host.agent.up", "h1")
    story.after(120)
    ((_, why, kind, codes),) = story.told
    assert (why, kind, codes[0]) == ("well", "solved", "host.incident_over")
    assert "host.agent.up" in codes


def test_a_start_that_fails_elsewhere_is_told_with_the_failure_that_it_was_for() -> None:
    """And not as a trouble of the host where it was tried."""
    story = Story(by_cause(group_interval_ms=3_600 * S))
    host_dies(story)
    story.messages()
    story.happens("vm.start_failed", "h2", "v1", incident="I")
    story.happens("vm.start_overdue", "h2", "v2", incident="I")
    story.after(60)
    story.happens("vm.started", "h3", "v1", incident="I")
    story.happens("vm.started", "h3", "v2", incident="I")
    story.after(60)
    assert story.messages() == []
    story.happens("host.reachable", "h1")
    story.happens("host.returned", "h1", incident="I")
    story.happens("host.incident_over", "h1", incident="I")
    story.after(10)
    ((_, why, kind, codes),) = story.told
    assert (why, kind, codes[0]) == ("well", "solved", "host.incident_over")
    assert {"vm.start_failed", "vm.start_overdue", "vm.started"} <= {*codes}


def test_another_failure_of_the_same_host_is_another_group() -> None:
    story = Story(by_cause())
    story.happens("host.judged_dead", "h1", incident="I")
    story.happens("host.judged_dead", "h1", incident="J")
    story.happens("vm.recovery_failed", "h2", "v1", incident="I")
    story.happens("host.libvirt.lost", "h2")
    story.after(10)
    assert story.messages() == [
        ("first", ["host.judged_dead", "vm.recovery_failed"]),
        ("first", ["host.judged_dead"]),
        ("first", ["host.libvirt.lost"]),
    ]


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [
        (GroupBy.HOST, [["vm.crashed", "vm.panicked"], ["vm.crashed"], ["storage.outage"]]),
        (GroupBy.CLUSTER, [["storage.outage", "vm.crashed", "vm.panicked", "vm.crashed"]]),
    ],
)
def test_by_host_and_by_cluster(group_by: GroupBy, groups: list[list[str]]) -> None:
    story = Story(route(group_by=group_by))
    story.happens("vm.crashed", "h1", "v1")
    story.happens("vm.panicked", "h1", "v2")
    story.happens("vm.crashed", "h2", "v3")
    story.happens("storage.outage", domain="d1")
    story.after(10)
    assert [codes for _, codes in story.messages()] == groups


def test_what_follows_waits_for_the_interval_and_what_is_worse_does_not() -> None:
    story = Story(by_cause())
    story.happens("host.suspected", "h1")
    story.after(10)
    assert story.messages() == [("first", ["host.suspected"])]
    story.happens("host.libvirt.lost", "h1")
    story.after(60)
    assert story.messages() == []
    story.happens("host.judged_dead", "h1", incident="I")
    story.after(9)
    assert story.messages() == []
    story.after(1)
    assert story.messages() == [("worse", ["host.judged_dead", "host.libvirt.lost"])]
    story.happens("host.libvirt.lost", "h1")
    story.after(299)
    assert story.messages() == []
    story.after(1)
    assert story.messages() == [("more", ["host.libvirt.lost"])]


def test_a_problem_that_is_over_before_it_was_told_is_told_with_its_end() -> None:
    story = Story(by_cause())
    lost = story.happens("vm.agent.lost", "h1", "v1")
    story.after(2)
    story.happens("vm.agent.connected", "h1", "v1")
    story.after(10)
    assert story.told == [("r", "well", "solved", ["vm.agent.connected", "vm.agent.lost"])]
    assert story.fate(lost) == "told"


@pytest.mark.parametrize("solved", [True, False])
def test_the_end_of_what_was_told_is_told_whatever_its_severity(solved: bool) -> None:
    story = Story(route(solved=solved))
    story.happens("vm.crashed", "h1", "v1")
    story.happens("vm.restarted", "h1", "v1")
    story.happens("vm.restarted", "h1", "v2")
    codes = [codes for _, codes in story.messages()]
    assert codes == [["vm.crashed"], *[["vm.restarted"]] * solved]
    assert story.groups == {}


def test_with_an_object_its_troubles_are_over() -> None:
    story = Story(route())
    story.happens("vm.crashed", "h1", "v1")
    story.happens("vm.agent.lost", "h1", "v2")
    story.happens("vm.deleted", None, "v1")
    assert [codes for _, codes in story.messages()] == [
        ["vm.crashed"],
        ["vm.agent.lost"],
        ["vm.deleted"],
    ]
    assert [group.members[0].subject for group in story.groups.values()] == ["vm:v2"]


def test_an_end_beside_a_grave_event_is_no_good_news() -> None:
    story = Story(by_cause())
    story.happens("vm.agent.lost", "h1", "v1")
    story.after(10)
    story.happens("vm.watchdog.reset_loop", "h1", "v2")
    story.happens("vm.agent.connected", "h1", "v1")
    story.after(10)
    assert story.told[-1] == (
        *("r", "worse", "problem"),
        ["vm.watchdog.reset_loop", "vm.agent.connected"],
    )


def test_an_end_that_was_parked_is_told_by_what_ends_all() -> None:
    story = Story(route())
    story.happens("vm.crashed", "h1", "v1")
    story.configure(silences=(silence(codes=("vm.restarted",)),))
    story.happens("vm.restarted", "h1", "v1")
    story.happens("vm.deleted", None, "v1")
    assert [codes for _, codes in story.messages()] == [["vm.crashed"], ["vm.deleted"]]


def test_the_same_again_within_its_time_is_not_told_and_not_after_its_end() -> None:
    story = Story(route(same_again_ms=600 * S))
    first = story.happens("vm.watchdog.fired", "h1", "v1")
    story.after(60)
    again = story.happens("vm.watchdog.fired", "h1", "v1")
    assert story.fate(again) == "same_again" and story.fates[again, "r"].by == str(first)
    story.happens("vm.watchdog.fired", "h1", "v2")
    story.after(541)
    story.happens("vm.watchdog.fired", "h1", "v1")
    assert len(story.messages()) == 3
    story.happens("vm.crashed", "h1", "v1")
    story.happens("vm.restarted", "h1", "v1")
    story.happens("vm.crashed", "h1", "v1")
    assert len(story.messages()) == 3, "it was over meanwhile"


def test_the_same_says_the_same_and_each_silence_is_told() -> None:
    """Silences have no object: the second within ten minutes was taken for the first."""
    story = Story(route(same_again_ms=600 * S))
    story.happens("notify.silence.set", reason="switch", silence="s1")
    story.happens("notify.silence.set", reason="switch", silence="s1")
    story.happens("power.ordered", "h1", action="on", device="bmc")
    other = story.happens("power.ordered", "h1", action="off", device="bmc")
    again = story.happens("power.ordered", "h1", action="off", device="bmc")
    assert (story.fate(other), story.fate(again)) == ("told", "same_again")
    assert [codes[0] for _, codes in story.messages()] == [
        *["notify.silence.set"] * 2,
        *["power.ordered"] * 2,
    ]


def test_the_message_of_a_group_says_how_often() -> None:
    story = Story(by_cause(same_again_ms=600 * S))
    for _ in range(3):
        story.happens("vm.watchdog.fired", "h1", "v1")
    story.now += 10 * S
    (tell,) = story.step().tells
    assert tell.note is not None and tell.note.again == {"1": 2}


def test_what_goes_on_is_repeated_until_it_is_over() -> None:
    story = Story(by_cause(repeat_ms=3_600 * S))
    story.happens("host.libvirt.lost", "h1")
    story.happens("host.gate.missing", "h1")
    story.after(10)
    story.messages()
    story.after(2 * 3_600)
    assert story.messages() == [("repeat", ["host.gate.missing", "host.libvirt.lost"])] * 2
    story.happens("host.gate.proved", "h1")
    story.after(3_600 + 300)
    assert story.messages() == [
        ("more", ["host.gate.proved"]),
        ("repeat", ["host.libvirt.lost"]),
    ]
    story.happens("host.libvirt.back", "h1")
    story.after(24 * 3_600)
    assert story.messages() == [("well", ["host.libvirt.back"])]


@pytest.mark.parametrize("group_by", [GroupBy.NONE, GroupBy.CAUSE])
def test_in_quiet_hours_only_alerts_and_the_rest_after_them(group_by: GroupBy) -> None:
    story = Story(route(quiet=NIGHT, group_by=group_by))
    story.after(TO_NIGHT)
    crashed = story.happens("vm.crashed", "h1", "v1")
    alert = story.happens("host.lease.lost", "h1", domain="d1")
    story.after(600)
    assert [codes for _, codes in story.messages()] == [["host.lease.lost"]]
    assert story.fate(crashed) == "quiet_hours" and story.fate(alert) == "told"
    story.after(8 * 3_600)
    assert story.messages() == []
    story.after(3_600)
    assert [codes for _, codes in story.messages()] == [["vm.crashed"]]
    assert story.now // 3_600_000 % 24 == 7


def test_nothing_is_repeated_in_quiet_hours() -> None:
    story = Story(route(quiet=NIGHT, repeat_ms=3_600 * S))
    story.after(TO_NIGHT - 600)
    story.happens("vm.crashed", "h1", "v1")
    story.messages()
    story.after(9 * 3_600)
    assert story.messages() == []
    story.after(3_600)
    assert [why for why, _ in story.messages()] == ["repeat"]


@pytest.mark.req("X1")
def test_silenced_what_goes_on_is_told_when_the_silence_ends() -> None:
    story = Story(route(), silences=(silence(codes=("host.*", "vm.*"), ends=600),))
    dead = story.happens("host.judged_dead", "h1")
    fired = story.happens("vm.watchdog.fired", "h1", "v1")
    lost = story.happens("vm.agent.lost", "h1", "v1")
    assert story.fate(dead) == "silenced" and story.fates[dead, "r"].by == "s"
    assert story.fate(fired) == "silenced_for_good"
    story.after(60)
    story.happens("vm.agent.connected", "h1", "v1")
    assert story.fate(lost) == "solved_untold"
    story.after(539)
    assert story.messages() == []
    story.after(1)
    assert story.messages() == [("alone", ["host.judged_dead"])]
    assert story.fate(dead) == "told"


def test_the_end_of_what_was_told_is_told_after_the_silence() -> None:
    story = Story(route())
    story.happens("vm.crashed", "h1", "v1")
    story.configure(silences=(silence(ends=600),))
    end = story.happens("vm.restarted", "h1", "v1")
    assert story.fate(end) == "silenced"
    story.after(600)
    assert [codes for _, codes in story.messages()] == [["vm.crashed"], ["vm.restarted"]]


def test_a_silence_set_while_a_group_waits_holds_for_it() -> None:
    story = Story(by_cause())
    story.happens("vm.watchdog.fired", "h1", "v1")
    lost = story.happens("vm.agent.lost", "h1", "v1")
    story.configure(silences=(silence(codes=("vm.agent.lost",), ends=60),))
    story.after(10)
    assert story.messages() == [("first", ["vm.watchdog.fired"])]
    assert story.fate(lost) == "silenced"
    story.configure(silences=())
    assert story.fate(lost) == "waits"
    story.after(10)
    assert story.messages() == [("more", ["vm.agent.lost"])]


def test_of_two_silences_the_later_end_counts() -> None:
    """Found at random: it was looked at again and again from the first one's end on."""
    story = Story(route(), silences=(silence("s", ends=30), silence("t", ends=900)))
    lost = story.happens("vm.agent.lost", "h1", "v1")
    story.after(31)
    assert (story.fate(lost), story.fates[lost, "r"].by) == ("silenced", "t")
    # As the database gives them: those that are over are no longer there.
    story.configure(silences=(silence("t", ends=900),))
    story.after(868)
    assert story.messages() == []
    story.after(1)
    assert [codes for _, codes in story.messages()] == [["vm.agent.lost"]]


def test_a_silence_of_all_does_not_hide_itself() -> None:
    story = Story(route(), silences=(silence(codes=("*",)),))
    story.happens("notify.silence.set")
    story.happens("vm.crashed", "h1", "v1")
    assert [codes for _, codes in story.messages()] == [["notify.silence.set"]]


HOST_DOWN = rule("host.unreachable", "vm.*")


@pytest.mark.req("X1")
def test_the_host_is_down_silences_its_vm_is_down() -> None:
    story = Story(route(), inhibitions=(HOST_DOWN,))
    story.happens("host.unreachable", "h1")
    lost = story.happens("vm.agent.lost", "h1", "v1")
    fired = story.happens("vm.watchdog.fired", "h1", "v1")
    story.happens("vm.agent.lost", "h2", "v2")
    assert [codes for _, codes in story.messages()] == [["host.unreachable"], ["vm.agent.lost"]]
    assert story.fate(lost) == "inhibited" and story.fates[lost, "r"].by == "i"
    assert story.fate(fired) == "inhibited_for_good"
    story.happens("host.reachable", "h1")
    story.after(RELEASE_WAIT_MS / S - 1)
    assert [codes for _, codes in story.messages()] == [["host.reachable"]]
    story.after(1)
    assert [codes for _, codes in story.messages()] == [["vm.agent.lost"]], "it outlasts its cause"


def test_what_is_over_soon_after_its_cause_is_not_told() -> None:
    story = Story(route(), inhibitions=(HOST_DOWN,))
    story.happens("host.unreachable", "h1")
    lost = story.happens("vm.agent.lost", "h1", "v1")
    story.happens("host.reachable", "h1")
    story.after(5)
    over = story.happens("vm.agent.connected", "h1", "v1")
    story.after(3_600)
    assert story.fate(lost) == "solved_untold" and story.fates[lost, "r"].by == str(over)
    assert [codes for _, codes in story.messages()] == [["host.unreachable"], ["host.reachable"]]
    assert story.groups == {}


def test_what_a_cause_held_back_is_let_go_when_the_cause_is_silenced_itself() -> None:
    """The cause was about to be told, of another group; nobody is told of it now, so it hides nothing."""
    story = Story(by_cause(group_by=GroupBy.HOST, group_wait_ms=30 * S))
    story.configure(inhibitions=(rule("host.unreachable", "vm.*", same=Same.CLUSTER),))
    story.happens("host.unreachable", "h2")
    story.after(1)
    lost = story.happens("vm.agent.lost", "h1", "v1")
    assert story.fate(lost) == "inhibited"
    story.configure(silences=(silence(codes=("host.unreachable",)),))
    story.after(30 + RELEASE_WAIT_MS / S)
    assert story.fate(lost) == "told"


def test_what_one_step_looks_at_grows_as_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Racks of hosts fail and come back under rules of inhibition: not each event is held against each open problem, nor each
    waiting one looked at with each event. The step keeps the server from all else meanwhile."""

    def looks(hosts: int) -> int:
        count = 0
        fits = match.fits_matcher

        def counting(*given: Any) -> bool:
            nonlocal count
            count += 1
            return fits(*given)

        for module in ("inhibition", "hindrance"):
            monkeypatch.setattr(f"virtha.alerts.{module}.fits_matcher", counting)
        story = Story(by_cause(), inhibitions=(HOST_DOWN, rule("host.suspected", "vm.*", "j")))
        for first, then in (
            ("host.unreachable", "vm.agent.lost"),
            ("host.reachable", "vm.agent.connected"),
        ):
            events = [story.event(first, f"h{host}") for host in range(hosts)]
            events += [
                story.event(then, f"h{host}", f"v{host}-{vm}")
                for vm in range(5)
                for host in range(hosts)
            ]
            for start in range(0, len(events), 50):
                story.now += S
                story.step(*events[start : start + 50])
        return count

    assert looks(200) < 4 * 1.3 * looks(50)


def test_the_cause_may_come_after_what_it_explains() -> None:
    story = Story(by_cause(group_by=GroupBy.CLUSTER), inhibitions=(HOST_DOWN,))
    lost = [story.happens("vm.agent.lost", "h1", f"v{number}") for number in range(3)]
    story.after(5)
    story.happens("host.unreachable", "h1")
    story.after(10)
    assert story.messages() == [("first", ["host.unreachable"])]
    assert {story.fate(one) for one in lost} == {"inhibited"}


def test_who_is_not_told_of_the_host_is_told_of_its_vm() -> None:
    only_vms = route("vms", codes=("vm.*",))
    silenced = silence(codes=("host.unreachable",))
    story = Story(route(), only_vms, inhibitions=(HOST_DOWN,), silences=(silenced,))
    story.happens("host.unreachable", "h1")
    story.happens("vm.agent.lost", "h1", "v1")
    assert [(to, codes) for to, _, _, codes in story.told] == [
        ("r", ["vm.agent.lost"]),
        ("vms", ["vm.agent.lost"]),
    ]


@pytest.mark.parametrize(
    ("same", "inhibited"),
    [
        (Same.HOST, False),
        (Same.INCIDENT, True),
        (Same.CLUSTER, True),
        (Same.ANYTHING, True),
        (Same.VM, False),
    ],
)
def test_what_cause_and_event_must_have_in_common(same: Same, inhibited: bool) -> None:
    story = Story(route(), inhibitions=(rule("host.judged_dead", "vm.*", same=same),))
    story.happens("host.judged_dead", "h1", incident="I")
    failed = story.happens("vm.recovery_failed", "h2", "v1", incident="I")
    assert story.fate(failed) == ("inhibited" if inhibited else "told")


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("restart", [True, False])
def test_a_route_that_is_switched_off_for_a_minute_tells_what_goes_on(restart: bool) -> None:
    """What a silence kept back, if it wasn't over meanwhile; while it is off it tells nothing."""
    mine = by_cause(repeat_ms=3_600 * S)
    story = Story(mine, silences=(silence(codes=("vm.*",)),))
    parked = story.happens("vm.quarantined", "h1", "v1")
    freed = story.happens("vm.quarantined", "h1", "v2")
    story.happens("fence.failed", "h9")
    story.after(60)
    assert story.messages() == [("first", ["fence.failed"])]
    story.configure(routes=(), off=(mine,))
    assert story.wake_at is None
    end = story.event("vm.freed", "h1", "v2")
    assert story.router.concerned(story.config, end)
    story.step(end)
    story.happens("host.returned", "h9")
    story.after(2 * 3_600)
    assert story.messages() == [] and story.fate(freed) == "solved_untold"
    if restart:
        story.router = story.reopened()
    story.configure(routes=(mine,), off=())
    story.after(600)
    assert story.messages() == [("first", ["vm.quarantined"])]
    assert story.fate(parked) == "told"


def test_a_route_that_is_removed_drops_what_waits() -> None:
    story = Story(by_cause(), route("other"))
    lost = story.happens("vm.agent.lost", "h1", "v1")
    story.configure(routes=(route("other"),))
    assert story.fate(lost) == "dropped" and story.fates[lost, "r"].state is FateState.SPARED
    assert story.fate(lost, "other") == "told"


def test_a_clock_that_is_set_back_tells_too_early_not_too_late() -> None:
    story = Story(by_cause())
    story.happens("vm.crashed", "h1", "v1")
    story.now = START - 24 * 3_600 * S
    story.step()
    assert story.messages() == [("first", ["vm.crashed"])]


def test_an_incident_whose_end_never_comes_is_forgotten() -> None:
    story = Story(by_cause(cluster_id=ClusterId("c")))
    story.happens("host.judged_dead", "h1", incident="I")
    story.happens("host.returned", "h1", incident="I")
    story.after(24 * 3_600 + 600)
    assert story.groups == {} and story.wake_at is None
