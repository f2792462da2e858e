"""The session's rules, one by one, good beside bad."""

import msgspec
import pytest
from session_pair import (
    HOST,
    ListOutbox,
    Pair,
    make_beat,
    make_fact,
    make_hello,
    make_host,
    make_welcome,
)

from virtha.control.effects import BEAT_SILENCE_MS
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, InstallationId, Term
from virtha.model.orders import HostSettings
from virtha.model.policy import FIELD_TABLE, DetectionPolicy
from virtha.model.time import Millis
from virtha.wire.codec import HEADER, encode_message
from virtha.wire.messages import (
    FACTS_PER_FRAME_MAX,
    FACTS_UNACKNOWLEDGED_MAX,
    FRAME_BYTES_MAX,
    BeatAck,
    Bye,
    Facts,
    FactsAck,
    GiveOrder,
    Hello,
    Message,
    PeerRole,
    Ping,
    Pong,
    Refuse,
    Settings,
    Welcome,
)
from virtha.wire.server_session import ServerSession
from virtha.wire.session import (
    HELLO_DEADLINE_MS,
    PARTIAL_FRAME_DEADLINE_MS,
    SEND_BUFFER_BYTES_MAX,
    SessionState,
)

SETTINGS = HostSettings(revision=1, installation_id=InstallationId("installation-1"), term=Term(3))


def server_at(state: SessionState, role: PeerRole = PeerRole.AGENT) -> ServerSession:
    session = ServerSession(HOST, now=Millis(0))
    if state is not SessionState.CONNECTING:
        session.receive_data(encode_message(make_hello(role)), Millis(0))
    if state is SessionState.ESTABLISHED:
        session.welcome(make_welcome(), Millis(0))
    assert session.state is state
    session.data_to_send()
    return session


def refusal(session: ServerSession) -> Refuse:
    """What the session says to its peer at the end."""
    data = session.data_to_send()
    message = msgspec.msgpack.decode(data[HEADER.size :], type=Refuse)
    assert session.state is SessionState.CLOSED and session.closed is not None
    assert session.closed.code == message.code and not session.closed.by_peer
    return message


# Hello and welcome


def test_a_session_is_agreed_on() -> None:
    pair = Pair()
    assert [type(message) for message in pair.at_server] == [Hello]
    assert [type(message) for message in pair.at_host] == [Welcome]
    assert pair.host.state is pair.server.state is SessionState.ESTABLISHED
    assert pair.server.role is PeerRole.AGENT


@pytest.mark.parametrize(
    ("hello", "code", "field"),
    [
        (make_hello(version_major=2), "wire.refused.version", "version_major"),
        (make_hello(version_major=0), "wire.refused.version", "version_major"),
        (make_hello(host_id=HostId("host-2")), "wire.refused.identity", "host_id"),
        (make_hello(boot=BootId("")), "wire.refused.malformed", None),
        (make_hello(fact_sequence_last=-1), "wire.refused.malformed", None),
        (make_hello(term_seen=Term(1 << 63)), "wire.refused.malformed", None),
    ],
)
def test_bad_hello_is_refused(hello: Hello, code: str, field: str | None) -> None:
    session = ServerSession(HOST, now=Millis(0))
    assert session.receive_data(encode_message(hello), Millis(0)) == ()
    said = refusal(session)
    assert (said.code, said.field) == (code, field)


def test_a_later_minor_version_is_welcome() -> None:
    session = ServerSession(HOST, now=Millis(0))
    assert session.receive_data(encode_message(make_hello(version_minor=9)), Millis(0))
    assert session.state is SessionState.GREETED


@pytest.mark.bad_input("hello of a future major version")
def test_version_refusal_says_what_is_supported() -> None:
    session = ServerSession(HOST, now=Millis(0))
    session.receive_data(encode_message(make_hello(version_major=7)), Millis(0))
    assert "7" in refusal(session).message
    assert session.closed is not None and "allowed: 1" in session.closed.message


