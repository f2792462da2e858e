"""systemd's notify protocol (sd_notify(3)): a datagram to ``$NOTIFY_SOCKET``; without one, nothing."""

import os
import socket


def notify(state: str) -> None:
    """``READY=1``, ``STOPPING=1``, ``STATUS=…``. A supervisor that does not listen is no error."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect(address)
            sender.sendall(state.encode())
        except OSError:
            return  # nobody reads it; the service runs all the same
