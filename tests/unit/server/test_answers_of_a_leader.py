"""What the native API answers where an engine leads, hosts fail and VMs move: each answer fits the OpenAPI document.

Schemathesis has an installation in which nobody leads (``tests/api/test_schemathesis.py``); the successes that are out of its reach come
about here, and in the stories of ``tests/api``, whose clients' answers are looked at in the same way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from answers_by_document import Answered, Watch, watching
from led_world import LedWorld, PlayedHost, led_world, two_hosts_and_a_vm, while_turning
from test_freeing import SILENT_MS

from virtha.api.app import create_app
from virtha.api.route import Services
from virtha.control.consoles import PICTURE
from virtha.model.console import ChannelSubject, LogPosition, SerialLog, TakeScreenshot
from virtha.model.facts import ForeignDomain, MigrationReport, Result
from virtha.model.ids import ClusterId, HostId, VmId
from virtha.model.orders import MigrateVm, ReceiveVm, ScanForeign
from virtha.model.time import UtcMillis
from virtha.model.vm import Vm
from virtha.ports.channels import ByteStream

LET_IN = {"address": "10.0.0.2", "name": "h2.migration.virtha", "data_uri": "tcp://10.0.0.2"}


@dataclass
class Asking:
    """The world, and what its API is asked as the administrator."""

    world: LedWorld
    client: httpx.AsyncClient

    async def ok(self, method: str, path: str, body: Any = None, *, decided: bool = False) -> Any:
        """``decided``: the engine has to, meanwhile."""
        asking = self.client.request(method, path, json=body)
        answer: Any = await (while_turning(self.world, asking) if decided else asking)
        assert answer.status_code < 300, answer.text
        await self.world.settle()
        is_json = "json" in answer.headers.get("content-type", "")
        return answer.json() if is_json else answer.content


def tell(tmp_path: Path, story: Callable[[Asking], Awaitable[None]], *wanted: str) -> None:
    """All answers fit, and there were successes of ``wanted``."""
    watch = Watch()

    async def main() -> None:
        async with led_world(tmp_path) as world:
            services: Any = Services(control=world.control, authority=world.authority)
            transport = httpx.ASGITransport(app=create_app(services))
            async with httpx.AsyncClient(transport=transport, base_url="http://virtha") as client:
                asking = Asking(world, client)
                user = {"user": "admin", "password": "correct horse battery"}
                session = await asking_to_sign_in(client, user)
                client.headers["Authorization"] = f"Bearer {session['token']}"
                await story(asking)

    with watching(watch):
        asyncio.run(main())
    assert watch.wrong == []
    successes = {one.route for one in watch.seen if one.status < 300}
    assert set(wanted) <= successes, set(wanted) - successes


async def asking_to_sign_in(client: httpx.AsyncClient, user: dict[str, str]) -> Any:
    answer = await client.post("/v1/sessions", json=user)
    assert answer.status_code < 300, answer.text
    return answer.json()


async def is_dead(asking: Asking, name: str, beating: tuple[str, ...]) -> None:
    """By the operator's word."""
    asking.world.hosts[name].vanish()
    await asking.world.pass_time(SILENT_MS, beating=beating)
    ticket = await asking.ok("POST", f"/v1/hosts/{name}/death-tickets")
    said = {"ticket": ticket["ticket"], "name": name}
    await asking.ok("POST", f"/v1/hosts/{name}/confirm-dead", said, decided=True)


