"""Ports for programs that take no socket of ours: chosen now, bound later."""

import os
import socket
from random import Random

FIRST, LAST = 20_000, 31_999
"""Below the range out of which Linux serves whoever asks for any port (32768 on): none of those takes it meanwhile."""

_chance = Random(os.getpid())


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nobody has."""
    while True:
        port = _chance.randint(FIRST, LAST)
        with socket.socket(socket.AF_INET, kind) as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
