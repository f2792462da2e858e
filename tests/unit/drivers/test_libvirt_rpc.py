"""What of a target's answers reaches the process that leads a migration: after the word to run, a success only (ADR 14)."""

import asyncio
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from virtha.drivers import libvirt_mover
from virtha.drivers.libvirt_mover import MoveRequest, Relay
from virtha.drivers.libvirt_rpc import (
    KEEPALIVE,
    KNOWN_MAX,
    PROGRAM,
    AnswerFilter,
    Packet,
    Packets,
    Passage,
    ProtocolBroken,
)
from virtha.model.facts import Result
from virtha.model.orders import MoveDestination
from virtha.ports.hypervisor import MoveEnd

FINISH, PREPARE, OPEN = 306, 303, 1
CALL, REPLY = 0, 1


def raw(
    procedure: int,
    *,
    kind: int = CALL,
    serial: int = 7,
    status: int = 0,
    body: bytes = b"",
    program: int = PROGRAM,
) -> bytes:
    return struct.pack(
        ">IIIIiIi", 28 + len(body), program, 1, procedure, kind, serial, status
    ) + body  # fmt: skip


def packet(procedure: int, **changes: int | bytes) -> Packet:
    return next(Packets().feed(raw(procedure, **changes)))


def finish(*, cancelled: int = 0, procedure: int = FINISH, serial: int = 7) -> Packet:
    return packet(procedure, serial=serial, body=b"cookie.." + struct.pack(">i", cancelled))


@pytest.mark.parametrize("procedure", [214, PREPARE])
def test_a_target_is_prepared_when_it_says_so_and_not_when_it_is_asked(procedure: int) -> None:
    passage = AnswerFilter()
    passage.up(packet(procedure))
    passage.down(packet(OPEN, kind=REPLY))
    passage.down(packet(procedure, kind=REPLY, status=1))
    assert not passage.prepared
    passage.down(packet(procedure, kind=REPLY))
    assert passage.prepared


def test_packets_are_cut_wherever_the_stream_was() -> None:
    stream = raw(OPEN, body=b"abc.") + raw(PREPARE, serial=8) + raw(FINISH, serial=9)
    for size in (1, 5, 29, len(stream)):
        packets = Packets()
        found = [
            one.procedure
            for at in range(0, len(stream), size)
            for one in packets.feed(stream[at : at + size])
        ]
        assert found == [OPEN, PREPARE, FINISH]


@pytest.mark.bad_input
@pytest.mark.parametrize("length", [0, 4, 27, 1 << 30])
def test_a_length_that_can_t_be_is_refused(length: int) -> None:
    with pytest.raises(ProtocolBroken):
        list(Packets().feed(struct.pack(">I", length) + bytes(64)))


@pytest.mark.parametrize("procedure", [217, 306])
def test_after_the_word_to_run_only_a_success_comes_down(procedure: int) -> None:
    passage = AnswerFilter()
    assert passage.down(packet(PREPARE, kind=REPLY, status=1)) is Passage.GO_ON
    passage.up(finish(procedure=procedure))
    assert passage.down(packet(procedure, kind=REPLY, status=1)) is Passage.HOLD_BACK
    assert [passage.waits] == [True], "an error is no word of the copy's end"
    assert passage.down(packet(procedure, kind=REPLY, serial=8, status=1)) is Passage.GO_ON
    assert passage.down(packet(procedure, kind=REPLY)) is Passage.GO_ON
    assert [passage.word_given, passage.waits] == [True, False]


def test_a_finish_that_calls_it_off_gives_no_word() -> None:
    passage = AnswerFilter()
    passage.up(finish(cancelled=1))
    assert not passage.word_given
    assert passage.down(packet(FINISH, kind=REPLY, status=1)) is Passage.GO_ON


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "odd",
    [
        packet(63),
        packet(109),
        packet(364),
        packet(KNOWN_MAX + 1),
        packet(OPEN, program=0x20008087),
        packet(OPEN, kind=3),
        packet(FINISH),
    ],
)
def test_what_is_not_foreseen_is_never_sent(odd: Packet) -> None:
    with pytest.raises(ProtocolBroken):
        AnswerFilter().up(odd)


def test_a_second_finish_is_never_sent() -> None:
    passage = AnswerFilter()
    passage.up(finish())
    with pytest.raises(ProtocolBroken):
        passage.up(finish(serial=8))


def test_keepalive_passes() -> None:
    AnswerFilter().up(packet(1, program=KEEPALIVE, kind=2))


# The relay, between a client and a target that both speak the wire format


class Target:
    """Answers each call with success; ``ends`` instead when the word to run comes."""

    def __init__(self, path: Path, ends: str) -> None:
        self.path = path
        self.ends = ends
        self.words = 0
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        finally:
            writer.close()
            self.ended.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packets = Packets()
        while data := await reader.read(4096):
            for one in packets.feed(data):
                if one.procedure == FINISH and one.data.endswith(b"\0\0\0\0"):
                    self.words += 1
                    if self.ends == "hangs up":
                        return
                    if self.ends == "is silent":
                        continue
                status = 1 if one.procedure == FINISH and self.ends == "fails" else 0
                writer.write(raw(one.procedure, kind=REPLY, serial=one.serial, status=status))
                await writer.drain()


