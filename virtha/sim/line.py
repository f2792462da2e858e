"""A session on a simulated connection, and the host's way of keeping one: as ``virtha.drivers`` does it.

The sessions are the real ones, and so are the bytes; what is left out is TLS.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, assert_never

from virtha.model.ids import InstallationId
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis
from virtha.sim.kernel import Action, Actor, Kernel
from virtha.sim.network import End
from virtha.wire.host_session import HostSession, OutboxView
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseKept,
    ReadSlots,
    SlotsRead,
    StopReading,
    WaiveLease,
)
from virtha.wire.messages import (
    Attach,
    Attached,
    Beat,
    BeatAck,
    Bye,
    ChannelCredit,
    ChannelData,
    Facts,
    FactsAck,
    GiveOrder,
    Hello,
    Message,
    OpenChannel,
    Pace,
    Ping,
    Pong,
    Refuse,
    Settings,
    Welcome,
)
from virtha.wire.power_messages import AttemptPower, EndPowerAttempt, PowerAttempted
from virtha.wire.redial import SESSION_GOOD_MS, redial_delay_ms
from virtha.wire.session import Closed, Session
from virtha.wire.witness_messages import DisksLooked, HostProbed, LookAtDisks, ProbeHost

if TYPE_CHECKING:
    from virtha.sim.host import SimHost

INSTALLATION = InstallationId("installation")
SERVER = "server"
"""Its name on the network."""
CONNECT_DEADLINE_MS = 5_000
CHANCE = 0.5
"""Instead of a random number: each delay is its mean."""


class Line:
    """Moves bytes, time and messages between one session and one connection."""

    def __init__(
        self,
        kernel: Kernel | Actor,
        clock: Callable[[], Millis],
        end: End,
        session: Session,
        *,
        on_message: Callable[[Message, Millis], None],
        on_ended: Callable[[Closed], None],
    ) -> None:
        self._kernel = kernel
        self._clock = clock
        self._end = end
        self._session = session
        self._on_message = on_message
        self._on_ended = on_ended
        self._has_room = True
        self._over = False
        self._root = kernel if isinstance(kernel, Kernel) else kernel.root
        self._timers = 0
        self._timer: Action = lambda: None
        """The one that counts."""
        self._armed_for: int | None = None
        self._unread, end.unread = end.unread, []
        end.on_data = self._data
        end.on_lost = partial(kernel.deliver, self._lost)
        end.on_room = self._room

    def begin(self) -> None:
        """Once its owner knows it: what came before is read now."""
        unread, self._unread = self._unread, []
        for data in unread:
            self._data(data)
        self.flush()

    def flush(self) -> None:
        """Send what the session has to say, and end the connection if it is over."""
        session = self._session
        if self._over:
            return
        while self._has_room and (data := session.data_to_send()):
            self._end.send(data)
            if not session.holds_back:
                break  # that was all
        if session.closed is not None:
            self._finish(session.closed)
        elif session.timing != self._armed_for:
            self._arm_timer()

    def close(self, code: str, message: str = "") -> None:
        self._session.close(code, message)
        self.flush()

    def kill(self) -> None:
        """Its process died: the kernel ends the stream, and nobody is there to hear of it."""
        self._over = True
        self._end.close()

    def reset(self) -> None:
        self._end.reset()

    def _data(self, data: bytes, *, delivered: bool = False) -> None:
        if self._root.frozen_actors and not delivered:
            self._kernel.deliver(partial(self._data, data, delivered=True))
            return
        if self._over:
            return
        now, session = self._clock(), self._session
        for message in session.receive_data(data, now):
            # A message may end its process; those behind it are read by nobody.
            if not self._over:
                self._on_message(message, now)
        if session.unsent or session.holds_back or session.timing != self._armed_for:
            self.flush()

    def _room(self, room: bool) -> None:
        self._has_room = room
        self._session.set_writable(room, self._clock())
        if room and not self._over:
            self.flush()

    def _lost(self, why: str) -> None:
        if not self._over:
            self._session.connection_lost(why)
            self._finish(self._session.closed or Closed(code="wire.closed.lost", message=why))

    def _finish(self, closed: Closed) -> None:
        if self._over:
            return
        self._over = True
        if data := self._session.data_to_send():
            self._end.send(data)
        self._end.close()
        self._on_ended(closed)

    # Time: one timer at a time, armed at each change of state and when it fires. Whatever comes in moves the
    # moment on, so it mostly fires early, and is armed again for what is left.

    def _arm_timer(self) -> None:
        self._timers += 1
        self._timer = partial(self._timer_fired, self._timers)
        self._armed_for = self._session.timing
        due, now = self._session.next_timer(), self._clock()
        if due is not None:
            left_ms = due - now if due > now else 0
            self._kernel.after(left_ms + 1, self._timer)

    def _timer_fired(self, mine: int) -> None:
        if mine != self._timers or self._over:
            return
        now, due = self._clock(), self._session.next_timer()
        if due is not None and now < due:
            self._kernel.after(due - now + 1, self._timer)
            return
        self._session.handle_timer(now)
        self.flush()
        if not self._over:
            self._arm_timer()


class HostLinkEvents(Protocol):
    """What a host's process hears from its link."""

    def on_connected(self, welcome: Welcome) -> None: ...

    def on_disconnected(self, code: str) -> None: ...

    def on_pace(self, pace: Pace) -> None: ...

    def on_settings(self, settings: HostSettings) -> None: ...

    def on_order(self, order: Order) -> None: ...

    def on_facts_acknowledged(self, sequence: int) -> None: ...