@pytest.mark.parametrize(
    ("welcome", "code"),
    [
        (make_welcome(version_major=2), "wire.refused.version"),
        (make_welcome(installation_id=InstallationId("other")), "wire.refused.identity"),
        (make_welcome(term=Term(2)), "wire.refused.term"),
        (make_welcome(server_instance="instance-2"), "wire.refused.instance"),
        (make_welcome(silence_ms=0), "wire.refused.malformed"),
        (make_welcome(beat_interval_ms=9_000), "wire.refused.malformed"),
        (make_welcome(fact_sequence_acknowledged=-1), "wire.refused.malformed"),
    ],
)
def test_a_host_refuses_a_bad_welcome(welcome: Welcome, code: str) -> None:
    host = make_host(
        hello=make_hello(term_seen=Term(3)), outbox=ListOutbox(), live_instance="instance-1"
    )
    assert host.receive_data(encode_message(welcome), Millis(0)) == ()
    assert host.closed is not None and host.closed.code == code
    good = make_host(
        hello=make_hello(term_seen=Term(3)), outbox=ListOutbox(), live_instance="instance-1"
    )
    assert good.receive_data(encode_message(make_welcome()), Millis(0))


@pytest.mark.req("J1", "F1")
@pytest.mark.parametrize("dead_after_ms", [1_000, 12_000, 300_000])
def test_a_host_takes_the_welcome_of_every_policy(dead_after_ms: int) -> None:
    """Else none could connect any more: policies with beats of 5 to 10 s were accepted, and no host took them."""
    longest_ms = FIELD_TABLE["detection.beat_interval_ms"].about.high
    beat_ms = min(longest_ms, dead_after_ms // 2 - 100)
    policy = DetectionPolicy(
        beat_interval_ms=beat_ms,
        suspect_after_ms=2 * beat_ms + 1,
        dead_after_ms=dead_after_ms,
        hung_after_ms=dead_after_ms,
        check_interval_ms=200,
        stall_ms=200,
        evidence_max_age_ms=dead_after_ms,
    )
    welcome = make_welcome(
        beat_interval_ms=policy.beat_interval_ms, silence_ms=policy.session_silence_ms
    )
    host = make_host(outbox=ListOutbox())
    assert host.receive_data(encode_message(welcome), Millis(0)) == (welcome,)
    assert policy.beat_interval_ms < BEAT_SILENCE_MS, "no grant could quote a beat (G2)"


# Messages out of place


@pytest.mark.parametrize(
    ("state", "role", "message"),
    [
        (SessionState.CONNECTING, PeerRole.AGENT, Facts(facts=(make_fact(1),))),
        (SessionState.CONNECTING, PeerRole.GUARDIAN, make_beat(1)),
        (SessionState.CONNECTING, PeerRole.AGENT, Ping(nonce=1)),
        (SessionState.GREETED, PeerRole.AGENT, Facts(facts=(make_fact(1),))),
        (SessionState.GREETED, PeerRole.AGENT, make_hello()),
        (SessionState.ESTABLISHED, PeerRole.AGENT, make_hello()),
        (SessionState.ESTABLISHED, PeerRole.AGENT, make_beat(1)),
        (SessionState.ESTABLISHED, PeerRole.GUARDIAN, Facts(facts=(make_fact(1),))),
        (SessionState.ESTABLISHED, PeerRole.AGENT, make_welcome()),
        (SessionState.ESTABLISHED, PeerRole.AGENT, BeatAck(sequence=1)),
        (SessionState.ESTABLISHED, PeerRole.AGENT, Settings(settings=SETTINGS)),
    ],
)
def test_the_server_refuses_what_is_out_of_place(
    state: SessionState, role: PeerRole, message: Message
) -> None:
    session = server_at(state, role)
    assert session.receive_data(encode_message(message), Millis(1)) == ()
    assert refusal(session).code == "wire.refused.unexpected"


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (PeerRole.AGENT, BeatAck(sequence=1)),
        (PeerRole.GUARDIAN, FactsAck(sequence=0)),
        (PeerRole.GUARDIAN, Settings(settings=SETTINGS)),
        (PeerRole.AGENT, make_hello()),
        (PeerRole.AGENT, make_welcome()),
    ],
)
def test_a_host_refuses_what_is_out_of_place(role: PeerRole, message: Message) -> None:
    pair = Pair(role)
    assert pair.host.receive_data(encode_message(message), Millis(1)) == ()
    assert pair.host.closed is not None and pair.host.closed.code == "wire.refused.unexpected"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (HEADER.pack(1 << 30), "wire.refused.frame_size"),
        (HEADER.pack(1) + b"\xc1", "wire.refused.malformed"),
        (
            HEADER.pack(15) + msgspec.msgpack.encode({"type": "teleport"}),
            "wire.refused.message",
        ),
    ],
)
def test_bad_frames_end_the_session_and_say_why(data: bytes, code: str) -> None:
    session = server_at(SessionState.ESTABLISHED)
    session.receive_data(data, Millis(1))
    assert refusal(session).code == code
    assert session.receive_data(encode_message(Ping(nonce=1)), Millis(2)) == ()
    assert session.data_to_send() == b""


