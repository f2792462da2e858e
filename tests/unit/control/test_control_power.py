"""Power devices: a host's values over its cluster's, field by field; what is refused; what a test is worth."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from virtha.control.engine_power import power_levels
from virtha.control.history import HIDDEN
from virtha.control.power import Power
from virtha.control.power_orders import PowerOrders
from virtha.control.power_views import PowerPut
from virtha.control.secret_box import KEY_BYTES, KeyBox, NoKeyBox
from virtha.control.views import Caller
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.errors import Conflict, Failed, InvalidInput, NotFound, Stale
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import HostReport, Result
from virtha.model.host import HostCapabilities
from virtha.model.ids import Revision
from virtha.model.power import PowerAction
from virtha.model.power_settings import (
    AskedFrom,
    CertificateCheck,
    MachineIdentity,
    PowerDriver,
    PowerSettings,
    SecretWay,
    merged,
)
from virtha.model.user import Role
from virtha.ports.power import AgentForm, MayGo, PowerDevice, PowerOutcome, PowerReading
from virtha.store.hosts import find_host
from virtha.store.power import power_of_all_hosts

pytestmark = pytest.mark.req("F5", "F6")
Tell = Callable[[Any], None]
World = Any
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
PASSWORD = 'p\'a$HOME;`x`|& "q"'
SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
[ "$IPMI_PASSWORD" = "$(cat password)" ] || { echo "bad password $IPMI_PASSWORD" >&2; exit 1; }
case "$1" in
status) cat "state-$2" 2>/dev/null || echo on ;;
stop) echo off > "state-$2" ;;
start) echo on > "state-$2" ;;
blink) echo blink >> blinked ;;
esac
"""


@pytest.fixture
def tell(tell: Tell) -> Tell:
    """As all of this folder, with a key for passwords."""

    def run(story: Callable[[World], Any]) -> None:
        async def with_key(world: World) -> None:
            box = KeyBox(bytes(KEY_BYTES), where="secrets.key")
            power = Power(world.store, box, RealPowerDevices())
            orders = PowerOrders(world.store, power, world.clock)
            world.control = replace(world.control, power=power, power_orders=orders)
            await story(world)

        tell(with_key)

    return run


def shared(directory: Path, **more: Any) -> PowerPut:
    path = directory / "switch"
    path.write_text(SCRIPT)
    path.chmod(0o755)
    (directory / "password").write_text(PASSWORD)
    settings = PowerSettings(
        **{
            "driver": PowerDriver.COMMAND,
            "executable": str(path),
            "syntax": "$IPMI_EXEC $IPMI_ACTION $IPMI_HOST",
            "stop": "stop",
            "start": "start",
            "blink": "blink",
            "status": "status",
            **more,
        }
    )
    return PowerPut(settings=settings, secrets={"password": PASSWORD})


def own(**settings: Any) -> PowerPut:
    return PowerPut(settings=PowerSettings(**settings))


async def set_up(world: World, **more: Any) -> None:
    """A cluster's device, and the address of h1."""
    await world.join("h1")
    await world.control.power.put_of_cluster(
        ADMIN, "default", "bmc", shared(world.directory, **more), None
    )
    await world.control.power.put_of_host(ADMIN, "h1", "bmc", own(address="bmc-h1"), None)


def test_a_hosts_value_goes_over_its_clusters_field_by_field(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world, user="root")
        (view,) = await world.control.power.of_host("h1")
        assert view.usable and view.proves and view.whole.user == "root"
        assert view.whole.address == "bmc-h1" and "user" in view.inherited
        assert view.secrets == ("password",) and view.power and view.power.secrets == ()
        put = own(address="bmc-h1", user="other", status="")
        view = await world.control.power.put_of_host(ADMIN, "h1", "bmc", put, None)
        assert view.whole.user == "other" and "user" not in view.inherited
        assert not view.proves and view.warnings == ("power.no_status",)
        await world.control.power.put_of_cluster(
            ADMIN, "default", "bmc", shared(world.directory, user="newer", blink="led"), None
        )
        (view,) = await world.control.power.of_host("h1")
        assert (view.whole.user, view.whole.blink) == ("other", "led")

    tell(story)


