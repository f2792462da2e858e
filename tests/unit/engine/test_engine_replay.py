"""A journal replayed decides what was decided; another decision is shown for what it is."""

import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from engine_driver import Play
from journalled_play import confirmed_death, header, journal_of

from virtha.engine.engine import Engine
from virtha.engine.events import Decision, EngineEvent, OrderPower, SaveVm, StartCommand
from virtha.engine.journal import SegmentReader, SegmentWriter
from virtha.engine.redaction import Redactor
from virtha.engine.replay import Difference, Replay, ReplayedTurn
from virtha.model.ids import HostId, VmId
from virtha.model.time import Millis

pytestmark = pytest.mark.req("X2")


@pytest.fixture(scope="module")
def played() -> tuple[Play, list[bytes]]:
    return journal_of(0)


def replayed(segment: bytes) -> list[ReplayedTurn]:
    reader = SegmentReader(segment)
    assert reader.fault is None
    turns = list(Replay(reader).turns())
    assert reader.fault is None
    return turns


def test_a_replay_decides_what_was_decided(played: tuple[Play, list[bytes]]) -> None:
    play, segments = played
    turns = [turn for segment in segments for turn in replayed(segment)]
    assert [turn for turn in turns if turn.difference is not None or turn.failure] == []
    decisions = [turn.decision for turn in turns if turn.decision is not None]
    assert [note.code for one in decisions for note in one.notices] == play.told()
    commands = [command for one in decisions for command in one.commands]
    assert commands == [command for _, command in play.commands]
    assert any(isinstance(command, StartCommand) for command in commands)


def test_each_segment_replays_alone(played: tuple[Play, list[bytes]]) -> None:
    """Also one that begins in the middle of an incident; and its snapshot is where the one before ended."""
    _, segments = played
    assert len(segments) > 3
    ends = []
    for segment in segments:
        reader = SegmentReader(segment)
        replay = Replay(reader)
        turns = list(replay.turns())
        assert turns and not any(turn.difference for turn in turns)
        ends.append((reader.header, replay.engine.snapshot()))
    for (before, end), segment in zip(ends, segments[1:], strict=False):
        reader = SegmentReader(segment)
        assert reader.header is not None and before is not None
        if reader.header.term == before.term:
            assert reader.snapshot == end


@pytest.mark.parametrize("seed", range(1, 5))
def test_other_seeds(seed: int) -> None:
    _, segments = journal_of(seed, ticks=300)
    for segment in segments:
        assert not any(turn.difference for turn in replayed(segment))


def test_another_process_under_another_hash_seed_decides_the_same() -> None:
    here = Path(__file__).parent
    said = {
        subprocess.run(
            [sys.executable, str(here / "journalled_play.py")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(said) == 1 and len(said.pop()) == 65


# Differences


def story() -> bytes:
    """h1 dies, is fenced, v1 runs elsewhere; as one segment."""
    play = Play(4)
    play.run("v1", "h1")
    play.advance(2_000)
    writer = SegmentWriter()
    data = bytearray(writer.begin(header(), play.engine.snapshot()))
    real = play.engine.step

    def step(now: Millis, events: Sequence[EngineEvent]) -> Decision:
        data.extend(writer.turn(now, events))
        decision = real(now, events)
        data.extend(writer.decided(decision))
        return decision

    play.engine.step = step
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [])
    play.advance(1_000)
    return bytes(data)


def changed(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Decision], Decision]
) -> list[Difference]:
    segment = story()
    real = Engine.step

    def step(self: Engine, now: Millis, events: Sequence[EngineEvent]) -> Decision:
        return change(real(self, now, events))

    monkeypatch.setattr(Engine, "step", step)
    found = [turn.difference for turn in replayed(segment)]
    return [one for one in found if one is not None]


def test_a_command_that_this_version_does_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    def timid(decision: Decision) -> Decision:
        kept = tuple(one for one in decision.commands if not isinstance(one, OrderPower))
        return msgspec.structs.replace(decision, commands=kept)

    (difference,) = changed(monkeypatch, timid)
    (order,) = difference.commands_recorded
    assert isinstance(order, OrderPower) and order.host_id == "h1"
    assert difference == Difference(commands_recorded=(order,))


def test_a_notice_and_a_record_that_only_this_version_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def verbose(decision: Decision) -> Decision:
        if not any(note.code == "host.proven_dead" for note in decision.notices):
            return decision
        intents = tuple(one for one in decision.intents if not isinstance(one, SaveVm))
        return msgspec.structs.replace(
            decision, notices=(*decision.notices, decision.notices[0]), intents=intents
        )

    (difference,) = changed(monkeypatch, verbose)
    assert len(difference.notices_replayed) == 1 and difference.notices_recorded == ()
    assert any(isinstance(one, SaveVm) for one in difference.intents_recorded)
    assert difference.intents_replayed == ()


