"""The profiles, and what they add up to: the design's time targets come out of the sums (X6)."""

from typing import NamedTuple

import pytest
from msgspec.structs import replace

from virtha.model.policy import (
    FIELD_TABLE,
    FencingAction,
    FencingPolicy,
    LeasePolicy,
    PermissionGrade,
    Policy,
    QuietTime,
    RecoveryPolicy,
    RestartPolicy,
    Unreachable,
)
from virtha.model.policy.budget import Budget, Way, budget
from virtha.model.policy.profiles import (
    PROFILE_FIELDS,
    PROFILES,
    Profile,
    profile_of,
)
from virtha.model.policy.text import apply_changes, changes_from_assignment, document_of, policy_of

pytestmark = pytest.mark.req("X6")


class Target(NamedTuple):
    profile: Profile
    way: Way
    typical_ms: int | None
    worst_ms: int | None


# Section 9 of the design. "Host hung but powered" is the median: a power order alone may take longer.
TARGETS = (
    Target(Profile.FAST, Way.POWER_CUT_BROKEN, 3_000, 7_000),
    Target(Profile.FAST, Way.POWER_CUT_SILENT, 4_000, 7_000),
    Target(Profile.FAST, Way.HOST_HUNG, 12_000, None),
    Target(Profile.FAST, Way.LEASE, None, 20_000),
    Target(Profile.BALANCED, Way.POWER_CUT_BROKEN, 6_000, 10_000),
    Target(Profile.BALANCED, Way.POWER_CUT_SILENT, 6_000, 10_000),
    Target(Profile.BALANCED, Way.HOST_HUNG, 20_000, None),
    Target(Profile.BALANCED, Way.LEASE, 45_000, 45_500),
    Target(Profile.CONSERVATIVE, Way.LEASE, None, 90_000),
)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.profile}-{t.way}")
def test_profiles_meet_the_designs_targets(target: Target) -> None:
    found = budget(PROFILES[target.profile]).of(target.way)
    assert not found.blocked
    if target.typical_ms is not None:
        assert found.typical_ms <= target.typical_ms
    if target.worst_ms is not None:
        assert found.worst_ms <= target.worst_ms


def test_the_watchdog_of_20_s_is_one_of_5_s() -> None:
    assert PROFILES[Profile.FAST].lease.watchdog_ms <= 5_000


def test_the_default_is_balanced() -> None:
    assert PROFILES[Profile.BALANCED] == Policy()
    assert profile_of(Policy()) is Profile.BALANCED


@pytest.mark.parametrize("way", Way)
def test_slower_profiles_are_slower_on_every_way(way: Way) -> None:
    worst = [budget(PROFILES[profile]).of(way).worst_ms for profile in Profile]
    assert worst == sorted(worst)
    assert len(set(worst)) == len(worst)


@pytest.mark.parametrize("profile", Profile)
def test_sums_are_the_sums_of_named_and_explained_steps(profile: Profile) -> None:
    for way in budget(PROFILES[profile]).ways:
        assert way.typical_ms == sum(step.typical_ms for step in way.steps)
        assert way.worst_ms == sum(step.worst_ms for step in way.steps)
        names = [step.name for step in way.steps]
        assert len(set(names)) == len(names)
        for step in way.steps:
            assert 0 <= step.typical_ms <= step.worst_ms
            assert step.meaning.endswith(".")
            assert set(step.settings) <= set(FIELD_TABLE)


def test_the_lease_way_holds_p2s_sum() -> None:
    policy = Policy()
    names = ("self-fencing", "kill", "watchdog", "two looks", "clock drift")
    steps = {step.name: step.worst_ms for step in budget(policy).of(Way.LEASE).steps}
    assert sum(steps[name] for name in names) == policy.lease.expiry_ms


def worst(policy: Policy, way: Way) -> int:
    return budget(policy).of(way).worst_ms


