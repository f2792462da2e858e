"""An installation with some of each kind of thing, whose hosts do at once what they are told: for requests by the thousand.

They change and delete what they meet; ``fill`` makes anew what is missing.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
from conftest import PASSWORDS
from played_host import storage_report, told_after
from test_routes import BOOT, connect_host, join_host, record

from virtha.api.app import ROOT
from virtha.control.requests import SessionCreate, UserChange, UserCreate
from virtha.model.errors import Conflict, NotFound, VirthaError
from virtha.model.ids import HostId, Incarnation, VmId
from virtha.model.time import Millis
from virtha.model.user import Role
from virtha.ports.hosts import LastBeat
from virtha.server.listeners import Listener, address_of, bind_tcp, uvicorn_config

T = TypeVar("T")
ADMINISTRATOR = "administrator"
WAIT_S = 200.0
References = dict[str, list[str]]
"""By collection (`vms`, `storage-domains`, `disks`): names and ids of what is there."""
VM = {
    "cluster": "default",
    "image": "tiny",
    "storage_domain": "ds1",
    "memory_bytes": 1 << 27,
    "nics": [{"bridge": "br0"}],
    "watchdog": {"model": "i6300esb", "action": "reset"},
    "ha": True,
}
MAIL = {"type": "mail", "host": "mail.example.org", "sender": "ha@example.org"}
POWER = {
    "driver": "command",
    "executable": "/bin/echo",
    "syntax": "$IPMI_ACTION",
    "address": "bmc-h1",
    "stop": "off",
    "status": "on",
}
SIGN_INS = {
    "issuer": "https://op.example",
    "client_id": "virtha",
    "client_secret": "a secret",
    "roles": {"vm-admins": "administrator"},
}
SILENCE = {"reason": "works", "matcher": {"host": "h1"}, "duration_ms": 3_600_000}
MADE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("clusters", "second", {}),
    ("storage-domains", "ds1", {"path": "/srv/ds1", "cluster": "default"}),
    ("users", "eve", {"password": "only looks around", "email": "eve@example.org"}),
    ("roles", "watcher", {"permissions": ["vms.operate"]}),
    ("receivers", "mail1", {"settings": MAIL}),
    ("vms", "web1", VM),
    ("vms", "web2", {**VM, "start": True}),
    ("vms", "web3", VM),
    ("templates", "base", {"vm": "web3"}),
    ("subscriptions", "all", {"receiver": "mail1", "user": "eve"}),
    ("inhibitions", "quiet", {"source": {"codes": ["host.*"]}, "target": {"codes": ["vm.*"]}}),
)
"""Where it is made, its name, and all else of the request: in this order, for the later needs the earlier."""
PARTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("/v1/vms/web3/snapshots", "POST", "/v1/vms/web3/snapshots", {"name": "before"}),
    ("/v1/hosts/h1/power/bmc", "PUT", "/v1/hosts/h1/power/bmc", {"settings": POWER}),
    ("/v1/clusters/default/power", "PUT", "/v1/clusters/default/power/lom", {"settings": POWER}),
    ("/v1/tokens", "POST", "/v1/tokens", {"cluster": "default"}),
    ("/v1/sign-in-provider", "PUT", "/v1/sign-in-provider", SIGN_INS),
    ("/v1/silences", "POST", "/v1/silences", SILENCE),
    ("/v1/users/eve/grants", "POST", "/v1/users/eve/grants", {"role": "watcher"}),
)
"""What is looked for, and how it is made where it is missing."""


@dataclass
class ObedientHosts:
    """Carries out what ``world.links`` is given to deliver."""

    world: Any
    sequences: dict[HostId, int] = field(default_factory=dict)
    incarnations: dict[VmId, Incarnation] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def join(self, name: str, cluster: str = "default") -> None:
        host_id = HostId((await join_host(self.world, name, cluster=cluster))["host_id"])
        await connect_host(self.world, host_id)
        self.sequences[host_id] = 1  # its report
        # What its agent finds by itself: the domains that its settings name.
        for one in (await self.world.ok("GET", "/v1/storage-domains"))["items"]:
            self.sequences[host_id] += 1
            await record(
                self.world, host_id, self.sequences[host_id], storage_report(one["domain"]["id"])
            )

    async def obey(self) -> None:
        """Returns when all that was ordered is done and told."""
        links = self.world.links
        async with self.turn:
            while links.orders:
                host_id, order = links.orders.pop(0)
                for body in told_after(order, self.incarnations):
                    self.sequences[host_id] += 1
                    with contextlib.suppress(VirthaError):  # the host was removed meanwhile
                        await record(self.world, host_id, self.sequences[host_id], body)

    def beat(self) -> None:
        links = self.world.links
        for host_id in links.connected:
            links.beats[host_id] = LastBeat(
                boot=BOOT,
                sequence=links.beats[host_id].sequence + 1,
                monotonic_ms=self.world.clock.monotonic_ms(),
                received_at=Millis(self.world.clock.monotonic_ms()),
                agent_alive=True,
            )

    async def live(self) -> None:
        while True:
            self.beat()
            await self.obey()
            await asyncio.sleep(0.02)


async def let_in(world: Any) -> None:
    """Signs the administrator in if they are not, whatever was done to them: as root on the machine itself would."""
    session = await world.call("GET", "/v1/sessions/current")
    if session.status_code == 200 and session.json()["role"] == ADMINISTRATOR:
        return
    users, password = world.control.users, PASSWORDS[ADMINISTRATOR]
    with contextlib.suppress(NotFound):
        await users.get(ADMINISTRATOR)
        await users.change(
            ROOT,
            ADMINISTRATOR,
            UserChange(password=password, role=Role.ADMINISTRATOR, enabled=True),
        )
        await users.unlock(ROOT, ADMINISTRATOR)
    with contextlib.suppress(Conflict):
        wanted = UserCreate(name=ADMINISTRATOR, password=password, role=Role.ADMINISTRATOR)
        await users.create(ROOT, wanted)
    wanted = SessionCreate(user=ADMINISTRATOR, password=password)
    # Not from where all the wrong passwords come from.
    world.tokens[ADMINISTRATOR] = (await users.sign_in(wanted, address="192.0.2.1")).token


async def make_missing(world: Any, hosts: ObedientHosts) -> None:
    """As far as what was done to the installation lets it. Asks for little where nothing is missing."""
    await let_in(world)
    await world.call("DELETE", "/v1/hold")
    for setting in (await world.ok("GET", "/v1/settings"))["items"]:
        if setting["value"] is not None:
            at = f"scope={setting['scope']}&subject={setting['subject']}"
            await world.call("DELETE", f"/v1/settings/{setting['key']}?{at}")
    there = await _named(world, "hosts")
    for name in ("h1", "h2"):
        if name not in there:
            await hosts.join(name)
    for collection, name, more in MADE:
        if name in await _named(world, collection):
            continue
        made = await world.call("POST", f"/v1/{collection}", {"name": name, **more})
        assert made.status_code < 500, made.text
        await hosts.obey()
        if made.status_code == 202:
            operation = f"/v1/operations/{made.json()['id']}?wait_ms=10000"
            await world.call("GET", operation)
    for name, vm in (await _named(world, "vms")).items():
        if name in ("web1", "web2", "web3") and vm["watchdog"] is None:
            await world.call("POST", f"/v1/vms/{name}/watchdog", VM["watchdog"])
    base = (await _named(world, "templates")).get("base")
    if base is not None and base["watchdog"] is None:
        await world.call("POST", "/v1/templates/base/watchdog", VM["watchdog"])
    for path, method, at, body in PARTS:
        found = await world.call("GET", path)
        if found.status_code == 404 or found.json().get("items") == []:
            await world.call(method, at, body)


async def _named(world: Any, collection: str) -> dict[str, Any]:
    items = (await world.ok("GET", f"/v1/{collection}?limit=1000"))["items"]
    parts = [next((i for i in one.values() if isinstance(i, dict)), one) for one in items]
    plain = [part if "id" not in one else one for one, part in zip(items, parts, strict=True)]
    return {one["name"]: one for one in plain}


async def fill(world: Any, hosts: ObedientHosts) -> References:
    """Makes what is missing; returns what there is."""
    await make_missing(world, hosts)
    return await _references(world)


async def _references(world: Any) -> References:
    found: References = {"images": ["tiny"], "bridges": ["br0"], "power": ["bmc"]}
    for collection in (
        *("clusters", "hosts", "storage-domains", "vms", "templates", "users", "receivers"),
        *("subscriptions", "operations", "tokens", "deliveries", "incidents"),
        *("silences", "inhibitions", "roles"),
    ):
        items = (await world.ok("GET", f"/v1/{collection}"))["items"]
        parts = [next((i for i in one.values() if isinstance(i, dict)), one) for one in items]
        plain = [part if "id" not in one else one for one, part in zip(items, parts, strict=True)]
        found[collection] = [one[key] for one in plain for key in ("name", "id") if key in one]
    vms = [one["vm"] for one in (await world.ok("GET", "/v1/vms"))["items"]]
    found["disks"] = sorted({disk["name"] for vm in vms for disk in vm["disks"]})
    found["nics"] = sorted({nic["id"] for vm in vms for nic in vm["nics"]})
    found["settings"] = [one["key"] for one in (await world.ok("GET", "/v1/settings"))["items"]]
    events = (await world.ok("GET", "/v1/events"))["items"]
    found["events"] = [str(one["revision"]) for one in events[:10]]
    snapshots = await world.call("GET", "/v1/vms/web3/snapshots")
    if snapshots.status_code == 200:
        found["snapshots"] = [one["id"] for one in snapshots.json()["items"]]
    return found


@dataclass(frozen=True)
class Served:
    """``fill`` and the others from any thread; the server answers at ``url``, with ``headers`` as to the administrator."""

    url: str
    headers: dict[str, str]
    """Others once a request has ended the administrator's session: ``sign_in`` and ``fill`` put them in."""
    fill: Callable[[], References]
    make_missing: Callable[[], None]
    """As ``fill``, which looks at all that there is besides."""
    sign_in: Callable[[], None]