def test_answers_about_hosts_that_die_and_a_vm_that_dies_with_them(tmp_path: Path) -> None:
    async def story(asking: Asking) -> None:
        world = asking.world
        await world.join("h3")
        await two_hosts_and_a_vm(world)
        on = {"on": True, "drain": False}
        await asking.ok("POST", "/v1/hosts/h3/maintenance", on, decided=True)
        await asking.ok("GET", "/v1/hosts/h3/maintenance")
        await asking.ok("POST", "/v1/hosts/h3/maintenance", {"on": False}, decided=True)
        await is_dead(asking, "h1", ("h2", "h3"))
        (holder,) = (await asking.ok("GET", "/v1/vms/web1"))["holder_names"]
        second = world.hosts[holder]
        await second.started(second.starts()[-1])
        await world.settle()
        (left,) = {"h2", "h3"} - {holder}
        await is_dead(asking, holder, (left,))
        for path in ("", "/hosts/h1", "/vms/web1", "/clusters/default"):
            await asking.ok("GET", f"/v1{path}/readiness")
        await asking.ok("POST", "/v1/vms/web1/free", decided=True)
        listed = (await asking.ok("GET", "/v1/incidents"))["items"]
        assert len(listed) == 2
        for one in listed:
            told = await asking.ok("GET", f"/v1/incidents/{one['id']}")
            assert told["incident"]["id"] == one["id"]
        for path in ("vms", "hosts", "operations", "events", "status", "clusters"):
            await asking.ok("GET", f"/v1/{path}")

    tell(
        tmp_path,
        story,
        "POST /v1/hosts/{ref}/maintenance",
        "POST /v1/hosts/{ref}/death-tickets",
        "POST /v1/hosts/{ref}/confirm-dead",
        "POST /v1/vms/{ref}/free",
        "GET /v1/incidents/{id}",
    )


def test_answers_about_the_brake(tmp_path: Path) -> None:
    async def story(asking: Asking) -> None:
        world = asking.world
        for number in range(1, 6):
            await world.join(f"h{number}")
        await two_hosts_and_a_vm(world)
        for name in ("h1", "h3", "h4"):
            world.hosts[name].vanish()
        await world.pass_time(20_000, beating=("h2", "h5"))
        assert (await asking.ok("GET", "/v1/clusters/default/brake"))["on"]
        lifted = await asking.ok("DELETE", "/v1/clusters/default/brake", decided=True)
        assert not lifted["on"]

    tell(tmp_path, story, "DELETE /v1/clusters/{ref}/brake", "GET /v1/clusters/{ref}/brake")


class PlayedChannels:
    async def open(self, host_id: HostId, subject: ChannelSubject) -> ByteStream:
        if isinstance(subject, TakeScreenshot):
            return Said(PICTURE + b"pixels")
        text = b"login: "
        end = LogPosition(file=7, offset=len(text))
        log = SerialLog(text=text, end=end, written_at=UtcMillis(1))
        return Said(msgspec.msgpack.encode(log))


