"""Every problem whose end a route waits for has one: in a story, or in a test that plays what the simulator has not."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from routed_story import S, Story, by_cause, route

from virtha.alerts.plain import plainly
from virtha.model.codes import ENDS_ALL_OF, SOLVED_BY, Severity
from virtha.model.event import PAST, Event
from virtha.model.ids import SubscriptionId

TESTS = Path(__file__).parents[2]
_OF_AN_INCIDENT = "unit/control/test_incident_log.py"
"""Over with the host's failure, whatever kept its VMs down meanwhile."""
ELSEWHERE = {
    "fence.capped": _OF_AN_INCIDENT,
    "fence.held_by_disks": _OF_AN_INCIDENT,
    "fence.left_alone": _OF_AN_INCIDENT,
    "fence.on_failed": "unit/engine/test_power_on.py",
    "fence.orders_late": "unit/engine/test_power_on.py",
    "fence.storage.failed": "unit/engine/test_storage_fence.py",
    "hold.set": "unit/server/test_notifier.py",
    "host.gate.missing": "unit/agent/test_agent_on_sim.py",
    "host.watchdog.broken": "unit/agent/test_guardian_storage_lease.py",
    "notify.receiver_away": "unit/server/test_notifier_crashes.py",
    "power.test.broke": "unit/server/test_power_tester.py",
    "storage.not_shared": "unit/engine/test_not_shared.py",
    "vm.agent.lost": "unit/sentinel/test_sentinel_rules.py",
    "vm.guest_frozen": "unit/agent/test_order_live_disks_on_sim.py",
    "vm.io_error.resume_failed": "unit/sentinel/test_io_errors.py",
    "vm.migration_keeps_failing": "unit/engine/test_drain.py",
    "vm.start_unclear": "unit/engine/test_host_dies.py",
}


def _ends_in(text: str, problem: str) -> bool:
    at = text.find(problem)
    return at >= 0 and any(text.find(end, at) > 0 for end in SOLVED_BY[problem])


@pytest.mark.req("W7", "F4")
def test_every_problem_ends_somewhere() -> None:
    stories = [path.read_text() for path in sorted((TESTS / "scenarios").glob("*.txt"))]
    untold = [one for one in SOLVED_BY if not any(_ends_in(text, one) for text in stories)]
    assert {*untold} == {*ELSEWHERE}
    for problem, file in ELSEWHERE.items():
        text = (TESTS / file).read_text()
        assert any(end in text for end in SOLVED_BY[problem]), problem


@pytest.mark.parametrize(
    ("problem", "end", "told"),
    [
        ("host.lease.lost", "host.returned", True),
        ("host.lease.cleared", "host.incident_over", True),
        ("vm.agent.lost", "vm.stopped", True),
        ("power.test.broke", "power.test.passed", True),
        ("power.test.broke", "power.settings.removed", True),
        ("notify.receiver_away", "notify.receiver.changed", True),
        ("notify.receiver_away", "notify.receiver.removed", True),
        ("vm.migration_keeps_failing", "vm.migration_cancelled", True),
        ("vm.io_error.given_up", "vm.recovered", True),
        ("vm.io_error.paused", "vm.io_error.resumed", True),
        ("vm.io_error.paused", "vm.stopped", True),
        ("vm.start_failed", "vm.resumed", True),
        ("vm.restart.blocked", "vm.restarted", True),
        ("vm.restart.blocked", "vm.recovered", True),
        ("vm.crashed", "vm.migrated", True),
        ("vm.recovery_failed", "vm.started", True),
        ("vm.quarantined", "vm.started", True),
        ("vm.recovery_given_up", "vm.unwanted", True),
        ("vm.recovery_blocked", "vm.unwanted", True),
        ("vm.crashed", "vm.unwanted", True),
        ("vm.io_error.paused", "vm.unwanted", True),
        ("vm.io_error.paused", "vm.restarted", True),
        ("vm.quarantined", "vm.lives_after_all", False),
        ("vm.recovery_given_up", "vm.lives_after_all", False),
        ("vm.recovery_blocked", "vm.lives_after_all", False),
        ("vm.restart.blocked", "vm.lives_after_all", False),
    ],
)
def test_ends_that_were_missing(problem: str, end: str, told: bool) -> None:
    """Of a host that boots anew, of a VM that is stopped, of what is removed: nothing else of it comes."""
    story = Story(route())
    vm = "v1" if problem.startswith("vm.") else None
    fields = {"domain": "d1"} if "lease" in problem else {"device": "bmc"}
    if problem.startswith("notify."):
        fields = {"receiver_id": "r1"}
    of_end = {} if end in ("host.returned", "host.incident_over") else fields
    story.happens(problem, "h1", vm, **fields)
    story.happens(end, "h1", vm, **of_end)
    assert [codes for _, codes in story.messages()] == [[problem], [end]]
    assert story.groups == {}


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("closing", [True, False])
def test_a_start_of_a_boot_that_is_over_ends_nothing(closing: bool) -> None:
    """A host that returns tells of starts before its reset: the VM is down, and stays a problem."""
    closes = frozenset({SubscriptionId("r")}) if closing else frozenset()
    story = Story(by_cause(repeat_ms=3_600 * S), closing=closes)
    story.happens("vm.quarantined", "h1", "v1")
    story.after(10)
    story.step(_past(story, "vm.started"))
    story.after(300)
    assert story.messages() == [("first", ["vm.quarantined"])]
    assert plainly(story.now, story.config, [_past(story, "vm.started")]).tells == ()
    story.happens("vm.started", "h2", "v1")
    story.after(300)
    assert story.messages() == [("well", ["vm.started"])]


