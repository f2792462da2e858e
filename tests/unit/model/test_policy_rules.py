"""Every relation of the policy: just good, just bad, and a message with both numbers and the fix."""

from typing import Any, NamedTuple

import msgspec
import pytest

from virtha.model.errors import InvalidInput
from virtha.model.policy import (
    ALL_RULES,
    FIELD_TABLE,
    BrokenRule,
    DependencyExpired,
    Failback,
    FencingAction,
    LeasePolicy,
    PermissionGrade,
    Policy,
    QuietTime,
    RecoveryPolicy,
    Unreachable,
)
from virtha.model.policy.detection import DetectionPolicy
from virtha.model.policy.text import policy_of

pytestmark = pytest.mark.req("X6", "F7", "F9")


def policy(values: dict[str, Any]) -> Policy:
    """The defaults with the values changed, by path."""
    document: dict[str, Any] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        document.setdefault(section, {})[name] = msgspec.to_builtins(value)
    return policy_of(document)


class Case(NamedTuple):
    """``good`` holds, ``bad`` doesn't by the smallest step; ``says``: parts of the error."""

    good: dict[str, Any]
    bad: dict[str, Any]
    field: str
    says: tuple[str, ...]


SLOW_LEASE = {"lease.self_fence_after_ms": 300_000}
"""Out of the way of detection's own relations."""
CASES = {
    "beat < suspect": Case(
        good={"detection.beat_interval_ms": 1_499},
        bad={"detection.beat_interval_ms": 1_500},
        field="detection.beat_interval_ms",
        says=("2 * detection.beat_interval 1.5s = 3s", "detection.suspect_after 3s"),
    ),
    "suspect < dead": Case(
        good={"detection.suspect_after_ms": 5_999},
        bad={"detection.suspect_after_ms": 6_000},
        field="detection.suspect_after_ms",
        says=("detection.suspect_after 6s", "less than detection.dead_after 6s"),
    ),
    "dead <= hung": Case(
        good={"detection.hung_after_ms": 6_000},
        bad={"detection.hung_after_ms": 5_999},
        field="detection.dead_after_ms",
        says=("detection.dead_after 6s must be at most detection.hung_after 5.999s",),
    ),
    "stall < suspect": Case(
        good={"detection.stall_ms": 2_999},
        bad={"detection.stall_ms": 3_000},
        field="detection.stall_ms",
        says=("detection.stall 3s", "detection.suspect_after 3s", "J1"),
    ),
    "beat < evidence": Case(
        good={"detection.evidence_max_age_ms": 1_401, "detection.check_interval_ms": 500,
              "detection.beat_interval_ms": 1_400},
        bad={"detection.evidence_max_age_ms": 1_400, "detection.check_interval_ms": 500,
             "detection.beat_interval_ms": 1_400},
        field="detection.beat_interval_ms",
        says=("detection.beat_interval 1.4s", "detection.evidence_max_age 1.4s"),
    ),
    "check < evidence": Case(
        good={"detection.check_interval_ms": 4_999},
        bad={"detection.check_interval_ms": 5_000},
        field="detection.check_interval_ms",
        says=("detection.check_interval 5s", "detection.evidence_max_age 5s"),
    ),
    "evidence <= dead": Case(
        good={"detection.evidence_max_age_ms": 6_000},
        bad={"detection.evidence_max_age_ms": 6_001},
        field="detection.evidence_max_age_ms",
        says=("detection.evidence_max_age 6.001s", "detection.dead_after 6s"),
    ),
    "reading < order": Case(
        good={"fencing.read_deadline_ms": 1_400, "fencing.order_deadline_ms": 1_401},
        bad={"fencing.read_deadline_ms": 1_400, "fencing.order_deadline_ms": 1_400},
        field="fencing.read_deadline_ms",
        says=("fencing.read_deadline 1.4s", "fencing.order_deadline 1.4s"),
    ),
    "orders < cap window": Case(
        good={"fencing.cap_window_ms": 60_000, "fencing.order_deadline_ms": 29_999},
        bad={"fencing.cap_window_ms": 60_000, "fencing.order_deadline_ms": 30_000},
        field="fencing.order_deadline_ms",
        says=(
            "fencing.attempts_per_device 2 * fencing.order_deadline 30s = 1m",
            "fencing.cap_window 1m",
        ),
    ),
    "renew < self-fence": Case(
        good={"lease.renew_ms": 1_999, "lease.self_fence_after_ms": 4_000,
              "lease.kill_ms": 10_000, "lease.watchdog_ms": 4_000,
              "detection.dead_after_ms": 3_500, "detection.evidence_max_age_ms": 3_000},
        bad={"lease.renew_ms": 2_000, "lease.self_fence_after_ms": 4_000,
             "lease.kill_ms": 10_000, "lease.watchdog_ms": 4_000,
             "detection.dead_after_ms": 3_500, "detection.evidence_max_age_ms": 3_000},
        field="lease.renew_ms",
        says=("2 * lease.renew 2s = 4s", "lease.self_fence_after 4s"),
    ),
    "renew <= watchdog": Case(
        good={"lease.renew_ms": 2_000, "lease.watchdog_ms": 4_000},
        bad={"lease.renew_ms": 2_000, "lease.watchdog_ms": 3_000},
        field="lease.renew_ms",
        says=("2 * lease.renew 2s = 4s", "lease.watchdog 3s"),
    ),
    "renew <= read": Case(
        good={"lease.renew_ms": 2_000},
        bad={"lease.renew_ms": 2_001},
        field="lease.renew_ms",
        says=("lease.renew 2.001s", "lease.read_period 2s"),
    ),
    "read < self-fence": Case(
        good={"lease.read_period_ms": 14_999},
        bad={"lease.read_period_ms": 15_000},
        field="lease.read_period_ms",
        says=("lease.read_period 15s", "lease.self_fence_after 15s"),
    ),
    "room for a late renewal": Case(
        good={"lease.watchdog_ms": 15_000, "lease.renew_ms": 1_450},
        bad={"lease.watchdog_ms": 15_000, "lease.renew_ms": 1_451},
        field="lease.watchdog_ms",
        says=(
            "lease.watchdog 15s + 2 * lease.renew 1.451s + the last feeding's head start 100ms = 18.002s must be at "
            "most lease.self_fence_after 15s + lease.kill 3s = 18s",
            "the watchdog would never be armed",
        ),
    ),
    "starts per host <= per cluster": Case(
        good={"recovery.starts_per_host": 64},
        bad={"recovery.starts_per_host": 65},
        field="recovery.starts_per_host",
        says=("recovery.starts_per_host 65", "recovery.starts_per_cluster 64"),
    ),
    "recovery delay <= longest": Case(
        good={"recovery.delay_ms": 300_000},
        bad={"recovery.delay_ms": 300_001},
        field="recovery.delay_ms",
        says=("recovery.delay 300.001s", "recovery.delay_max 5m"),
    ),
    "attempt <= dependency wait": Case(
        good={"recovery.dependency_wait_ms": 16_000},
        bad={"recovery.dependency_wait_ms": 15_999},
        field="recovery.start_deadline_ms",
        says=("recovery.start_deadline 15s + recovery.grant_margin 1s = 16s", "15.999s"),
    ),
    "restart delay <= longest": Case(
        good={"restart.delay_ms": 60_000, "restart.window_ms": 3_600_000},
        bad={"restart.delay_ms": 60_001, "restart.window_ms": 3_600_000},
        field="restart.delay_ms",
        says=("restart.delay 60.001s", "restart.delay_max 1m", "longer than the longest"),
    ),
    "restart delays < window": Case(
        good={"restart.window_ms": 40_001},  # 0 + 1 + 3 + 9 + 27 s
        bad={"restart.window_ms": 40_000},
        field="restart.window_ms",
        says=("the delays of 5 restarts add up to 40s", "not less than the window of 40s"),
    ),
    "resume delay <= longest": Case(
        good={"io_error.delay_ms": 60_000},
        bad={"io_error.delay_ms": 60_001},
        field="io_error.delay_ms",
        says=("io_error.delay 60.001s", "io_error.delay_max 1m", "longer than the longest"),
    ),
    "resume delay <= kill after": Case(
        good={"io_error.delay_ms": 2_000, "io_error.kill_after_ms": 2_000},
        bad={"io_error.delay_ms": 2_001, "io_error.kill_after_ms": 2_000},
        field="io_error.delay_ms",
        says=("io_error.delay 2.001s", "io_error.kill_after 2s", "once tried"),
    ),
    "resume delays < window": Case(
        good={"io_error.window_ms": 100_001},  # 1 + 3 + 9 + 27 + 60 s
        bad={"io_error.window_ms": 100_000},
        field="io_error.window_ms",
        says=("the delays of 5 resumes add up to 100s", "not less than the window of 100s"),
    ),
    "dead < self-fence": Case(
        good={"lease.self_fence_after_ms": 6_001, "lease.watchdog_ms": 5_000},
        bad={"lease.self_fence_after_ms": 6_000, "lease.watchdog_ms": 5_000},
        field="detection.dead_after_ms",
        says=("detection.dead_after 6s", "lease.self_fence_after 6s"),
    ),
    "suspicion < lease": Case(
        good={"detection.hung_after_ms": 32_639},
        bad={"detection.hung_after_ms": 32_640},
        field="detection.hung_after_ms",
        says=(
            "detection.hung_after 32.64s must be less than lease.self_fence_after 15s + "
            "lease.kill 3s + lease.watchdog 10s + 2 * lease.read_period 2s + "
            "lease.drift_percent 2% of it = 32.64s",
            "the suspicion would outlive the lease",
        ),
    ),
    "checks < lease": Case(
        good={"detection.additional_checks": 28},  # 3 + 29 s
        bad={"detection.additional_checks": 29},
        field="detection.suspect_after_ms",
        says=(
            "detection.suspect_after 3s + detection.check_interval 1s + "
            "detection.additional_checks 29 * detection.check_interval 1s = 33s",
            "= 32.64s",
        ),
    ),
    "hung <= brake window": Case(
        good={"fencing.brake_window_ms": 12_000},
        bad={"fencing.brake_window_ms": 11_999},
        field="detection.hung_after_ms",
        says=("detection.hung_after 12s", "fencing.brake_window 11.999s", "J5"),
    ),
    "two checks <= brake lift": Case(
        good={"fencing.brake_lift_ms": 2_000},
        bad={"fencing.brake_lift_ms": 1_999},
        field="detection.check_interval_ms",
        says=("2 * detection.check_interval 1s = 2s", "fencing.brake_lift 1.999s"),
    ),
    "reading < evidence": Case(
        good={"fencing.read_deadline_ms": 4_999},
        bad={"fencing.read_deadline_ms": 5_000},
        field="fencing.read_deadline_ms",
        says=("fencing.read_deadline 5s", "detection.evidence_max_age 5s"),
    ),
    "suspect < grant": Case(
        good={"recovery.start_deadline_ms": 3_001},
        bad={"recovery.start_deadline_ms": 3_000},
        field="detection.suspect_after_ms",
        says=("detection.suspect_after 3s", "recovery.start_deadline 3s", "G2"),
    ),
    "drift <= margin": Case(
        good={"recovery.start_deadline_ms": 50_000},
        bad={"recovery.start_deadline_ms": 50_001},
        field="recovery.start_deadline_ms",
        says=(
            "lease.drift_percent 2% of recovery.start_deadline 50.001s = 1.001s",
            "recovery.grant_margin 1s",
        ),
    ),
    "hung < failback": Case(
        good={"recovery.failback": Failback.AUTOMATIC, "recovery.failback_stable_ms": 60_000,
              "detection.hung_after_ms": 59_999, **SLOW_LEASE},
        bad={"recovery.failback": Failback.AUTOMATIC, "recovery.failback_stable_ms": 60_000,
             "detection.hung_after_ms": 60_000, **SLOW_LEASE},
        field="detection.hung_after_ms",
        says=("detection.hung_after 1m", "recovery.failback_stable 1m"),
    ),
    "unreachable names each way once": Case(
        good={"fencing.unreachable": (Unreachable.LEASE, Unreachable.WAIT)},
        bad={"fencing.unreachable": (Unreachable.LEASE, Unreachable.LEASE, Unreachable.WAIT)},
        field="fencing.unreachable",
        says=("names lease twice",),
    ),
    "unreachable ends somewhere": Case(
        good={"fencing.unreachable": (Unreachable.OPERATOR,)},
        bad={"fencing.unreachable": (Unreachable.NEXT_LEVEL,)},
        field="fencing.unreachable",
        says=("ends with next_level",),
    ),
    "unreachable ends once": Case(
        good={"fencing.unreachable": (Unreachable.NEXT_LEVEL, Unreachable.WAIT)},
        bad={"fencing.unreachable": (Unreachable.WAIT, Unreachable.OPERATOR)},
        field="fencing.unreachable",
        says=("goes on after wait",),
    ),
    "unreachable is not empty": Case(
        good={"fencing.unreachable": (Unreachable.WAIT,)},
        bad={"fencing.unreachable": ()},
        field="fencing.unreachable",
        says=("is empty",),
    ),
    "some hour is not quiet": Case(
        good={"fencing.quiet_times": (QuietTime(begin="00:00", length_ms=86_340_000),)},
        bad={"fencing.quiet_times": (QuietTime(begin="00:00", length_ms=86_400_000),)},
        field="fencing.quiet_times",
        says=("cover the whole week", "no host would ever be fenced"),
    ),
    "few quiet times": Case(
        good={"fencing.quiet_times": (QuietTime(begin="00:00", length_ms=60_000),) * 50},
        bad={"fencing.quiet_times": (QuietTime(begin="00:00", length_ms=60_000),) * 51},
        field="fencing.quiet_times",
        says=("51 entries", "50"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_just_good_holds_and_just_bad_is_refused_with_both_numbers(name: str) -> None:
    case = CASES[name]
    policy(case.good)
    with pytest.raises(BrokenRule) as refused:
        policy(case.bad)
    error = refused.value
    assert error.field == case.field
    assert error.fields[0] == case.field
    for part in case.says:
        assert part in error.message
    assert error.fix


def test_every_rule_has_its_case() -> None:
    broken = set()
    for case in CASES.values():
        with pytest.raises(BrokenRule) as refused:
            policy(case.bad)
        broken |= {rule.says for rule in ALL_RULES if refused.value.fix == rule.fix}
    assert {rule.says for rule in ALL_RULES} <= broken


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.says[:50])
def test_every_rule_explains_itself_and_names_fields_that_exist(rule: Any) -> None:
    assert rule.why and rule.fix
    assert not rule.why.endswith(".")
    assert rule.fields
    assert set(rule.fields) <= set(FIELD_TABLE)


@pytest.mark.parametrize(
    "values",
    [
        {"lease.enabled": False, "detection.hung_after_ms": 60_000},
        {"lease.enabled": False, "detection.dead_after_ms": 60_000,
         "detection.hung_after_ms": 60_000},
        {"restart.enabled": False, "restart.window_ms": 1_000},
        {"restart.restarts_max": 0, "restart.window_ms": 1_000},
        {"recovery.failback_stable_ms": 60_000, "detection.hung_after_ms": 60_000, **SLOW_LEASE},
    ],
)  # fmt: skip
def test_what_is_turned_off_binds_nothing(values: dict[str, Any]) -> None:
    assert policy(values)


def test_a_section_alone_checks_its_own_rules() -> None:
    with pytest.raises(BrokenRule, match=r"lease\.renew 10s"):
        LeasePolicy(renew_ms=10_000)


def test_p2s_sum() -> None:
    lease = LeasePolicy(
        self_fence_after_ms=1_000,
        kill_ms=1_500,
        watchdog_ms=2_000,
        read_period_ms=333,
        renew_ms=200,
        drift_percent=3,
    )
    # 1000 + 1500 + 2000 + 2 * 333 = 5166; 3 % of it, rounded up: a wait is never shortened
    assert lease.expiry_ms == 5_321
    assert lease.host_side_ms == 4_500 < lease.expiry_ms


def test_below_the_grade_fence_no_host_kills_its_vms_for_a_lease() -> None:
    assert Policy().leases_in_use
    assert not Policy(recovery=RecoveryPolicy(grade=PermissionGrade.MOVE)).leases_in_use
    assert not Policy(lease=LeasePolicy(enabled=False)).leases_in_use


def test_grades_are_ordered_by_what_they_permit() -> None:
    grades = list(PermissionGrade)
    for i, held in enumerate(grades):
        assert [held.permits(needed) for needed in grades] == [j <= i for j in range(len(grades))]


def test_words_of_the_enumerations() -> None:
    # Part of the API: they only grow.
    assert list(FencingAction) == ["nothing", "power_off", "reboot", "blink"]
    assert list(Unreachable) == ["next_level", "storage_fence", "lease", "wait", "operator"]
    assert list(Failback) == ["never", "automatic"]
    assert list(DependencyExpired) == ["hold", "start"]


def test_recovery_delays_grow_to_a_bound() -> None:
    recovery = RecoveryPolicy(delay_ms=5_000, delay_growth=3, delay_ms_max=60_000)
    assert [recovery.delay_before_ms(failures) for failures in range(6)] == [
        0, 0, 5_000, 15_000, 45_000, 60_000,
    ]  # fmt: skip
    assert recovery.delay_before_ms(10_000) == 60_000
    assert recovery.attempt_ms == 16_000


def test_an_error_of_the_api_names_the_field_of_the_api() -> None:
    with pytest.raises(InvalidInput) as refused:
        msgspec.convert({"fencing": {"cap_count": 0}}, Policy)
    assert refused.value.field == "fencing.cap_count"


@pytest.mark.req("X3")
@pytest.mark.parametrize("beat_interval_ms", [200, 3_999, 4_000])
def test_the_slowest_beats_come_before_silence_ends_their_session(beat_interval_ms: int) -> None:
    """Hosts refuse a server that says otherwise (`wire.host_session`), and would be taken for dead."""
    times = DetectionPolicy(
        beat_interval_ms=beat_interval_ms,
        suspect_after_ms=max(2 * beat_interval_ms + 1, 500),
        dead_after_ms=max(2 * beat_interval_ms + 2, 1_000),
        evidence_max_age_ms=max(beat_interval_ms + 1, 500),
        check_interval_ms=200,
        stall_ms=200,
    )
    assert beat_interval_ms < times.session_silence_ms <= times.dead_after_ms