class HostLink:
    """One process's session with the server, made again whenever it ends."""

    def __init__(
        self,
        host: "SimHost",
        kernel: Actor,
        events: HostLinkEvents,
        *,
        hello: Callable[[], Hello],
        live_instance: Callable[[], str | None],
        outbox: OutboxView | None = None,
    ) -> None:
        self._host = host
        self._kernel = kernel
        self._events = events
        self._hello = hello
        self._live_instance = live_instance
        self._outbox = outbox
        self._failures = 0
        self._attempts = 0
        self._began_ms = self._outage_ms = kernel.now
        self._dialled: End | None = None
        self._line: Line | None = None
        self._session: HostSession | None = None
        self._stopped = False
        self.welcome: Welcome | None = None

    @property
    def server_instance(self) -> str | None:
        return self.welcome.server_instance if self.welcome is not None else None

    def dial(self) -> None:
        self._attempts += 1
        mine = self._attempts
        hello = self._hello()
        label = hello.role.value
        self._began_ms = self._kernel.now
        self._dialled = self._host.network.dial(
            self._host.name,
            SERVER,
            label,
            partial(self._kernel.deliver, self._answered),
        )
        self._kernel.after(CONNECT_DEADLINE_MS, lambda: self._too_late(mine))

    def facts_written(self) -> None:
        if self._line is not None:
            self._line.flush()

    def send_beat(self, beat: Beat) -> bool:
        if self._session is None or not self._session.send_beat(beat):
            return False
        assert self._line is not None
        self._line.flush()
        return True

    def close(self) -> None:
        """With a goodbye."""
        self._stopped = True
        if self._line is not None:
            self._line.close("wire.closed.shutdown")
        self.kill()

    def kill(self) -> None:
        self._stopped = True
        self.welcome = None
        if self._line is not None:
            self._line.kill()
        elif self._dialled is not None:
            self._dialled.close()

    # The attempt

    def _too_late(self, mine: int) -> None:
        if mine == self._attempts and self._line is None and self._dialled is not None:
            self._dialled.close()
            self._ended(Closed(code="wire.closed.unreachable", message="no connection in time"))

    def _answered(self, end: End | None) -> None:
        if self._stopped or (end is not None and end is not self._dialled):
            return
        if end is None:
            self._ended(Closed(code="wire.closed.unreachable", message="refused"))
            return
        hello = self._hello()
        self._session = HostSession(
            hello,
            installation_id=INSTALLATION,
            now=self._host.clock(),
            outbox=self._outbox,
            live_instance=self._live_instance(),
        )
        self._line = Line(
            self._kernel,
            self._host.clock,
            end,
            self._session,
            on_message=self._message,
            on_ended=self._ended,
        )
        self._line.flush()

    def _ended(self, closed: Closed) -> None:
        now = self._kernel.now
        lasted = self.welcome is not None and now - self._began_ms > SESSION_GOOD_MS
        self._line = self._session = self.welcome = self._dialled = None
        if self._stopped:
            return
        self._events.on_disconnected(closed.code)
        self._failures = 0 if lasted else self._failures + 1
        self._outage_ms = now if lasted else self._outage_ms
        delay_ms = redial_delay_ms(
            self._failures, outage_ms=now - self._outage_ms, last_code=closed.code, chance=CHANCE
        )
        self._kernel.after(int(delay_ms), lambda: None if self._stopped else self.dial())

    def _message(self, message: Message, _now: Millis) -> None:
        match message:
            case BeatAck():
                pass  # the session itself watches for a silent server
            case FactsAck():
                self._events.on_facts_acknowledged(message.sequence)
            case GiveOrder():
                self._events.on_order(message.order)
            case Pace():
                self._events.on_pace(message)
            case Settings():
                self._events.on_settings(message.settings)
            case Welcome():
                self.welcome = message
                self._events.on_connected(message)
            case (
                Hello()
                | Beat()
                | Facts()
                | Ping()
                | Pong()
                | Refuse()
                | Bye()
                | OpenChannel()
                | Attach()
                | Attached()
                | ChannelData()
                | ChannelCredit()
                | ReadSlots()
                | StopReading()
                | WaiveLease()
                | KeepLease()
                | SlotsRead()
                | LeaseKept()
                | ProbeHost()
                | HostProbed()
                | LookAtDisks()
                | DisksLooked()
                | AttemptPower()
                | EndPowerAttempt()
                | PowerAttempted()
            ):
                raise AssertionError(f"the session passed on {message!r}")
            case _:
                assert_never(message)