def test_messages_before_the_bad_one_are_delivered() -> None:
    session = server_at(SessionState.ESTABLISHED, PeerRole.GUARDIAN)
    data = encode_message(make_beat(1)) + b"\xff\xff\xff\xff" + encode_message(make_beat(2))
    assert session.receive_data(data, Millis(1)) == (make_beat(1),)
    assert session.closed is not None


# Beats


def test_beats_are_acknowledged_at_once_and_in_order() -> None:
    pair = Pair(PeerRole.GUARDIAN)
    for sequence in (0, 1, 5):
        assert pair.host.send_beat(make_beat(sequence))
    pair.move()
    assert pair.at_server[1:] == [make_beat(0), make_beat(1), make_beat(5)]
    assert pair.at_host[1:] == [BeatAck(sequence=0), BeatAck(sequence=1), BeatAck(sequence=5)]


@pytest.mark.parametrize(
    "second", [make_beat(3), make_beat(2), make_beat(-1), make_beat(4, BootId("boot-2"))]
)
def test_a_beat_that_goes_backwards_or_changes_boot_is_refused(second: Message) -> None:
    session = server_at(SessionState.ESTABLISHED, PeerRole.GUARDIAN)
    assert session.receive_data(encode_message(make_beat(3)), Millis(1))
    session.data_to_send()
    assert session.receive_data(encode_message(second), Millis(2)) == ()
    assert refusal(session).code == "wire.refused.sequence"


def test_a_beat_without_a_session_is_dropped() -> None:
    host = make_host(PeerRole.GUARDIAN)
    host.data_to_send()
    assert not host.send_beat(make_beat(1))
    assert host.data_to_send() == b""


# Facts


def facts_at(pair: Pair) -> list[int]:
    return [
        fact.sequence
        for message in pair.at_server
        if isinstance(message, Facts)
        for fact in message.facts
    ]


@pytest.mark.req("W7")
def test_facts_resume_after_the_acknowledged_one() -> None:
    outbox = ListOutbox([make_fact(n) for n in range(1, 11)])
    pair = Pair(outbox=outbox, welcome=make_welcome(fact_sequence_acknowledged=7))
    assert facts_at(pair) == [8, 9, 10]
    pair.server.acknowledge(10)
    pair.move()
    assert pair.at_host[-1] == FactsAck(sequence=10)
    outbox.facts.append(make_fact(11))
    pair.move()
    assert facts_at(pair) == [8, 9, 10, 11]


def test_window_and_frames_are_bounded() -> None:
    count = FACTS_UNACKNOWLEDGED_MAX + 500
    pair = Pair(outbox=ListOutbox([make_fact(n) for n in range(1, count + 1)]))
    frames = [message for message in pair.at_server if isinstance(message, Facts)]
    assert max(len(frame.facts) for frame in frames) == FACTS_PER_FRAME_MAX
    assert len(facts_at(pair)) == FACTS_UNACKNOWLEDGED_MAX
    pair.server.acknowledge(FACTS_PER_FRAME_MAX)
    pair.move()
    assert len(facts_at(pair)) == FACTS_UNACKNOWLEDGED_MAX + FACTS_PER_FRAME_MAX
    pair.server.acknowledge(FACTS_UNACKNOWLEDGED_MAX)
    pair.move()
    assert facts_at(pair) == list(range(1, count + 1))