def test_an_address_is_never_inherited():
    cluster = PowerSettings(address="10.0.0.1", plug="4", user="root", parameters={"a": "1"})
    host = PowerSettings(parameters={"b": "2"}, certificate=CertificateCheck.NONE)
    whole = merged(cluster, host)
    assert (whole.address, whole.plug, whole.user) == (None, None, "root")
    assert whole.parameters == {"a": "1", "b": "2"}


def test_an_address_belongs_to_one_host(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        await world.join("h2")
        for address in ("bmc-h1", "BMC-H1"):
            with pytest.raises(Conflict, match="h1"):
                await world.control.power.put_of_host(
                    ADMIN, "h2", "bmc", own(address=address), None
                )
        view = await world.control.power.put_of_host(
            ADMIN, "h2", "bmc", own(address="bmc-h1", plug="2"), None
        )
        assert view.usable

    tell(story)


def test_what_a_cluster_says_counts_for_the_place_of_each_host(tell: Tell):
    async def story(world: World) -> None:
        power = world.control.power
        await world.join("h1")
        await world.join("h2")
        given = own(driver=PowerDriver.IPMI, port=6230)
        await power.put_of_cluster(ADMIN, "default", "bmc", given, None)
        await power.put_of_host(ADMIN, "h1", "bmc", own(address="10.0.0.1"), None)
        with pytest.raises(Conflict, match="h1"):
            await power.put_of_host(ADMIN, "h2", "bmc", own(address="10.0.0.1"), None)
        await power.put_of_host(ADMIN, "h2", "bmc", own(address="10.0.0.1", port=6231), None)
        script = shared(world.directory, syntax="$IPMI_EXEC $IPMI_ACTION $IPMI_PLUG")
        await power.put_of_cluster(ADMIN, "default", "pdu", script, None)
        await power.put_of_host(ADMIN, "h1", "pdu", own(plug="1"), None)
        with pytest.raises(Conflict, match="h1"):
            await power.put_of_host(ADMIN, "h2", "pdu", own(plug="1"), None)
        await power.put_of_host(ADMIN, "h2", "pdu", own(plug="2"), None)

    tell(story)


@pytest.mark.bad_input("power syntax with an unknown variable")
@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"address": "10.0.0.1"}, "settings.address", "each host's own"),
        ({"plug": "1"}, "settings.plug", "each host's own"),
        ({"syntax": "$IPMI_EXEC $IPMI_USER $IPMI_ACTION"}, "settings.syntax", "$IPMI_USER"),
        ({"syntax": "$IPMI_EXEC $IPMI_ACTION | tee x"}, "settings.syntax", "shell"),
        ({"syntax": "$IPMI_EXEC 'x $IPMI_ACTION"}, "settings.syntax", "not closed"),
        ({"syntax": "$IPMI_EXEC --off"}, "settings.syntax", "$IPMI_ACTION"),
        ({"syntax": "ipmitool $IPMI_ACTION"}, "settings.syntax", "first word"),
        ({"executable": "ipmitool"}, "settings.executable", "absolute"),
        ({"stop": "power 'off"}, "settings.stop", "not closed"),
        ({"stop": "off\nrm"}, "settings.stop", "control characters"),
        ({"level": 0}, "settings.level", "out of range"),
        ({"port": 70_000}, "settings.port", "out of range"),
        ({"driver": "redfish", "cipher": 3}, "settings.cipher", "redfish"),
        ({"authority_pem": "hello"}, "settings.authority_pem", "no certificate"),
    ],
)
def test_what_a_cluster_may_not_say(tell: Tell, settings: Any, field: str, says: str):
    async def story(world: World) -> None:
        if "driver" in settings:
            settings["driver"] = PowerDriver(settings["driver"])
        with pytest.raises(InvalidInput) as told:
            await world.control.power.put_of_cluster(ADMIN, "default", "bmc", own(**settings), None)
        assert told.value.field == field and says in str(told.value)

    tell(story)


