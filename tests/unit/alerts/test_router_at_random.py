"""No event is lost: any mix of events, time, silences, rules, restarts and refused writes. And nothing grows without bound."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from routed_story import S, Story, route, silence
from routed_story import rule as inhibition

from virtha.alerts.groups import INHIBITED, MEMBERS_MAX
from virtha.alerts.hindrance import presses
from virtha.alerts.inhibition import inhibits
from virtha.alerts.match import fits_matcher, matches
from virtha.alerts.quiet import quiet_until
from virtha.model.codes import MAY_RUN_TWICE, SOLVED_BY, Severity
from virtha.model.event import Event
from virtha.model.ids import Revision, SubscriptionId
from virtha.model.routing import FateState, GroupBy, MemberState, QuietHours

CODES = (
    "host.unreachable",
    "host.reachable",
    "host.suspected",
    "host.judged_dead",
    "host.returned",
    "host.incident_over",
    "host.lease.lost",
    "host.lease.held_again",
    "vm.crashed",
    "vm.restarted",
    "vm.agent.lost",
    "vm.agent.connected",
    "vm.watchdog.fired",
    "vm.quarantined",
    "vm.pause_failed",
    "vm.superseded",
    "vm.deleted",
)
OFTEN_NIGHT = (QuietHours(begins="11:30", ends="12:30"), QuietHours(begins="13:00", ends="11:05"))
RULES = (
    inhibition("host.unreachable", "vm.*", "down"),
    inhibition("host.judged_dead", "host.suspected", "dead"),
)
ROUTES = st.builds(
    route,
    solved=st.booleans(),
    group_by=st.sampled_from(GroupBy),
    same_again_ms=st.sampled_from((0, 600 * S)),
    repeat_ms=st.sampled_from((None, 3_600 * S)),
    quiet=st.sampled_from(((), OFTEN_NIGHT)),
    severity=st.sampled_from((Severity.INFO, Severity.WARNING, Severity.ERROR)),
)


class RoutesAtRandom(RuleBasedStateMachine):
    @initialize(one=ROUTES, other=ROUTES)
    def begin(self, one: object, other: object) -> None:
        self.story = Story(replace(one), replace(other, id=SubscriptionId("q")))
        self.silences = 0
        self.in_messages: dict[tuple[Revision, SubscriptionId], int] = {}

    def _step(self, *events: Event) -> None:
        story = self.story
        decision = story.router.step(story.now, story.config, events)
        for tell in decision.tells:
            self._check_tell(tell)
        story.keep(decision)
        for event in events:
            for one in story.config.routes:
                if matches(one, event):
                    assert (event.revision, one.id) in story.fates, "each matched event has a fate"

    def _check_tell(self, tell: object) -> None:
        story = self.story
        listed = tell.note.revisions if tell.note else (tell.event_revision,)
        events = [story.events[one] for one in listed]
        quiet = quiet_until(tell.route.quiet, story.now, lambda _zone, _at: 0)
        assert quiet is None or all(presses(one) for one in events)
        if tell.note is None or tell.note.reason != "notify.told.repeat":
            events = [one for one in events if one.code not in MAY_RUN_TWICE]
        active = [one for one in story.config.silences if one.begins <= story.now < one.ends]
        assert not any(fits_matcher(one.matcher, event) for one in active for event in events)
        if tell.note is None or tell.note.reason != "notify.told.repeat":
            for fate in tell.fates:
                key = (fate.event_revision, fate.subscription_id)
                self.in_messages[key] = self.in_messages.get(key, 0) + 1

    @rule(
        picks=st.lists(
            st.tuples(st.sampled_from(CODES), st.integers(1, 2), st.integers(1, 3), st.booleans()),
            min_size=1,
            max_size=6,
        )
    )
    def happens(self, picks: list[tuple[str, int, int, bool]]) -> None:
        made = []
        for code, host, vm, of_incident in picks:
            incident = f"I{host}" if of_incident or code == "host.incident_over" else None
            vm_id = f"v{vm}" if code.startswith("vm.") else None
            made.append(self.story.event(code, f"h{host}", vm_id, incident))
        self._step(*made)

    @rule(seconds=st.sampled_from((1, 10, 60, 300, 1_800, 7_200, 86_400)))
    def time_passes(self, seconds: int) -> None:
        until = self.story.now + seconds * S
        for _ in range(300):
            moment = self.story.wake_at
            if moment is None or moment > until:
                break
            self.story.now = max(self.story.now, moment)
            self._step()
        else:
            raise AssertionError("it wakes again and again and nothing comes of it")
        self.story.now = until
        self._step()

    @rule(seconds=st.sampled_from((10, 4_000)))
    def the_clock_is_set_back(self, seconds: int) -> None:
        self.story.now -= seconds * S
        self._step()

    @rule(
        codes=st.sampled_from((("vm.*",), ("host.*",), ("*",))), length=st.sampled_from((30, 900))
    )
    def somebody_silences(self, codes: tuple[str, ...], length: int) -> None:
        self.silences += 1
        made = silence(f"s{self.silences}", codes=codes)
        made = replace(made, begins=self.story.now, ends=self.story.now + length * S)
        config = self.story.config
        self.story.config = replace(config, silences=(*config.silences, made))

    @precondition(lambda self: self.story.config.silences)
    @rule()
    def a_silence_is_taken_back(self) -> None:
        config = self.story.config
        self.story.config = replace(config, silences=config.silences[:-1])
        self._step()

    @rule(on=st.booleans())
    def rules_are_changed(self, on: bool) -> None:
        self.story.config = replace(self.story.config, inhibitions=RULES if on else ())
        self._step()

    @rule()
    def the_server_is_killed(self) -> None:
        self.story.router = self.story.reopened()

    @rule(code=st.sampled_from(CODES))
    def a_write_is_refused(self, code: str) -> None:
        """What was decided is thrown away, and the same events come again."""
        story = self.story
        made = story.event(code, "h1", "v1" if code.startswith("vm.") else None)
        story.router.step(story.now, story.config, (made,))
        story.router = story.reopened()
        self._step(made)

    @invariant()
    def what_waits_is_in_a_group_and_the_other_way_round(self) -> None:
        if not hasattr(self, "story"):
            return
        waiting = {
            (member.event.revision, group.subscription_id)
            for group in self.story.groups.values()
            for member in group.members
            if member.state in (MemberState.HELD, MemberState.PARKED)
        }
        said = {
            key
            for key, fate in self.story.fates.items()
            if fate.state in (FateState.WAITS, FateState.PARKED)
            and fate.code != "notify.why.counted"
        }
        assert waiting == said
        assert all(count == 1 for count in self.in_messages.values()), "told once"

    @invariant()
    def what_is_held_back_has_its_reason(self) -> None:
        """Asked of everything that is open, without any index; else it is looked at again at once."""
        if not hasattr(self, "story"):
            return
        story = self.story
        rules = {one.id: one for one in story.config.inhibitions}
        for group in story.groups.values():
            for member in group.members:
                if member.state is not MemberState.PARKED or member.code != INHIBITED:
                    continue
                held = member.by in rules and any(
                    inhibits(rules[member.by], other.event, member.event)
                    for one in story.groups.values()
                    if one.subscription_id == group.subscription_id
                    for other in one.members
                    if other.event.code in SOLVED_BY
                    and (
                        other.state is MemberState.OPEN
                        or (other.state is MemberState.HELD and not other.solved)
                    )
                )
                assert member.event.code not in MAY_RUN_TWICE
                assert held or (story.wake_at is not None and story.wake_at <= story.now)

    @invariant()
    def nothing_grows(self) -> None:
        if not hasattr(self, "story"):
            return
        for group in self.story.groups.values():
            assert len(group.members) <= 2 * MEMBERS_MAX + 6
        # Two hosts, three VMs: what is not over is bounded by what there is, however much happened.
        assert sum(len(group.members) for group in self.story.groups.values()) <= 2 * max(
            60, 6 * len(self.story.events)
        )

    def teardown(self) -> None:
        """Without silences, rules and quiet hours everything that waits is told."""
        if not hasattr(self, "story"):
            return
        routes = tuple(replace(one, quiet=(), repeat_ms=None) for one in self.story.config.routes)
        self.story.config = replace(self.story.config, routes=routes, silences=(), inhibitions=())
        self._step()
        self.time_passes(86_400)
        states = {fate.state for fate in self.story.fates.values()}
        assert not states & {FateState.WAITS, FateState.PARKED}
        for key, fate in self.story.fates.items():
            told = self.in_messages.get(key) == 1 or key in self.story.counted
            assert (fate.state is FateState.TOLD) == told


class CrowdedRoutesAtRandom(RoutesAtRandom):
    """The same with so little room that events are counted, and groups make room, all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds = pytest.MonkeyPatch()
        for module in ("groups", "router"):
            self.bounds.setattr(f"virtha.alerts.{module}.MEMBERS_MAX", 4)
        self.bounds.setattr("virtha.alerts.groups.GROUPS_MAX", 3)
        self.bounds.setattr("virtha.alerts.groups.PARKED_GROUPS_MAX", 2)
        self.bounds.setattr("virtha.alerts.groups.FURTHER_MAX", 3)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.bounds.undo()


TestRoutesAtRandom = RoutesAtRandom.TestCase
TestRoutesAtRandom.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestCrowdedRoutesAtRandom = CrowdedRoutesAtRandom.TestCase
TestCrowdedRoutesAtRandom.settings = TestRoutesAtRandom.settings