def test_large_facts_share_no_frame_and_are_bounded_in_bytes() -> None:
    big = FRAME_BYTES_MAX * 2 // 3
    outbox = ListOutbox([make_fact(n, "x" * big) for n in range(1, 20)])
    pair = Pair(outbox=outbox)
    sent = facts_at(pair)
    assert sent == list(range(1, len(sent) + 1)) and 4 <= len(sent) <= 8
    while pair.server.closed is None and len(facts_at(pair)) < 19:
        pair.server.acknowledge(facts_at(pair)[-1])
        pair.move()
    assert facts_at(pair) == list(range(1, 20))


def test_a_fact_that_fits_no_frame_is_replaced_and_blocks_nothing() -> None:
    huge = make_fact(2, "x" * (FRAME_BYTES_MAX + 1))
    pair = Pair(outbox=ListOutbox([make_fact(1), huge, make_fact(3)]))
    facts = [f for m in pair.at_server if isinstance(m, Facts) for f in m.facts]
    assert [fact.sequence for fact in facts] == [1, 2, 3]
    assert getattr(facts[1].body, "code", None) == "host.fact.too_large"


@pytest.mark.parametrize(
    "facts",
    [
        (make_fact(3),),
        (make_fact(1), make_fact(3)),
        (make_fact(1), make_fact(1)),
        (make_fact(2), make_fact(1)),
        (make_fact(0),),
        (make_fact(-5),),
    ],
)
def test_gaps_and_doubles_are_refused(facts: tuple[Fact, ...]) -> None:
    session = server_at(SessionState.ESTABLISHED)
    message = Facts(facts=facts)
    assert session.receive_data(encode_message(message), Millis(1)) == ()
    assert refusal(session).code == "wire.refused.sequence"


@pytest.mark.parametrize(
    "facts",
    [
        Facts(facts=()),
        Facts(facts=tuple(make_fact(n) for n in range(1, FACTS_PER_FRAME_MAX + 2))),
        Facts(facts=(msgspec.structs.replace(make_fact(1), wall_ms=1 << 63),)),
        Facts(facts=(msgspec.structs.replace(make_fact(1), monotonic_ms=-1),)),
    ],
)
def test_senseless_facts_are_refused(facts: Facts) -> None:
    session = server_at(SessionState.ESTABLISHED)
    assert session.receive_data(encode_message(facts), Millis(1)) == ()
    assert refusal(session).code == "wire.refused.malformed"


def test_a_gap_that_the_host_tells_is_accepted() -> None:
    outbox = ListOutbox([make_fact(n) for n in (1, 2, 90, 91)])
    pair = Pair(outbox=ListOutbox(outbox.facts[:2]))
    assert facts_at(pair) == [1, 2]
    broken = Pair(
        outbox=ListOutbox(outbox.facts[2:]), welcome=make_welcome(fact_sequence_acknowledged=2)
    )
    assert facts_at(broken) == [90, 91]
    assert [m.gap for m in broken.at_server if isinstance(m, Facts)] == [True]
    broken.server.acknowledge(91)
    broken.move()
    assert broken.at_host[-1] == FactsAck(sequence=91)


def test_known_facts_are_skipped_and_acknowledged_again() -> None:
    session = server_at(SessionState.ESTABLISHED)
    first = Facts(facts=(make_fact(1), make_fact(2)))
    assert session.receive_data(encode_message(first), Millis(1)) == (first,)
    # Before the commit: nothing to deliver, nothing to acknowledge yet.
    assert session.receive_data(encode_message(first), Millis(2)) == ()
    assert session.data_to_send() == b""
    session.acknowledge(2)
    assert session.data_to_send() == encode_message(FactsAck(sequence=2))
    assert session.receive_data(encode_message(first), Millis(3)) == ()
    assert session.data_to_send() == encode_message(FactsAck(sequence=2))
    overlapping = Facts(facts=(make_fact(2), make_fact(3)))
    assert session.receive_data(encode_message(overlapping), Millis(4)) == (
        Facts(facts=(make_fact(3),)),
    )


