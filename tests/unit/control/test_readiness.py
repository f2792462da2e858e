"""`virtha doctor`: each thing that would fail is told with its fix, and nothing is made up."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from command_power import command_power
from msgspec import UNSET
from msgspec.structs import replace

from virtha import __version__
from virtha.control import readiness
from virtha.control.engine_power import led_devices
from virtha.control.own_machine import OwnMachine
from virtha.control.power_results import PowerResults, Tried
from virtha.control.readiness import Readiness
from virtha.control.readiness_views import ReadinessView
from virtha.control.requests import HoldPut, ReceiverCreate, SubscriptionCreate, VmStart
from virtha.control.views import Caller
from virtha.engine.events import SaveHost
from virtha.engine.records import HostRecord
from virtha.model.codes import Severity
from virtha.model.errors import NotFound
from virtha.model.evidence import PowerState, ProbeAddress
from virtha.model.facts import HostReport, StorageReport
from virtha.model.host import CephPool, HostState, format_version
from virtha.model.ids import BootId
from virtha.model.notification import WebhookSettings
from virtha.model.policy import FencingPolicy, Policy, Unreachable
from virtha.model.power_settings import (
    AskedFrom,
    MachineIdentity,
    PowerDriver,
    PowerRecord,
    PowerSettings,
)
from virtha.model.time import UtcMillis
from virtha.model.user import Role
from virtha.ports.leaders import NobodyLeads
from virtha.ports.power import PowerReading
from virtha.store.clusters import find_cluster, find_storage, save_cluster, save_storage
from virtha.store.engine import save_intent
from virtha.store.hosts import add_certificate, find_host, revoke_certificates
from virtha.store.power import save_power

pytestmark = pytest.mark.req("X5")
Tell = Callable[[Any], None]
World = Any
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
DAY_MS = 86_400_000
STORAGE = {f"ready.storage_{word}" for word in ("full", "not_shared", "other", "unusable")}
UUID = "4c4c4544004235108050b7c04f4d4d31"


def codes(view: ReadinessView, about: str = "") -> set[str]:
    return {one.code for one in view.findings if one.about == about or not about}


async def set_power(world: World, host: str, device: str = "bmc", **more: Any) -> None:
    put = command_power(f"{host}-{device}", **more)
    await world.control.power.put_of_host(ADMIN, host, device, put, None)


async def keep_test(
    world: World, host: str, device: str = "bmc", reading: PowerReading | None = None
) -> None:
    """A test that ended so."""
    reached = await world.control.power.reach(host, device)
    tried = Tried(
        host=reached.row.host,
        before=reached.row.status,
        name=device,
        revision=reached.revision,
        has_status=True,
        reading=reading or PowerReading(state=PowerState.ON, identity=MachineIdentity(uuid=UUID)),
        took_ms=5,
        waits_ms=1_000,
    )
    await PowerResults(world.store, world.clock, NobodyLeads()).keep(tried, by="admin")


async def two_good_hosts(world: World) -> None:
    able = {"machine": MachineIdentity(uuid=UUID), "agent_version": __version__}
    for name in ("h1", "h2"):
        await world.join(name, **able)
    await world.add_storage()
    for name in ("h1", "h2"):
        for level, device in enumerate(("bmc", "strip"), start=1):
            await set_power(world, name, device, level=level)
            await keep_test(world, name, device)


def test_where_nothing_is_missing_nothing_is_found(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        view = await world.control.readiness.of_host("h1")
        assert (view.verdict, view.findings) == ("ready", ()), view
        assert view.about == "host/h1" and view.not_looked_at, "what is not known is said"
        await world.add_vm()
        await world.run_vm()
        whole = await world.control.readiness.all()
        assert codes(whole) == {"ready.nobody_told", "protection.no_watchdog"}
        assert whole.verdict == "at_risk" and (whole.hosts, whole.vms) == (2, 1)
        assert all(one.fix for one in whole.findings)

    tell(story)


@pytest.mark.req("L6", "X5")
def test_a_host_that_does_not_renew_its_certificate_is_told(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        day_ms = 86_400_000
        host_id = world.hosts["h1"].id
        for left, bad in ((216, set()), (214, {"ready.certificate"}), (0, {"ready.certificate"})):
            async with world.store.write() as tx:
                await revoke_certificates(tx, host_id)
                ends = UtcMillis(world.clock.wall_ms() + left * day_ms)
                await add_certificate(tx, f"a{left}", host_id, ends)
                await add_certificate(tx, f"b{left}", host_id, UtcMillis(ends - 9 * day_ms))
                _ = tx.revision
            assert codes(await world.control.readiness.of_host("h1")) == bad, left
            assert codes(await world.control.readiness.of_host("h2")) == set()

    tell(story)


class Helpers:
    """Of ``NeighbourPower`` what readiness asks."""

    def __init__(self) -> None:
        self.there: dict[Any, tuple[PowerDriver, ...]] = {}

    def able(self, among: Any, driver: PowerDriver) -> tuple[Any, ...]:
        return tuple(one for one in among if driver in self.there.get(one, ()))


@pytest.mark.req("F5")
def test_a_device_that_only_agents_reach_needs_one_that_can(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        helpers: Any = Helpers()
        ready = Readiness(world.store, world.links, NobodyLeads(), neighbours=helpers)
        for device, level in (("bmc", 1), ("strip", 2)):
            await set_power(world, "h1", device, level=level, asked_from=AskedFrom.AGENTS)
            await keep_test(world, "h1", device)
        helpers.there = {world.hosts["h1"].id: tuple(PowerDriver)}
        bad = {"ready.power.no_level", "ready.power.no_neighbour"}
        assert codes(await ready.of_host("h1")) == bad, "not its own"
        helpers.there = {world.hosts["h2"].id: (PowerDriver.IPMI,)}
        found = await ready.of_host("h1")
        assert codes(found) == bad
        assert any("with command now" in one.text for one in found.findings)
        helpers.there = {world.hosts["h2"].id: (PowerDriver.COMMAND,)}
        assert codes(await ready.of_host("h1")) == set()
        await keep_test(world, "h1", reading=PowerReading(state=PowerState.ON))
        assert "ready.power.unidentified" in codes(await ready.of_host("h1"))

    tell(story)


def test_what_is_wrong_with_a_power_device_is_told_with_its_name(tell: Tell) -> None:
    async def story(world: World) -> None:
        look = world.control.readiness.of_host
        await world.join("h1", machine=MachineIdentity(uuid=UUID))
        await world.join("h2")
        assert codes(await look("h1")) == {"ready.power.none"}
        await set_power(world, "h1")
        bad = {"ready.power.no_level", "ready.power.one_level"}
        assert codes(await look("h1")) == bad | {"ready.power.untested"}
        await keep_test(world, "h1")
        assert codes(await look("h1")) == {"ready.power.one_level"}
        await set_power(world, "h1", user="another")
        assert codes(await look("h1")) == bad | {"ready.power.untested"}
        for state, why in ((PowerState.OFF, "off"), (PowerState.UNKNOWN, "neither")):
            await keep_test(world, "h1", reading=PowerReading(state=state))
            view = await look("h1")
            assert view.verdict == "not_ready"
            (failed,) = (one for one in view.findings if one.code == "ready.power.failed")
            assert why in failed.text and "bmc" in failed.text
        await keep_test(world, "h1", reading=PowerReading(state=PowerState.ON))
        assert codes(await look("h1")) == {"ready.power.no_identity", "ready.power.one_level"}
        world.clock.advance(DAY_MS)
        (old,) = (o for o in (await look("h1")).findings if o.code == "ready.power.old")
        assert "1d ago" in old.text
        await set_power(world, "h1", "strip", level=2, status="")
        await keep_test(world, "h1")
        assert codes(await look("h1")) == {"ready.power.no_status"}
        await set_power(world, "h1", "strip", level=1, status="")
        assert codes(await look("h1")) >= bad, "all of a level must be off"

    tell(story)


@pytest.mark.req("P1")
@pytest.mark.parametrize("since", ["disproved_devices", "foreign_devices"])
def test_a_device_that_was_caught_after_its_test_is_told_before_it_is_needed(
    tell: Tell, since: str
) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        host = (await world.control.hosts.get("h1")).host
        async with world.store.read() as tx:
            first = (await led_devices(tx, {host.id: host.cluster_id}))[host.id][0]
        caught: dict[str, Any] = {since: (first.id,)}
        async with world.store.write() as tx:
            record = HostRecord(host_id=host.id, **caught)
            await save_intent(tx, host.cluster_id, SaveHost(record=record))
        (found,) = (await world.control.readiness.of_host("h1")).findings
        assert found.code == "ready.power.disbelieved" and first.name in found.text
        assert codes(await world.control.readiness.of_host("h2")) == set()

    tell(story)


@pytest.mark.req("F5")
def test_a_fence_agent_that_shows_a_password_is_told_and_the_driver_that_does_not(
    tell: Tell,
) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        ipmilan = PowerSettings(
            driver=PowerDriver.FENCE_AGENT, agent="fence_ipmilan", address="192.0.2.7", user="me"
        )
        ipmi = PowerSettings(driver=PowerDriver.IPMI, address="192.0.2.7", user="me")
        host = (await world.control.hosts.get("h1")).host
        async with world.store.read() as tx:
            bmc = (await led_devices(tx, {host.id: host.cluster_id}))[host.id][0].own.record
        shared = PowerRecord(
            id="of-cluster", name=bmc.name, cluster_id=host.cluster_id, settings=PowerSettings()
        )
        for settings, of_host, of_cluster, is_told in (
            (ipmilan, ("password",), (), True),
            (replace(ipmilan, agent="fence_idrac"), (), ("password",), True),
            (ipmilan, (), (), False),
            (replace(ipmilan, agent="fence_apc"), ("password",), (), False),
            (ipmi, ("password",), (), False),
        ):
            async with world.store.write() as tx:
                await save_power(tx, replace(bmc, settings=settings, secrets=of_host), None)
                await save_power(tx, replace(shared, secrets=of_cluster), None)
            view = await world.control.readiness.of_host("h1")
            found = [one for one in view.findings if one.code == "ready.power.secret_shown"]
            assert bool(found) is is_told, settings
            for one in found:
                assert settings.agent in one.text and "driver ipmi" in one.fix
                assert one.severity is Severity.WARNING

    tell(story)


@pytest.mark.req("F1")
def test_a_host_that_nobody_can_ask_on_the_storage_network_is_told_where_others_can_be(
    tell: Tell,
) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)

        async def tells(name: str, *networks: str) -> None:
            at = tuple(
                ProbeAddress(network=one, address="192.0.2.1", port=8252) for one in networks
            )
            able = (await world.control.hosts.get(name)).status.capabilities
            report = HostReport(capabilities=replace(able, probed_at=at or UNSET))
            await world.hosts[name].tell(report)

        async def told() -> set[str]:
            view = await world.control.readiness.all()
            return {one.about for one in view.findings if one.code == "ready.probes.storage"}

        await tells("h1", "management")
        assert await told() == set(), "no host is asked there: it may be the same network"
        await tells("h2", "management", "storage")
        assert await told() == {"host/h1"}
        view = await world.control.readiness.of_host("h1")
        (found,) = view.findings
        assert "probe.storage.address" in found.fix and found.fields["count"] == 1
        await tells("h1")
        assert await told() == {"host/h1"}
        await world.control.hosts.presence_changed(world.hosts["h1"].id, HostState.UNREACHABLE)
        assert await told() == set(), "that it is down says enough"
        await world.control.hosts.presence_changed(world.hosts["h1"].id, HostState.UP)
        await tells("h1", "management", "storage")
        assert await told() == set()

    tell(story)


def test_a_machine_that_differs_from_the_others_is_told(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        h1 = world.hosts["h1"]
        await world.control.hosts.clock_measured(h1.id, 90_000)
        able = (await world.control.hosts.get("h1")).status.capabilities
        await h1.tell(HostReport(capabilities=replace(able, agent_version="0.0.1")))
        found = await world.control.readiness.of_host("h1")
        assert codes(found) == {"ready.clock", "ready.version"}
        assert "1m30s" in found.findings[0].text or "90s" in found.findings[0].text
        assert codes(await world.control.readiness.of_host("h2")) == set()
        await h1.tell(HostReport(capabilities=replace(able, gate_in_force=False)))
        found = await world.control.readiness.of_host("h1")
        assert "protection.gate" in codes(found) and found.verdict == "not_ready"

    tell(story)


def test_a_host_whose_moves_may_lose_memory_is_told(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        h1 = world.hosts["h1"]
        able = (await world.control.hosts.get("h1")).status.capabilities
        for domain_type, qemu_version, told in (
            ("qemu", 7_002_022, {"ready.emulated"}),
            ("qemu", 8_999_999, {"ready.emulated"}),
            ("qemu", 9_000_000, set()),
            ("qemu", 0, set()),
            ("kvm", 7_002_022, set()),
        ):
            is_able = replace(able, domain_type=domain_type, qemu_version=qemu_version)
            await h1.tell(HostReport(capabilities=is_able))
            found = await world.control.readiness.of_host("h1")
            assert codes(found) == told, (domain_type, qemu_version)
            if told:
                assert f"QEMU {format_version(qemu_version)}:" in found.findings[0].text

    tell(story)


@pytest.mark.req("J4")
def test_the_host_of_this_server_is_known_over_its_boots(tell: Tell) -> None:
    async def story(world: World) -> None:
        h1 = await world.join("h1")

        def readiness(boot: str, machine: str) -> Readiness:
            own = OwnMachine(boot=BootId(boot), id=machine)
            return Readiness(world.store, world.links, NobodyLeads(), own)

        async def carries(boot: str, machine: str) -> bool:
            view = await readiness(boot, machine).of_host("h1")
            return "ready.server_on_host" in codes(view)

        assert await carries(h1.boot, "m1")
        assert not await carries("another", "m1"), "it never connected while it carried us"
        hosts = world.control.hosts
        hosts._own = OwnMachine(boot=h1.boot, id="m1")
        await h1.hello()
        assert await carries("next-boot", "m1"), "the machine has rebooted, its agent is not back"
        assert not await carries("next-boot", "m2"), "the server has moved"
        hosts._own = OwnMachine(boot=BootId("next-boot"), id="m1")
        await h1.hello("h1-boot2")
        assert not await carries("next-boot", "m1"), "it connected, and is another machine"
        async with world.store.read() as tx:
            row = await find_host(tx, "h1")
        assert row is not None and row.status.carries is None

    tell(story)


def test_vms_that_would_fit_nowhere_are_found_before_their_host_dies(tell: Tell) -> None:
    """Each alone would fit; both don't."""

    async def story(world: World) -> None:
        await two_good_hosts(world)
        gib = 1 << 30
        for name, host in (("big1", "h1"), ("big2", "h1"), ("own", "h2")):
            await world.add_vm(name, memory_bytes=3 * gib)
            operation = await world.control.vms.start(ADMIN, name, VmStart(host=host))
            await world.play(operation.id)
        view = await world.control.readiness.of_host("h1")
        (found,) = view.findings
        assert found.code == "ready.no_room" and found.fields["count"] == 1, found
        assert view.verdict == "not_ready"
        name = str(found.fields["vms"])
        told = codes(await world.control.readiness.of_vm(name))
        assert "ready.vm.no_room" in told
        whole = codes(await world.control.readiness.of_cluster("default"))
        assert {"ready.no_room", "ready.vm.no_room"} <= whole

    tell(story)


