"""A VM that migrates turns up on a third host: a copy that nobody ordered, by hand or by a lost word. Neither side is ended
or let run for it, nothing is started, and the move ends when two of the three are out of the question."""

from drain_driver import maintain, settled_once, told_why
from engine_driver import Play
from engine_review_driver import playing, released, seen, third
from played_moves import Phase

from virtha.engine.events import MigrateCommand, MigrationWord, SettleMigration, StartCommand
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.evidence import IdentityMatch


def moving() -> tuple[Play, MigrateCommand, str]:
    """v1 is on its way from h1; its third host says that it runs it as well."""
    play = playing(7)
    for host in play.hosts.values():
        host.bmc_identity = IdentityMatch.MATCH  # two that die at once are not taken for swapped
        play.test_power(host)
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    order = play.sent(MigrateCommand)[0]
    assert isinstance(order, MigrateCommand)
    other = third(play, "h1", order.target, "h2")
    seen(play, other, "v1", incarnation=int(order.incarnation) + 1)
    play.hosts[other].running.clear()  # what it says is what counts here
    play.tick()
    return play, order, other


def holders(play: Play) -> set[str]:
    return {str(copy.host_id) for copy in play.vm_record("v1").copies}


def words(play: Play) -> set[MigrationWord]:
    return {one.word for one in play.sent(SettleMigration) if isinstance(one, SettleMigration)}


def test_both_sides_are_only_asked_and_somebody_is_told():
    play, order, other = moving()
    play.advance(60_000)
    assert holders(play) == {"h1", str(order.target), other}
    assert play.why_vm("v1") == ["migration.blocked.copies"]
    assert words(play) == {MigrationWord.TELL}
    assert play.told().count("vm.found") >= 1 and play.sent(StartCommand) == []


def test_it_goes_on_when_the_third_gives_its_copy_back():
    play, order, other = moving()
    play.advance(10_000)
    released(play, other, "v1", int(order.incarnation) + 1)
    play.moves.stops_at = None
    play.until(lambda: settled_once(play), within_ms=1_200_000)
    assert play.sent(StartCommand) == []


def test_the_third_keeps_it_when_both_sides_are_over():
    play, order, other = moving()
    for host in ("h1", str(order.target)):
        play.hosts[host].cut()
    play.until(lambda: holders(play) == {other}, within_ms=600_000)
    play.tick()
    record = play.vm_record("v1")
    assert record.stage is VmStage.SETTLED and record.migration is None
    assert play.sent(StartCommand) == []


def test_when_the_third_dies_as_well_it_is_started_once():
    play, order, other = moving()
    for host in ("h1", str(order.target), other):
        play.hosts[host].cut()
        play.until(lambda host=host: play.verdict(host) is Verdict.DEAD_PROVEN)
        assert play.sent(StartCommand) == [] or host == other
    play.advance(60_000)
    assert told_why(play)
    assert len(play.sent(StartCommand)) <= 1


def test_a_new_leader_keeps_asking():
    play, _, _ = moving()
    play.new_leader()
    play.advance(30_000)
    assert play.why_vm("v1") == ["migration.blocked.copies"]
    assert words(play) == {MigrationWord.TELL} and play.sent(StartCommand) == []
