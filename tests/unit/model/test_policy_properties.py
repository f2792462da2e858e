"""Whatever policy is accepted, every relation holds in it, by an arithmetic of the test's own."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from virtha.model.errors import InvalidInput
from virtha.model.policy import (
    FIELD_TABLE,
    PermissionGrade,
    Policy,
    PolicyField,
    QuietTime,
    Unit,
    Unreachable,
    Weekday,
    quiet_until_ms,
)
from virtha.model.policy.budget import Way, budget
from virtha.model.policy.profiles import PROFILES, Profile, profile_of
from virtha.model.policy.quiet import merged
from virtha.model.policy.text import (
    apply_changes,
    changes_from_assignment,
    document_of,
    policy_of,
    policy_to_yaml,
    read_policy,
)

pytestmark = pytest.mark.req("X6")

WEEK_MS = 7 * 86_400_000
quiet_times = st.builds(
    QuietTime,
    days=st.lists(st.sampled_from(Weekday), max_size=3, unique=True).map(tuple),
    begin=st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59)),
    length_ms=st.integers(60_000, WEEK_MS),
)


def values_of(field: PolicyField) -> st.SearchStrategy[Any]:
    """Mostly around what it is in some profile, where relations are near; sometimes anywhere."""
    if field.path == "fencing.unreachable":
        return st.lists(st.sampled_from(Unreachable), max_size=4)
    if field.path == "fencing.quiet_times":
        return st.lists(quiet_times, max_size=3)
    if field.kind is bool:
        return st.booleans()
    if field.about.unit is Unit.NONE:
        return st.sampled_from(list(field.kind))
    near = [policy.read(field.path) for policy in PROFILES.values()]
    steps = st.sampled_from(near).flatmap(lambda value: st.integers(value // 4, max(1, value) * 4))
    return st.one_of(steps, st.integers(field.about.low, field.about.high))


@st.composite
def changed_profiles(draw: st.DrawFn) -> dict[str, Any]:
    document = document_of(PROFILES[draw(st.sampled_from(Profile))])
    for path in draw(st.lists(st.sampled_from(sorted(FIELD_TABLE)), max_size=5, unique=True)):
        field = FIELD_TABLE[path]
        value = draw(values_of(field))
        if field.about.step > 1 and draw(st.booleans()):
            value -= value % field.about.step
        document[field.section][field.name] = value
    return document


@st.composite
def accepted_policies(draw: st.DrawFn) -> Policy:
    try:
        return policy_of(draw(changed_profiles()))
    except InvalidInput:
        assume(False)
        raise


def with_profile(policy: Policy, profile: Profile) -> Policy:
    changes = changes_from_assignment(f"profile={profile}")
    return policy_of(apply_changes(document_of(policy), changes))


def assert_all_relations(policy: Policy) -> None:
    detection, fencing, lease = policy.detection, policy.fencing, policy.lease
    recovery, restart = policy.recovery, policy.restart
    assert 2 * detection.beat_interval_ms < detection.suspect_after_ms
    assert detection.suspect_after_ms < detection.dead_after_ms <= detection.hung_after_ms
    assert detection.stall_ms < detection.suspect_after_ms
    assert (
        max(detection.beat_interval_ms, detection.check_interval_ms, fencing.read_deadline_ms)
        < detection.evidence_max_age_ms
        <= detection.dead_after_ms
    )
    assert fencing.read_deadline_ms < fencing.order_deadline_ms
    assert fencing.order_deadline_ms * fencing.attempts_per_device < fencing.cap_window_ms
    assert detection.hung_after_ms <= fencing.brake_window_ms
    assert 2 * detection.check_interval_ms <= fencing.brake_lift_ms
    assert fencing.unreachable[-1] in (Unreachable.WAIT, Unreachable.OPERATOR)
    assert len(set(fencing.unreachable)) == len(fencing.unreachable)
    assert 2 * lease.renew_ms < lease.self_fence_after_ms
    assert 2 * lease.renew_ms <= lease.watchdog_ms
    assert lease.renew_ms <= lease.read_period_ms < lease.self_fence_after_ms
    assert lease.watchdog_ms % 1_000 == 0
    # P2: a host whose clock runs 2 % slow still ends its last copy before the reader stops waiting.
    hosts_side = lease.self_fence_after_ms + lease.kill_ms + lease.watchdog_ms
    assert lease.expiry_ms * 100 >= (hosts_side + 2 * lease.read_period_ms) * 102
    if lease.enabled:
        assert detection.dead_after_ms < lease.self_fence_after_ms
        assert detection.hung_after_ms < lease.expiry_ms
        looks = (1 + detection.additional_checks) * detection.check_interval_ms
        assert detection.suspect_after_ms + looks < lease.expiry_ms
    assert recovery.starts_per_host <= recovery.starts_per_cluster
    assert recovery.delay_ms <= recovery.delay_ms_max
    assert detection.suspect_after_ms < recovery.start_deadline_ms
    assert recovery.grant_margin_ms * 100 >= recovery.start_deadline_ms * lease.drift_percent
    assert recovery.start_deadline_ms + recovery.grant_margin_ms <= recovery.dependency_wait_ms
    if recovery.failback == "automatic":
        assert detection.hung_after_ms < recovery.failback_stable_ms
    if restart.enabled and restart.restarts_max:
        waits = [restart.delay_before_ms(n) for n in range(1, restart.restarts_max + 1)]
        assert sum(waits) < restart.window_ms


@given(accepted_policies())
@settings(max_examples=150, deadline=None)
def test_in_an_accepted_policy_every_relation_holds(policy: Policy) -> None:
    for field in FIELD_TABLE.values():
        if field.about.unit is not Unit.NONE:
            assert field.about.low <= policy.read(field.path) <= field.about.high
    assert_all_relations(policy)


@given(changed_profiles())
@settings(max_examples=120, deadline=None)
def test_what_is_refused_names_a_field_and_a_way_out(document: dict[str, Any]) -> None:
    try:
        policy_of(document)
    except InvalidInput as error:
        assert error.field in FIELD_TABLE
        assert error.fix or error.allowed


@given(accepted_policies())
@settings(max_examples=50, deadline=None)
def test_yaml_and_back_is_the_same_policy(policy: Policy) -> None:
    assert read_policy(policy_to_yaml(document_of(policy)), file="p.yaml") == policy


@given(accepted_policies())
@settings(max_examples=60, deadline=None)
def test_every_accepted_policy_has_a_budget(policy: Policy) -> None:
    found = budget(policy)
    assert [one.way for one in found.ways] == list(Way)
    for one in found.ways:
        assert bool(one.steps) != bool(one.blocked)
        for step in one.steps:
            assert 0 <= step.typical_ms <= step.worst_ms
    if policy.recovery.grade is PermissionGrade.OBSERVE:
        assert all(one.blocked for one in found.ways)


@given(accepted_policies(), st.sampled_from(Profile))
@settings(max_examples=50, deadline=None)
def test_a_profile_either_fits_or_says_what_does_not(policy: Policy, profile: Profile) -> None:
    try:
        chosen = with_profile(policy, profile)
    except InvalidInput as error:
        assert error.field in {field.shown for field in FIELD_TABLE.values()}
    else:
        assert profile_of(chosen) is profile
        assert_all_relations(chosen)


@given(st.lists(quiet_times, max_size=4).map(tuple), st.integers(0, 2 * WEEK_MS))
@settings(max_examples=100, deadline=None)
def test_quiet_times_against_a_dumb_count_of_days(times: tuple[QuietTime, ...], at_ms: int) -> None:
    def quiet_at(moment_ms: int) -> bool:
        for one in times:
            hours, minutes = one.begin.split(":")
            for day in range(-8, 22):  # every day from which one could still last
                names = list(Weekday)
                if one.days and names[(day + 3) % 7] not in one.days:
                    continue
                begin = day * 86_400_000 + int(hours) * 3_600_000 + int(minutes) * 60_000
                if begin <= moment_ms < begin + one.length_ms:
                    return True
        return False

    until = quiet_until_ms(times, at_ms)
    assert (until is not None) == quiet_at(at_ms)
    always = sum(end - begin for begin, end in merged(times)) == WEEK_MS
    if until is not None and not always:
        assert quiet_at(until - 1)
        assert not quiet_at(until)
