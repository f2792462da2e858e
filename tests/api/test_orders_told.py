"""Who gave an order is on record: of each route that changes nothing that was set, as far as it can be tried with a real engine that leads."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import lent_app
from played_host import told_after
from played_power import Machine, PlayedPower
from test_changes_told import NO_CHANGE

from virtha.api.route import Services
from virtha.control.power_views import PowerPut
from virtha.control.requests import (
    AdoptRequest,
    SnapshotCreate,
    UserCreate,
    VmCreate,
    VmMigrate,
)
from virtha.model.facts import ForeignDomain, Result, VmReport
from virtha.model.ids import ClusterId, VmId
from virtha.model.power_settings import PowerDriver, PowerSettings
from virtha.model.user import Role
from virtha.model.vm import Vm, VmState
from virtha.store.events import EventFilter, events_after

sys.path.append(str(Path(__file__).parents[1] / "unit" / "server"))
from led_world import ADMIN, LedWorld, led_world, two_hosts_and_a_vm, while_turning
from test_freeing import two_hosts_die_with_web1

WHO, WORD = "carol", "gives orders and nothing else"
SILENT_MS = 90_000
MIB = 1 << 20


async def _nothing() -> None:
    """Hosts have nothing to do."""


class Orders:
    """A cluster that an engine leads; what comes before the order is another one's doing, ``ADMIN``'s."""

    def __init__(self, world: LedWorld, client: httpx.AsyncClient) -> None:
        self.world, self.client = world, client
        self.route = ""
        self.obeyed = 0
        self.incarnations: dict[VmId, Any] = {}

    async def sign_in(self) -> None:
        wanted = UserCreate(name=WHO, password=WORD, role=Role.ADMINISTRATOR)
        await self.world.control.users.create(ADMIN, wanted)
        session = await self.client.post("/v1/sessions", json={"user": WHO, "password": WORD})
        self.client.headers["Authorization"] = f"Bearer {session.json()['token']}"

    async def obey(self) -> None:
        """Hosts do what they were told."""
        world = self.world
        while self.obeyed < len(world.gateway.delivered):
            host_id, order = world.gateway.delivered[self.obeyed]
            self.obeyed += 1
            host = next(one for one in world.hosts.values() if one.id == host_id)
            await host.tell(*told_after(order, self.incarnations))
        await world.settle()

    async def given(
        self,
        route: str,
        body: Any = None,
        *,
        afterwards: Callable[[], Awaitable[None]] = _nothing,
        **names: str,
    ) -> set[str]:
        """Sends it; where it is on record whose it was. ``afterwards``: what hosts do about it."""
        async with self.world.store.read() as tx:
            began = await tx.revision_now()
        method, _, path = route.partition(" ")
        asking = self.client.request(method, path.format(**names), json=body)
        answer: Any = await while_turning(self.world, asking)
        assert answer.status_code < 300, answer.text
        self.route = route
        await afterwards()
        await self.world.settle()
        async with self.world.store.read() as tx:
            events = await events_after(tx, EventFilter(), began, 10_000)
        found = {
            f"{how} {one.code}"
            for one in events
            for how, who in (("user", one.user), ("by", one.fields.get("by")))
            if who == WHO
        }
        operation = answer.json() if answer.content else {}
        if operation.get("asked_by") == WHO:
            found.add(f"operation {operation['kind']}")
        return found


Given = Awaitable[set[str]]


async def running(orders: Orders) -> VmId:
    return await two_hosts_and_a_vm(orders.world)


def of_a_running_vm(verb: str, body: Any = None) -> Callable[[Orders], Given]:
    async def story(orders: Orders) -> set[str]:
        await running(orders)
        return await orders.given(f"POST /v1/vms/{{ref}}/{verb}", body, ref="web1")

    return story


async def start(orders: Orders) -> set[str]:
    await running(orders)
    await orders.world.add_vm("web2")
    return await orders.given("POST /v1/vms/{ref}/start", {}, ref="web2")


async def resume(orders: Orders) -> set[str]:
    vm_id = await running(orders)
    paused = VmReport(vm_id=vm_id, incarnation=1, state=VmState.PAUSED)
    await orders.world.hosts["h1"].tell(paused)
    return await orders.given("POST /v1/vms/{ref}/resume", ref="web1")


async def cancel_migration(orders: Orders) -> set[str]:
    await running(orders)
    await while_turning(
        orders.world, orders.world.control.moves.migrate(ADMIN, "web1", VmMigrate(host="h2"))
    )
    await orders.world.settle()
    return await orders.given("POST /v1/vms/{ref}/cancel-migration", ref="web1")


async def cancel(orders: Orders) -> set[str]:
    await running(orders)
    world = orders.world
    seen = len(world.gateway.delivered)
    wanted = VmCreate(name="web2", memory_bytes=64 * MIB, image="tiny")
    operation = await world.control.vms.create(ADMIN, wanted)

    async def stopped() -> None:
        """The copy, by the order to stop it; and what was made is removed."""
        (host_id, copy), (_, stop) = world.gateway.delivered[seen:]
        host = next(one for one in world.hosts.values() if one.id == host_id)
        await host.answer(stop)
        await host.answer(copy, Result.FAILED, code="order.failed.cancelled")
        await host.answer(world.gateway.delivered[-1][1])

    route = "POST /v1/operations/{id}/cancel"
    return await orders.given(route, afterwards=stopped, id=operation.id)


async def revert(orders: Orders) -> set[str]:
    await running(orders)
    await orders.world.add_vm("web2")
    orders.obeyed = len(orders.world.gateway.delivered)
    snapshots = orders.world.control.snapshots
    await snapshots.create(ADMIN, "web2", SnapshotCreate(name="before"))
    await orders.obey()
    (taken,) = (await orders.world.control.snapshots.list("web2")).items
    route = "POST /v1/vms/{ref}/snapshots/{id}/revert"
    return await orders.given(route, ref="web2", id=taken.id)


async def with_device(orders: Orders) -> None:
    await running(orders)
    settings = PowerSettings(driver=PowerDriver.REDFISH, address="bmc-h1", user="switcher")
    wanted = PowerPut(settings=settings, secrets={"password": "opens it"})
    await orders.world.control.power.put_of_host(ADMIN, "h1", "bmc", wanted, None)


async def power(orders: Orders) -> set[str]:
    await with_device(orders)
    return await orders.given("POST /v1/hosts/{ref}/power", {"action": "on"}, ref="h1")


async def power_test(orders: Orders) -> set[str]:
    await with_device(orders)
    return await orders.given("POST /v1/hosts/{ref}/power/{key}/test", ref="h1", key="bmc")


async def scan(orders: Orders) -> set[str]:
    await running(orders)
    return await orders.given("POST /v1/hosts/{ref}/scan", ref="h1")


async def adopt(orders: Orders) -> set[str]:
    await running(orders)
    return await orders.given("POST /v1/hosts/{ref}/adopt", {"all": True}, ref="h1")


async def release(orders: Orders) -> set[str]:
    await running(orders)
    world = orders.world
    seen = len(world.gateway.delivered)
    await world.control.hosts.adopt(ADMIN, "h1", AdoptRequest(names=("old",)))
    vm = Vm(
        id=VmId("50000000-0000-4000-8000-000000000009"),
        name="old",
        cluster_id=ClusterId(""),
        memory_bytes=64 * MIB,
    )
    found = ForeignDomain(vm=vm, name="old", state="shut off")
    h1 = world.hosts["h1"]
    await h1.answer(world.gateway.delivered[seen][1], foreign=(found,))
    await h1.answer(world.gateway.delivered[seen + 1][1])
    return await orders.given("POST /v1/vms/{ref}/release", ref="old")


async def unlock(orders: Orders) -> set[str]:
    await running(orders)
    return await orders.given("POST /v1/users/{ref}/unlock", ref="admin")


async def maintenance(orders: Orders) -> set[str]:
    await running(orders)
    return await orders.given("POST /v1/hosts/{ref}/maintenance", {"on": True}, ref="h1")


async def confirm_dead(orders: Orders) -> set[str]:
    await running(orders)
    orders.world.hosts["h1"].vanish()
    await orders.world.pass_time(SILENT_MS, beating=("h2",))
    ticket = (await orders.client.post("/v1/hosts/h1/death-tickets")).json()["ticket"]
    said = {"ticket": ticket, "name": "h1"}
    return await orders.given("POST /v1/hosts/{ref}/confirm-dead", said, ref="h1")


async def free(orders: Orders) -> set[str]:
    await two_hosts_die_with_web1(orders.world)
    return await orders.given("POST /v1/vms/{ref}/free", ref="web1")


async def brake(orders: Orders) -> set[str]:
    world = orders.world
    for number in range(1, 6):
        await world.join(f"h{number}")
    await running(orders)
    for name in ("h1", "h3", "h4"):
        world.hosts[name].vanish()
    await world.pass_time(20_000, beating=("h2", "h5"))
    return await orders.given("DELETE /v1/clusters/{ref}/brake", ref="default")


def of_vm(verb: str) -> str:
    return f"POST /v1/vms/{{ref}}/{verb}"


STORIES: dict[str, tuple[Callable[[Orders], Given], str]] = {
    of_vm("start"): (start, "operation vm.start"),
    of_vm("shutdown"): (of_a_running_vm("shutdown"), "operation vm.shutdown"),
    of_vm("power-off"): (of_a_running_vm("power-off"), "operation vm.power_off"),
    of_vm("reboot"): (of_a_running_vm("reboot"), "operation vm.reboot"),
    of_vm("reset"): (of_a_running_vm("reset"), "operation vm.reset"),
    of_vm("pause"): (of_a_running_vm("pause"), "operation vm.pause"),
    of_vm("resume"): (resume, "operation vm.resume"),
    of_vm("migrate"): (of_a_running_vm("migrate", {"host": "h2"}), "operation vm.migrate"),
    of_vm("cancel-migration"): (cancel_migration, "by vm.migration_cancelled"),
    of_vm("snapshots/{id}/revert"): (revert, "operation vm.snapshot"),
    of_vm("free"): (free, "by vm.freed"),
    of_vm("release"): (release, "operation vm.release"),
    "POST /v1/operations/{id}/cancel": (cancel, "user operation.cancelled"),
    "POST /v1/hosts/{ref}/power": (power, "operation host.power"),
    "POST /v1/hosts/{ref}/power/{key}/test": (power_test, "user power.test.passed"),
    "POST /v1/hosts/{ref}/scan": (scan, "operation host.scan"),
    "POST /v1/hosts/{ref}/adopt": (adopt, "operation host.adopt"),
    "POST /v1/hosts/{ref}/maintenance": (maintenance, "user host.maintenance.begun"),
    "POST /v1/hosts/{ref}/confirm-dead": (confirm_dead, "user host.death_confirmed"),
    "DELETE /v1/clusters/{ref}/brake": (brake, "by fence.brake.lifted"),
    "POST /v1/users/{ref}/unlock": (unlock, "user user.unlocked"),
}
"""How each is given, and where it then stands whose it was."""
NOT_TRIED = {
    **dict.fromkeys(
        (
            "POST /v1/hosts/{ref}/power/{key}/status",
            "POST /v1/hosts/{ref}/death-tickets",
            "POST /v1/vms/{ref}/console-tickets",
        ),
        "a look, or a ticket that does nothing before it is used: with confirm-dead, or on a console, whose opening is told",
    ),
    "POST /v1/receivers/{ref}/test": "tried below: this server here sends nothing",
    "POST /v1/deliveries/{id}/retry": "sends what was to be sent, once more; whose wish that was is not kept",
    **dict.fromkeys(
        ("POST /v1/join", "POST /v1/join/migration", "POST /v1/join/renew"), "a host asks"
    ),
    **dict.fromkeys(
        (
            "POST /v1/sessions",
            "POST /v1/sign-ins",
            "POST /v1/sign-ins/finish",
            "DELETE /v1/sessions/current",
        ),
        "somebody's own coming and going",
    ),
}


@pytest.mark.req("L6")
def test_each_route_that_changes_nothing_is_tried_or_has_its_reason() -> None:
    assert STORIES.keys().isdisjoint(NOT_TRIED)
    assert STORIES.keys() | NOT_TRIED.keys() == NO_CHANGE.keys()


@pytest.mark.req("L6")
@pytest.mark.parametrize("route", STORIES)
def test_who_gave_an_order_is_on_record(tmp_path: Path, route: str) -> None:
    story, where = STORIES[route]

    async def main() -> None:
        async with led_world(tmp_path, PlayedPower({"bmc-h1": Machine()})) as world:
            services = Services(control=world.control, authority=world.authority)
            with lent_app(services) as app:
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
                    orders = Orders(world, client)
                    await orders.sign_in()
                    found = await story(orders)
        assert where in found
        assert orders.route == route

    asyncio.run(main())


@pytest.mark.req("L6")
def test_who_has_a_receiver_tested_is_on_record(play: Callable[..., Any]) -> None:
    async def story(world: Any) -> None:
        settings = {"type": "webhook", "url": "https://127.0.0.1:1/", "private_addresses": True}
        secrets = {"secret": "0123456789abcdef" * 2}
        wanted = {"name": "hook", "settings": settings, "secrets": secrets}
        await world.ok("POST", "/v1/receivers", wanted)
        await world.ok("POST", "/v1/receivers/hook/test", {})
        (asked,) = (await world.ok("GET", "/v1/events?code=notify.test_asked"))["items"]
        assert asked["user"] == "administrator"

    play(story)