def test_each_step_follows_its_settings() -> None:
    base = Policy()
    changes = {
        # By default the disk checks end exactly as a dead host is judged.
        "detection.suspect_after_ms": (100, {Way.POWER_CUT_SILENT, Way.LEASE}),
        "detection.dead_after_ms": (100, {Way.ALREADY_OFF, Way.LEASE}),
        "detection.hung_after_ms": (100, {Way.HOST_HUNG}),
        "detection.reconnect_ms": (100, {Way.ALREADY_OFF}),
        "fencing.order_deadline_ms": (100, {Way.HOST_HUNG}),
        "fencing.read_back_gap_ms": (100, set(Way) - {Way.LEASE}),
        "fencing.read_deadline_ms": (50, set(Way) - {Way.LEASE}),
        "lease.kill_ms": (100, {Way.LEASE}),
        "lease.watchdog_ms": (1_000, {Way.LEASE}),
    }
    for path, (more, ways) in changes.items():
        section, _, name = path.partition(".")
        part = getattr(base, section)
        changed = replace(base, **{section: replace(part, **{name: getattr(part, name) + more})})
        moved = {way for way in Way if worst(changed, way) > worst(base, way)}
        assert moved == ways, path


def test_more_disk_checks_than_fit_into_the_silence_cost_time() -> None:
    base = Policy()
    more = replace(base, detection=replace(base.detection, additional_checks=12))
    assert more.detection.dead_at_ms == 16_000  # 3 s, then 13 looks
    assert worst(more, Way.LEASE) - worst(base, Way.LEASE) == 10_000
    assert worst(more, Way.HOST_HUNG) - worst(base, Way.HOST_HUNG) == 4_000
    assert worst(more, Way.POWER_CUT_SILENT) == worst(base, Way.POWER_CUT_SILENT)


def test_a_slow_power_interface_delays_the_lease_too() -> None:
    base = Policy()
    slow = replace(base, fencing=replace(base.fencing, read_deadline_ms=4_000))
    assert worst(slow, Way.LEASE) - worst(base, Way.LEASE) == 1_500 + 2 * 4_000 - 6_000


def blocked(found: Budget) -> dict[Way, str]:
    return {way.way: way.blocked for way in found.ways if way.blocked}


@pytest.mark.parametrize(
    ("policy", "ways", "says"),
    [
        (
            Policy(fencing=FencingPolicy(action=FencingAction.BLINK)),
            set(Way),
            "fencing.action blink proves nothing",
        ),
        (
            Policy(recovery=RecoveryPolicy(grade=PermissionGrade.MOVE)),
            set(Way),
            "recovery.grade move forbids it",
        ),
        (Policy(lease=LeasePolicy(enabled=False)), {Way.LEASE}, "lease.enabled is no"),
        (
            Policy(fencing=FencingPolicy(unreachable=(Unreachable.OPERATOR,))),
            {Way.LEASE},
            "fencing.unreachable does not name lease",
        ),
    ],
)
def test_a_way_that_the_policy_closes_says_why(policy: Policy, ways: set[Way], says: str) -> None:
    found = budget(policy)
    assert blocked(found) == dict.fromkeys([way for way in Way if way in ways], says)
    for way in ways:
        assert found.of(way).steps == ()


# Choosing a profile


def with_profile(policy: Policy, profile: Profile) -> Policy:
    changes = changes_from_assignment(f"profile={profile}")
    return policy_of(apply_changes(document_of(policy), changes))


@pytest.mark.parametrize("profile", Profile)
def test_a_profile_brings_its_times_and_leaves_what_is_the_operators(profile: Profile) -> None:
    mine = Policy(
        restart=RestartPolicy(restarts_max=2),
        fencing=FencingPolicy(
            action=FencingAction.REBOOT,
            cap_count=7,
            quiet_times=(QuietTime(begin="22:00", length_ms=3_600_000),),
        ),
        recovery=RecoveryPolicy(grade=PermissionGrade.MOVE, reserve_hosts=1),
    )
    chosen = with_profile(mine, profile)
    assert profile_of(chosen) is profile
    for path in FIELD_TABLE:
        wanted = PROFILES[profile] if path in PROFILE_FIELDS else mine
        assert chosen.read(path) == wanted.read(path), path


def test_own_times_have_no_profile() -> None:
    base = Policy()
    assert profile_of(replace(base, lease=replace(base.lease, kill_ms=3_001))) is None
    assert profile_of(replace(base, fencing=replace(base.fencing, cap_count=9))) is not None
