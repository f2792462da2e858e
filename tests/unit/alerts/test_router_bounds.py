"""Routes with more than they can hold: what is beyond is counted, makes room, or goes into a further group. Nothing is lost."""

from typing import Any

import pytest
from msgspec.structs import replace
from routed_story import START, Story, by_cause, route, silence

from virtha.alerts import router
from virtha.alerts.group_message import LISTED_MAX
from virtha.alerts.groups import GROUPS_MAX, MEMBERS_MAX, Groups
from virtha.model.event import Event
from virtha.model.ids import GroupId, SubscriptionId
from virtha.model.routing import (
    FateState,
    Group,
    GroupBy,
    Member,
    MemberState,
    QuietHours,
)

NIGHT = (QuietHours(begins="22:00", ends="07:00"),)
TO_NIGHT = 11 * 3_600 + 60
"""From the story's beginning to a minute past ten in the evening."""


def test_a_group_that_is_full_tells_at_once_and_forgets_nobody() -> None:
    story = Story(by_cause())
    made = [
        story.event("vm.watchdog.fired", "h1", f"v{number}") for number in range(MEMBERS_MAX + 50)
    ]
    (tell,) = story.step(*made).tells
    assert tell.note is not None and tell.note.counted + len(tell.note.revisions) == len(made)
    assert all(fate.state is FateState.TOLD for fate in story.fates.values())


def test_a_message_lists_the_gravest_and_its_main_event_and_counts_none_twice() -> None:
    """The oldest hundred were listed, whatever they were."""
    story = Story(by_cause())
    made = [story.event("vm.watchdog.fired", "h1", f"v{number}") for number in range(150)]
    made += [story.event("vm.pause_failed", "h1", f"v{number}") for number in range(30)]
    made.append(story.event("host.lease.lost", "h1", domain="d"))
    story.step(*made)
    story.now += 10 * 1_000
    (tell,) = story.step().tells
    assert tell.note is not None and tell.event_revision == made[-1].revision
    assert len(tell.note.revisions) == LISTED_MAX
    assert {*tell.note.revisions} == {one.revision for one in (*made[:69], *made[150:])}
    assert list(tell.note.revisions) == sorted(tell.note.revisions)
    assert tell.note.counted == len(made) - LISTED_MAX and len(tell.every) == len(made)


def test_what_was_only_counted_may_head_a_message_and_is_not_counted_again() -> None:
    story = Story(by_cause(quiet=NIGHT))
    story.after(TO_NIGHT)
    made = [story.event("vm.agent.lost", "h1", f"v{number}") for number in range(MEMBERS_MAX)]
    made += [story.event("vm.crashed", "h1", f"w{number}") for number in range(3)]
    story.step(*made)
    story.now += 9 * 3_600 * 1_000
    (tell,) = story.step().tells
    assert tell.note is not None and tell.event_revision == made[MEMBERS_MAX].revision
    assert tell.event_revision in tell.note.revisions and len(tell.note.revisions) == LISTED_MAX
    assert tell.note.counted + LISTED_MAX == len(made)


def test_what_is_beyond_in_quiet_hours_is_told_as_a_number_after_them() -> None:
    story = Story(by_cause(quiet=NIGHT))
    story.after(TO_NIGHT)
    made = [story.event("vm.crashed", "h1", f"v{number}") for number in range(MEMBERS_MAX + 50)]
    story.step(*made)
    assert story.told == []
    alert = story.happens("host.lease.lost", "h1", domain="d")
    story.after(10)
    assert story.fate(alert) == "told", "an alert finds room"
    story.after(9 * 3_600)
    assert all(fate.state is FateState.TOLD for fate in story.fates.values())


def test_what_was_only_counted_is_dropped_with_its_route() -> None:
    story = Story(by_cause(quiet=NIGHT))
    story.after(TO_NIGHT)
    made = [story.event("vm.crashed", "h1", f"v{number}") for number in range(MEMBERS_MAX + 5)]
    story.step(*made)
    story.configure(routes=())
    assert {fate.state for fate in story.fates.values()} == {FateState.SPARED}
    assert story.groups == {}


