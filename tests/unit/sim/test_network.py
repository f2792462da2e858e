"""The simulated network: what links carry, hold, tear, and who is told of it."""

from virtha.sim.kernel import Kernel
from virtha.sim.network import DELAY_MS, ROOM_BYTES_HIGH, End, Network, Tear


class Peer:
    """Keeps what one end hears."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.data = b""
        self.lost: list[str] = []
        self.room: list[bool] = []
        end.on_data = self._data
        end.on_lost = self.lost.append
        end.on_room = self.room.append

    def _data(self, data: bytes) -> None:
        self.data += data


class Wire:
    """Two machines, `h1` and `server`, and one connection between them."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.network = Network(self.kernel, "management")
        self.network.attach("h1")
        self.answers: list[End | None] = []
        self.far: list[Peer] = []
        self.network.attach("server").accept = lambda end: self.far.append(Peer(end))
        self.near = self.dial()
        self.pass_ms(10)

    def dial(self) -> Peer:
        return Peer(self.network.dial("h1", "server", "agent", self.answers.append))

    def pass_ms(self, duration_ms: int) -> None:
        self.kernel.advance(duration_ms)


def test_bytes_arrive_after_the_delay_and_in_order() -> None:
    wire = Wire()
    assert wire.answers == [wire.near.end]
    wire.near.end.send(b"ab")
    wire.near.end.send(b"c")
    wire.pass_ms(DELAY_MS - 1)
    assert wire.far[0].data == b""
    wire.pass_ms(1)
    assert wire.far[0].data == b"abc"


def test_a_cut_holds_one_way_only_and_tells_nobody() -> None:
    wire = Wire()
    wire.network.link("h1", "server").cut()
    wire.near.end.send(b"up")
    wire.far[0].end.send(b"down")
    wire.pass_ms(60_000)
    assert (wire.far[0].data, wire.near.data) == (b"", b"down")
    assert wire.near.lost == wire.far[0].lost == []
    wire.network.link("h1", "server").heal()
    wire.pass_ms(DELAY_MS)
    assert wire.far[0].data == b"up"


def test_a_tear_lets_the_first_bytes_through_and_holds_the_rest() -> None:
    wire = Wire()
    link = wire.network.link("h1", "server")
    link.tear = Tear(3, resets=False, label="agent")
    wire.near.end.send(b"ab")
    wire.near.end.send(b"cdef")
    wire.pass_ms(10)
    assert wire.far[0].data == b"abc"
    link.heal()
    wire.pass_ms(10)
    assert wire.far[0].data == b"abcdef"


def test_a_tear_of_another_connection_leaves_this_one_alone() -> None:
    wire = Wire()
    wire.network.link("h1", "server").tear = Tear(0, resets=True, label="guardian")
    wire.near.end.send(b"abc")
    wire.pass_ms(10)
    assert (wire.far[0].data, wire.near.lost) == (b"abc", [])


def test_a_reset_in_the_middle_is_seen_by_both_after_the_first_bytes() -> None:
    wire = Wire()
    wire.network.link("h1", "server").tear = Tear(1, resets=True, label=None)
    wire.near.end.send(b"abc")
    wire.near.end.send(b"def")
    wire.pass_ms(10)
    assert wire.far[0].data == b"a"
    assert [len(wire.near.lost), len(wire.far[0].lost)] == [1, 1]


def test_a_closed_end_is_read_to_its_end() -> None:
    wire = Wire()
    wire.near.end.send(b"bye")
    wire.near.end.close()
    wire.pass_ms(DELAY_MS)
    assert wire.far[0].data == b"bye"
    assert wire.far[0].lost == ["the peer closed the connection"]
    assert wire.near.lost == []


def test_who_talks_into_a_half_open_connection_is_told() -> None:
    wire = Wire()
    wire.network.link("server", "h1").cut()
    wire.far[0].end.close()  # its end of stream gets stuck
    wire.pass_ms(1_000)
    wire.near.end.send(b"anybody there?")
    wire.pass_ms(1_000)
    assert wire.near.lost == []
    wire.network.link("server", "h1").heal()
    wire.pass_ms(10)
    assert len(wire.near.lost) == 1


def test_a_machine_without_power_says_nothing_and_hears_nothing() -> None:
    wire = Wire()
    server = wire.network.endpoints["server"]
    server.power_off()
    wire.near.end.send(b"hello")
    wire.dial()
    wire.pass_ms(60_000)
    assert wire.near.lost == []
    assert len(wire.answers) == 1
    server.up = True
    wire.near.end.send(b"hello again")
    wire.pass_ms(10)
    assert wire.near.lost == ["the connection broke: reset"]
    wire.dial()
    wire.pass_ms(10)
    assert wire.answers[1:] == [None], "it is on, and nobody listens"


def test_a_sender_is_told_to_wait_and_to_go_on() -> None:
    wire = Wire()
    link = wire.network.link("h1", "server")
    link.cut()
    wire.near.end.send(bytes(ROOM_BYTES_HIGH))
    assert wire.near.room == []
    wire.near.end.send(b"x")
    assert wire.near.room == [False]
    link.heal()
    wire.pass_ms(10)
    assert wire.near.room == [False, True]
    assert len(wire.far[0].data) == ROOM_BYTES_HIGH + 1