def test_more_facts_than_the_window_are_refused() -> None:
    session = server_at(SessionState.ESTABLISHED)
    sequence = 1
    while session.closed is None and sequence < 2 * FACTS_UNACKNOWLEDGED_MAX:
        batch = tuple(make_fact(n) for n in range(sequence, sequence + FACTS_PER_FRAME_MAX))
        session.receive_data(encode_message(Facts(facts=batch)), Millis(1))
        sequence += FACTS_PER_FRAME_MAX
    assert refusal(session).code == "wire.refused.sequence"
    assert sequence == FACTS_UNACKNOWLEDGED_MAX + FACTS_PER_FRAME_MAX + 1


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    pair = Pair(outbox=ListOutbox([make_fact(1)]))
    pair.host.receive_data(encode_message(FactsAck(sequence=2)), Millis(1))
    assert pair.host.closed is not None and pair.host.closed.code == "wire.refused.sequence"


def test_a_store_that_is_ahead_of_the_session_does_no_harm() -> None:
    pair = Pair(outbox=ListOutbox([make_fact(1), make_fact(2)]))
    pair.server.acknowledge(99)
    pair.move()
    assert pair.at_host[-1] == FactsAck(sequence=2)


# Settings and orders


def test_settings_pass() -> None:
    pair = Pair()
    pair.server.send_settings(SETTINGS)
    pair.move()
    assert pair.at_host[-1] == Settings(settings=SETTINGS)
    assert GiveOrder not in {type(message) for message in pair.at_host}


# Silence


def test_a_quiet_line_is_kept_by_pings() -> None:
    pair = Pair()
    for _ in range(100):
        due = min(timer for s in (pair.host, pair.server) if (timer := s.next_timer()) is not None)
        pair.now = due
        for session in (pair.host, pair.server):
            session.handle_timer(due)
        pair.move()
    assert pair.host.closed is pair.server.closed is None
    assert pair.now > 60_000
    assert not [m for m in pair.at_host if isinstance(m, Ping | Pong)]


def test_only_the_host_asks_on_a_quiet_line() -> None:
    """The server hears its pings, so it need not ask: half the frames of an idle session."""
    pair = Pair()
    for _ in range(30):
        due = min(timer for s in (pair.host, pair.server) if (timer := s.next_timer()) is not None)
        assert due == pair.host.next_timer() != pair.server.next_timer()
        pair.now = due
        pair.host.handle_timer(due)
        pair.move()


def run_alone(session: ServerSession, until: int) -> tuple[list[int], int | None]:
    """Let time pass without any answer: (when it pinged, when it closed)."""
    pings: list[int] = []
    while (due := session.next_timer()) is not None and due <= until:
        session.handle_timer(due)
        if session.closed is not None:
            return pings, due
        if session.data_to_send():
            pings.append(due)
    return pings, None


@pytest.mark.req("L7")
def test_silence_is_noticed_in_seconds() -> None:
    pings, closed_at = run_alone(server_at(SessionState.ESTABLISHED), 60_000)
    assert pings == [2_000, 4_000]
    assert closed_at == 5_000


@pytest.mark.req("L7")
@pytest.mark.bad_input("half a frame, then silence")
def test_half_a_frame_then_silence() -> None:
    session = server_at(SessionState.ESTABLISHED)
    session.receive_data(encode_message(Ping(nonce=1))[:5], Millis(1_000))
    _, closed_at = run_alone(session, 60_000)
    assert closed_at == 6_000
    assert session.closed is not None and session.closed.code == "wire.closed.silent"


