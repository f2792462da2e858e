"""What the engine wrote of a VM, in its status: what it changed is carried over, what it does not know stays."""

from typing import Any

import msgspec
import pytest

from virtha.control.copies import LIST_MARGIN_MS, held_incarnation, seen_off
from virtha.control.mirror import mirrored
from virtha.engine.records import (
    Migration,
    MovePurpose,
    OrderId,
    Start,
    SupersededCopy,
    VmRecord,
    VmStage,
)
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import UtcMillis
from virtha.model.vm import PossibleCopy, VmState, VmStatus

WEB = VmId("web")
H1, H2, H3 = HostId("h1"), HostId("h2"), HostId("h3")
NOW = UtcMillis(77)


def copy(host_id: HostId, incarnation: int, boot: str | None = None) -> PossibleCopy:
    boot_id = BootId(boot or f"{host_id}-boot1")
    return PossibleCopy(host_id=host_id, incarnation=Incarnation(incarnation), boot=boot_id)


def status(*copies: PossibleCopy, **more: Any) -> VmStatus:
    given: dict[str, Any] = {
        "vm_id": WEB,
        "copies": copies,
        "holders": tuple(dict.fromkeys(one.host_id for one in copies)),
        "incarnation": max((one.incarnation for one in copies), default=Incarnation(0)),
        "state": VmState.RUNNING if copies else VmState.DOWN,
        "host_id": copies[-1].host_id if copies else None,
        **more,
    }
    return VmStatus(**given)


def record(*copies: PossibleCopy, **more: Any) -> VmRecord:
    given: dict[str, Any] = {
        "vm_id": WEB,
        "copies": copies,
        "incarnation": max((one.incarnation for one in copies), default=Incarnation(0)),
        **more,
    }
    return VmRecord(**given)


def starting(host_id: HostId, incarnation: int) -> VmRecord:
    start = Start(
        order_id=OrderId("1.1"),
        host_id=host_id,
        boot=BootId(f"{host_id}-boot1"),
        incarnation=Incarnation(incarnation),
        ordered_ms=0,
    )
    return record(copy(host_id, incarnation), stage=VmStage.STARTING, start=start)


def mirror(
    known: VmStatus, before: VmRecord | None, after: VmRecord, ordered: tuple[HostId, ...] = ()
) -> VmStatus:
    return mirrored(known, before, after, ordered=ordered, now=NOW)


def test_a_start_makes_its_target_a_holder_before_its_order_goes_out() -> None:
    found = mirror(status(state=VmState.DOWN, host_id=H1), record(), starting(H2, 6))
    assert (found.holders, found.incarnation) == ((H2,), 6)
    assert (found.state, found.host_id, found.since) == (VmState.STARTING, H2, NOW)


def test_a_proof_takes_a_copy_and_its_host_away() -> None:
    found = mirror(status(copy(H1, 5)), record(copy(H1, 5)), record())
    assert (found.holders, found.copies, found.state) == ((), (), VmState.DOWN)
    assert found.host_id == H1, "where it ran last"


def test_a_proof_and_the_start_after_it_in_one_turn() -> None:
    found = mirror(status(copy(H1, 5)), record(copy(H1, 5)), starting(H2, 6))
    assert (found.holders, found.state, found.host_id) == ((H2,), VmState.STARTING, H2)


def test_the_same_host_again_in_another_boot_holds_the_new_copy_only() -> None:
    before, after = record(copy(H1, 5)), record(copy(H1, 6, "h1-boot2"))
    found = mirror(status(copy(H1, 5)), before, after)
    assert [(one.incarnation, one.boot) for one in found.copies] == [(6, "h1-boot2")]
    assert found.holders == (H1,)


def test_a_holder_of_which_the_engine_never_knew_stays() -> None:
    """A storage domain named it: the engine is told of that, and this turn was not."""
    known = status(copy(H3, 9), copy(H1, 5))
    found = mirror(known, record(copy(H1, 5)), record())
    assert found.holders == (H3,)
    assert found.state is VmState.RUNNING, "somebody may run it"


