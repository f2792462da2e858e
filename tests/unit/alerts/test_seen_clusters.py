"""Routes to users who see some clusters only: what happens elsewhere is nothing to them, whatever else the router would do."""

import msgspec
import pytest
from routed_story import Story, route

from virtha.alerts.plain import plainly
from virtha.model.event import Event
from virtha.model.ids import ClusterId, SubscriptionId
from virtha.model.routing import GroupBy

SEEN = {SubscriptionId("r"): frozenset({ClusterId("c")})}


def elsewhere(event: Event, cluster: str | None = "other") -> Event:
    return msgspec.structs.replace(event, cluster_id=ClusterId(cluster) if cluster else None)


@pytest.mark.req("L6", "W7")
@pytest.mark.parametrize("group_by", [GroupBy.NONE, GroupBy.CAUSE])
@pytest.mark.parametrize("cluster", ["other", None], ids=["of-another", "of-none"])
def test_what_its_user_may_not_see_is_not_told(group_by: GroupBy, cluster: str | None) -> None:
    story = Story(route(group_by=group_by), route("all", group_by=group_by), seen=SEEN)
    here = story.event("host.unreachable", "h1")
    there = elsewhere(story.event("host.unreachable", "h2"), cluster)
    wants = [story.config.wants(story.config.routes[0], one) for one in (here, there)]
    assert wants == [True, False]
    story.step(here, there)
    story.after(600)
    told = {(name, codes) for name, _, _, found in story.told for codes in found}
    assert told == {("r", "host.unreachable"), ("all", "host.unreachable")}
    assert (there.revision, SubscriptionId("r")) not in story.fates
    assert story.fate(there.revision, "all") == "told"


@pytest.mark.req("L6", "W7")
def test_the_end_of_a_problem_is_not_told_to_who_sees_it_no_more() -> None:
    """And it is over for the route all the same: else it would be repeated for ever."""
    story = Story(route(repeat_ms=3_600_000))
    story.happens("host.unreachable", "h1")
    story.after(600)
    story.configure(seen={SubscriptionId("r"): frozenset()})
    story.told.clear()
    story.happens("host.reachable", "h1")
    story.after(86_400)
    assert story.told == []


@pytest.mark.req("L6", "W7")
def test_a_router_that_fails_tells_nothing_more_to_who_sees_a_part() -> None:
    story = Story(route(), seen=SEEN)
    here = story.event("host.unreachable", "h1")
    there = elsewhere(story.event("host.unreachable", "h2"))
    decision = plainly(story.now, story.config, (here, there))
    assert [one.event_revision for one in decision.tells] == [here.revision]
