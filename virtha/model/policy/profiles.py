"""Three ready-made sets of times. What they add up to is checked against the design's targets."""

from enum import StrEnum

from virtha.model.policy.detection import DetectionPolicy
from virtha.model.policy.document import FIELD_TABLE, Policy
from virtha.model.policy.fencing import FencingPolicy
from virtha.model.policy.lease import LeasePolicy
from virtha.model.policy.recovery import RecoveryPolicy


class Profile(StrEnum):
    FAST = "fast"
    """For good power interfaces, two networks, and storage that never pauses for 4 s."""
    BALANCED = "balanced"
    """The default."""
    CONSERVATIVE = "conservative"
    """For slow power interfaces, storage with long failovers, and networks that take their time."""


PROFILES: dict[Profile, Policy] = {
    Profile.FAST: Policy(
        detection=DetectionPolicy(
            beat_interval_ms=500,
            suspect_after_ms=1_500,
            dead_after_ms=3_000,
            hung_after_ms=6_000,
            check_interval_ms=500,
            stall_ms=1_000,
            evidence_max_age_ms=2_500,
            libvirt_hang_ms=3_000,
        ),
        fencing=FencingPolicy(
            brake_window_ms=60_000, order_deadline_ms=10_000, read_deadline_ms=900
        ),
        lease=LeasePolicy(
            renew_ms=250,
            self_fence_after_ms=4_500,
            kill_ms=1_500,
            watchdog_ms=4_000,
            read_period_ms=500,
        ),
        recovery=RecoveryPolicy(start_deadline_ms=10_000, grant_margin_ms=500),
    ),
    Profile.BALANCED: Policy(),
    Profile.CONSERVATIVE: Policy(
        detection=DetectionPolicy(
            beat_interval_ms=2_000,
            suspect_after_ms=8_000,
            dead_after_ms=15_000,
            hung_after_ms=30_000,
            check_interval_ms=2_000,
            stall_ms=4_000,
            evidence_max_age_ms=10_000,
            libvirt_hang_ms=15_000,
        ),
        fencing=FencingPolicy(
            brake_window_ms=300_000,
            order_deadline_ms=60_000,
            read_deadline_ms=4_000,
            attempts_per_device=3,
        ),
        lease=LeasePolicy(
            renew_ms=1_500,
            self_fence_after_ms=30_000,
            kill_ms=5_000,
            watchdog_ms=20_000,
            read_period_ms=3_000,
        ),
        recovery=RecoveryPolicy(start_deadline_ms=30_000, grant_margin_ms=2_000),
    ),
}

PROFILE_FIELDS: tuple[str, ...] = tuple(
    path for path in FIELD_TABLE if len({one.read(path) for one in PROFILES.values()}) > 1
)
"""The fields that a profile decides: those in which any two differ. All others are the operator's."""


def profile_of(policy: Policy) -> Profile | None:
    """The profile whose times this policy has; None: its own."""
    for profile, sample in PROFILES.items():
        if all(policy.read(path) == sample.read(path) for path in PROFILE_FIELDS):
            return profile
    return None
