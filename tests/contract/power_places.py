"""Places to reach one power device each: its settings, its secrets, and the truth behind it."""

import asyncio
import contextlib
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from own_bmc import PASSWORD, UUID, IpmiSim
from own_web_server import Request
from played_power import PlayedPower
from receiver_certificates import authority, context_of

from virtha.agent.power_attempts import PowerAttempts
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Term
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.power_settings import PowerDriver, PowerSettings
from virtha.ports.hosts import LastBeat
from virtha.ports.power import MayGo, PowerDevice, PowerOutcome, PowerReading
from virtha.server.neighbour_power import NeighbourPowerDesk
from virtha.sim.power import Mood
from virtha.sim.world import World
from virtha.wire.codec import HEADER, decode_payload, encode_message
from virtha.wire.power_messages import AttemptPower, EndPowerAttempt, PowerAttempted, PowerWord


@dataclass
class Place:
    """``device``: makes one anew. ``on``: the truth. ``orders``: how many reached it. ``hang``, ``refuse``: make it do so.
    ``waited_for``: whether somebody waits for it while it hangs."""

    name: str
    device: Callable[[], PowerDevice]
    on: Callable[[], bool]
    orders: Callable[[], int]
    hang: Callable[[], None]
    refuse: Callable[[], None]
    waited_for: Callable[[], bool]
    blinks: bool = True
    tells_identity: bool = False
    settings: PowerSettings = field(default_factory=PowerSettings)


Places = Callable[[Path], AbstractAsyncContextManager[Place]]


def _real(settings: PowerSettings, secrets: Mapping[str, str]) -> Callable[[], PowerDevice]:
    return lambda: RealPowerDevices().device(settings, secrets)


# The simulator's


class SimPower:
    """Implements ``PowerDevice`` with a device of the simulator's, whose time runs on while one waits."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._device = next(one for one in world.power.by_name.values() if one.name == name)

    async def status(self, *, deadline_ms: int) -> PowerReading:
        readings: list[PowerReading] = []

        def answered(state: PowerState, _identity: object) -> None:
            code = "power.no_answer" if state is PowerState.UNKNOWN else None
            readings.append(PowerReading(state=state, code=code))

        self._world.power.read(self._device.name, deadline_ms, answered)
        self._world.kernel.advance(deadline_ms)
        return readings[0]

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self.status(deadline_ms=deadline_ms)

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        if not may_go():
            return PowerOutcome(result=Result.REFUSED, code=TOO_LATE)
        ends: list[PowerOutcome] = []
        self._world.power.order(
            self._device.name,
            action,
            deadline_ms,
            lambda result, code: ends.append(PowerOutcome(result=result, code=code)),
        )
        self._world.kernel.advance(deadline_ms)
        return ends[0]

    async def close(self) -> None: ...


@asynccontextmanager
async def simulated(_directory: Path) -> AsyncIterator[Place]:
    world = World()
    host = world.add_host("h1")
    (device,) = world.power.add(host, ["bmc"], named=False)
    host.power_on()

    def mood(value: Mood) -> Callable[[], None]:
        return lambda: setattr(device, "mood", value)

    yield Place(
        "sim",
        lambda: SimPower(world, device.name),
        on=lambda: host.powered,
        orders=lambda: device.orders,
        hang=mood(Mood.DEAD),
        refuse=mood(Mood.REFUSES),
        waited_for=lambda: False,  # its time runs only in a call, to its end
    )


# The one that the leader's tests play


@asynccontextmanager
async def played(_directory: Path) -> AsyncIterator[Place]:
    power = PlayedPower()
    machine = power.add("bmc")

    yield Place(
        "played",
        lambda: power.device(PowerSettings(address="bmc"), {}),
        on=lambda: machine.on,
        orders=lambda: len(machine.orders),
        hang=lambda: setattr(machine, "hangs", True),
        refuse=lambda: setattr(machine, "refuses", True),
        waited_for=lambda: machine.attempts > 0,
    )


# A script


_SCRIPT = """#!/bin/sh
# Called as in the source document: --username U --password P --command C... --host H
cd "$(dirname "$0")" || exit 9
[ -e hang ] && { touch hangs; sleep 1000; }
[ "$2" = admin ] && [ "$4" = "$(cat password)" ] || { echo "wrong password" >&2; exit 3; }
case "$6" in
status) if [ "$(cat power)" = 1 ]; then echo "Chassis Power is on"; else echo "Chassis Power is off"; fi ;;
stop) echo stop >> orders; echo 0 > power ;;
start) echo start >> orders; echo 1 > power ;;
blink) echo blink >> orders ;;
*) echo "what?" >&2; exit 2 ;;
esac
"""


@asynccontextmanager
async def command(directory: Path) -> AsyncIterator[Place]:
    script = directory / "switch"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    (directory / "password").write_text(PASSWORD)
    (directory / "power").write_text("1")
    (directory / "orders").write_text("")
    settings = PowerSettings(
        driver=PowerDriver.COMMAND,
        address="h1-bmc",
        user="admin",
        executable=str(script),
        stop="stop",
        start="start",
        blink="blink",
        status="status",
    )
    yield Place(
        "command",
        _real(settings, {"password": PASSWORD}),
        on=lambda: (directory / "power").read_text().strip() == "1",
        orders=lambda: len((directory / "orders").read_text().split()),
        hang=lambda: (directory / "hang").touch(),
        refuse=lambda: _write(directory / "password", "another"),
        waited_for=lambda: (directory / "hangs").exists(),
        settings=settings,
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)


# ipmi_sim


def _asked_by_ipmitool(port: int) -> bool:
    """Whether such a program runs."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = process.read_bytes().split(b"\0")
            if words[0].endswith(b"ipmitool") and str(port).encode() in words:
                return True
    return False


