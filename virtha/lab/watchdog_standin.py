"""The watchdog of one lab host, outside of its PID namespace, so that whatever freezes in there it still bites.

    python -m virtha.lab.watchdog_standin SOCKET PID START_TICKS

``PID`` is the host's process 1 as it is seen from here, and ``START_TICKS`` when it began (``namespaces.ProcessId``): its
end is the end of all processes of that host. A host that was bitten stays off until somebody boots it. Prints a
line at each change, with the milliseconds of this machine's clock since its boot. Ends with the host.
"""

import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from virtha.drivers.standin_watchdog import PACKET_BYTES_MAX, StandinAnswer, StandinOrder
from virtha.lab.namespaces import ProcessId


class Standin:
    def __init__(self, path: Path, process: ProcessId) -> None:
        """Raises ProcessLookupError when the host is gone."""
        self._host = os.pidfd_open(process.pid)
        if not process.is_alive():  # its id may be another's by now, who is not to be bitten
            raise ProcessLookupError(f"process {process.pid} is not the host's")
        self._timeout_ms = 0
        self._fed_ms = 0
        self._ends = selectors.DefaultSelector()
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._ends.register(self._listener, selectors.EVENT_READ)
        self._ends.register(self._host, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            wait_s = None
            if self._timeout_ms:
                wait_s = max(0, self._fed_ms + self._timeout_ms - _now_ms()) / 1_000
            ready = [key.fileobj for key, _ in self._ends.select(wait_s)]
            if self._host in ready:
                return
            # First whether it is too late: what waits in a socket was sent by a host that is to be dead.
            if self._timeout_ms and _now_ms() >= self._fed_ms + self._timeout_ms:
                return self._bite("not fed")
            for end in ready:
                if end is self._listener:
                    self._ends.register(self._listener.accept()[0], selectors.EVENT_READ)
                elif isinstance(end, socket.socket) and self._serve(end):
                    return self._bite("asked to")

    def _serve(self, end: socket.socket) -> bool:
        """Whether the host is to be reset."""
        try:
            order = msgspec.json.decode(end.recv(PACKET_BYTES_MAX), type=StandinOrder)
        except (OSError, msgspec.MsgspecError):
            self._ends.unregister(end)
            end.close()
            return False
        answer = StandinAnswer(timeout_ms=self._timeout_ms)
        match order.verb:
            case "arm" if order.timeout_ms > 0:
                # Whole seconds, as devices count.
                self._timeout_ms = -(-order.timeout_ms // 1_000) * 1_000
                self._fed_ms = _now_ms()
                answer = StandinAnswer(timeout_ms=self._timeout_ms)
                _say(f"armed {self._timeout_ms}")
            case "feed" if self._timeout_ms:
                self._fed_ms = _now_ms()
            case "runs":
                pass
            case "reset":
                return True
            case _:
                answer = StandinAnswer(error=f"not now: {order.verb}")
        try:
            end.send(msgspec.json.encode(answer), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return False

    def _bite(self, why: str) -> None:
        _say(f"bites: {why}")
        try:
            signal.pidfd_send_signal(self._host, signal.SIGKILL)
        except ProcessLookupError:
            return


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _say(what: str) -> None:
    sys.stdout.write(f"{_now_ms()} {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _, _path, _pid, _start_ticks = sys.argv
    Standin(Path(_path), ProcessId(pid=int(_pid), start_ticks=int(_start_ticks))).run()
