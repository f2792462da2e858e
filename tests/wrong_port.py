"""A UDP port behind which something else than a BMC answers."""

import contextlib
import socket
import threading
from collections.abc import Iterator

SOMETHING_ELSE = b"HTTP/1.1 400 Bad Request\r\n\r\n"


@contextlib.contextmanager
def answering_port(words: bytes | None = SOMETHING_ELSE) -> Iterator[int]:
    """Each datagram is answered with ``words``; None: with itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(0.2)
        over = threading.Event()

        def answer() -> None:
            while not over.is_set():
                try:
                    question, sender = listener.recvfrom(2_000)
                    listener.sendto(question if words is None else words, sender)
                except OSError:
                    continue

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            over.set()
            thread.join()
