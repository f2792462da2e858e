"""A way from this machine's 127.0.0.1 into the lab: what a browser or a test needs to reach REST.

    python -m virtha.lab.forward NAMESPACE HOST:PORT LISTEN_PORT READY_FILE

It listens outside, then moves into the lab's network namespace: the listening socket stays where it
was made, every new connection begins inside. LISTEN_PORT 0 takes a free one; READY_FILE gets it.
"""

import asyncio
import socket
import sys
from pathlib import Path

from virtha.lab.namespaces import enter_network

CHUNK_BYTES = 65_536
CONNECTIONS_MAX = 256


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # either side may hang up at any time; both are closed below
    finally:
        writer.close()


async def serve(listener: socket.socket, host: str, port: int) -> None:
    places = asyncio.Semaphore(CONNECTIONS_MAX)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with places:
            try:
                async with asyncio.timeout(5.0):
                    inner_reader, inner_writer = await asyncio.open_connection(host, port)
            except (OSError, TimeoutError):
                writer.close()  # the server is down: as if nobody listened
                return
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    server = await asyncio.start_server(one, sock=listener)
    async with server:
        await server.serve_forever()


def main() -> None:
    namespace, target, port, ready = sys.argv[1:5]
    host, _, target_port = target.rpartition(":")
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
    enter_network(namespace)
    Path(ready).write_text(f"{listener.getsockname()[1]}\n")
    asyncio.run(serve(listener, host, int(target_port)))


if __name__ == "__main__":
    main()