@asynccontextmanager
async def ipmi(directory: Path) -> AsyncIterator[Place]:
    bmc = IpmiSim(directory)
    bmc.start(PASSWORD)
    settings = PowerSettings(
        driver=PowerDriver.IPMI, address="127.0.0.1", port=bmc.port, user="admin", cipher=3
    )
    try:
        yield Place(
            "ipmi",
            _real(settings, {"password": PASSWORD}),
            on=lambda: (directory / "power").read_text().strip() == "1",
            orders=lambda: len((directory / "orders").read_text().split()),
            hang=bmc.stop,
            refuse=lambda: bmc.restart("another"),
            waited_for=lambda: _asked_by_ipmitool(bmc.port),
            tells_identity=True,
            settings=settings,
        )
    finally:
        bmc.stop()


# Redfish


class RedfishService:
    """A small Redfish service of one system, over TLS."""

    def __init__(self) -> None:
        self.on = True
        self.orders: list[str] = []
        self.password = PASSWORD
        self.hangs = False
        self.hanging = 0
        self.allowed = ["On", "ForceOff", "ForceRestart"]
        self.state: str | None = None
        """Said instead of the truth."""
        self.systems = ["one"]
        self.answer: bytes | None = None
        """Said to everything."""
        self.answer_to_orders: bytes | None = None
        """Said instead, though they are carried out; empty: it hangs up."""
        self.lead_to = "/redfish/v1/Systems"

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := (await reader.readline()).decode().strip():
                headers = {}
                while text := (await reader.readline()).decode().strip():
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if self.hangs:
                    self.hanging += 1
                    await asyncio.sleep(1_000)
                answer = self.answer or self._answer(Request(line, headers, body))
                if self.answer_to_orders is not None and line.startswith("POST"):
                    answer = self.answer_to_orders
                writer.write(answer)
                await writer.drain()
                if not answer:
                    return
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    def _answer(self, request: Request) -> bytes:
        import base64

        method, path, _ = request.line.split(" ")
        if path == "/redfish/v1/":
            return _json({"Systems": {"@odata.id": self.lead_to}})
        sent = request.headers.get("authorization", "").removeprefix("Basic ")
        if base64.b64decode(sent).decode() != f"admin:{self.password}":
            return _json({"error": {"message": f"who is {sent}?"}}, 401)
        if path == "/redfish/v1/Systems":
            members = [{"@odata.id": f"{path}/{one}"} for one in self.systems]
            return _json({"Members": members})
        if method == "GET" and path == "/redfish/v1/Systems/one":
            return _json(self._system())
        if method == "PATCH" and path == "/redfish/v1/Systems/one":
            self.orders.append("blink")
            return _json({}, 200)
        if method == "POST" and path.endswith("/Actions/ComputerSystem.Reset"):
            kind = json.loads(request.body)["ResetType"]
            self.orders.append(kind)
            if (kind == "On") is self.on:
                return _json({"error": {"message": "it is so already"}}, 409)
            self.on = kind == "On"
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        return _json({"error": {"message": "no such thing"}}, 404)

    def _system(self) -> dict[str, object]:
        path = "/redfish/v1/Systems/one"
        return {
            "@odata.id": path,
            "UUID": UUID.upper(),
            "SerialNumber": "S123",
            "PowerState": self.state or ("On" if self.on else "Off"),
            "IndicatorLED": "Off",
            "Actions": {
                "#ComputerSystem.Reset": {
                    "target": f"{path}/Actions/ComputerSystem.Reset",
                    "ResetType@Redfish.AllowableValues": self.allowed,
                }
            },
        }


