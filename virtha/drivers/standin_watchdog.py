"""A host's watchdog where there is no device: a program outside of the host that ends it (lab/watchdog_standin.py).

One packet per order over a Unix socket, answered by one. Like a device with ``nowayout`` it runs on when the socket is
closed. A host whose stand-in does not answer has no watchdog.
"""

import socket
from pathlib import Path

import msgspec

from virtha.model.value import Value
from virtha.ports.host_watchdog import ArmedWatchdog

ANSWER_S = 2.0
PACKET_BYTES_MAX = 256


class StandinOrder(Value, frozen=True, kw_only=True):
    """``verb``: runs, arm, feed, disarm or reset."""

    verb: str
    timeout_ms: int = 0


class StandinAnswer(Value, frozen=True, kw_only=True):
    error: str = ""
    timeout_ms: int = 0


class StandinWatchdog:
    """Implements ``HostWatchdog`` and ``HostReset``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def runs_ms(self) -> int:
        try:
            return self._ask(StandinOrder(verb="runs")).timeout_ms
        except OSError:
            return 0

    def arm(self, timeout_ms: int) -> ArmedWatchdog:
        answer = self._ask(StandinOrder(verb="arm", timeout_ms=timeout_ms))
        return ArmedWatchdog(timeout_ms=answer.timeout_ms, no_way_out=True)

    def feed(self) -> None:
        self._ask(StandinOrder(verb="feed"))

    def disarm(self) -> None:
        self._ask(StandinOrder(verb="disarm"))

    def reset(self) -> None:
        """By a connection of its own: a feeding may be under way in another thread."""
        other = self._connect()
        try:
            other.send(msgspec.json.encode(StandinOrder(verb="reset")))
        finally:
            other.close()

    def close(self) -> None:
        """The stand-in runs on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, order: StandinOrder) -> StandinAnswer:
        if self._socket is None:
            self._socket = self._connect()
        try:
            self._socket.send(msgspec.json.encode(order))
            data = self._socket.recv(PACKET_BYTES_MAX)
            answer = msgspec.json.decode(data, type=StandinAnswer)
        except (OSError, msgspec.MsgspecError) as error:
            self.close()
            raise OSError(f"the watchdog's stand-in does not answer: {error}") from error
        if answer.error:
            raise OSError(answer.error)
        return answer

    def _connect(self) -> socket.socket:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        end.settimeout(ANSWER_S)
        try:
            end.connect(str(self._path))
        except OSError:
            end.close()
            raise
        return end
