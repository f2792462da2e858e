"""Old copies on a host that lives and is shut out of its storage (P3, G4, ADR 20)."""

import msgspec
import pytest
from ceph_plays import dies, fenced, lifts, playing, starts, thaws
from engine_driver import Play, on_ceph

from virtha.engine.ending import EndCopy
from virtha.engine.events import HoldChanged, QuarantineLifted, VmConfigured, VmSeen
from virtha.model.facts import Result
from virtha.model.ids import VmId
from virtha.model.proof import ProofKind
from virtha.model.vm import VmState


def ends(play: Play) -> list[EndCopy]:
    return [one for one in play.sent(EndCopy) if isinstance(one, EndCopy)]


def test_what_was_started_elsewhere_is_ended_as_soon_as_it_lives():
    play = fenced(playing())
    play.advance(60_000)
    assert ends(play) == [], "ordered while nobody is there"
    thaws(play)
    (end,) = ends(play)
    assert (end.vm_id, end.host_id, end.boot) == ("v1", "h1", "h1b1")
    assert (end.incarnation, end.newer) == (1, 2) and end.proof.kind is ProofKind.STORAGE_FENCE
    assert play.told().count("vm.cut_off_copy_ended") == 1
    assert play.host_record("h1").incident.ended == ()
    assert lifts(play) == [] and play.shut_out != set(), "let in without a new boot"


def test_its_end_is_ordered_until_it_is_released_whoever_leads():
    play = fenced(playing())
    play.on_command = lambda command: isinstance(command, EndCopy)
    thaws(play)
    play.new_leader()
    play.advance(20_000)
    assert len(ends(play)) >= 4 and len({one.order_id for one in ends(play)}) == 1
    assert play.told().count("vm.cut_off_copy_lives") == 1
    play.on_command = None
    play.until(lambda: "vm.cut_off_copy_ended" in play.told())
    play.forget_commands()
    play.advance(20_000)
    assert ends(play) == []


@pytest.mark.parametrize("held", ["hold", "ignore"])
def test_nothing_is_ended_by_itself_while_somebody_forbids_it(held):
    play = fenced(playing())
    if held == "hold":
        play.inbox.append(HoldChanged(reason="work"))
    else:
        play.inbox.append(VmConfigured(vm=msgspec.structs.replace(on_ceph("v1"), ignore=True)))
    thaws(play)
    assert ends(play) == []
    play.inbox += [HoldChanged(reason=None), VmConfigured(vm=on_ceph("v1"))]
    play.until(lambda: "vm.cut_off_copy_ended" in play.told())


def test_what_nothing_has_superseded_stays_as_it_is():
    play = playing(on_ceph("v1"), msgspec.structs.replace(on_ceph("v2"), ha=False))
    dies(play)
    play.hosts["h1"].running.clear()
    play.until(lambda: play.where("v1") != [])
    thaws(play)
    assert {one.vm_id for one in ends(play)} == {"v1"}


def test_a_start_that_may_never_have_come_is_ended_only_if_its_host_tells_of_it():
    """Its agent would refuse the order for ever: nothing of it is there."""
    play = playing()
    for host in play.hosts.values():
        host.start_result = None
    play.hosts["h1"].cut()
    play.until(lambda: starts(play) != [])
    (start,) = starts(play)
    lost = play.hosts[start.host_id]
    lost.hang()
    lost.bmc_dead = True
    for host in play.hosts.values():
        host.start_result = Result.OK
    play.until(lambda: "vm.quarantined" in play.told())  # two hosts died with it
    play.inbox.append(QuarantineLifted(vm_id=VmId("v1"), by="admin"))
    play.until(lambda: play.where("v1") != [])
    lost.beating = lost.answers_neighbours = lost.answers_ping = True
    play.advance(20_000)
    assert "host.lives_cut_off" in play.told() and ends(play) == []
    play.inbox.append(
        VmSeen(
            host_id=lost.id,
            boot=lost.boot,
            vm_id=start.vm_id,
            incarnation=start.incarnation,
            state=VmState.PAUSED,
        )
    )
    play.until(lambda: "vm.cut_off_copy_ended" in play.told())
    assert [(one.host_id, one.incarnation) for one in ends(play)] == [(lost.id, start.incarnation)]