def _json(body: dict[str, object], status: int = 200) -> bytes:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Because\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


@asynccontextmanager
async def redfish(_directory: Path) -> AsyncIterator[Place]:
    service = RedfishService()
    signer = authority()
    async with service.running(context_of(signer)) as port:
        settings = PowerSettings(
            driver=PowerDriver.REDFISH,
            address="127.0.0.1",
            port=port,
            user="admin",
            authority_pem=signer.certificate_pem(),
        )
        yield Place(
            "redfish",
            _real(settings, {"password": PASSWORD}),
            on=lambda: service.on,
            orders=lambda: len(service.orders),
            hang=lambda: setattr(service, "hangs", True),
            refuse=lambda: setattr(service, "password", "another"),
            waited_for=lambda: service.hanging > 0,
            tells_identity=True,
            settings=settings,
        )


# A fence agent: Debian's fence_ipmilan, in front of ipmi_sim


@asynccontextmanager
async def fence_agent(directory: Path) -> AsyncIterator[Place]:
    bmc = IpmiSim(directory)
    bmc.start(PASSWORD)
    settings = PowerSettings(
        driver=PowerDriver.FENCE_AGENT,
        agent="fence_ipmilan",
        address="127.0.0.1",
        port=bmc.port,
        user="admin",
        parameters={"lanplus": "1", "cipher": "3", "power_wait": "0"},
    )
    try:
        yield Place(
            "fence-agent",
            _real(settings, {"password": PASSWORD}),
            on=lambda: (directory / "power").read_text().strip() == "1",
            orders=lambda: len((directory / "orders").read_text().split()),
            hang=bmc.stop,
            refuse=lambda: bmc.restart("another"),
            waited_for=lambda: _asked_by_ipmitool(bmc.port),
            blinks=False,
            settings=settings,
        )
    finally:
        bmc.stop()


# A neighbour's agent, with the script: the real desk and the real attempts, their messages as bytes


class _Wire:
    """Implements ``PowerLines``: one agent, one session."""

    term = Term(1)

    def __init__(self) -> None:
        self.desk = NeighbourPowerDesk(self, MachineClock())
        self._attempts = PowerAttempts(
            host_id=HostId("h2"),
            boot=BootId("boot"),
            drivers=tuple(PowerDriver),
            devices=RealPowerDevices(),
            clock=MachineClock(),
            term_seen=lambda: self.term,
            spawn=self._spawn,
            tell=self._answer,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks.append(asyncio.create_task(work, name=name))
        return self._tasks[-1]

    async def close(self) -> None:
        """Whoever is under way ends what it has begun: a loop that ends would end that, too."""
        self._attempts.session_lost()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def power_beat(self, host_id: HostId, driver: PowerDriver) -> LastBeat | None:
        now = MachineClock().monotonic_ms()
        return LastBeat(
            boot=BootId("boot"), sequence=1, monotonic_ms=now, received_at=now, agent_alive=True
        )

    def tell_power(self, host_id: HostId, word: PowerWord) -> int | None:
        sent = decode_payload(encode_message(word)[HEADER.size :])
        assert isinstance(sent, AttemptPower | EndPowerAttempt)
        self._attempts.take(sent)
        return 1

    def _answer(self, answer: PowerAttempted) -> None:
        told = decode_payload(encode_message(answer)[HEADER.size :])
        assert isinstance(told, PowerAttempted)
        # An answer takes its way, however quick it was.
        asyncio.get_running_loop().call_soon(self.desk.heard, 1, told)


@asynccontextmanager
async def neighbour(directory: Path) -> AsyncIterator[Place]:
    async def among() -> tuple[HostId, ...]:
        return (HostId("h2"),)

    async with command(directory) as place:
        wire, secrets = _Wire(), {"password": PASSWORD}

        def device() -> PowerDevice:
            return wire.desk.device(
                HostId("h1"), "bmc", place.settings, secrets, among=among, term=None
            )

        try:
            yield replace(place, name="neighbour", device=device)
        finally:
            await wire.close()


PLACES: dict[str, Places] = {
    "sim": simulated,
    "played": played,
    "command": command,
    "ipmi": ipmi,
    "redfish": redfish,
    "fence-agent": fence_agent,
    "neighbour": neighbour,
}
assert sys.version_info >= (3, 11)
