"""Quiet hours against a clock that goes minute by minute; circles of inhibitions against trying all ways."""

from datetime import UTC, datetime, timedelta
from itertools import product
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_story import rule

from virtha.alerts.inhibition import check_no_circle
from virtha.alerts.match import check_labels, could_match, fits_matcher
from virtha.alerts.quiet import check_quiet, quiet_until
from virtha.alerts.subject import subject_of
from virtha.model.codes import ENDS_ALL_OF, EVENTS, REGISTRY, REPLACES, SOLVED_BY, SOLVES, Severity
from virtha.model.errors import InvalidInput
from virtha.model.event import Event
from virtha.model.ids import HostId
from virtha.model.routing import Inhibition, Matcher, QuietHours, Same, Weekday

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")
DAYS = tuple(Weekday)
TIMES = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from((0, 15, 30)))
WINDOWS = st.builds(
    QuietHours,
    begins=TIMES,
    ends=TIMES,
    days=st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(tuple),
    zone=st.sampled_from(ZONES),
).filter(lambda one: one.begins != one.ends)


def offset(zone: str, at: int) -> int:
    found = datetime.fromtimestamp(at / 1_000, tz=ZoneInfo(zone)).utcoffset()
    assert found is not None
    return int(found.total_seconds() * 1_000)


def is_quiet(window: QuietHours, at: datetime) -> bool:
    """The dumb way: by looking at a clock on the wall."""
    local = at.astimezone(ZoneInfo(window.zone))
    text, today = f"{local:%H:%M}", DAYS[local.weekday()]
    yesterday = DAYS[(local.weekday() - 1) % 7]
    if window.begins < window.ends:
        return today in window.days and window.begins <= text < window.ends
    return (today in window.days and text >= window.begins) or (
        yesterday in window.days and text < window.ends
    )


@pytest.mark.req("W7")
@given(
    windows=st.lists(WINDOWS, min_size=1, max_size=3).map(tuple),
    minute=st.integers(0, 366 * 24 * 60),
)
def test_quiet_hours_as_a_clock_on_the_wall_has_them(
    windows: tuple[QuietHours, ...], minute: int
) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    now = int(at.timestamp() * 1_000)
    until = quiet_until(windows, now, offset)
    assert (until is not None) == any(is_quiet(one, at) for one in windows)
    if until is not None:
        assert now < until <= now + 90_000_000
        back = datetime.fromtimestamp(until / 1_000, tz=UTC)
        ends = {(one.ends, f"{back.astimezone(ZoneInfo(one.zone)):%H:%M}") for one in windows}
        skipped = any("01:00" <= one.ends <= "03:30" for one in windows)
        assert skipped or any(end == shown for end, shown in ends)


@pytest.mark.parametrize(
    ("evening", "morning"),
    [
        (datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 3, 29, 5, tzinfo=UTC)),
        (datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 6, tzinfo=UTC)),
        (datetime(2026, 10, 26, 22, tzinfo=UTC), datetime(2026, 10, 27, 6, tzinfo=UTC)),
    ],
)
def test_quiet_hours_end_at_seven_where_clocks_are_set_in_that_night(
    evening: datetime, morning: datetime
) -> None:
    """On the spring morning all was told an hour late."""
    night = (QuietHours(begins="22:00", ends="07:00", zone="Europe/Berlin"),)
    until = quiet_until(night, int(evening.timestamp() * 1_000), offset)
    assert until == int(morning.timestamp() * 1_000)


def test_quiet_hours_that_end_in_an_hour_that_clocks_leave_out_come_to_an_end() -> None:
    night = (QuietHours(begins="22:00", ends="02:30", zone="Europe/Berlin"),)
    now, looks = int(datetime(2026, 3, 28, 22, tzinfo=UTC).timestamp() * 1_000), 0
    while (until := quiet_until(night, now, offset)) is not None:
        now, looks = until, looks + 1
        assert looks < 3
    assert now == int(datetime(2026, 3, 29, 1, 30, tzinfo=UTC).timestamp() * 1_000)


