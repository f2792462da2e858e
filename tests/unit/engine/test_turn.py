"""The order of effects: journal, write under the term, then send; and nothing after a term that passed on."""

import pytest

from virtha.engine import turn as turn_module
from virtha.engine.configured import EngineHost
from virtha.engine.engine import Engine
from virtha.engine.events import BeatSeen, HostConfigured, HostSurveyed, SessionChanged, Stalled
from virtha.engine.records import ClusterRecord, EngineRecords
from virtha.engine.turn import InboxFull, Journal, Send, StepDown, Turn, Wait, Write
from virtha.model.evidence import ProcessKind
from virtha.model.ids import BootId, HostId, Term
from virtha.model.policy import Policy
from virtha.model.time import Millis

NOW = Millis(1_000_000_000)


def a_turn() -> Turn:
    records = EngineRecords(cluster=ClusterRecord(term=Term(3)))
    turn = Turn(Engine(policy=Policy(), records=records, now=NOW), term=Term(3))
    turn.offer([HostConfigured(host=EngineHost(host_id=HostId("h1"), name="h1", number=1))])
    return turn


def beat(*, alive: bool = True) -> BeatSeen:
    return BeatSeen(host_id=HostId("h1"), boot=BootId("b1"), agent_alive=alive)


def broken() -> SessionChanged:
    return SessionChanged(
        host_id=HostId("h1"), process=ProcessKind.GUARDIAN, boot=BootId("b1"), up=False, broken=True
    )


def seen(turn: Turn) -> Turn:
    """h1 beats and told what it runs; then its connection breaks, so that questions go out."""
    turn.offer(
        [
            SessionChanged(
                host_id=HostId("h1"), process=ProcessKind.GUARDIAN, boot=BootId("b1"), up=True
            ),
            beat(),
            HostSurveyed(
                host_id=HostId("h1"), boot=BootId("b1"), gate_in_force=True, libvirt_connected=True
            ),
        ]
    )
    turn.begin(NOW)
    turn.journaled()
    turn.written(held=True, now=NOW)
    turn.sent()
    turn.offer([broken()])
    return turn


def test_journal_then_write_then_send_then_wait():
    turn = seen(a_turn())
    journal = turn.begin(Millis(NOW + 100))
    assert isinstance(journal, Journal) and journal.events == (broken(),)
    write = turn.journaled()
    assert isinstance(write, Write) and write.term == 3
    assert turn.decision is not None and turn.decision.notices == write.notices
    assert [notice.code for notice in write.notices] == ["host.suspected"]
    send = turn.written(held=True, now=NOW)
    assert isinstance(send, Send) and send.commands
    wait = turn.sent()
    assert isinstance(wait, Wait) and wait.until is not None and wait.until > NOW + 100


def test_a_term_that_passed_on_sends_nothing_ever_again():
    turn = seen(a_turn())
    turn.begin(Millis(NOW + 100))
    turn.journaled()
    assert turn.written(held=False, now=NOW) == StepDown()
    turn.offer([beat()])
    assert turn.begin(Millis(NOW + 200)) == StepDown()


def test_nothing_to_write_is_no_transaction():
    turn = seen(a_turn())
    turn.begin(Millis(NOW + 100))
    turn.journaled()
    turn.written(held=True, now=NOW)
    turn.sent()
    turn.begin(Millis(NOW + 101))
    assert isinstance(turn.journaled(), Wait)


def test_beats_take_one_place_and_lose_no_change():
    turn = a_turn()
    turn.offer([beat(), beat(), beat(alive=False), beat(alive=False), beat()])
    journal = turn.begin(NOW)
    assert isinstance(journal, Journal)
    beats = [event for event in journal.events if isinstance(event, BeatSeen)]
    assert beats == [beat(), beat(alive=False), beat()]


def test_what_comes_in_mid_turn_is_for_the_next():
    turn = seen(a_turn())
    turn.begin(Millis(NOW + 100))
    turn.offer([beat()])
    turn.journaled()
    turn.written(held=True, now=NOW)
    turn.sent()
    assert turn.waiting
    journal = turn.begin(Millis(NOW + 200))
    assert isinstance(journal, Journal) and journal.events == (beat(),)


def test_an_inbox_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turn_module, "INBOX_MAX", 10)
    turn = a_turn()
    turn.offer([beat()] * 1_000)
    with pytest.raises(InboxFull, match="12 events"):
        turn.offer([broken()] * 10)


def test_a_beat_from_before_a_break_is_read_before_it():
    turn = a_turn()
    turn.offer([beat(), broken(), beat(alive=False)])
    journal = turn.begin(NOW)
    assert isinstance(journal, Journal)
    assert journal.events[-3:] == (beat(), broken(), beat(alive=False))


def test_a_host_may_forget_only_what_is_durable():
    """A receipt goes with the turn's own writing, or waits beside the turns where there is nothing to write."""
    turn = a_turn()
    turn.took(HostId("h1"), 7)
    turn.begin(NOW)
    write = turn.journaled()
    assert isinstance(write, Write) and write.receipts == {HostId("h1"): 7}
    assert turn.settled == {HostId("h1"): 7}, "not forgotten before it is written"
    turn.took(HostId("h1"), 9)
    turn.written(held=True, now=NOW)
    assert turn.settled == {}
    assert turn.waiting, "what came meanwhile is the next turn's"


def test_a_turn_with_nothing_but_receipts_does_not_wait_for_the_database():
    turn = seen(a_turn())
    turn.begin(NOW)
    turn.journaled()
    turn.written(held=True, now=NOW)
    turn.sent()
    turn.took(HostId("h1"), 3)
    turn.begin(Millis(NOW + 1))
    assert not isinstance(turn.journaled(), Write)
    assert turn.settled == {HostId("h1"): 3}


def test_receipts_of_a_leader_that_is_deposed_are_never_given():
    turn = a_turn()
    turn.took(HostId("h1"), 7)
    turn.begin(NOW)
    turn.journaled()
    turn.written(held=False, now=NOW)
    assert turn.settled == {HostId("h1"): 7}


@pytest.mark.req("F1")
def test_a_write_that_took_as_long_as_a_stall_was_one():
    """J1: nobody was asked meanwhile, so nobody is judged by what was not said."""
    turn = seen(a_turn())
    turn.begin(Millis(NOW + 100))
    turn.journaled()
    turn.written(held=True, now=Millis(NOW + 100 + Policy().detection.stall_ms))
    turn.sent()
    later = Millis(NOW + 200 + Policy().detection.stall_ms)
    assert turn.begin(later) == Journal(now=later, events=(Stalled(),))
    turn.journaled()


def test_a_write_in_its_time_was_none():
    turn = seen(a_turn())
    turn.begin(Millis(NOW + 100))
    turn.journaled()
    turn.written(held=True, now=Millis(NOW + 99 + Policy().detection.stall_ms))
    turn.sent()
    assert not turn.waiting