@pytest.mark.req("W7", "F4")
def test_a_trouble_of_a_boot_that_is_over_goes_on_nowhere() -> None:
    """The VM runs elsewhere by then, so no end of it comes: a route that wants all of it hears of it, once."""
    story = Story(by_cause(severity=Severity.INFO, repeat_ms=3_600 * S))
    story.step(_past(story, "vm.restart.blocked"))
    story.after(10_000)
    assert [kind for _, _, kind, _ in story.told] == ["notice"]
    assert story.messages() == [("first", ["vm.restart.blocked"])]
    assert story.groups == {}


def _past(story: Story, code: str) -> Event:
    made = story.event(code, "h1", "v1")
    return replace(made, severity=Severity.INFO, fields={PAST: True})


def test_of_one_domain_the_lease_is_held_again_and_not_of_another() -> None:
    story = Story(route())
    story.happens("host.lease.lost", "h1", domain="d1")
    story.happens("host.lease.lost", "h1", domain="d2")
    story.happens("host.lease.held_again", "h1", domain="d2")
    (group,) = story.groups.values()
    assert [one.subject for one in group.members] == ["host:h1/d1"]


def test_a_problem_that_takes_the_place_of_another_is_no_good_news() -> None:
    story = Story(by_cause(repeat_ms=3_600 * S))
    story.happens("vm.recovery_blocked", "h1", "v1")
    story.after(10)
    story.happens("vm.not_recovered", "h1", "v1")
    story.after(300)
    (_, _, kind, codes) = story.told[-1]
    assert (kind, codes) == ("problem", ["vm.not_recovered"])
    story.messages()
    story.after(3_600)
    assert story.messages() == [("repeat", ["vm.not_recovered"])]
    story.happens("vm.started", "h1", "v1")
    story.after(300)
    assert story.messages() == [("well", ["vm.started"])]


def test_a_host_whose_agent_is_down_and_that_boots_is_well_without_a_word_of_its_agent() -> None:
    """The usual course: what is told is that it can't be reached, then that it can. The agent's trouble was repeated for ever."""
    story = Story(by_cause(repeat_ms=3_600 * S))
    story.happens("host.agent.down", "h1")
    story.after(10)
    story.happens("host.unreachable", "h1")
    story.after(300)
    story.happens("host.reachable", "h1")
    story.after(300)
    assert [reason for reason, _ in story.messages()] == ["first", "worse", "well"]
    story.after(86_400)
    assert story.messages() == [] and story.groups == {}


@pytest.mark.parametrize("problem", ["storage.outage", "storage.not_shared"])
def test_the_troubles_of_a_domain_that_is_removed_are_over(problem: str) -> None:
    """Of that one: and with the cluster, of all."""
    story = Story(route(repeat_ms=3_600 * S))
    story.happens(problem, domain="d1")
    story.happens(problem, domain="d2")
    story.happens("storage.removed", name="ds1", domain="d1")
    assert [codes for _, codes in story.messages()] == [[problem], [problem], ["storage.removed"]]
    (group,) = story.groups.values()
    assert [one.subject for one in group.members] == ["cluster:c/d2"]
    story.happens("fence.brake.tripped")
    story.happens("cluster.deleted", name="c")
    story.messages()
    story.after(86_400)
    assert story.messages() == [] and story.groups == {}


def test_what_ends_all_of_an_object_names_an_object() -> None:
    assert {*ENDS_ALL_OF.values()} == {"cluster", "host", "vm", "receiver"}