@pytest.mark.parametrize(
    ("put", "field"),
    [
        (own(), "settings.driver"),
        (own(driver=PowerDriver.IPMI), "settings.address"),
        (own(driver=PowerDriver.IPMI, address="no host!"), "settings.address"),
        (
            own(driver=PowerDriver.IPMI, address="169.254.1.1", asked_from=AskedFrom.AGENTS),
            "settings.address",
        ),
        (own(driver=PowerDriver.IPMI, address="h", user="x" * 17), "settings.user"),
        (
            PowerPut(
                settings=PowerSettings(driver=PowerDriver.IPMI, address="h"),
                secrets={"password": "x" * 21},
            ),
            "secrets.password",
        ),
        (
            PowerPut(
                settings=PowerSettings(driver=PowerDriver.IPMI, address="h"),
                secrets={"password": "x\ny"},
            ),
            "secrets.password",
        ),
        (
            PowerPut(
                settings=PowerSettings(driver=PowerDriver.IPMI, address="h"), secrets={"pin": "1"}
            ),
            "secrets.pin",
        ),
        (own(driver=PowerDriver.REDFISH, address="h"), "settings.user"),
        (own(driver=PowerDriver.COMMAND, address="h", stop="x"), "settings.executable"),
        (own(driver=PowerDriver.COMMAND, executable="/x", stop="x"), "settings.address"),
        (own(driver=PowerDriver.COMMAND, executable="/x", address="h"), "settings.stop"),
        (own(driver=PowerDriver.FENCE_AGENT, address="h"), "settings.agent"),
        (own(driver=PowerDriver.FENCE_AGENT, agent="fence_nosuch"), "settings.agent"),
        (own(driver=PowerDriver.FENCE_AGENT, agent="/bin/sh"), "agent"),
        (own(driver=PowerDriver.FENCE_AGENT, agent="fence_ipmilan"), "settings.address"),
        *[
            (
                own(
                    driver=PowerDriver.FENCE_AGENT,
                    agent="fence_ipmilan",
                    address="h",
                    parameters={name: value},
                ),
                f"settings.parameters.{name}",
            )
            for name, value in (
                ("nosuch", "1"),
                ("ip", "10.0.0.1"),
                ("method", "cycle"),
                ("action", "off"),
                ("privlvl", "emperor"),
                ("power_wait", "soon"),
                ("lanplus", "perhaps"),
                ("password", "x"),
                ("login", "x"),
            )
        ],
    ],
)
def test_what_a_host_may_not_be_given(tell: Tell, put: PowerPut, field: str):
    async def story(world: World) -> None:
        await world.join("h1")
        with pytest.raises(InvalidInput) as told:
            await world.control.power.put_of_host(ADMIN, "h1", "bmc", put, None)
        assert told.value.field == field, str(told.value)
        assert await world.control.power.of_host("h1") == ()

    tell(story)