@pytest.fixture
def told_lost(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []

    monkeypatch.setattr(libvirt_mover, "lost", told.append)
    return told


def relayed(
    tmp_path: Path,
    ends: str,
    calls: list[bytes],
    *,
    objection: Callable[[], MoveEnd | None] = lambda: None,
    words: list[int] | None = None,
) -> list[int]:
    """The procedures that were answered, as the client saw it. ``words``: how often the target was told to run it."""
    answered: list[int] = []
    words = [] if words is None else words

    async def story() -> None:
        target = Target(tmp_path / "target", ends)
        above = await asyncio.start_unix_server(target.serve, target.path)
        request = MoveRequest(
            vm_id="vm",
            source_uri="",
            destination=MoveDestination(socket=str(target.path)),
            relay_socket=str(tmp_path / "relay"),
            tls_directory="",
        )
        relay = Relay(request)
        relay.objection = objection
        serving: list[asyncio.Task[None]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving.append(asyncio.ensure_future(relay.serve(reader, writer)))

        server = await asyncio.start_unix_server(serve, request.relay_socket)
        reader, writer = await asyncio.open_unix_connection(request.relay_socket)
        packets = Packets()
        for call in calls:
            writer.write(call)
            async with asyncio.timeout(60):
                data = await reader.read(4096)
            if not data:
                break
            answered.extend(one.procedure for one in packets.feed(data) if one.status == 0)
        writer.close()
        await writer.wait_closed()
        await asyncio.gather(*serving)
        above.close()
        server.close()
        async with asyncio.timeout(60):
            await target.ended.wait()
        words.append(target.words)

    asyncio.run(story())
    return answered


WORD = raw(FINISH, serial=9, body=b"cookie.." + bytes(4))


def test_a_move_that_comes_off_is_relayed_whole(tmp_path: Path, told_lost: list[str]) -> None:
    answered = relayed(tmp_path, "runs", [raw(OPEN), raw(PREPARE, serial=8), WORD])
    assert answered == [OPEN, PREPARE, FINISH]
    assert told_lost == []


@pytest.mark.parametrize("ends", ["hangs up", "fails"])
def test_the_word_without_a_success_ends_the_process(
    tmp_path: Path, told_lost: list[str], ends: str
) -> None:
    answered = relayed(tmp_path, ends, [raw(OPEN), WORD])
    assert answered == [OPEN], "the client saw neither an error nor an end"
    assert len(told_lost) == 1


def test_a_target_that_says_nothing_keeps_the_client_waiting(
    tmp_path: Path, told_lost: list[str]
) -> None:
    # It goes on answering what comes after the word.
    words: list[int] = []
    calls = [raw(OPEN), WORD + raw(OPEN, serial=10)]
    assert relayed(tmp_path, "is silent", calls, words=words) == [OPEN, OPEN]
    assert words == [1]


def test_a_target_that_is_lost_before_the_word_fails_the_move(
    tmp_path: Path, told_lost: list[str]
) -> None:
    calls = [raw(OPEN), raw(FINISH, serial=9, body=b"cookie.." + struct.pack(">i", 1))]
    assert relayed(tmp_path, "fails", calls) == [OPEN]
    assert told_lost == []


# Right before the word goes up (G6, S6)


class Left(OSError):
    """In place of the process's end."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[MoveEnd]:
    told: list[MoveEnd] = []

    def leave(end: MoveEnd) -> None:
        told.append(end)
        raise Left

    monkeypatch.setattr(libvirt_mover, "leave", leave)
    return told


PAUSED = MoveEnd(result=Result.FAILED, code="migration.ended.paused")


def test_the_word_does_not_go_up_when_the_guest_stands_still_for_another_reason(
    tmp_path: Path, told_lost: list[str], left: list[MoveEnd]
) -> None:
    words: list[int] = []
    answered = relayed(tmp_path, "runs", [raw(OPEN), WORD], objection=lambda: PAUSED, words=words)
    assert (answered, words) == ([OPEN], [0])
    assert left == [PAUSED]
    assert told_lost == [], "nothing is unknown: it was not given"


def test_what_calls_it_off_goes_up_whatever_stands(tmp_path: Path, left: list[MoveEnd]) -> None:
    call = raw(FINISH, serial=9, body=b"cookie.." + struct.pack(">i", 1))
    assert relayed(tmp_path, "runs", [raw(OPEN), call], objection=lambda: PAUSED) == [OPEN, FINISH]
    assert left == []


def test_a_libvirt_that_does_not_say_how_it_stands_keeps_the_word_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[MoveEnd]
) -> None:
    monkeypatch.setattr(libvirt_mover, "LOOK_S", 0.05)
    words: list[int] = []

    def hangs() -> None:
        deadline = time.monotonic() + 60
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)

    relayed(tmp_path, "runs", [raw(OPEN), WORD], objection=hangs, words=words)
    assert words == [0]
    assert [end.result for end in left] == [Result.UNKNOWN]
