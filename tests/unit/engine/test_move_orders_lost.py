"""Orders of moves that are lost with a session, or with the agent that had them: who is asked, and when (ADR 10, G6).
``PlayedMoves`` fails a test at once for a second writer."""

import pytest
from drain_driver import maintain, moved, playing, settled_once, words
from engine_driver import Play
from played_moves import Phase, answer

from virtha.engine.events import MigrateCommand, MigrationWord, SessionChanged
from virtha.engine.migration import ASK_EVERY_MS
from virtha.engine.records import MoveStep
from virtha.model.evidence import ProcessKind
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId

DEADLINE_MS = 600_000
SOON_MS = 2 * ASK_EVERY_MS


def session(
    play: Play, host_id: HostId, *, up: bool, process: ProcessKind = ProcessKind.AGENT
) -> None:
    boot: BootId = play.hosts[host_id].boot
    play.inbox.append(SessionChanged(host_id=host_id, process=process, boot=boot, up=up))
    play.tick()


def ordered(play: Play) -> MigrateCommand:
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    play.tick()
    return play.sent(MigrateCommand)[0]


@pytest.mark.req("G1", "G6")
@pytest.mark.bad_input("death in a move")
@pytest.mark.parametrize("up", [True, False], ids=["begins anew", "ends"])
def test_an_order_that_is_lost_with_its_session_ends_the_move_within_seconds(up: bool):
    play = playing()
    play.moves.lost_orders = True
    order = ordered(play)
    session(play, order.target, up=up)
    if not up:
        session(play, order.target, up=True)
    play.moves.lost_orders = False
    play.until(lambda: "vm.migration_failed" in play.told(), within_ms=SOON_MS)
    assert {word for _, word in words(play)} <= {MigrationWord.TELL, MigrationWord.RUN}
    play.until(lambda: moved(play), within_ms=60_000)
    orders = play.sent(MigrateCommand)
    assert len({one.order_id for one in orders}) == len(orders) == 2, "another one, to another host"
    assert orders[1].target != order.target


def test_a_move_whose_sessions_stand_is_not_asked_about():
    play = playing()
    play.moves.lost_orders = True
    ordered(play)
    play.advance(DEADLINE_MS // 2)
    assert words(play) == [] and play.why_vm("v1") == ["migration.under_way"]


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("up", [True, False], ids=["begins anew", "ends"])
def test_a_move_that_both_have_taken_goes_on_whatever_becomes_of_their_sessions(
    side: str, up: bool
):
    """Asked at the moment of the switch, its source would say that it stands still, and the move would be called off."""
    play = playing()
    play.moves.stops_at = Phase.COPYING
    order = ordered(play)
    for _ in range(3):
        session(play, getattr(order, side), up=up)
        play.advance(SOON_MS)
    session(play, getattr(order, side), up=True)
    assert words(play) == [] and play.vm_record("v1").migration.step is MoveStep.ORDERED
    play.moves.stops_at = None
    play.until(lambda: moved(play))
    assert len(play.sent(MigrateCommand)) == 1


@pytest.mark.parametrize("side", ["source", "target"])
def test_only_the_session_of_the_side_that_has_to_answer_next_counts(side: str):
    play = playing()
    play.moves.stops_at = Phase.COPYING
    play.moves.unanswered = {"h1"}
    order = ordered(play)
    session(play, getattr(order, side), up=True)
    play.advance(SOON_MS)
    asked = {(order.source, MigrationWord.TELL), (order.target, MigrationWord.TELL)}
    assert set(words(play)) == (asked if side == "source" else set())
    play.moves.stops_at = None
    play.until(lambda: moved(play))
    assert len(play.sent(MigrateCommand)) == 1, "what is under way goes on though it is asked about"


def test_an_answer_that_comes_with_the_new_session_leaves_nothing_to_ask():
    """It lay in its host's outbox."""
    play = playing()
    play.moves.stops_at = Phase.COPYING
    play.moves.unanswered = set(play.hosts)
    order = ordered(play)
    session(play, order.target, up=False)
    play.advance(2_000)
    session(play, order.target, up=True)
    play.inbox += [answer(order, order.target), answer(order, order.source)]
    play.advance(SOON_MS)
    assert words(play) == []
    play.moves.stops_at = None
    play.until(lambda: moved(play))


def test_a_session_that_breaks_again_and_again_puts_nothing_off():
    play = playing()
    play.moves.lost_orders = True
    order = ordered(play)
    for _ in range(8):
        session(play, order.target, up=False)
        session(play, order.target, up=True)
        play.advance(ASK_EVERY_MS // 5)
    assert words(play) != []


def test_a_guardian_s_session_says_nothing_of_orders():
    play = playing()
    play.moves.lost_orders = True
    order = ordered(play)
    session(play, order.target, up=False, process=ProcessKind.GUARDIAN)
    session(play, order.target, up=True, process=ProcessKind.GUARDIAN)
    play.advance(SOON_MS)
    assert words(play) == []


@pytest.mark.parametrize("result", [Result.FAILED, Result.REFUSED, Result.UNKNOWN])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_that_answers_anything_else_is_asked_what_is_left(side: str, result: Result):
    """Its own word may follow or not: an agent that is out of room writes nothing down."""
    play = playing()
    play.moves.lost_orders = True
    order = ordered(play)
    play.inbox.append(answer(order, getattr(order, side), result))
    play.until(lambda: "vm.migration_failed" in play.told(), within_ms=SOON_MS)


def test_an_answer_to_a_move_that_is_over_says_nothing():
    play = playing()
    order = ordered(play)
    play.until(lambda: settled_once(play))
    said = words(play)
    play.inbox.append(answer(order, order.target, Result.FAILED))
    session(play, order.target, up=True)
    play.advance(SOON_MS)
    assert words(play) == said and settled_once(play)
