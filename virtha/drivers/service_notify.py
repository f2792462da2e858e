"""systemd's notify protocol (sd_notify(3)): a datagram to ``$NOTIFY_SOCKET``; without one, nothing."""

import os
import socket
from collections.abc import Mapping


def notify(state: str, environment: Mapping[str, str] | None = None) -> bool:
    """Send ``READY=1``, ``STOPPING=1``, ``STATUS=…``. False: nobody asked for it, or nobody reads it, which is
    no error: the service runs all the same.

    The address is a path, or a name in the abstract namespace written with a leading ``@``.
    """
    environ = os.environ if environment is None else environment
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), target)
        except OSError:
            return False
    return True