def test_storage_that_one_host_only_can_use_is_told(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        await world.add_vm()
        domain = (await world.control.vms.get("web1")).vm.disks[0].storage_domain_id
        report = StorageReport(
            storage_domain_id=domain, usable=False, size_bytes=1, free_bytes=1, images=()
        )
        await world.hosts["h2"].tell(report)
        view = await world.control.readiness.all()
        (found,) = (one for one in view.findings if one.code == "ready.storage_not_shared")
        assert found.about == "storage/ds1" and found.fields["hosts"] == "h1"

    tell(story)


@pytest.mark.bad_input
def test_a_host_that_lost_the_storage_of_protected_vms_is_told_although_others_have_it(
    tell: Tell,
) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        h3 = await world.join("h3", machine=MachineIdentity(uuid=UUID), agent_version=__version__)
        await world.add_vm("unprotected", ha=False)
        domain = (await world.control.vms.get("unprotected")).vm.disks[0].storage_domain_id
        report = StorageReport(storage_domain_id=domain, usable=False, detail="I/O error")
        await h3.tell(report)
        assert not codes(await world.control.readiness.all(), "host/h3") & STORAGE
        await world.add_vm()
        view = await world.control.readiness.all()
        (found,) = (one for one in view.findings if one.code in STORAGE)
        assert (found.code, found.about) == ("ready.storage_unusable", "host/h3")
        assert found.severity is Severity.WARNING and found.fields["why"] == "I/O error"
        assert "ready.storage_unusable" in codes(await world.control.readiness.of_host("h3"))
        assert not codes(await world.control.readiness.of_host("h2")) & STORAGE
        await world.control.hosts.presence_changed(h3.id, HostState.UNREACHABLE)
        assert not codes(await world.control.readiness.all()) & STORAGE, (
            "that it is down says enough"
        )
        await world.control.hosts.presence_changed(h3.id, HostState.UP)
        await h3.tell(replace(report, usable=True, detail=""))
        assert not codes(await world.control.readiness.all()) & STORAGE

    tell(story)


def test_a_host_that_told_nothing_of_its_storage_is_told(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        await world.add_vm()
        await world.join("h3")
        view = await world.control.readiness.of_host("h3")
        (found,) = (one for one in view.findings if one.code in STORAGE)
        assert found.code == "ready.storage_unusable" and "told nothing" in found.text

    tell(story)


@pytest.mark.bad_input
def test_storage_that_is_nearly_full_is_told_once(tell: Tell) -> None:
    async def story(world: World) -> None:
        await two_good_hosts(world)
        domain = (await world.control.storage.get("ds1")).domain.id
        report = StorageReport(
            storage_domain_id=domain, usable=True, size_bytes=100, free_bytes=1, low_space="full"
        )
        for name in ("h1", "h2"):
            await world.hosts[name].tell(report)
        view = await world.control.readiness.all()
        (found,) = (one for one in view.findings if one.code in STORAGE)
        assert (found.code, found.about) == ("ready.storage_full", "storage/ds1")
        assert found.severity is Severity.WARNING and found.fields["why"] == "full" and found.fix
        assert view.verdict == "at_risk"
        for name in ("h1", "h2"):
            await world.hosts[name].tell(replace(report, free_bytes=50, low_space=UNSET))
        assert not codes(await world.control.readiness.all()) & STORAGE

    tell(story)


@pytest.mark.req("F9")
def test_a_pool_of_which_no_agent_tells_anything_is_one_of_ceph_all_the_same(tell: Tell) -> None:
    """Agents of an earlier version: their hosts don't lack storage on Ceph."""

    async def story(world: World) -> None:
        await two_good_hosts(world)
        fencing = FencingPolicy(unreachable=(Unreachable.STORAGE_FENCE, Unreachable.OPERATOR))
        async with world.store.write() as tx:
            cluster = await find_cluster(tx, "default")
            assert cluster is not None
            await save_cluster(tx, replace(cluster, policy=Policy(fencing=fencing)))
        assert codes(await world.control.readiness.of_host("h1")) == {"ready.storage_fence.none"}
        async with world.store.write() as tx:
            domain = await find_storage(tx, "ds1")
            assert domain is not None
            pool = CephPool(monitors=("10.0.0.9",), pool="vms")
            await save_storage(tx, replace(domain, ceph=pool))
        assert codes(await world.control.readiness.of_host("h1")) == {"ready.storage_fence.unknown"}

    tell(story)


@pytest.mark.req("J1")
def test_a_look_at_all_hosts_leaves_the_others_of_this_server_their_turns(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sleeps for a second and a half while somebody asks this observes its hosts anew."""

    async def story(world: World) -> None:
        await two_good_hosts(world)
        await world.add_vm()
        monkeypatch.setattr(readiness, "AT_ONCE", 1)
        among: list[str] = []
        about_host = Readiness._of_host

        def noted(self: Readiness, facts: Any, row: Any, lacking: Any) -> Any:
            among.append(row.host.name)
            asyncio.get_running_loop().call_soon(among.append, "another")
            return about_host(self, facts, row, lacking)

        monkeypatch.setattr(Readiness, "_of_host", noted)
        await world.control.readiness.of_cluster("default")
        assert among == ["h1", "another", "h2", "another"]

    tell(story)


def test_of_a_cluster_it_says_what_concerns_all(tell: Tell) -> None:
    async def story(world: World) -> None:
        await world.join("h1")
        whole = await world.control.readiness.of_cluster("default")
        assert {"ready.one_host", "ready.nobody_told"} <= codes(whole, "cluster/default")
        settings = WebhookSettings(url="https://192.0.2.1/hook", private_addresses=True)
        receiver = ReceiverCreate(name="chat", settings=settings)
        await world.control.receivers.create(ADMIN, receiver)
        some = SubscriptionCreate(receiver="chat", name="some", codes=("fence.*",))
        await world.control.subscriptions.create(ADMIN, some)
        whole = await world.control.readiness.of_cluster("default")
        (left,) = (one for one in whole.findings if one.code == "ready.nobody_told")
        assert left.fields["codes"] == "host.judged_dead, vm.recovered"
        every = SubscriptionCreate(receiver="chat", name="every", severity=Severity.INFO)
        await world.control.subscriptions.create(ADMIN, every)
        await world.control.hold.set(ADMIN, HoldPut(reason="network work"))
        whole = await world.control.readiness.of_cluster("default")
        assert "ready.nobody_told" not in codes(whole)
        assert codes(whole, "installation") == {"protection.hold"}

    tell(story)


@pytest.mark.bad_input
def test_what_there_is_not_is_not_ready(tell: Tell) -> None:
    async def story(world: World) -> None:
        look = world.control.readiness
        for ask in (look.of_host, look.of_vm, look.of_cluster):
            with pytest.raises(NotFound, match="nowhere"):
                await ask("nowhere")
        view = await look.all()
        assert view.verdict == "not_ready" and codes(view) >= {"ready.one_host"}

    tell(story)