class Said:
    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)

    async def receive(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""

    async def send(self, data: bytes) -> None:
        raise AssertionError(data)

    def close(self) -> None:
        """Nothing is open."""


def test_answers_about_moves_consoles_and_what_a_scan_found(tmp_path: Path) -> None:
    async def story(asking: Asking) -> None:
        world = asking.world
        await two_hosts_and_a_vm(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        world.control.consoles._channels = PlayedChannels()
        picture = await asking.ok("GET", "/v1/vms/web1/screenshot")
        assert picture == PICTURE + b"pixels"
        log = await asking.ok("GET", "/v1/vms/web1/console-log")
        assert "login: " in str(log), log
        scan = await asking.ok("POST", "/v1/hosts/h1/scan")
        vm = Vm(id=VmId("old"), name="old", cluster_id=ClusterId(""), memory_bytes=1 << 28)
        found = (
            ForeignDomain(name="old", state="running", vm=vm, changes=("agent channel added",)),
            ForeignDomain(name="lxc", state="running", vm=None, obstacles=("no QEMU domain",)),
        )
        (order,) = (one for one in h1.orders if isinstance(one.body, ScanForeign))
        await h1.answer(order, foreign=found)
        told = await asking.ok("GET", f"/v1/operations/{scan['id']}/foreign")
        assert [one["name"] for one in told["items"]] == ["old", "lxc"]
        move = await asking.ok("POST", "/v1/vms/web1/migrate", {"host": "h2"})
        body = await begins(asking, h1, h2)
        called_off = await asking.ok("POST", "/v1/vms/web1/cancel-migration")
        assert called_off["id"] == move["id"]
        for host, incarnation in ((h1, body.incarnation), (h2, body.target_incarnation)):
            report = MigrationReport(
                migration_id=body.migration_id,
                vm_id=body.vm_id,
                incarnation=incarnation,
                result=Result.FAILED,
                code="migration.failed",
            )
            await host.tell(report)
        await world.settle()
        ended = await asking.ok("GET", f"/v1/operations/{move['id']}")
        assert ended["state"] == "cancelled"
        wanted = {"name": "web2", "memory_bytes": 1 << 29, "image": "tiny"}
        copy = await asking.ok("POST", "/v1/vms", wanted)
        await asking.ok("POST", f"/v1/operations/{copy['id']}/cancel")
        await asking.ok("GET", "/v1/vms/web1")
        await asking.ok("GET", "/v1/operations")

    tell(
        tmp_path,
        story,
        "POST /v1/vms/{ref}/migrate",
        "POST /v1/vms/{ref}/cancel-migration",
        "GET /v1/vms/{ref}/screenshot",
        "GET /v1/vms/{ref}/console-log",
        "GET /v1/operations/{id}/foreign",
        "POST /v1/operations/{id}/cancel",
    )


async def begins(asking: Asking, source: PlayedHost, target: PlayedHost) -> MigrateVm:
    await asking.world.settle()
    (receive,) = (one for one in target.orders if isinstance(one.body, ReceiveVm))
    await target.answer(receive, fields=LET_IN)
    await asking.world.settle()
    (migrate,) = (one for one in source.orders if isinstance(one.body, MigrateVm))
    await source.answer(migrate)
    await asking.world.settle()
    assert isinstance(migrate.body, MigrateVm)
    return migrate.body


# The looking itself


def looked_at(method: str, path: str, status: int, **more: Any) -> list[str]:
    watch = Watch()
    request = httpx.Request(method, f"http://virtha{path}")
    watch.look(httpx.Response(status, request=request, **more))
    return watch.wrong


PROBLEM = {"type": "t", "title": "t", "status": 404, "code": "problem.not_found"}
PROBLEM_KIND = {"content-type": "application/problem+json"}
JSON = {"content-type": "application/json"}


def test_an_answer_that_does_not_fit_is_told() -> None:
    good = {"method": "DELETE", "path": "/v1/sessions/current", "status": 204}
    assert looked_at(**good) == []
    assert "has a body" in looked_at(**good, content=b"{}")[0]
    assert "doesn't know there" in looked_at("DELETE", "/v1/sessions/current", 200)[0]
    assert "of a route" in looked_at("GET", "/v1/nothing", 200, json={})[0]
    assert "is no JSON" in looked_at("GET", "/v1/vms", 200, headers=JSON, content=b"{")[0]
    assert "of kind" in looked_at("GET", "/v1/vms", 200, text="items")[0]
    page = {"items": [], "next": None, "revision": 1}
    assert looked_at("GET", "/v1/vms", 200, json=page) == []
    for wrong in (
        {"items": []},
        page | {"items": {}},
        page | {"items": [{}]},
        page | {"revision": "1"},
        page | {"told_by_mistake": 1},
    ):
        assert looked_at("GET", "/v1/vms", 200, json=wrong), wrong
    lost = {"headers": PROBLEM_KIND, "json": PROBLEM}
    assert looked_at("GET", "/v1/vms/x", 404, **lost) == []
    assert looked_at("GET", "/v1/nothing", 404, **lost) == []
    assert looked_at("GET", "/v1/vms/x", 404, json=PROBLEM)
    assert looked_at("GET", "/v1/vms/x", 404, headers=PROBLEM_KIND, json={"detail": "lost"})
    assert looked_at("GET", "/v1/vms/x", 418, **lost)
    assert looked_at("GET", "/ovirt-engine/api/vms", 200, text="<vms/>") == [], "not its matter"


@pytest.mark.parametrize("path", ["/v1/vms/openapi.json", "/v1/openapi.json"])
def test_what_is_written_out_in_a_path_goes_before_a_parameter(path: str) -> None:
    watch = Watch()
    request = httpx.Request("GET", f"http://virtha{path}")
    watch.look(httpx.Response(404, request=request, headers=PROBLEM_KIND, json=PROBLEM))
    name = "GET /v1/vms/{ref}" if "vms" in path else f"GET {path}"
    assert list(watch.seen) == [Answered(name, 404)]
    # What can't be done at one that is written out is not what can be done with a parameter in its place.
    assert looked_at("DELETE", "/v1/sessions/tokens", 405, headers=PROBLEM_KIND, json=PROBLEM) == []
    assert looked_at("DELETE", "/v1/sessions/one", 405, headers=PROBLEM_KIND, json=PROBLEM)
