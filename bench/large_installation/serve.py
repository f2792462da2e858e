"""The REST listener of ``bench/api.py``, as a process of its own: the server's store, use cases, API and TLS. Hosts are said to be well at
every look, for none is there; no engine leads, no gateway listens, and nothing is written.

    python bench/large_installation/serve.py ROOT        prints one line of JSON when it is ready
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from virtha.api.app import create_app
from virtha.api.route import Services
from virtha.control import make_control
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import server_context
from virtha.model.ids import BootId, HostId
from virtha.model.orders import HostSettings, Order
from virtha.ports.hosts import LastBeat
from virtha.server.app import load_authority, server_certificate
from virtha.server.config import ServerPaths, read_config
from virtha.server.listeners import address_of, bind_tcp, tls_listener
from virtha.store import open_store


class HostsThatAreWell:
    """As the gateway sees hosts that beat: ``boot-0001`` of ``host-0001``."""

    def __init__(self, clock: MachineClock) -> None:
        self._clock = clock

    def agent_connected(self, host_id: HostId) -> bool:
        return True

    def last_beat(self, host_id: HostId) -> LastBeat | None:
        now = self._clock.monotonic_ms()
        boot = BootId(f"boot-{host_id.removeprefix('host-')}")
        return LastBeat(boot=boot, sequence=1, monotonic_ms=now, received_at=now, agent_alive=True)

    def deliver(self, host_id: HostId, order: Order) -> bool:
        return False

    def configure(self, host_id: HostId, settings: HostSettings) -> None:
        """Nobody is there."""

    def disconnect(self, host_id: HostId, code: str) -> None:
        """Nobody is there."""


async def serve(paths: ServerPaths) -> None:
    clock, stopping = MachineClock(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    config = read_config(paths, {})
    authority = load_authority(paths, clock)
    certificate, key = server_certificate(paths, config, authority, clock)
    store = await open_store(paths.database_url(config), clock=clock)
    try:
        control = make_control(
            store=store, links=HostsThatAreWell(clock), authority=authority, clock=clock
        )
        app = create_app(Services(control=control, authority=authority, stopping=stopping))
        context = server_context(
            authority.certificate_pem(), certificate, key, client_certificates=False
        )
        listener = tls_listener(app, context)
        with bind_tcp("127.0.0.1:0", field="listen") as sock:
            serving = asyncio.create_task(listener.run_until_stopped(sock))
            await listener.accepting.wait()
            print(json.dumps({"address": address_of(sock)}), flush=True)
            await stopping.wait()
            listener.stop()
            await serving
    finally:
        await store.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(ServerPaths(Path(sys.argv[1]))))
