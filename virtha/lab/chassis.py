"""The chassis of a lab's hosts: what their BMCs' orders are carried out by.

    python -m virtha.lab.chassis DIRECTORY

``DIRECTORY``: the lab's. One process for all of its hosts, outside of all their namespaces but in the server's network, so that `down`
finds it. A BMC's program (``bmc.py``) says one line on ``hN/bmc/chassis.sock``, as ipmi_sim said it, and gets one back.
"""

import contextlib
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import msgspec

from virtha.lab import faults
from virtha.lab.bmc import BmcFault, BmcManners, BmcRequest
from virtha.lab.lab import Lab
from virtha.model.errors import Conflict, Unavailable, VirthaError

LINE_BYTES_MAX = 200
REFUSED = "no"
HOLD_LOOK_S = 0.01


class Chassis:
    """Of one host."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._lab = lab
        self._host = host
        self._bmc = lab.bmc(host)
        self._manners = BmcManners()
        self._came = 0
        """Requests that fit ``hold``, since it has these manners."""
        self._listener = socket.socket(socket.AF_UNIX)
        path = self._bmc.chassis_socket
        new = path.with_suffix(".new")
        for one in (path, new):
            one.unlink(missing_ok=True)
        self._listener.bind(str(new))
        self._listener.listen(8)
        new.rename(path)  # there once it listens

    def serve(self) -> None:
        """One after the other, as ipmi_sim asks; never returns."""
        while True:
            peer, _ = self._listener.accept()
            with peer, contextlib.suppress(OSError):  # it may have given up
                peer.sendall(self.answer(peer.recv(LINE_BYTES_MAX).decode()).encode())

    def answer(self, words: str) -> str:
        try:
            return self._answer(words)
        except VirthaError as error:
            sys.stderr.write(f"{self._host}: {words}: {error}\n")
            sys.stderr.flush()
            return REFUSED

    def _answer(self, words: str) -> str:
        """Carries an order out, or does not, by the BMC's manners."""
        manners = self._bmc.manners()
        if manners.fault is BmcFault.SLOW:
            time.sleep(manners.slow_ms / 1_000)
        if manners != self._manners:
            self._manners, self._came = manners, 0
        self._came += words == manners.hold
        is_held = words == manners.hold and self._came == manners.hold_nth
        if is_held and not manners.hold_after:
            self._hold()
        answer = self._do(words, manners.fault)
        if is_held and manners.hold_after:
            self._hold()
        return answer

    def _hold(self) -> None:
        self._bmc.held_file.write_bytes(msgspec.json.encode(self._manners))
        while self._bmc.manners() == self._manners:
            time.sleep(HOLD_LOOK_S)
        self._bmc.held_file.unlink()

    def _do(self, words: str, fault: BmcFault) -> str:
        is_on = self._lab.host(self._host).is_on()
        obeys = fault in (BmcFault.NONE, BmcFault.SLOW)
        self._bmc.note(BmcRequest(at_ms=_now_ms(), words=words, found_on=is_on, done=obeys))
        match words.split():
            case ["get", "power"]:
                return f"power:{int(is_on and fault is not BmcFault.LIAR)}"
            case ["set", "power", "0"]:
                if obeys and is_on:
                    self._cut()
                return "done"
            case ["set", "power", "1"]:
                if obeys and not is_on:
                    # A button: what it sets off takes its time.
                    name = f"{self._host} boots"
                    threading.Thread(target=self._boot, name=name, daemon=True).start()
                return "done"
            case ["set", "identify", *_]:
                return "done"
        return REFUSED

    def _cut(self) -> None:
        with contextlib.suppress(Unavailable):  # it went off by itself meanwhile
            faults.kill_host(self._lab, self._host, silent=True)

    def _boot(self) -> None:
        try:
            with contextlib.suppress(Conflict):  # somebody else pressed it, too
                faults.boot_host(self._lab, self._host)
        except Exception:
            # A host that does not come up is for its own log and for whoever waits for it; its BMC goes on.
            sys.stderr.write(f"{self._host} does not boot: {traceback.format_exc()}")
            sys.stderr.flush()


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def main() -> None:
    lab = Lab.open(Path(sys.argv[1]))
    made = [Chassis(lab, host.name) for host in lab.hosts]
    for one in made:
        threading.Thread(target=one.serve).start()


if __name__ == "__main__":
    main()
