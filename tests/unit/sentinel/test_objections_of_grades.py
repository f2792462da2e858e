"""What a person lowered between a decision and its being carried out: a grade."""

import pytest

from virtha.model.policy import PermissionGrade, Policy, RecoveryPolicy
from virtha.sentinel.objections import objection_of_grade, objection_of_settings

OBSERVE, RESTART, MOVE, FENCE = PermissionGrade


@pytest.mark.req("S6", "X1")
def test_a_grade_below_what_is_needed_objects_in_words() -> None:
    assert objection_of_grade(None, MOVE) is None
    assert [one for one in PermissionGrade if objection_of_grade(one, MOVE)] == [OBSERVE, RESTART]
    assert objection_of_grade(OBSERVE, RESTART) == (
        "the grade of permission is observe, and it needs restart"
    )


def test_a_hold_is_named_before_the_clusters_grade() -> None:
    observed = Policy(recovery=RecoveryPolicy(grade=OBSERVE))
    assert "racks" in (objection_of_settings("moving racks", observed, RESTART) or "")
    assert "observe" in (objection_of_settings(None, observed, RESTART) or "")
    assert objection_of_settings(None, Policy(), FENCE) is None
