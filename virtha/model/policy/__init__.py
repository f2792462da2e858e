"""The operator's policy as a typed document: one file per section; checked when it is built.

Every duration is in milliseconds. ``field.py`` says what is known of each field, ``rule.py`` how
relations between them are checked, ``profiles.py`` holds the three ready-made sets of times, and
``budget.py`` what they add up to.
"""

from virtha.model.policy.detection import DetectionPolicy
from virtha.model.policy.document import ALL_RULES, FIELD_TABLE, SECTIONS, Policy
from virtha.model.policy.fencing import (
    FencingAction,
    FencingPolicy,
    Unreachable,
    UntestedDevices,
)
from virtha.model.policy.field import PolicyField, Unit
from virtha.model.policy.io_error import IoErrorPolicy
from virtha.model.policy.lease import LeasePolicy
from virtha.model.policy.maintenance import MaintenancePolicy
from virtha.model.policy.permission import PermissionGrade
from virtha.model.policy.quiet import QuietTime, Weekday, quiet_until_ms
from virtha.model.policy.recovery import DependencyExpired, Failback, RecoveryPolicy
from virtha.model.policy.restart import RestartPolicy
from virtha.model.policy.rule import BrokenRule, Rule

__all__ = [
    "ALL_RULES",
    "FIELD_TABLE",
    "SECTIONS",
    "BrokenRule",
    "DependencyExpired",
    "DetectionPolicy",
    "Failback",
    "FencingAction",
    "FencingPolicy",
    "IoErrorPolicy",
    "LeasePolicy",
    "MaintenancePolicy",
    "PermissionGrade",
    "Policy",
    "PolicyField",
    "QuietTime",
    "RecoveryPolicy",
    "RestartPolicy",
    "Rule",
    "Unit",
    "Unreachable",
    "UntestedDevices",
    "Weekday",
    "quiet_until_ms",
]
