"""Whatever the line does: the same messages, typed ends, and every fact exactly once, in order."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_pair import HOST, ListOutbox, make_beat, make_fact, make_hello, make_host, make_welcome

from virtha.model.time import Millis
from virtha.wire.codec import encode_message
from virtha.wire.messages import Facts, Message, PeerRole, Ping
from virtha.wire.server_session import ServerSession
from virtha.wire.session import Closed, SessionState

# A busy machine makes examples slowly; that says nothing about the code.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def feed(
    role: PeerRole, stream: bytes, cuts: list[int]
) -> tuple[list[Message], Closed | None, bytes]:
    session = ServerSession(HOST, now=Millis(0))
    session.receive_data(encode_message(make_hello(role)), Millis(0))
    session.welcome(make_welcome(), Millis(0))
    events: list[Message] = []
    position = 0
    for cut in [*cuts, len(stream)]:
        events.extend(session.receive_data(stream[position : position + cut], Millis(1)))
        position += cut
    return events, session.closed, session.data_to_send()


PIECES = st.sampled_from(
    [
        encode_message(make_beat(1)),
        encode_message(make_beat(2)),
        encode_message(make_beat(3)),
        encode_message(Ping(nonce=4)),
        encode_message(Facts(facts=(make_fact(1), make_fact(2)))),
        encode_message(Facts(facts=(make_fact(3),))),
        b"\x00\x00\x00\x01\xc1",
        b"\xff",
        b"",
    ]
)


@settings(CALM)
@given(
    st.sampled_from(PeerRole),
    st.lists(PIECES, max_size=8).map(b"".join),
    st.lists(st.integers(1, 60), max_size=30),
)
def test_a_stream_split_anywhere_gives_the_same_session(
    role: PeerRole, stream: bytes, cuts: list[int]
) -> None:
    assert feed(role, stream, cuts) == feed(role, stream, [])


@settings(CALM, max_examples=200)
@given(
    st.sampled_from(PeerRole), st.lists(PIECES | st.binary(max_size=60), max_size=8).map(b"".join)
)
def test_garbage_ends_with_a_code_and_never_raises(role: PeerRole, stream: bytes) -> None:
    _, closed, _ = feed(role, stream, [])
    assert closed is None or closed.code.startswith("wire.")
    host = make_host(role, outbox=ListOutbox())
    host.receive_data(stream, Millis(0))
    assert host.closed is None or host.closed.code.startswith("wire.")


class Store:
    """The server's durable side: what is committed stays, whatever happens to sessions."""

    def __init__(self) -> None:
        self.committed: list[int] = []

    @property
    def last(self) -> int:
        return self.committed[-1] if self.committed else 0

    def record(self, facts: list[int]) -> int:
        self.committed.extend(sequence for sequence in facts if sequence > self.last)
        return self.last


class Line:
    """One session of the host with the server; bytes are carried in pieces and may be lost at its end."""

    def __init__(self, outbox: ListOutbox, store: Store) -> None:
        self.host = make_host(
            outbox=outbox, hello=make_hello(fact_sequence_last=outbox.last_sequence)
        )
        self.server = ServerSession(HOST, now=Millis(0))
        self.store = store
        self.up = bytearray()
        self.down = bytearray()
        self.waiting: list[int] = []

    def carry_up(self, count: int) -> None:
        self.up += self.host.data_to_send()
        data = bytes(self.up[:count])
        del self.up[:count]
        for message in self.server.receive_data(data, Millis(0)):
            if isinstance(message, Facts):
                self.waiting.extend(fact.sequence for fact in message.facts)
            else:
                self.server.welcome(
                    make_welcome(fact_sequence_acknowledged=self.store.last), Millis(0)
                )

    def carry_down(self, count: int) -> None:
        self.down += self.server.data_to_send()
        data = bytes(self.down[:count])
        del self.down[:count]
        self.host.receive_data(data, Millis(0))

    def commit(self, count: int) -> None:
        batch, self.waiting = self.waiting[:count], self.waiting[count:]
        if batch:
            acknowledged = self.store.record(batch)
            if self.server.state is SessionState.ESTABLISHED:
                self.server.acknowledge(acknowledged)


STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "up", "down", "commit", "break"]), st.integers(1, 400)),
    max_size=60,
)


@settings(CALM, max_examples=200)
@given(STEPS)
def test_every_fact_arrives_once_and_in_order_through_any_breaks(
    steps: list[tuple[str, int]],
) -> None:
    outbox, store = ListOutbox(), Store()
    line = Line(outbox, store)
    for step, amount in steps:
        match step:
            case "write":
                start = outbox.last_sequence + 1
                outbox.facts.extend(make_fact(start + n) for n in range(amount % 40))
            case "up":
                line.carry_up(amount)
            case "down":
                line.carry_down(amount)
            case "commit":
                line.commit(amount)
            case "break":
                # What was on its way is lost; a commit under way may still finish, unacknowledged.
                store.record(line.waiting[: amount % 3 * 5])
                line = Line(outbox, store)
        assert line.host.closed is None and line.server.closed is None
    written = [fact.sequence for fact in outbox.facts]
    for _ in range(len(written) + 10):
        line.carry_up(1 << 20)
        line.carry_down(1 << 20)
        line.commit(1_000)
    assert store.committed == written
