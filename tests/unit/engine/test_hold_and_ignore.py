"""What operators keep out of automatic action stays out of it when another server leads, from its first step on."""

import msgspec
import pytest
from engine_driver import Play, vm
from engine_review_driver import playing

from virtha.engine.events import HoldChanged, OrderPower, Poison, StartCommand, VmConfigured
from virtha.engine.records import ClusterRecord
from virtha.engine.snapshot import cluster_of
from virtha.model.ids import Term

pytestmark = pytest.mark.req("F7", "X1")


def hold(play: Play, reason: str | None) -> None:
    play.inbox.append(HoldChanged(reason=reason))
    play.tick()


@pytest.mark.parametrize("when", ["before", "judged"])
def test_a_hold_outlives_the_server(when: str):
    """The next one is told of no setting at all here: what is in the records suffices."""
    play = playing()
    if when == "before":
        hold(play, "work on the switch")
    play.hosts["h1"].cut()
    if when == "judged":
        play.until(lambda: play.host_record("h1").incident is not None)
        hold(play, "work on the switch")
    given = len(play.sent(OrderPower)), len(play.sent(StartCommand))
    play.new_leader()
    play.advance(120_000)
    assert (len(play.sent(OrderPower)), len(play.sent(StartCommand))) == given
    assert play.sent(Poison) == []
    assert play.engine.records().cluster.hold == "work on the switch"
    if when == "before":
        assert "fence.blocked.hold" in play.why("h1")
    else:  # its power was ordered off before, and read as off: what holds is the start
        assert play.why_vm("v1") == ["recovery.blocked.hold"]
    hold(play, None)
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    play.new_leader()
    assert play.engine.records().cluster.hold is None


def test_a_vm_that_is_ignored_stays_so_under_the_next_server():
    play = playing(vms=[vm("v1", ignore=True), vm("v2"), vm("v3")])
    play.run("v3", "h1")
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v3") not in ([], ["h1"]))
    for _ in range(3):
        play.new_leader()
        play.advance(60_000)
        assert play.where("v1") == []
    assert all(start.vm_id != "v1" for start in play.sent(StartCommand))


def test_one_that_is_ignored_while_it_waits_is_not_started_by_the_next_server():
    play = playing(vms=[vm("v1"), vm("v2")])
    hold(play, "work")
    play.hosts["h1"].cut()
    play.advance(10_000)
    play.vms = [vm("v1", ignore=True), vm("v2")]
    play.inbox += [VmConfigured(vm=one) for one in play.vms]
    play.tick()
    hold(play, None)
    play.new_leader()
    play.advance(120_000)
    assert play.sent(StartCommand) == []


def test_the_next_term_takes_over_all_but_its_own_count():
    record = ClusterRecord(term=Term(3), orders=7, incidents=4, brake_lifted_ms=9, hold="x")
    led = record.led_in(Term(4))
    assert led == msgspec.structs.replace(record, term=Term(4), orders=0)


def test_a_snapshot_of_before_the_records_kept_it_brings_the_hold_back():
    play = playing()
    hold(play, "work")
    former = msgspec.structs.replace(
        play.engine.snapshot(),
        cluster=msgspec.structs.replace(play.engine.records().cluster, hold=None),
    )
    assert cluster_of(former).hold == "work"