def test_quiet_hours_end_when_they_say() -> None:
    night = (QuietHours(begins="22:00", ends="07:00", zone="Europe/Berlin", days=(Weekday.FRI,)),)
    friday = int(datetime(2026, 6, 5, 20, 0, tzinfo=UTC).timestamp() * 1_000)
    seven = int(datetime(2026, 6, 6, 5, 0, tzinfo=UTC).timestamp() * 1_000)
    assert quiet_until(night, friday - 1, offset) is None
    assert quiet_until(night, friday, offset) == seven
    assert quiet_until(night, seven - 1, offset) == seven
    assert quiet_until(night, seven, offset) is None
    assert quiet_until(night, friday + 86_400_000, offset) is None, "Saturday is no such day"


@pytest.mark.bad_input("quiet hours that leave no time")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"begins": "25:00"}, "quiet[0].begins"),
        ({"ends": "7"}, "quiet[0].ends"),
        ({"begins": "07:00"}, "quiet[0].ends"),
        ({"begins": "24:00"}, "quiet[0].ends"),
        ({"days": ()}, "quiet[0].days"),
        ({"zone": "Europe/Atlantis"}, "quiet[0].zone"),
        ({"begins": "00:00", "ends": "24:00"}, "quiet"),
        ({"begins": "07:01"}, None),
    ],
)
def test_quiet_hours_that_can_not_be(changes: dict[str, object], field: str | None) -> None:
    values: dict[str, object] = {"begins": "22:00", "ends": "07:00", **changes}
    windows = (QuietHours(**values),)
    if field is None:
        return check_quiet(windows, lambda zone: zone in ZONES)
    with pytest.raises(InvalidInput) as wrong:
        check_quiet(windows, lambda zone: zone in ZONES)
    assert wrong.value.field == field and (wrong.value.fix or wrong.value.allowed)
    return None


def test_days_that_together_cover_the_week() -> None:
    whole = tuple(QuietHours(begins="00:00", ends="24:00", days=(day,)) for day in DAYS)
    check_quiet(whole[:6], lambda _zone: True)
    with pytest.raises(InvalidInput):
        check_quiet(whole, lambda _zone: True)


LOOKED_AT = tuple(
    code
    for code in EVENTS
    if code.name.startswith(("host.un", "host.j", "host.s", "vm.agent", "vm.crashed", "fence.b"))
)
SOME = (
    "host.unreachable",
    "host.judged_dead",
    "vm.agent.lost",
    "vm.crashed",
    "vm.agent.*",
    "fence.b*",
    "host.s*",
)


def has_circle(rules: list[Inhibition]) -> bool:
    """The dumb way: whoever can be reached from whom, until nothing is added."""
    reached = {
        (source.name, target.name)
        for one in rules
        for source, target in product(LOOKED_AT, LOOKED_AT)
        if could_match(one.source, source) and could_match(one.target, target)
    }
    while True:
        ends: dict[str, set[str]] = {}
        for source, target in reached:
            ends.setdefault(source, set()).add(target)
        more = {(one, far) for one, near in reached for far in ends.get(near, ())} - reached
        if not more:
            return any(one == other for one, other in reached)
        reached |= more


@pytest.mark.bad_input("a cycle of inhibitions")
@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(SOME), st.sampled_from(SOME)), max_size=4))
def test_circles_of_inhibitions_are_refused_and_nothing_else(pairs: list[tuple[str, str]]) -> None:
    rules = [rule(source, target, f"i{number}") for number, (source, target) in enumerate(pairs)]
    if not has_circle(rules):
        return check_no_circle(rules)
    with pytest.raises(InvalidInput) as wrong:
        check_no_circle(rules)
    assert wrong.value.field == "target" and "→" in wrong.value.message
    return None