@pytest.mark.parametrize("group_by", [GroupBy.CAUSE, GroupBy.NONE])
def test_however_many_are_silenced_nothing_is_told_before_the_silence_ends(
    group_by: GroupBy,
) -> None:
    """A large cluster that is worked on: no number of them is told either."""
    story = Story(route(group_by=group_by), silences=(silence(ends=3_600, codes=("vm.*",)),))
    count = GROUPS_MAX + 3 * MEMBERS_MAX
    made = [story.event("vm.crashed", "h1", f"v{number}") for number in range(count)]
    for start in range(0, count, 200):
        story.step(*made[start : start + 200])
    assert story.told == [] and {fate.state for fate in story.fates.values()} == {FateState.PARKED}
    assert len(story.groups) <= GROUPS_MAX + 4
    story.after(600)
    over = [story.event("vm.restarted", "h1", f"v{number}") for number in range(0, count, 2)]
    story.step(*over)
    story.after(2_990)
    assert story.told == []
    story.after(7_200)
    for number, one in enumerate(made):
        assert story.fate(one.revision) == ("told" if number % 2 else "solved_untold")


@pytest.mark.parametrize("group_by", [GroupBy.CAUSE, GroupBy.NONE])
def test_what_is_silenced_takes_no_room_from_what_is_not(group_by: GroupBy) -> None:
    """A subscription told a number in the midst of a large silence, and no more, of what nobody silenced."""
    story = Story(
        route(group_by=group_by, group_wait_ms=0),
        silences=(silence(ends=3_600, codes=("vm.agent.lost",)),),
    )
    made = [
        story.event("vm.agent.lost", None, f"v{number}")
        for number in range(GROUPS_MAX + 2 * MEMBERS_MAX)
    ]
    for start in range(0, len(made), 200):
        story.step(*made[start : start + 200])
    assert story.told == []
    crashed = [story.happens("vm.crashed", None, f"w{number}") for number in range(3)]
    story.after(1)
    assert [codes for _, codes in story.messages()] == [["vm.crashed"]] * 3
    assert {story.fate(one) for one in crashed} == {"told"}
    story.after(3_600 + 60)
    assert {fate.state for fate in story.fates.values()} == {FateState.TOLD}
    assert not story.counted