@pytest.mark.req("L7")
@pytest.mark.bad_input("half a frame, then silence")
def test_a_frame_that_trickles_ends_too() -> None:
    session = server_at(SessionState.ESTABLISHED)
    data = HEADER.pack(1_000) + bytes(1_000)
    for second in range(60):
        if session.closed is None:
            session.handle_timer(Millis(second * 1_000))
            session.receive_data(data[second : second + 1], Millis(second * 1_000))
    assert session.closed is not None and session.closed.code == "wire.closed.silent"
    assert "never finished" in session.closed.message
    assert PARTIAL_FRAME_DEADLINE_MS < 60_000


@pytest.mark.parametrize("state", [SessionState.CONNECTING, SessionState.GREETED])
def test_a_session_must_be_agreed_on_in_time(state: SessionState) -> None:
    session = server_at(state)
    assert session.next_timer() == HELLO_DEADLINE_MS
    session.handle_timer(Millis(HELLO_DEADLINE_MS - 1))
    assert session.closed is None
    session.handle_timer(Millis(HELLO_DEADLINE_MS))
    assert session.closed is not None and session.closed.code == "wire.closed.silent"


def test_own_stall_does_not_condemn_the_peer() -> None:
    session = server_at(SessionState.ESTABLISHED)
    session.handle_timer(Millis(60_000))
    assert session.closed is None
    _, closed_at = run_alone(session, 120_000)
    assert closed_at == 65_000


# Back-pressure


def test_a_peer_that_does_not_read_is_closed() -> None:
    session = server_at(SessionState.ESTABLISHED)
    session.set_writable(False, Millis(0))
    closed_at = None
    for now in range(0, 60_000, 500):
        session.receive_data(encode_message(Ping(nonce=1)), Millis(now))  # it talks all the time
        session.handle_timer(Millis(now))
        if session.closed is not None:
            closed_at = now
            break
    assert closed_at == 10_000
    assert session.closed is not None and session.closed.code == "wire.closed.overload"


def test_a_peer_that_reads_again_is_kept() -> None:
    session = server_at(SessionState.ESTABLISHED)
    for now in range(0, 60_000, 500):
        session.set_writable(now % 8_000 == 0, Millis(now))
        session.receive_data(encode_message(Ping(nonce=1)), Millis(now))
        session.handle_timer(Millis(now))
    assert session.closed is None


def test_what_waits_for_a_peer_is_bounded() -> None:
    session = server_at(SessionState.ESTABLISHED)
    settings = msgspec.structs.replace(SETTINGS, hold="x" * 500_000)
    sent = 0
    while session.closed is None:
        session.send_settings(settings)
        sent += 1
        assert len(session.unsent) <= SEND_BUFFER_BYTES_MAX
    assert session.closed.code == "wire.closed.overload"
    assert sent > 4
    assert session.data_to_send() == encode_message(Bye(code="wire.closed.overload"))


def test_facts_wait_in_the_outbox_while_the_line_is_full() -> None:
    pair = Pair(outbox=ListOutbox([make_fact(n, "x" * 1_000) for n in range(1, 3_000)]))
    pair.host.receive_data(encode_message(FactsAck(sequence=1)), Millis(1))
    assert len(pair.host.unsent) < FRAME_BYTES_MAX


# Ending


def test_goodbye_reaches_the_other_side() -> None:
    pair = Pair()
    pair.server.close()
    pair.move()
    assert pair.host.closed is not None and pair.host.closed.by_peer
    assert pair.host.closed.code == "wire.closed.shutdown"


def test_a_lost_connection_keeps_the_first_reason() -> None:
    session = server_at(SessionState.ESTABLISHED)
    session.refuse("wire.refused.revoked", "not any more")
    session.connection_lost("reset")
    assert session.closed is not None and session.closed.code == "wire.refused.revoked"
    other = server_at(SessionState.ESTABLISHED)
    other.connection_lost("reset")
    assert other.closed is not None and other.closed.code == "wire.closed.lost"
    assert other.next_timer() is None
    other.send_settings(SETTINGS)
    other.acknowledge(5)
    assert other.data_to_send() == b""
