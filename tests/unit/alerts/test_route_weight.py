"""What a route would have told: of a log that the test makes up."""

import pytest
from routed_story import S, Story, route

from virtha.alerts.decision import Decision
from virtha.alerts.router import Router
from virtha.control.route_weight import LOOKS_MAX, MESSAGES_MAX, weighed
from virtha.model.event import Event
from virtha.model.routing import GroupBy

HOUR_MS = 3_600 * S


def crashes(count: int, every_ms: int) -> list[Event]:
    """VMs that nobody brings back."""
    story = Story()
    found = []
    for number in range(count):
        story.now += every_ms
        found.append(story.event("vm.crashed", f"h{number % 50}", f"v{number}"))
    return found


def test_repeats_are_counted() -> None:
    """Ten VMs, one an hour, each told again every hour until the last."""
    events = crashes(10, HOUR_MS)
    assert weighed(route(repeat_ms=None), events).messages == 10
    assert weighed(route(repeat_ms=HOUR_MS), events).messages == 10 + sum(range(10))


@pytest.mark.parametrize("every_ms", [864 * S, 61 * S])
@pytest.mark.parametrize("group_by", [GroupBy.NONE, GroupBy.CAUSE])
def test_a_route_that_repeats_a_thousand_problems_each_minute_is_weighed_all_the_same(
    group_by: GroupBy, every_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ten days, or with a new one at each repeat: not counted to its end, for the server has other things to do."""
    steps = told = 0
    step = Router.step

    def counting(*given: object) -> Decision:
        nonlocal steps, told
        decision = step(*given)  # type: ignore[arg-type]  # as they came
        steps, told = steps + 1, told + len(decision.tells)
        return decision

    monkeypatch.setattr(Router, "step", counting)
    weight = weighed(route(repeat_ms=60 * S, group_by=group_by), crashes(1_000, every_ms))
    assert steps <= 1_000 + LOOKS_MAX and told < 2 * MESSAGES_MAX
    assert weight.matched == 1_000 and weight.per_day > 1_000
