"""What may come between a decision about a copy and its being carried out. Asked by whoever carries it out, under the VM's
lock, right before: whether the host is held or going down it asks itself. Pure."""

from virtha.model.ids import Incarnation
from virtha.model.policy import PermissionGrade, Policy
from virtha.sentinel.events import VmRecord


def late_objection(record: VmRecord | None, incarnation: Incarnation) -> str | None:
    """Why nothing is done any more to that incarnation of its host's own accord, in words; None: nothing came."""
    if record is None or record.incarnation != incarnation:
        return "the VM is no longer this host's"
    if record.stop is not None or record.released or not record.wanted_up:
        return "it was stopped on purpose meanwhile"
    if record.superseded_by is not None:
        return f"incarnation {record.superseded_by} was started elsewhere meanwhile"
    if record.migrating:
        return "it is marked as migrating"
    return objection_of_grade(record.vm.grade_max, PermissionGrade.RESTART)


def objection_of_settings(hold: str | None, policy: Policy, needed: PermissionGrade) -> str | None:
    """What its host was told of the installation may keep it from that by now, in words."""
    if hold is not None:
        return f"automatic action is on hold: {hold}"
    return objection_of_grade(policy.recovery.grade, needed)


def objection_of_grade(grade: PermissionGrade | None, needed: PermissionGrade) -> str | None:
    """``grade``: its cluster's, or a VM's own; None: there is none. In words."""
    if grade is None or grade.permits(needed):
        return None
    return f"the grade of permission is {grade}, and it needs {needed}"