def test_a_start_by_a_person_that_the_turn_did_not_know_keeps_its_host_and_its_number() -> None:
    known = status(copy(H1, 6), state=VmState.STARTING)
    found = mirror(known, record(copy(H1, 5)), starting(H2, 6), ordered=(H1,))
    assert set(found.holders) == {H1, H2}, "so the engine's is not sent"
    assert (found.state, found.host_id, found.incarnation) == (VmState.STARTING, H1, 6)


def test_a_copy_in_another_boot_than_the_proofs_stays() -> None:
    known = status(copy(H1, 5, "h1-boot2"))
    found = mirror(known, record(copy(H1, 5, "h1-boot1")), record())
    assert found.holders == (H1,)


def test_what_changed_nothing_leaves_the_status_as_it_is() -> None:
    known = status(copy(H1, 5), state=VmState.PAUSED)
    before = record(copy(H1, 5))
    after = msgspec.structs.replace(before, lost_ms=7, stage=VmStage.LOST)
    assert mirror(known, before, after) is known


def test_no_list_ends_a_copy_whose_grant_is_not_known() -> None:
    known = mirror(status(copy(H1, 5)), record(copy(H1, 5)), record(copy(H1, 5), copy(H1, 6)))
    later = msgspec.structs.replace(known, incarnation=Incarnation(7))
    found = seen_off(later, H1, BootId("h1-boot1"), 10 * LIST_MARGIN_MS, BootId("h1-boot1"))
    assert [one.incarnation for one in found.copies] == [6]


@pytest.mark.parametrize("spoke_last", [H1, H2])
def test_a_move_that_ended_is_where_its_last_copy_is(spoke_last: HostId) -> None:
    moving = Migration(
        order_id=OrderId("1.2"),
        purpose=MovePurpose.OPERATOR,
        source=H1,
        source_boot=BootId("h1-boot1"),
        source_incarnation=Incarnation(5),
        target=H2,
        target_boot=BootId("h2-boot1"),
        incarnation=Incarnation(6),
        ordered_ms=0,
    )
    both = record(copy(H1, 5), copy(H2, 6), stage=VmStage.MIGRATING, migration=moving)
    under_way = mirror(status(copy(H1, 5)), record(copy(H1, 5)), both)
    assert under_way.holders == (H1, H2) and under_way.incarnation == 5, "its source runs it"
    told = msgspec.structs.replace(under_way, host_id=spoke_last, state=VmState.DOWN)
    found = mirror(told, both, record(copy(H2, 6)))
    assert (found.holders, found.host_id, found.incarnation) == ((H2,), H2, 6)
    if spoke_last == H1:
        assert found.state is VmState.RUNNING, "what its former host said is no longer how it is"


@pytest.mark.req("G4")
def test_a_copy_that_is_to_end_is_named_and_keeps_the_number_of_the_newer_one() -> None:
    old, new = copy(H1, 5), copy(H2, 6)
    proof = Proof(kind=ProofKind.OPERATOR, host_id=H1, boot=BootId("h1-boot1"), at_ms=0)
    due = SupersededCopy(copy=old, proof=proof, newer=Incarnation(6), order_id=OrderId("1.2"))
    both = record(old, new, superseded=(due,))
    found = mirror(status(new), record(new), both)
    assert (found.superseded, found.incarnation, found.host_id) == ((H1,), 6, H2)
    assert held_incarnation(found, H1) == held_incarnation(found, H2) == 6
    alone = msgspec.structs.replace(both, copies=(old,))
    found = mirror(found, both, alone)
    assert (found.holders, found.superseded, found.incarnation) == ((H1,), (H1,), 6)
    assert held_incarnation(found, H1) == 6, "it may not run on: the newer one wrote"
    found = mirror(found, alone, record(incarnation=Incarnation(6)))
    assert (found.holders, found.superseded) == ((), ())


@pytest.mark.req("G4")
def test_an_older_copy_that_was_found_is_left_alone_until_the_newer_one_is_over() -> None:
    old, new = copy(H1, 5), copy(H2, 6)
    found = mirror(status(new), record(new), record(old, new))
    assert found.superseded == (H1,) and held_incarnation(found, H1) == 6
    found = mirror(found, record(old, new), record(old))
    assert found.superseded == () and held_incarnation(found, H1) == 5
