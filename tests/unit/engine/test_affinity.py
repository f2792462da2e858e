"""Hard rules that contradict each other are refused; bundles are what hard rules bind to one host."""

import pytest

from virtha.engine.affinity import (
    AffinityGroup,
    AffinityGroupId,
    AffinityKind,
    bundles,
    check_affinity,
)
from virtha.model.errors import InvalidInput
from virtha.model.ids import VmId


def group(name: str, kind: str, hard: bool = True) -> AffinityGroup:
    return AffinityGroup(id=AffinityGroupId(name), name=name, kind=AffinityKind(kind), hard=hard)


T1, T2 = group("t1", "together"), group("t2", "together")
A1 = group("a1", "apart")
SOFT_T, SOFT_A = group("st", "together", hard=False), group("sa", "apart", hard=False)


def of(**groups: tuple[AffinityGroup, ...]) -> dict[VmId, tuple[AffinityGroup, ...]]:
    return {VmId(name): rules for name, rules in groups.items()}


@pytest.mark.parametrize(
    "groups",
    [
        of(),
        of(a=(T1,), b=(T1,), c=(A1,)),
        of(a=(T1, A1), b=(T1,)),
        of(a=(T1, A1), b=(T2, A1)),
        of(a=(SOFT_T, A1), b=(SOFT_T, A1)),
        of(a=(T1, SOFT_A), b=(T1, SOFT_A)),
    ],
)
def test_rules_that_can_be_kept_are_accepted(groups: dict[VmId, tuple[AffinityGroup, ...]]) -> None:
    check_affinity(groups)


@pytest.mark.parametrize(
    "groups",
    [
        of(a=(T1, A1), b=(T1, A1)),
        # By way of c.
        of(a=(T1, A1), b=(T2, A1), c=(T1, T2)),
    ],
)
def test_both_together_and_apart_is_refused_by_name(
    groups: dict[VmId, tuple[AffinityGroup, ...]],
) -> None:
    with pytest.raises(InvalidInput, match="a and b must be apart by 'a1'") as caught:
        check_affinity(groups)
    assert caught.value.field == "affinity_groups"
    assert caught.value.fix


def test_bundles_pass_on_through_shared_members() -> None:
    groups = of(d=(T2,), c=(T1, T2), b=(T1,), a=(SOFT_T,), e=(A1, SOFT_T))
    assert bundles(groups) == {"a": "a", "b": "b", "c": "b", "d": "b", "e": "e"}
    assert set(bundles(of(c=(T2, T1), b=(T1,), a=(T2,))).values()) == {"a"}
