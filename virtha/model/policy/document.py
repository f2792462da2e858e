"""The whole policy of a cluster, and the rules between its sections."""

from typing import Any, ClassVar

from msgspec import structs

from virtha.model.policy.detection import CHECKED, DetectionPolicy
from virtha.model.policy.fencing import FencingPolicy
from virtha.model.policy.field import PolicyField, Section, fields_of
from virtha.model.policy.io_error import IoErrorPolicy
from virtha.model.policy.lease import EXPIRY, LeasePolicy
from virtha.model.policy.maintenance import MaintenancePolicy
from virtha.model.policy.permission import PermissionGrade
from virtha.model.policy.recovery import Failback, RecoveryPolicy
from virtha.model.policy.restart import RestartPolicy
from virtha.model.policy.rule import Rule, Sum, one, relation
from virtha.model.value import Value

_LEASES = ("lease.enabled", True)


_RULES = (
    relation(
        one("detection.dead_after_ms"),
        one("lease.self_fence_after_ms"),
        why="a host would kill its own VMs for a silence that the server still forgives",
        fix="lower detection.dead_after or raise lease.self_fence_after",
        when=_LEASES,
    ),
    relation(
        one("detection.hung_after_ms"),
        EXPIRY,
        why="the suspicion would outlive the lease: a host could be down, with its VMs, before "
        "anybody judged it",
        fix="lower detection.hung_after or raise lease.self_fence_after",
        when=_LEASES,
    ),
    relation(
        CHECKED,
        EXPIRY,
        why="the disk checks would outlive the lease",
        fix="lower detection.check_interval or detection.additional_checks",
        when=_LEASES,
    ),
    relation(
        one("detection.hung_after_ms"),
        one("fencing.brake_window_ms"),
        strict=False,
        why="hosts lost at the same moment, some judged dead and some hung, would not count as lost "
        "at once (J5)",
        fix="raise fencing.brake_window or lower detection.hung_after",
    ),
    relation(
        one("detection.check_interval_ms", 2),
        one("fencing.brake_lift_ms"),
        strict=False,
        why="the brake would lift after fewer than two looks at the storage",
        fix="raise fencing.brake_lift or lower detection.check_interval",
    ),
    relation(
        one("fencing.read_deadline_ms"),
        one("detection.evidence_max_age_ms"),
        why="a power reading would be too old when it came",
        fix="lower fencing.read_deadline or raise detection.evidence_max_age",
    ),
    relation(
        one("detection.suspect_after_ms"),
        one("recovery.start_deadline_ms"),
        why="a grant counts from a beat that may be that old: it could have run out on arrival (G2)",
        fix="raise recovery.start_deadline or lower detection.suspect_after",
    ),
    relation(
        Sum(parts=((1, "recovery.start_deadline_ms"),), share_percent="lease.drift_percent"),
        one("recovery.grant_margin_ms"),
        strict=False,
        why="on a slow clock the grant would still stand when the next host is tried (G2)",
        fix="raise recovery.grant_margin or lower recovery.start_deadline",
    ),
    relation(
        one("detection.hung_after_ms"),
        one("recovery.failback_stable_ms"),
        why="VMs would go back to a host before it could be known whether it stays",
        fix="raise recovery.failback_stable",
        when=("recovery.failback", Failback.AUTOMATIC),
    ),
)


class Policy(Value, frozen=True, kw_only=True):
    """One cluster's policy: what is done by itself when something fails, how soon, and its bounds.

    The defaults are the profile ``balanced``. Documents stored before a section existed decode with
    that section's defaults.
    """

    restart: RestartPolicy = RestartPolicy()
    detection: DetectionPolicy = DetectionPolicy()
    fencing: FencingPolicy = FencingPolicy()
    lease: LeasePolicy = LeasePolicy()
    recovery: RecoveryPolicy = RecoveryPolicy()
    maintenance: MaintenancePolicy = MaintenancePolicy()
    io_error: IoErrorPolicy = IoErrorPolicy()

    RULES: ClassVar[tuple[Rule, ...]] = _RULES

    def __post_init__(self) -> None:
        for rule in self.RULES:
            rule.check(self.read)

    def read(self, path: str) -> Any:
        """The value at ``section.field``."""
        section, _, name = path.partition(".")
        return getattr(getattr(self, section), name)

    @property
    def leases_in_use(self) -> bool:
        """Whether guardians renew slots and fence themselves. Below the grade ``fence`` nobody may
        poison a slot, so an expired lease could prove nothing: no host kills VMs for it."""
        return self.lease.enabled and self.recovery.grade.permits(PermissionGrade.FENCE)


SECTIONS: tuple[type[Section], ...] = tuple(field.type for field in structs.fields(Policy))
"""In the order in which they are written."""

FIELD_TABLE: dict[str, PolicyField] = {
    field.path: field for section in SECTIONS for field in fields_of(section)
}
"""Every field by its path (``detection.beat_interval_ms``)."""

ALL_RULES: tuple[Rule, ...] = (*(rule for s in SECTIONS for rule in s.RULES), *Policy.RULES)
