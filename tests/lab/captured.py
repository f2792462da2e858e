"""What really arrives at the lab's server, frame by frame."""

import contextlib
import ipaddress
import socket
import struct
import threading

from virtha.lab.lab import Lab
from virtha.lab.namespaces import enter_network

ALL_PROTOCOLS = 0x0003
"""Linux, include/uapi/linux/if_ether.h: ETH_P_ALL."""
IPV4 = 0x0800
TCP = 6
FIN, RST = 0x01, 0x04
LOOK_S = 0.2


class Goodbyes:
    """TCP segments with FIN or RST from one address to the server. A context manager."""

    def __init__(self, lab: Lab, address: str) -> None:
        self._namespace = lab.server.namespace
        self._from = ipaddress.IPv4Address(address).packed
        self._over = threading.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="goodbyes", daemon=True)
        self.segments = 0
        """All TCP from there: that it was listened to."""
        self.heard: list[str] = []

    def __enter__(self) -> "Goodbyes":
        self._thread.start()
        assert self._listens.wait(60.0), "no capture"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60.0)

    def _watch(self) -> None:
        enter_network(self._namespace)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS)) as line:
            line.bind(("eth0", ALL_PROTOCOLS))
            line.settimeout(LOOK_S)
            self._listens.set()
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    self._look(line.recv(65_536))

    def _look(self, frame: bytes) -> None:
        if len(frame) < 54 or struct.unpack_from("!H", frame, 12)[0] != IPV4:
            return
        packet = frame[14:]
        if packet[9] != TCP or packet[12:16] != self._from:
            return
        segment = packet[(packet[0] & 0xF) * 4 :]
        self.segments += 1
        flags = segment[13]
        if flags & (FIN | RST):
            port, own = struct.unpack_from("!HH", segment)
            self.heard.append(f"{'RST' if flags & RST else 'FIN'} from port {port} to {own}")
