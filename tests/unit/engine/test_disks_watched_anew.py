"""After an order, disks that were seen written are quiet only by readers' word, whoever leads (J3)."""

import pytest
from engine_driver import Play
from engine_review_driver import playing
from msgspec.structs import replace

from virtha.engine.events import (
    Command,
    DisksWatched,
    HoldChanged,
    Investigate,
    OrderPower,
    Poison,
    SaveHost,
    SessionChanged,
    Stalled,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import Incident
from virtha.model.evidence import IdentityMatch, PowerState, ProcessKind
from virtha.model.ids import HostId

pytestmark = pytest.mark.req("F2")


class Readers:
    """Of the disks of all hosts. ``changed``: their word; None: that they can't read. ``silent``: no word at all."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.changed: bool | None = False
        self.silent = False
        self.words = 0
        play.on_command = self.answer

    def answer(self, command: Command) -> bool:
        if not isinstance(command, Investigate):
            return False
        if command.disk_reader is None or self.silent:
            return True
        self.words += 1
        self.play.inbox.append(
            DisksWatched(
                witness=command.disk_reader, subject=command.subject, changed=self.changed, disks=1
            )
        )
        return True


def lying(*, levels: int = 1) -> tuple[Play, Readers]:
    """h1 hangs, its BMC, which names it, says *off* without doing anything, and the order was just given."""
    play = playing(levels=levels)
    for host in play.hosts.values():
        host.bmc_identity = IdentityMatch.MATCH
        play.test_power(host)
    readers = Readers(play)
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.until(lambda: play.offs() == ["h1"])
    return play, readers


def incident_of(play: Play) -> Incident:
    """Of h1, as it was written down."""
    records = play.engine.records()
    incident = next(one.incident for one in records.hosts if one.host_id == "h1")
    assert incident is not None
    return incident


def is_proven(play: Play) -> bool:
    return play.verdict("h1") is Verdict.DEAD_PROVEN


def really_off(play: Play, readers: Readers) -> None:
    play.hosts["h1"].cut()
    readers.silent, readers.changed, readers.words = False, False, 0


def without_agents(play: Play) -> None:
    for name, host in play.hosts.items():
        host.agent_alive = False
        down = SessionChanged(
            host_id=HostId(name), process=ProcessKind.AGENT, boot=host.boot, up=False
        )
        play.inbox.append(down)


def written_after_off(*, levels: int = 1) -> tuple[Play, Readers]:
    play, readers = lying(levels=levels)
    readers.changed = True
    play.until(lambda: "proof.blocked.disks_change" in play.why("h1"))
    return play, readers


def test_no_word_is_no_quiet_for_who_saw_them_written() -> None:
    play, readers = written_after_off()
    readers.silent = True
    play.advance(120_000)
    assert not is_proven(play) and "proof.blocked.disks_change" in play.why("h1")
    really_off(play, readers)
    play.until(lambda: is_proven(play))


@pytest.mark.req("F9")
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("word", ["written", "silent", "unreadable"])
def test_without_quiet_no_further_order_goes_out_and_somebody_is_told(
    word: str, levels: int
) -> None:
    play, readers = written_after_off(levels=levels)
    readers.silent, readers.changed = word == "silent", None if word == "unreadable" else True
    play.advance(60_000)
    assert play.told().count("fence.disks_written") == 1
    failed = [one.fields["why"] for one in play.notices if one.code == "fence.level_failed"]
    assert failed == ["proof.blocked.disks_change"]
    assert play.why_vm("v1") == ["recovery.waiting.proof", "recovery.waiting.doubt"]
    play.advance(3_600_000)
    assert play.offs() == ["h1"] and not is_proven(play)
    assert play.why("h1") == ["host.dead.unproven", "proof.blocked.disks_change"]
    assert play.told().count("fence.disks_written") == 1
    assert play.told().count("fence.failed") == (1 if levels == 1 else 0)


@pytest.mark.req("F9")
def test_when_they_are_quiet_the_next_level_has_its_turn() -> None:
    play, readers = written_after_off(levels=2)
    play.advance(60_000)
    readers.changed = False
    play.until(lambda: len(play.offs()) == 2, within_ms=10_000)
    devices = [one.device for one in play.sent(OrderPower) if isinstance(one, OrderPower)]
    assert devices == ["h1-power1", "h1-power2"]
    assert play.told().count("fence.next_level") == 1


def test_quiet_disks_end_the_wait_at_once() -> None:
    play, readers = written_after_off()
    readers.silent = True
    play.advance(3_600_000)
    really_off(play, readers)
    play.until(lambda: is_proven(play), within_ms=30_000)


@pytest.mark.req("F9")
def test_a_new_leader_without_readers_tells_it_too() -> None:
    play, readers = written_after_off()
    readers.silent = True
    play.new_leader()
    play.advance(60_000)
    assert "fence.disks_written" in play.told() and "fence.failed" in play.told()
    assert not is_proven(play) and len(play.offs()) == 1
    assert "recovery.waiting.doubt" in play.why_vm("v1")


def test_who_has_no_agent_is_not_asked_to_read() -> None:
    play = playing(8)
    for name in ("h2", "h3", "h4", "h5", "h6", "h7"):
        play.hosts[name].agent_alive = False
    play.tick()
    play.hosts["h1"].hang()
    play.until(lambda: is_proven(play))
    asked = [one.disk_reader for one in play.sent(Investigate) if isinstance(one, Investigate)]
    assert len(asked) > 2 and set(asked) == {"h8"}


@pytest.mark.parametrize("word", ["silent", "unreadable"])
def test_a_new_leader_finds_in_the_records_that_they_were_written(word: str) -> None:
    play, readers = written_after_off()
    assert incident_of(play).disks_written
    readers.silent, readers.changed = word == "silent", None
    play.new_leader()
    play.advance(120_000)
    assert not is_proven(play) and "proof.waiting.disks" in play.why("h1")
    really_off(play, readers)
    play.until(lambda: is_proven(play))
    assert readers.words > play.policy.detection.additional_checks


def test_a_second_new_leader_finds_it_too() -> None:
    play, readers = written_after_off()
    readers.silent = True
    play.new_leader()
    play.advance(10_000)
    play.new_leader()
    play.advance(60_000)
    assert not is_proven(play)


def taken_over_unwatched() -> tuple[Play, Readers]:
    """The order of the former leader was accepted and read back once; nobody had looked at the disks since."""
    play, readers = lying()
    play.tick()
    assert not is_proven(play) and not incident_of(play).disks_written
    play.new_leader()
    readers.words = 0
    return play, readers


def test_a_new_leader_has_disks_watched_that_nobody_saw_written() -> None:
    play, readers = taken_over_unwatched()
    play.hosts["h1"].cut()
    play.until(lambda: is_proven(play))
    assert readers.words > play.policy.detection.additional_checks


def test_what_a_new_leader_sees_first_is_that_they_are_written() -> None:
    play, readers = taken_over_unwatched()
    readers.changed = True
    play.advance(120_000)
    assert not is_proven(play) and incident_of(play).disks_written


@pytest.mark.parametrize("word", ["silent", "unreadable"])
def test_disks_that_were_never_seen_written_and_that_nobody_can_read_hold_no_proof_up(
    word: str,
) -> None:
    play, readers = taken_over_unwatched()
    play.hosts["h1"].cut()
    readers.silent, readers.changed = word == "silent", None
    play.until(lambda: is_proven(play), within_ms=60_000)


def test_rounds_without_a_reader_are_not_rounds_in_which_nobody_could_read() -> None:
    play, readers = lying()
    play.tick()
    others = [host for name, host in play.hosts.items() if name != "h1"]
    for host in others:
        host.beating = False  # not connected to the new leader yet
    play.new_leader()
    readers.words = 0
    play.advance(20_000)
    assert play.sent(Investigate) and not is_proven(play)
    assert readers.words == 0
    for host in others:
        host.beating = True
    really_off(play, readers)
    play.until(lambda: is_proven(play))


@pytest.mark.req("F9")
@pytest.mark.parametrize("levels", [1, 2])
def test_where_nobody_ever_reads_the_ladder_goes_on_under_a_new_leader(levels: int) -> None:
    """No change is known, so there is nothing to wait for with the next order; the readings alone prove nothing for all that."""
    play, readers = lying(levels=levels)
    without_agents(play)
    play.new_leader(away_ms=1_000)
    readers.words = 0
    without_agents(play)
    play.advance(1_800_000)
    assert readers.words == 0 and not is_proven(play)
    tried = {one.device for one in play.sent(OrderPower) if isinstance(one, OrderPower)}
    assert tried == {f"h1-power{level + 1}" for level in range(levels)}
    assert len(play.offs()) > 3 and play.told().count("fence.failed") == 1
    assert play.told().count("fence.next_level") == levels - 1
    assert "fence.disks_written" not in play.told()


def test_soon_after_a_leader_began_readers_are_waited_for() -> None:
    """Guardians come to a new leader at once, agents some seconds later: until then nobody can say that the disks of a host
    are written, whose BMC lies."""
    play, readers = lying()
    play.saved["host h1"] = SaveHost(record=replace(play.engine.records().hosts[0], incident=None))
    play.new_leader()
    readers.words, readers.changed = 0, True
    without_agents(play)
    play.until(lambda: play.offs() == ["h1", "h1"])
    play.advance(4_000)
    assert readers.words == 0 and not is_proven(play)
    for name, host in play.hosts.items():
        if name != "h1":
            host.agent_alive = True
            play._greet(host)
    play.advance(300_000)
    assert readers.words and not is_proven(play)


def test_quiet_looks_from_before_we_slept_do_not_count() -> None:
    play, readers = lying()
    readers.silent = True
    play.inbox.append(Stalled())
    times = play.policy.detection
    play.advance((2 + times.additional_checks) * times.check_interval_ms)
    assert not is_proven(play) and "proof.waiting.disks" in play.why("h1")
    really_off(play, readers)
    play.until(lambda: is_proven(play))


# Before each order, not before the first only (F2)


def test_who_writes_after_an_order_that_failed_is_not_ordered_off_again() -> None:
    play = playing(levels=2)
    host = play.hosts["h1"]
    host.hang()
    host.bmc_dead = True
    play.until(lambda: play.offs() == ["h1"])
    host.disks_change = True
    play.advance(600_000)
    assert play.offs() == ["h1"]
    assert "fence.blocked.disks_change" in play.why("h1")
    assert play.told().count("fence.disks_written") == 1
    play.new_leader()
    play.advance(60_000)
    assert play.offs() == ["h1"]
    host.disks_change = False
    play.until(lambda: len(play.offs()) == 2, within_ms=10_000)


def test_who_writes_while_the_first_order_waits_is_not_ordered_off() -> None:
    play = playing()
    play.inbox.append(HoldChanged(reason="upgrade"))
    host = play.hosts["h1"]
    host.hang()
    play.until(lambda: "fence.blocked.hold" in play.why("h1"))
    host.disks_change = True
    play.advance(5_000)
    play.inbox.append(HoldChanged(reason=None))
    play.advance(120_000)
    assert play.offs() == [] and "fence.blocked.disks_change" in play.why("h1")
    assert "fence.disks_written" not in play.told(), "it was never ordered off"
    assert play.told().count("fence.held_by_disks") == 1
    assert play.why_vm("v1") == ["recovery.waiting.proof", "recovery.waiting.disks"]
    play.new_leader()
    play.advance(60_000)
    assert play.told().count("fence.held_by_disks") == 1, "whoever leads"
    assert play.offs() == []
    host.disks_change = False
    play.until(lambda: play.offs() == ["h1"], within_ms=10_000)


@pytest.mark.req("F9")
def test_written_before_the_order_and_after_it_are_told_each() -> None:
    play = playing()
    play.inbox.append(HoldChanged(reason="upgrade"))
    host = play.hosts["h1"]
    host.hang()
    host.bmc_dead = True
    play.until(lambda: "fence.blocked.hold" in play.why("h1"))
    host.disks_change = True
    play.advance(5_000)
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: "fence.held_by_disks" in play.told())
    host.disks_change = False
    play.until(lambda: play.offs() == ["h1"])
    host.disks_change = True
    play.until(lambda: "fence.disks_written" in play.told())
    play.advance(600_000)
    told = play.told()
    assert (told.count("fence.held_by_disks"), told.count("fence.disks_written")) == (1, 1)


def test_a_bmc_that_says_off_is_no_quick_road_while_disks_are_written() -> None:
    play = playing()
    host = play.hosts["h1"]
    host.hang()
    host.disks_change, host.bmc_state = True, PowerState.OFF
    play.advance(120_000)
    assert play.offs() == [] and play.why("h1") == ["host.suspect.disks_change"]


def test_the_slots_of_one_who_writes_are_not_poisoned() -> None:
    """That would end its VMs: an action as well."""
    play = playing()
    play.inbox.append(HoldChanged(reason="upgrade"))
    host = play.hosts["h1"]
    host.hang()
    host.bmc_dead = True
    play.until(lambda: "fence.blocked.hold" in play.why("h1"))
    host.disks_change = True
    play.advance(5_000)
    play.inbox.append(HoldChanged(reason=None))
    play.advance(60_000)
    assert play.sent(Poison) == []
    host.disks_change = False
    play.until(lambda: len(play.sent(Poison)) == 1, within_ms=10_000)


class SlowReaders(Readers):
    """Each comparison takes a while: two reads, and a storage that is slow."""

    TAKES_MS = 3_000

    def __init__(self, play: Play, subject: str) -> None:
        super().__init__(play)
        self.subject = subject
        self._under_way: list[tuple[int, DisksWatched]] = []

    def answer(self, command: Command) -> bool:
        if not isinstance(command, Investigate) or command.subject != self.subject:
            return False
        if command.disk_reader is not None:
            word = DisksWatched(
                witness=command.disk_reader, subject=command.subject, changed=self.changed, disks=1
            )
            self._under_way.append((self.play.now + self.TAKES_MS, word))
        return True

    def advance(self, duration_ms: int) -> None:
        for _ in range(0, duration_ms, 100):
            due = [one for one in self._under_way if one[0] <= self.play.now]
            self._under_way = [one for one in self._under_way if one not in due]
            self.play.inbox += [word for _, word in due]
            self.play.tick()


def held_by_an_operator(play: Play, reason: str | None) -> None:
    play.inbox.append(HoldChanged(reason=reason))
    play.tick()


def judged_under_hold() -> Play:
    play = playing(5)
    held_by_an_operator(play, "work on the switch")
    play.hosts["h1"].hang()
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    return play


def test_a_new_leader_looks_at_the_disks_before_its_first_order() -> None:
    """The one before judged the host while its disks were quiet, and was held; they are written since (F2)."""
    play = judged_under_hold()
    play.hosts["h1"].disks_change = True
    play.new_leader()
    held_by_an_operator(play, None)
    readers = SlowReaders(play, "h1")
    readers.changed = True
    readers.advance(120_000)
    assert play.offs() == [] and "fence.blocked.disks_change" in play.why("h1")
    readers.changed = False
    readers.advance(30_000)
    assert play.offs() == ["h1"]


def test_it_says_how_many_looks_are_still_awaited() -> None:
    play = judged_under_hold()
    play.new_leader()
    held_by_an_operator(play, None)
    readers = SlowReaders(play, "h1")
    readers.advance(13_500)
    assert play.offs() == []
    assert play.why("h1") == ["host.dead.unproven", "host.suspect.checking_disks"]


def test_where_nobody_can_read_it_orders_all_the_same() -> None:
    play = judged_under_hold()
    play.new_leader()
    held_by_an_operator(play, None)
    readers = SlowReaders(play, "h1")
    readers.changed = None
    readers.advance(60_000)
    assert "h1" in play.offs() and is_proven(play)


def test_nor_does_it_poison_before_it_has_looked() -> None:
    """No device answers, and the lease's clock is not to wait for the orders; but poison ends its VMs if it lives (P2)."""
    play = judged_under_hold()
    play.hosts["h1"].bmc_dead = play.hosts["h1"].disks_change = True
    play.new_leader()
    held_by_an_operator(play, None)
    readers = SlowReaders(play, "h1")
    readers.changed = True
    readers.advance(120_000)
    assert play.sent(Poison) == []
    readers.changed = False
    readers.advance(30_000)
    assert len(play.sent(Poison)) == 1