@contextlib.contextmanager
def serving(directory: Path, open_installation: Callable[[Path], Any]) -> Iterator[Served]:
    """A real uvicorn in a thread."""
    made: list[Served] = []
    ready, stop = threading.Event(), threading.Event()

    async def main() -> None:
        sock = bind_tcp("127.0.0.1:0", field="listen")
        url = f"http://{address_of(sock)}"
        async with (
            open_installation(directory) as inside,
            httpx.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False) as client,
        ):
            # The test's own client has an event loop of its own, and what waits belongs to one only.
            world = replace(inside, client=client)
            loop, hosts = asyncio.get_running_loop(), ObedientHosts(world)
            listener = Listener(uvicorn_config(world.app))
            tasks = [
                asyncio.create_task(listener.run_until_stopped(sock)),
                asyncio.create_task(hosts.live()),
            ]
            await listener.accepting.wait()

            headers = world.headers(ADMINISTRATOR)

            def run(work: Coroutine[Any, Any, T]) -> T:
                done = asyncio.run_coroutine_threadsafe(work, loop).result(timeout=WAIT_S)
                headers.update(world.headers(ADMINISTRATOR))
                return done

            made.append(
                Served(
                    url,
                    headers,
                    fill=lambda: run(fill(world, hosts)),
                    make_missing=lambda: run(make_missing(world, hosts)),
                    sign_in=lambda: run(let_in(world)),
                )
            )
            ready.set()
            await asyncio.to_thread(stop.wait)
            listener.stop()
            tasks[1].cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(ended[1], asyncio.CancelledError), ended

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, main())
        done.add_done_callback(lambda _: ready.set())
        try:
            assert ready.wait(WAIT_S)
            if not made:
                done.result()
            yield made[0]
        finally:
            stop.set()
            done.result(timeout=WAIT_S)