def test_another_order_and_another_moment_are_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(decision: Decision) -> Decision:
        if len(decision.commands) > 1:
            return msgspec.structs.replace(decision, commands=decision.commands[::-1])
        if decision.notices:
            return msgspec.structs.replace(decision, wake_at=None)
        return decision

    differences = changed(monkeypatch, other)
    assert any(one == Difference(reordered=True) for one in differences)
    assert any(one.wake_at is not None and one.wake_at[1] is None for one in differences)


def test_a_decision_without_digest_match_but_equal_is_no_difference() -> None:
    """As of a version whose structs had a field more: it was left out when it was read."""
    segment = story()
    reader = SegmentReader(segment)
    assert reader.header is not None and reader.snapshot is not None
    writer = SegmentWriter()
    data = writer.begin(reader.header, reader.snapshot)
    for turn in reader.turns():
        assert turn.decision is not None
        data += writer.turn(turn.now, turn.events)
        data += writer.decided(turn.decision).replace(turn.digest or b"", b"another!")
    # The checksums are made anew, so that only the digests are wrong.
    rebuilt = bytearray()
    at = len(SegmentWriter().begin(reader.header, reader.snapshot))
    rebuilt += data[:at]
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        payload = data[at + 12 : at + 12 + length]
        head = data[at : at + 4] + zlib.crc32(payload).to_bytes(4, "big")
        rebuilt += head + zlib.crc32(head).to_bytes(4, "big") + payload
        at += 12 + length
    turns = replayed(bytes(rebuilt))
    assert turns and not any(turn.difference for turn in turns)


def test_a_step_that_ended_the_leader_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = story()
    reader = SegmentReader(segment)
    last = list(reader.turns())[-1]
    cut = segment[: last.offset] + SegmentWriter().turn(last.now, ())
    turns = replayed(cut)
    assert turns[-1].unfinished and turns[-1].failure == ""
    assert turns[-1].decision is not None and turns[-1].difference is None

    real = Engine.step

    def broken(self: Engine, now: Millis, events: Sequence[EngineEvent]) -> Decision:
        if now == last.now:
            raise AssertionError("v1: started while h1 may hold it")
        return real(self, now, events)

    monkeypatch.setattr(Engine, "step", broken)
    turns = replayed(cut)
    assert turns[-1].failure == "AssertionError: v1: started while h1 may hold it"
    assert turns[-1].unfinished and turns[-1].decision is None


def test_a_journal_whose_time_runs_back_breaks_off_there() -> None:
    segment = story()
    back = segment + SegmentWriter().turn(Millis(1), ()) + SegmentWriter().turn(Millis(2), ())
    turns = replayed(back)
    assert "time went back" in turns[-1].failure
    assert len(turns) == len(replayed(segment)) + 1


# Names


def test_names_are_learnt_as_the_journal_goes_on(played: tuple[Play, list[bytes]]) -> None:
    replay = Replay(SegmentReader(played[1][0]))
    assert replay.names.host_called("node1.example") is None  # the engine began empty
    list(replay.turns())
    assert replay.names.host_called("node1.example") == HostId("h1")
    assert replay.names.vm_called("db.example") == VmId("db") == replay.names.vm_called("db")
    assert replay.names.vm(VmId("db")) == "db.example"
    assert replay.names.host(HostId("unknown")) == "unknown"


SECRETS = (b".example", b"disks are being moved", b"seen by eyes")


def test_a_redacted_journal_has_no_names_and_decides_the_same() -> None:
    segments = confirmed_death()
    assert all(secret in b"".join(segments) for secret in SECRETS)
    redactor = Redactor()
    redacted = [redactor.segment(SegmentReader(segment)) for segment in segments]
    assert [secret for secret in SECRETS if secret in b"".join(redacted)] == []
    for before, after in zip(segments, redacted, strict=True):
        ours, theirs = replayed(before), replayed(after)
        assert [turn.number for turn in theirs if turn.difference or turn.failure] == []
        assert [outline(turn) for turn in ours] == [outline(turn) for turn in theirs]


def outline(turn: ReplayedTurn) -> object:
    assert turn.decision is not None
    kinds = [type(command) for command in turn.decision.commands]
    return turn.now, turn.events, kinds, [notice.code for notice in turn.decision.notices]


def test_a_later_segment_alone_is_redacted_as_well() -> None:
    """Its snapshot names people whose words went out of the ring."""
    last = confirmed_death()[-1]
    assert b"ada.example" in last
    redacted = Redactor().segment(SegmentReader(last))
    assert [secret for secret in SECRETS if secret in redacted] == []


def test_a_damaged_segment_is_redacted_as_far_as_it_goes() -> None:
    segment = story()
    redacted = Redactor().segment(SegmentReader(segment[:-5]))
    assert len(replayed(redacted)) == len(replayed(segment))
    assert replayed(redacted)[-1].unfinished


def test_nothing_readable_redacts_to_nothing() -> None:
    assert Redactor().segment(SegmentReader(b"hello")) == b""
