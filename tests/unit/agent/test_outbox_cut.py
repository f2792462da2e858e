"""An outbox that is cut or spoiled anywhere: what is left is told in order, and what is gone is told as gone."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtha.agent.files import Files
from virtha.agent.outbox import Outbox
from virtha.drivers.machine_clock import MachineClock
from virtha.model.facts import Happened
from virtha.model.ids import BootId

pytestmark = [pytest.mark.req("W7"), pytest.mark.bad_input("truncated outbox")]

TRUNCATED = "host.outbox.truncated"
# A busy machine makes examples slowly; that says nothing about the code.
CALM = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def opened(path: Path) -> Outbox:
    outbox = Outbox(path, boot=BootId("b"), clock=MachineClock(), files=Files())
    outbox.open()
    return outbox


def told(outbox: Outbox, after: int = 0) -> list[tuple[int, object]]:
    """(sequence, the number that the test gave it, or the event's code)."""
    return [
        (fact.sequence, fact.body.fields.get("count", fact.body.code))
        for fact in outbox.facts_after(after, 1_000)
        if isinstance(fact.body, Happened)
    ]


def written(path: Path, lives: list[int], acknowledged: int = 0) -> list[Path]:
    """An outbox of one segment per life, with so many facts each, counted from 1."""
    count = 0
    for facts in lives:
        outbox = opened(path)
        for _ in range(facts):
            count += 1
            outbox.append([Happened(code="vm.watchdog.fired", fields={"count": count})])
        outbox.on_facts_acknowledged(min(acknowledged, outbox.last_sequence))
        outbox.close()
    return sorted(path.glob("*.seg"))


def check(path: Path, total: int, acknowledged: int) -> None:
    """Opened, aligned with the server, used further and opened again: nothing doubled, reordered, silent."""
    outbox = opened(path)
    outbox.align(acknowledged)
    found = told(outbox, acknowledged)
    numbers = [number for number, _ in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    assert all(number > acknowledged for number in numbers)
    kept = [count for _, count in found if count != TRUNCATED]
    assert kept == sorted(set(kept)), "in order, each once"
    lost = set(range(acknowledged + 1, total + 1)) - set(kept)
    assert ([count for _, count in found].count(TRUNCATED) == 1) >= bool(lost), (lost, found)
    assert not set(kept) - set(range(1, total + 1))
    # Numbers that the server may have seen for a lost fact never come again for another one.
    by_number = dict(found)
    assert all(by_number.get(number, number) == number for number in range(1, total + 1))
    outbox.append([Happened(code="later", fields={"count": "later"})])
    outbox.close()
    again = opened(path)
    again.align(acknowledged)
    assert told(again, acknowledged) == [*found, (again.last_sequence, "later")]
    again.close()


def offsets(length: int) -> list[int]:
    """Every one in `make verify`; here each fifth, and all around the ends of the file."""
    if os.environ.get("VIRTHA_EVERY_BYTE"):
        return list(range(length + 1))
    return sorted(
        {*range(0, length + 1, 5), *range(12), *range(length - 12, length + 1)}
        & set(range(length + 1))
    )


@pytest.mark.parametrize("acknowledged", [0, 3, 6])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_cut_at_every_byte(tmp_path: Path, which: int, acknowledged: int) -> None:
    sample = written(tmp_path / "sample", [2, 2, 2])
    whole = [path.read_bytes() for path in sample]
    for at in offsets(len(whole[which])):
        path = tmp_path / f"cut{at}"
        segments = written(path, [2, 2, 2], acknowledged)
        found = next((one for one in segments if one.name == sample[which].name), None)
        if found is None:
            return  # acknowledged, so it is gone already
        found.write_bytes(found.read_bytes()[:at])
        check(path, 6, acknowledged)


@CALM
@given(
    lives=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
    tail=st.binary(max_size=40),
    mark=st.sampled_from(["kept", "cut"]),
)
def test_cut_anywhere_with_a_tail_of_garbage(
    tmp_path_factory: pytest.TempPathFactory,
    lives: list[int],
    data: st.DataObject,
    tail: bytes,
    mark: str,
) -> None:
    path = tmp_path_factory.mktemp("outbox")
    total = sum(lives)
    acknowledged = data.draw(st.integers(0, total))
    segments = written(path, lives, acknowledged)
    chosen = data.draw(st.sampled_from(segments))
    whole = chosen.read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    chosen.write_bytes(whole[:at] + tail)
    if mark == "cut":
        high_water = path / "high_water"
        high_water.write_bytes(high_water.read_bytes()[: data.draw(st.integers(12, 23))])
    check(path, total, acknowledged)