def test_a_circle_is_shown() -> None:
    with pytest.raises(InvalidInput) as wrong:
        check_no_circle(
            (rule("host.unreachable", "vm.crashed", "a"), rule("vm.c*", "host.unreachable", "b"))
        )
    assert "host.unreachable → vm.crashed → host.unreachable (by a, b)" in wrong.value.message


def test_severities_may_break_a_circle() -> None:
    errors = Matcher(codes=("vm.*",), severity=Severity.ERROR)
    warnings = Matcher(codes=("host.libvirt.lost",))
    made = rule("x", "y", same=Same.HOST)
    changed = Inhibition(id=made.id, name="i", source=errors, target=warnings)
    check_no_circle((changed,))


@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        ({}, True),
        ({"domain": "d1"}, True),
        ({"domain": "d*"}, True),
        ({"domain": "d2"}, False),
        ({"domain": "d1", "cause": "poison"}, False),
        ({"ready": "true"}, True),
        ({"count": "3"}, True),
        ({"nothing": "*"}, True),
        ({"nothing": "x"}, False),
    ],
)
def test_labels_are_fields_of_the_event(labels: dict[str, str], fits: bool) -> None:
    fields = {"domain": "d1", "cause": "storage", "ready": True, "count": 3}
    event = Event(code="host.lease.lost", severity=Severity.ALERT, message="", fields=fields)
    assert fits_matcher(Matcher(labels=labels), event) is fits


@pytest.mark.bad_input("an unknown label, with near words")
def test_a_label_that_no_event_has_is_refused() -> None:
    check_labels({"domain": "d1", "incident_id": "I"}, ("host.lease.*",), field="labels")
    with pytest.raises(InvalidInput) as wrong:
        check_labels({"domian": "d1"}, ("host.lease.*",), field="labels")
    assert wrong.value.field == "labels.domian" and "did you mean domain?" in wrong.value.fix
    with pytest.raises(InvalidInput):
        check_labels({"domain": ""}, (), field="labels")
    with pytest.raises(InvalidInput):
        check_labels({f"l{number}": "x" for number in range(21)}, (), field="labels")


@pytest.mark.req("W7", "F4")
def test_each_problem_and_its_end_are_of_one_object() -> None:
    """By the fields that their codes have: a part that only one of the two names would keep them from meeting."""
    parts = {"domain", "device"}
    for end, problems in {**SOLVES, **REPLACES}.items():
        assert (REGISTRY[end].severity is Severity.INFO) != (end in REPLACES)
        for problem in problems:
            assert REGISTRY[problem].severity is not Severity.INFO, problem
            if not end.startswith("vm."):
                named = parts & {*REGISTRY[end].fields}
                assert not named or named == parts & {*REGISTRY[problem].fields}, problem
            kinds = {end.split(".")[0], problem.split(".")[0]}
            assert len(kinds) == 1 or kinds == {"host", "fence"}
    assert all(code in REGISTRY for code in (*ENDS_ALL_OF, *SOLVED_BY))
    without = {end for end in REPLACES if end not in SOLVED_BY}
    # That it lives is the end of its trouble: a warning, for nobody ordered it.
    assert without == {"vm.lives_after_all"}, "what takes a place has an end itself"


@pytest.mark.parametrize(
    ("code", "fields", "subject"),
    [
        ("host.lease.lost", {"domain": "d1"}, "host:h/d1"),
        ("host.lease.held_again", {"domain": "d1"}, "host:h/d1"),
        ("storage.lease_again", {"domain": "d1"}, "installation/d1"),
        ("storage.outage", {"domain": "d1"}, "installation/d1"),
        ("power.test.broke", {"device": "bmc"}, "host:h/bmc"),
        ("notify.receiver_away", {"receiver_id": "r1"}, "receiver:r1"),
        ("hold.set", {}, "host:h"),
    ],
)
def test_subjects(code: str, fields: dict[str, str], subject: str) -> None:
    event = Event(
        code=code, severity=Severity.INFO, message="", fields=dict(fields), host_id=HostId("h")
    )
    assert subject_of(event) == subject
