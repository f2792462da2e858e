"""A network of named endpoints under virtual time: directed links, and connections over them.

A connection is a stream of bytes each way, as TCP gives it: in order, and nothing missing in the middle.
What a link does not carry is kept by its sender and goes out when the link carries again (TCP sends it
again); nobody is told. Only whoever waits for an answer finds out: the session's own dead-peer detection.
"""

from collections.abc import Callable
from functools import partial

from virtha.sim.kernel import Action, Kernel

DELAY_MS = 2
"""One way."""
ROOM_BYTES_HIGH = 64 * 1024
ROOM_BYTES_LOW = 16 * 1024
"""As production's transport: above the one its writer is told to wait, below the other to go on."""


class Tear:
    """Armed on a link: after so many more bytes it carries no more, or its connection is reset."""

    def __init__(self, bytes_left: int, *, resets: bool, label: str | None) -> None:
        self.bytes_left = bytes_left
        self.resets = resets
        self.label = label
        """Only bytes of connections with this label count; None: all."""


class Link:
    """From one endpoint to another, that way only."""

    def __init__(self, kernel: Kernel, delay_ms: int) -> None:
        self.kernel = kernel
        self._held: list[Action] = []
        self.delay_ms = delay_ms
        self.carries = True
        self.tear: Tear | None = None

    def carry(self, arrive: Action) -> None:
        if self.carries:
            self.kernel.after(self.delay_ms, arrive)
        else:
            self._held.append(arrive)

    def cut(self) -> None:
        self.carries = False

    def heal(self) -> None:
        self.carries, self.tear = True, None
        held, self._held = self._held, []
        for arrive in held:
            self.carry(arrive)


class Endpoint:
    """A machine on the network. ``accept``: its listening process; None refuses who dials."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = True
        self.accept: Callable[[End], None] | None = None
        self.ends: dict[End, None] = {}

    def power_off(self) -> None:
        """Its connections are gone, and nobody says so."""
        self.up, self.accept = False, None
        for end in list(self.ends):
            end.vanish()


class End:
    """One side of a connection; ``label`` says what for. ``on_lost`` is called once at most, and not
    for one's own ``close``."""

    def __init__(self, here: Endpoint, out: Link, label: str) -> None:
        self.label = label
        self.closed = False
        self.peer: End | None = None
        self.unread: list[bytes] = []
        """What came before its process took the connection."""
        self.on_data: Callable[[bytes], None] = self.unread.append
        self.on_lost: Callable[[str], None] = lambda _why: None
        self.on_room: Callable[[bool], None] = lambda _room: None
        self._here = here
        self._out = out
        self._vanished = False
        self._kept_bytes = 0
        self._full = False
        here.ends[self] = None

    @property
    def peer_name(self) -> str:
        """Of the machine at the other side, as its certificate says."""
        assert self.peer is not None
        return self.peer._here.name

    def send(self, data: bytes) -> None:
        if self.closed:
            return
        out = self._out
        tear = out.tear
        if tear is None and out.carries and data:
            out.kernel.after(out.delay_ms, partial(self._arrive, data))
            return
        if tear is not None and tear.label in (None, self.label):
            now, data = data[: tear.bytes_left], data[tear.bytes_left :]
            tear.bytes_left -= len(now)
            self._put(now)
            if data:
                self._tear(tear)
            if tear.resets and data:
                return
        self._put(data)

    def close(self) -> None:
        """What was sent arrives, then the end of the stream."""
        if self._end():
            self._out.carry(self._finish)

    def reset(self) -> None:
        """Both sides see it, now."""
        for end in (self, self.peer):
            if end is not None:
                end._lose("the connection broke: reset")

    def vanish(self) -> None:
        """With its machine."""
        self._vanished = True
        self._end()

    # Inside

    def _tear(self, tear: Tear) -> None:
        link = self._out
        link.tear = None
        if not tear.resets:
            link.cut()
            return
        # What went before arrives before the reset does.
        link.carry(self.reset)

    def _end(self) -> bool:
        was_open, self.closed = not self.closed, True
        self._here.ends.pop(self, None)
        return was_open

    def _lose(self, why: str) -> None:
        if self._end():
            self.on_lost(why)

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self._out.carries:
            self._out.carry(partial(self._arrive, data))
            return
        self._kept_bytes += len(data)
        self._out.carry(partial(self._arrive_late, data))
        if not self._full and self._kept_bytes > ROOM_BYTES_HIGH:
            self._full = True
            self.on_room(False)

    def _arrive_late(self, data: bytes) -> None:
        self._kept_bytes -= len(data)
        self._arrive(data)
        if self._full and self._kept_bytes < ROOM_BYTES_LOW and not self.closed:
            self._full = False
            self.on_room(True)

    def _arrive(self, data: bytes) -> None:
        peer = self.peer
        if self._vanished or peer is None or not peer._here.up:
            return  # as ``_reached``, which would be asked for each frame
        if peer.closed:
            # Its machine knows of no such connection, and says so.
            peer._out.carry(lambda: self._lose("the connection broke: reset"))
        else:
            peer.on_data(data)

    def _finish(self) -> None:
        peer = self._reached()
        if peer is not None:
            peer._lose("the peer closed the connection")

    def _reached(self) -> "End | None":
        """Not what a machine without power had still to send, nor one that is off now."""
        peer = self.peer
        return None if self._vanished or peer is None or not peer._here.up else peer


class Network:
    """``name``: which of a world's networks."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self.name = name
        self.endpoints: dict[str, Endpoint] = {}
        self._links: dict[tuple[str, str], Link] = {}

    def attach(self, name: str) -> Endpoint:
        return self.endpoints.setdefault(name, Endpoint(name))

    def link(self, source: str, target: str) -> Link:
        """Of endpoints that are attached; made on first use."""
        key = (source, target)
        if key not in self._links:
            self._links[key] = Link(self._kernel, DELAY_MS)
        return self._links[key]

    def links_of(self, name: str) -> list[Link]:
        """Both ways, with every other endpoint."""
        others = [other for other in self.endpoints if other != name]
        return [
            link for other in others for link in (self.link(name, other), self.link(other, name))
        ]

    def reset(self, one: str, other: str, *, label: str | None = None) -> None:
        """All connections between the two, or those with that label."""
        for end in list(self.endpoints[one].ends):
            if end.peer is not None and end.peer_name == other and label in (None, end.label):
                end.reset()

    def dial(
        self, source: str, target: str, label: str, answered: Callable[[End | None], None]
    ) -> End:
        """``answered`` gets None when the target refuses; it is not called where nothing comes back."""
        here, there = self.endpoints[source], self.endpoints[target]
        out, back = self.link(source, target), self.link(target, source)
        near = End(here, out, label)

        def knock() -> None:
            if near.closed or not there.up:
                return
            if there.accept is None:
                back.carry(refuse)
                return
            far = End(there, back, label)
            near.peer, far.peer = far, near
            there.accept(far)
            back.carry(welcome)

        def welcome() -> None:
            if not near.closed:
                answered(near)

        def refuse() -> None:
            if near._end():
                answered(None)

        out.carry(knock)
        return near