@pytest.mark.parametrize("group_by", [GroupBy.CAUSE, GroupBy.NONE])
def test_the_end_of_a_large_silence_is_many_short_steps(
    group_by: GroupBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of VMs were looked at in one, each time with all of their group: the server did nothing else for seconds."""
    monkeypatch.setattr("virtha.alerts.router.PARKED_LOOKS_MAX", 2 * MEMBERS_MAX)
    story = Story(
        route(group_by=group_by, group_wait_ms=0), silences=(silence(ends=3_600, codes=("vm.*",)),)
    )
    made = [story.event("vm.crashed", "h1", f"v{number}") for number in range(6 * MEMBERS_MAX)]
    for start in range(0, len(made), 200):
        story.step(*made[start : start + 200])
    looked = puts = 0
    hindrance, put = router.hindrance, Groups.put

    def looking(*given: Any, **more: Any) -> Any:
        nonlocal looked
        looked += 1
        return hindrance(*given, **more)

    def putting(groups: Groups, group: Group) -> None:
        nonlocal puts
        puts += 1
        put(groups, group)

    monkeypatch.setattr(router, "hindrance", looking)
    monkeypatch.setattr(Groups, "put", putting)
    story.now += 3_600 * 1_000
    steps, known = 0, len(story.groups)
    while story.wake_at is not None and story.wake_at <= story.now:
        looked = 0
        story.step()
        steps += 1
        assert looked <= 2 * 3 * MEMBERS_MAX, "each to let it go, and each to tell it"
    assert steps >= 2 and puts <= 5 * known
    assert {fate.state for fate in story.fates.values()} == {FateState.TOLD}


def test_a_plain_subscription_with_many_open_problems_tells_the_next_at_once() -> None:
    story = Story(route())
    made = [story.event("vm.crashed", None, f"v{number}") for number in range(GROUPS_MAX + 250)]
    story.step(*made)
    assert [codes for _, codes in story.messages()] == [["vm.crashed"]] * len(made)
    assert len(story.groups) == GROUPS_MAX and not story.counted


def test_what_is_beyond_all_bounds_is_told_as_a_number_though_it_is_silenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("virtha.alerts.groups.PARKED_GROUPS_MAX", 2)
    monkeypatch.setattr("virtha.alerts.groups.FURTHER_MAX", 1)
    story = Story(by_cause(), silences=(silence(codes=("vm.*",)),))
    made = [story.event("vm.crashed", "h1", f"v{number}") for number in range(3 * MEMBERS_MAX)]
    story.step(*made)
    assert story.told == []
    story.happens("vm.crashed", "h1", "w")
    ((_, codes),) = story.messages()
    assert codes == ["vm.crashed"] and len(story.groups) == 3


def test_a_group_that_only_counts_in_quiet_hours_makes_nobody_look_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``after`` fails where it never comes to rest."""
    for name, bound in (("GROUPS_MAX", 1), ("PARKED_GROUPS_MAX", 0), ("FURTHER_MAX", 0)):
        monkeypatch.setattr(f"virtha.alerts.groups.{name}", bound)
    monkeypatch.setattr("virtha.alerts.groups.MEMBERS_MAX", 2)
    story = Story(by_cause(quiet=NIGHT), silences=(silence(ends=20 * 3_600, codes=("vm.*",)),))
    story.after(TO_NIGHT)
    story.happens("host.lease.poisoned", "h1", domain="d")
    story.after(10)
    for number in range(3):
        story.happens("vm.crashed", "h1", f"v{number}")
    for number in range(2):
        story.happens("vm.restarted", "h1", f"v{number}")
    (only,) = story.groups.values()
    assert (only.members, only.counted) == ((), 1)
    story.after(3_600)
    assert [codes for _, codes in story.messages()] == [["host.lease.poisoned"]]
    story.after(9 * 3_600)
    assert [codes for _, codes in story.messages()] == [["vm.crashed"]]


def test_what_comes_into_a_group_that_is_looked_at_later_stays_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One group has no room for what is silenced as it is to be told; the other, of the same cause, is let go in that very step."""
    monkeypatch.setattr("virtha.alerts.groups.MEMBERS_MAX", 3)
    silences = (
        silence("long", ends=3_600, codes=("vm.agent.lost",)),
        silence("short", ends=10, codes=("vm.panicked",)),
        silence("new", begins=5, ends=3_600, codes=("vm.crashed",)),
    )
    story = Story(by_cause(), silences=silences)
    crashed = story.happens("vm.crashed", "h1", "v0")
    made = [story.happens("vm.agent.lost", "h1", f"v{number}") for number in range(3)]
    panicked = story.happens("vm.panicked", "h1", "v4")
    assert len(story.groups) == 2
    story.after(10)
    assert (story.fate(crashed), story.fate(panicked)) == ("silenced", "waits")
    story.after(4_000)
    assert {story.fate(one) for one in (crashed, panicked, *made)} == {"told"}


@pytest.mark.req("W7", "F4")
def test_all_is_not_well_while_another_group_of_the_same_cause_goes_on() -> None:
    """More was silenced than one group parks. Nobody who is told knows that there are two."""
    story = Story(
        by_cause(group_wait_ms=0, group_interval_ms=300_000),
        silences=(silence(codes=("vm.*",), ends=600),),
    )
    story.step(*(story.event("vm.quarantined", "h1", f"v{number}") for number in range(260)))
    story.after(1_200)
    assert [why for why, _ in story.messages()] == ["first", "first"]
    one, other = story.groups.values()
    for group, reason, still in ((one, "more", 60), (other, "well", 0)):
        vms = [member.event.vm_id for member in group.members]
        (tell,) = story.step(*(story.event("vm.freed", "h1", vm) for vm in vms)).tells
        assert tell.note is not None
        assert (tell.note.reason, tell.note.open) == (f"notify.told.{reason}", still)
        story.after(1_200)
    assert story.groups == {}


def test_what_goes_into_a_further_group_leaves_the_others_where_they_are() -> None:
    """Also where the very event began the group that it leaves."""
    groups = Groups(())
    event = Story().event("vm.crashed", "h1", "v1")
    full = Group(id=GroupId("r:1+"), subscription_id=SubscriptionId("r"), key="host:h1")
    full = replace(full, members=tuple(_member(event) for _ in range(MEMBERS_MAX)))
    groups.put(full)
    further = groups.further(full, event, START)
    assert further is not None and further.id != full.id and further.members == ()


def _member(event: Event) -> Member:
    return Member(event=event, subject="vm:v1", state=MemberState.PARKED, since=START)


def test_open_problems_of_long_ago_make_room() -> None:
    """A route whose problems never ended still tells new ones each by its cause."""
    story = Story(by_cause())
    old = [story.event("vm.crashed", None, f"v{number}") for number in range(GROUPS_MAX)]
    story.step(*old)
    story.after(23 * 3_600)
    lost = story.happens("vm.crashed", None, "w1")
    story.after(3_700)
    assert story.fates[lost, "r"].group_id == "r:others"
    found = [story.happens("vm.crashed", None, name) for name in ("w2", "w3")]
    story.after(60)
    assert [story.fates[one, "r"].group_id for one in found] == [f"r:{one}" for one in found]
    assert len(story.groups) <= GROUPS_MAX + 1


def test_no_more_groups_than_there_may_be() -> None:
    story = Story(route(quiet=NIGHT))
    story.after(TO_NIGHT)
    count = GROUPS_MAX + MEMBERS_MAX + 20
    story.step(*[story.event("vm.crashed", "h1", f"v{number}") for number in range(count)])
    assert len(story.groups) == GROUPS_MAX + 1
    story.after(10 * 3_600)
    assert len(story.told) == GROUPS_MAX + 1
    assert all(fate.state is FateState.TOLD for fate in story.fates.values())


class Counted(dict[GroupId, Group]):
    reads = 0

    def __getitem__(self, group_id: GroupId) -> Group:
        self.reads += 1
        return super().__getitem__(group_id)


@pytest.mark.parametrize("group_by", [GroupBy.CAUSE, GroupBy.HOST])
def test_where_a_route_has_all_groups_that_it_may_an_event_looks_at_few(group_by: GroupBy) -> None:
    """Each looked at all of them, several times: a power cut's events stopped the server for seconds."""
    story = Story(route(group_by=group_by))
    hosts = GROUPS_MAX + 10
    story.step(*[story.event("host.unreachable", f"h{number}") for number in range(hosts)])
    assert len(story.groups) == GROUPS_MAX + 1
    story.after(10)
    groups = story.router._groups
    counted = Counted(groups._groups)
    groups._groups = counted
    number = 200
    events = [story.event("vm.crashed", f"h{one + hosts // 2}", f"v{one}") for one in range(number)]
    incidents = [
        story.event("host.incident_over", f"h{one}", incident_id=f"i{one}") for one in range(number)
    ]
    far = [story.event("vm.crashed", f"far{one}", f"w{one}") for one in range(number)]
    story.step(*events, *incidents, *far)
    assert counted.reads < 20 * 3 * number


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("group_by", [GroupBy.CLUSTER, GroupBy.CAUSE])
@pytest.mark.parametrize(
    ("first", "code", "end"),
    [
        (MEMBERS_MAX, "vm.quarantined", "vm.freed"),
        (MEMBERS_MAX, "vm.recovery_blocked", "vm.recovered"),
        (MEMBERS_MAX + 60, "vm.recovery_blocked", "vm.recovered"),
        (10, "vm.recovery_blocked", "vm.recovered"),
    ],
)
def test_all_is_not_well_while_nobody_knows_of_some(
    group_by: GroupBy, first: int, code: str, end: str
) -> None:
    """Of 260 VMs that are down 60 are counted, or forgotten for others: 200 are seen to, and the message says what isn't known."""
    story = Story(route(group_by=group_by, group_wait_ms=10_000, group_interval_ms=300_000))
    made = [story.event(code, "h1", f"v{number}") for number in range(260)]
    story.step(*made[:first])
    story.after(10)
    story.step(*made[first:])
    story.after(3_600)
    (group,) = story.groups.values()
    assert group.unfollowed == 260 - MEMBERS_MAX
    known = [one.event.vm_id for one in group.members if one.state is MemberState.OPEN]
    assert len(known) == MEMBERS_MAX
    story.messages()
    (tell,) = story.step(*(story.event(end, "h1", vm) for vm in known)).tells
    assert tell.note is not None and tell.note.kind == "solved"
    assert (tell.note.reason, tell.note.open, tell.note.unfollowed) == ("notify.told.more", 0, 60)
    story.messages()
    story.happens("vm.crashed", "h1", "v0")
    story.after(3_600)
    story.happens("vm.restarted", "h1", "v0")
    story.after(3_600)
    assert [why for why, _ in story.messages()] == ["more", "more"]
    story.after(25 * 3_600)
    assert story.groups == {} and story.wake_at is None
