"""A cluster's policy with leases of a test's own, all else as short as the rules allow."""

from virtha.model.policy import (
    DetectionPolicy,
    FencingPolicy,
    LeasePolicy,
    PermissionGrade,
    Policy,
    RecoveryPolicy,
)


def hasty_policy(lease: LeasePolicy) -> Policy:
    return Policy(
        lease=lease,
        detection=DetectionPolicy(
            beat_interval_ms=400,
            stall_ms=500,
            suspect_after_ms=1_000,
            dead_after_ms=2_000,
            hung_after_ms=4_000,
            evidence_max_age_ms=1_800,
            check_interval_ms=500,
        ),
        fencing=FencingPolicy(read_deadline_ms=1_000),
        recovery=RecoveryPolicy(grade=PermissionGrade.FENCE),
    )