def test_passwords_are_sealed_and_a_change_keeps_them(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        put = PowerPut(settings=PowerSettings(address="bmc-h1"), secrets={"password": "hush-hush"})
        view = await world.control.power.put_of_host(ADMIN, "h1", "bmc", put, None)
        assert view.power and view.power.secrets == ("password",)
        view = await world.control.power.put_of_host(
            ADMIN, "h1", "bmc", own(address="bmc-h1", user="x"), view.power.revision
        )
        assert (await world.control.power.reach("h1", "bmc")).secrets == {"password": "hush-hush"}
        async with world.store.read() as tx:
            (row,) = await power_of_all_hosts(tx)
        assert row.sealed is not None and "hush" not in row.sealed
        assert b"hush" not in (world.directory / "virtha.db").read_bytes()
        with pytest.raises(Stale):
            await world.control.power.put_of_host(ADMIN, "h1", "bmc", own(address="b"), Revision(1))
        away = PowerPut(settings=PowerSettings(address="bmc-h1"), secrets={"password": None})
        await world.control.power.put_of_host(ADMIN, "h1", "bmc", away, None)
        assert (await world.control.power.reach("h1", "bmc")).secrets == {"password": PASSWORD}

    tell(story)


def test_a_clusters_parameters_hold_no_secret_either(tell: Tell):
    """They are shown to every viewer, and told with each change."""

    async def story(world: World) -> None:
        power = world.control.power

        async def put(**settings: Any) -> None:
            given = own(driver=PowerDriver.FENCE_AGENT, **settings)
            await power.put_of_cluster(ADMIN, "default", "bmc", given, None)

        with pytest.raises(InvalidInput) as told:
            await put(agent="fence_ipmilan", parameters={"password": "hush-hush"})
        assert told.value.field == "settings.parameters.password"
        assert told.value.fix == "send it as secrets.password"
        await put(agent="fence_ipmilan", parameters={"power_wait": "3"})
        # Each host may name another program: what of it is a secret nobody knows here.
        await put(parameters={"power_wait": "3", "unknown": "hush-hush"})
        await put(agent="fence_ipmilan", parameters={"power_wait": "4"})
        events = [event.fields for event in await world.events("power.settings.changed")]
        waits = [
            msgspec.json.decode(event["after"])["settings"].get("parameters") for event in events
        ]
        assert waits == [{"power_wait": "3"}, {"unknown": HIDDEN}, {"power_wait": "4"}]
        assert "hush" not in str(events) and {event["by"] for event in events} == {"admin"}

    tell(story)


@pytest.mark.bad_input("metacharacters in a power password")
def test_a_test_counts_while_the_host_is_up(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        answer = await world.control.power_orders.test(ADMIN, "h1", "bmc")
        assert answer.test.passed, answer
        assert (answer.test.state, answer.test.boot) == (PowerState.ON, world.hosts["h1"].boot)
        assert answer.test.code == "power.no_identity"
        (view,) = await world.control.power.of_host("h1")
        assert view.tested and view.warnings == ("power.no_identity",)
        await world.control.power.put_of_host(
            ADMIN, "h1", "bmc", own(address="bmc-h1", port=1), None
        )
        (view,) = await world.control.power.of_host("h1")
        assert not view.tested, "what was changed since was not tested"
        assert "power.test.passed" in await world.codes()

    tell(story)


def test_what_was_tested_with_its_clusters_settings_is_untested_without_them(tell: Tell):
    async def known(world: World) -> str:
        async with world.store.read() as tx:
            host = await find_host(tx, "h1")
            assert host is not None
            levels = await power_levels(tx, {host.host.id: host.host.cluster_id})
        return levels[host.host.id][0].feeds[0].device

    async def story(world: World) -> None:
        await set_up(world)
        # Newer than the cluster's: the newest of both revisions is the same without those.
        await world.control.power.put_of_host(ADMIN, "h1", "bmc", own(address="bmc-h1"), None)
        await world.control.power_orders.test(ADMIN, "h1", "bmc")
        (view,) = await world.control.power.of_host("h1")
        tested = await known(world)
        assert view.tested
        await world.control.power.delete_of_cluster(ADMIN, "default", "bmc", None)
        (view,) = await world.control.power.of_host("h1")
        assert not view.tested
        assert await known(world) != tested, "to the engine it is another device (P1)"

    tell(story)


def test_a_device_that_says_off_of_a_host_that_is_up_fails(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        (world.directory / "state-bmc-h1").write_text("off")
        answer = await world.control.power_orders.test(ADMIN, "h1", "bmc")
        assert not answer.test.passed and answer.test.code == "power.reads_off"
        (failed,) = await world.events("power.test.failed")
        assert "says off" in failed.message

    tell(story)


@pytest.mark.bad_input("wrong power password")
def test_a_wrong_password_fails_and_is_not_told(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        put = PowerPut(settings=PowerSettings(address="bmc-h1"), secrets={"password": "hush-hush"})
        await world.control.power.put_of_host(ADMIN, "h1", "bmc", put, None)
        answer = await world.control.power_orders.test(ADMIN, "h1", "bmc")
        assert not answer.test.passed and answer.test.code == "power.failed"
        assert "bad password ***" in answer.test.detail
        for event in await world.events():
            assert "hush" not in repr(event)

    tell(story)


class AnothersDevice:
    """Implements ``PowerDevices`` and ``PowerDevice``: it works, and is another machine's."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.orders = 0

    def device(self, settings: PowerSettings, secrets: Mapping[str, str]) -> PowerDevice:
        return self

    async def agents(self) -> tuple[str, ...]:
        return ()

    async def agent(self, name: str) -> AgentForm:
        raise NotFound(name)

    async def status(self, *, deadline_ms: int) -> PowerReading:
        return PowerReading(state=PowerState.ON, identity=MachineIdentity(uuid=self.uuid))

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self.status(deadline_ms=deadline_ms)

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        self.orders += 1
        return PowerOutcome(result=Result.OK)

    async def close(self) -> None: ...


def test_another_machines_device_fails_its_test(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        ours, theirs = ("4c4c4544004235108050b7c04f4d4d3" + one for one in "12")
        able = HostCapabilities(libvirt_connected=True, machine=MachineIdentity(uuid=ours))
        await world.hosts["h1"].tell(HostReport(capabilities=able))
        device = AnothersDevice(theirs)
        box = KeyBox(bytes(KEY_BYTES), where="secrets.key")
        orders = PowerOrders(world.store, Power(world.store, box, device), world.clock)
        answer = await orders.test(ADMIN, "h1", "bmc")
        assert not answer.test.passed
        assert (answer.test.identity, answer.test.code) == (
            IdentityMatch.MISMATCH,
            "power.other_machine",
        )
        device.uuid = ours
        assert (await orders.test(ADMIN, "h1", "bmc")).test.code is None

    tell(story)


class ItsOwnDevice(AnothersDevice):
    """``meanwhile``: what happens while it is read."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__("")
        self.meanwhile = meanwhile

    async def status(self, *, deadline_ms: int) -> PowerReading:
        await self.meanwhile()
        return PowerReading(state=PowerState.ON)


def test_a_test_is_worth_nothing_if_it_is_slow_or_its_boot_ended(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        takes_ms = [3_000, 0]

        async def slow() -> None:
            world.clock.advance(takes_ms.pop(0))

        box = KeyBox(bytes(KEY_BYTES), where="secrets.key")
        device = ItsOwnDevice(slow)
        orders = PowerOrders(world.store, Power(world.store, box, device), world.clock)
        first = (await orders.test(ADMIN, "h1", "bmc")).test
        assert first.passed and first.took_ms == 0, "the first one has more to do"
        takes_ms += [3_000, 2_000]
        always = (await orders.test(ADMIN, "h1", "bmc")).test
        assert (always.passed, always.code, always.took_ms) == (False, "power.too_slow", 2_000)

        async def booted_anew() -> None:
            await world.hosts["h1"].hello(boot="another")

        device.meanwhile = booted_anew
        answer = (await orders.test(ADMIN, "h1", "bmc")).test
        assert (answer.passed, answer.boot) == (False, None), "it said on of which boot?"

    tell(story)


def test_removing_and_what_is_not_there(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        await world.control.power.delete_of_host(ADMIN, "h1", "bmc", None)
        (view,) = await world.control.power.of_host("h1")
        assert not view.usable and view.power is None
        for name in ("bmc", "pdu", None):
            with pytest.raises(NotFound):
                await world.control.power_orders.status("h1", name)
        await world.control.power.delete_of_cluster(ADMIN, "default", "bmc", None)
        assert await world.control.power.of_host("h1") == ()

    tell(story)


def test_the_password_on_the_command_line_is_warned_of(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world, syntax=None, password_by=SecretWay.STDIN)
        (view,) = await world.control.power.of_host("h1")
        assert view.warnings == ("power.password_shown",)

    tell(story)


def test_answers_that_anybody_could_give_are_warned_of(tell: Tell):
    """P1: what is believed of a host's power must come from its device."""
    place = {"address": "10.0.0.1", "user": "root"}
    ipmi, redfish = {"driver": PowerDriver.IPMI, **place}, {"driver": PowerDriver.REDFISH, **place}

    async def story(world: World) -> None:
        await world.join("h1")
        for given, found in (
            (own(**ipmi), ()),
            (own(**ipmi, cipher=17), ()),
            (own(**ipmi, cipher=0), ("power.unprotected",)),
            (own(**ipmi, cipher=15), ("power.unprotected",)),
            (own(**redfish), ()),
            (own(**redfish, certificate=CertificateCheck.NONE), ("power.unchecked",)),
        ):
            view = await world.control.power.put_of_host(ADMIN, "h1", "bmc", given, None)
            assert view.warnings == found and len(view.warning_texts) == len(found)

    tell(story)


def test_with_the_key_lost_it_is_told(tell: Tell):
    async def story(world: World) -> None:
        await set_up(world)
        lost = Power(world.store, NoKeyBox(), None)
        await lost.check_secrets_readable()
        assert "power.secrets_unreadable" in await world.codes()
        with pytest.raises(Failed):
            await lost.reach("h1", "bmc")

    tell(story)
