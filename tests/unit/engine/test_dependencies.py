"""Start order: cycles refused with their path; ranks and depths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.engine.dependencies import Dependency, Rank, check_dependencies, start_order
from virtha.model.errors import InvalidInput
from virtha.model.ids import VmId


def graph(text: str) -> dict[VmId, list[VmId]]:
    """``a>b,c b>c``: a waits for b and c."""
    found: dict[VmId, list[VmId]] = {}
    for part in text.split():
        vm, _, needed = part.partition(">")
        found[VmId(vm)] = [VmId(one) for one in needed.split(",") if one]
    return found


@pytest.mark.parametrize("text", ["", "a", "a>b b", "a>b,c b>d c>d d", "a>gone", "a>b b>c c x>a"])
def test_what_has_a_beginning_is_accepted(text: str) -> None:
    check_dependencies(graph(text))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a>a", "a -> a"),
        ("a>b b>a", "a -> b -> a"),
        ("c>a a>b b>c", "a -> b -> c -> a"),
        ("x>a a>b b>c c>b", "b -> c -> b"),
        ("a>b,c b>d c>d d>c", "c -> d -> c"),
    ],
)
def test_a_cycle_is_refused_with_its_path(text: str, path: str) -> None:
    with pytest.raises(InvalidInput, match=f"wait for each other: {path};") as caught:
        check_dependencies(graph(text))
    assert caught.value.field == "depends_on"
    assert caught.value.fix


def test_a_cycle_is_shown_by_names_from_the_first_one() -> None:
    names = {VmId("1"): "web", VmId("2"): "app", VmId("3"): "db"}
    with pytest.raises(InvalidInput, match="app -> db -> web -> app"):
        check_dependencies(graph("1>2 2>3 3>1"), names)


def test_a_chain_longer_than_a_call_stack_is_no_trouble() -> None:
    chain = {VmId(f"{at:06}"): [VmId(f"{at + 1:06}")] for at in range(50_000)}
    check_dependencies(chain)
    chain[VmId("050000")] = [VmId("049999")]
    with pytest.raises(InvalidInput, match="049999 -> 050000 -> 049999"):
        check_dependencies(chain)


@given(st.dictionaries(st.integers(0, 6), st.sets(st.integers(0, 6), max_size=3)))
def test_refused_exactly_when_some_vm_waits_for_itself(edges: dict[int, set[int]]) -> None:
    reaches = {(one, other) for one, needed in edges.items() for other in needed}
    while True:
        more = {(a, d) for a, b in reaches for c, d in reaches if b == c} - reaches
        if not more:
            break
        reaches |= more
    asked = {
        VmId(str(one)): [VmId(str(other)) for other in needed] for one, needed in edges.items()
    }
    if any(one == other for one, other in reaches):
        with pytest.raises(InvalidInput):
            check_dependencies(asked)
    else:
        check_dependencies(asked)


def order(text: str, priorities: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Priorities as inherited, and depths."""
    asked = graph(text)
    ranks = {vm: Rank((0, -priorities.get(vm, 0))) for vm in asked}
    needed = {vm: [Dependency(vm_id=one, name=one) for one in ones] for vm, ones in asked.items()}
    inherited, depth = start_order(ranks, needed)
    return {vm: -rank[1] for vm, rank in inherited.items()}, dict(depth)


@pytest.mark.parametrize(
    ("text", "priorities", "inherited", "depths"),
    [
        ("a b", {"a": 1}, {"a": 1, "b": 0}, {"a": 0, "b": 0}),
        ("a>b b", {"a": 5}, {"a": 5, "b": 5}, {"a": 1, "b": 0}),
        ("a>b b", {"b": 5}, {"a": 0, "b": 5}, {"a": 1, "b": 0}),
        ("a>b b>c c", {"a": 5, "c": 1}, {"a": 5, "b": 5, "c": 5}, {"a": 2, "b": 1, "c": 0}),
        ("a>c b>c c>gone", {"a": 1, "b": 9}, {"a": 1, "b": 9, "c": 9}, {"a": 1, "b": 1, "c": 0}),
        ("a>b,b b", {"a": 2}, {"a": 2, "b": 2}, {"a": 1, "b": 0}),
        ("a>b b>a c", {"a": 2}, {"a": 2, "b": 0, "c": 0}, {"a": 3, "b": 3, "c": 0}),
    ],
)
def test_dependencies_inherit_rank_and_come_first(
    text: str, priorities: dict[str, int], inherited: dict[str, int], depths: dict[str, int]
) -> None:
    assert order(text, priorities) == (inherited, depths)
