"""The Redfish driver against a small service of our own: what goes wrong, told as what it is."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable

import pytest
from own_bmc import PASSWORD
from power_places import RedfishService
from receiver_certificates import authority, context_of

from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.power_settings import CertificateCheck, PowerDriver, PowerSettings
from virtha.ports.power import PowerDevice, PowerOutcome, PowerReading

pytestmark = pytest.mark.req("F9")
Work = Callable[[PowerDevice], Awaitable[object]]


def at(service: RedfishService, work: Work, *names: str, trusted: bool = True, **more: object):
    async def story() -> object:
        signer = authority()
        pem = signer.certificate_pem() if trusted else authority().certificate_pem()
        async with service.running(context_of(signer, *names)) as port:
            settings = PowerSettings(
                driver=PowerDriver.REDFISH,
                **{
                    "address": "127.0.0.1",
                    "port": port,
                    "user": "admin",
                    "authority_pem": pem,
                    **more,
                },
            )
            device = RealPowerDevices().device(settings, {"password": PASSWORD})
            try:
                return await work(device)
            finally:
                await device.close()

    return asyncio.run(story())


async def read(device: PowerDevice) -> PowerReading:
    return await device.status(deadline_ms=20_000)


async def off(device: PowerDevice) -> PowerOutcome:
    return await device.order(PowerAction.OFF, deadline_ms=20_000, may_go=lambda: True)


@pytest.mark.bad_input("power device with TLS errors")
def test_a_certificate_that_nobody_vouches_for():
    service = RedfishService()
    assert at(service, read, trusted=False).code == "power.certificate"
    outcome = at(service, off, trusted=False)
    assert (outcome.result, outcome.code) == (Result.REFUSED, "power.certificate")
    assert service.orders == []


@pytest.mark.bad_input("power device with TLS errors")
def test_a_certificate_of_another_name():
    assert at(RedfishService(), read, "bmc.example").code == "power.certificate"
    by_authority = at(RedfishService(), read, "bmc.example", certificate=CertificateCheck.AUTHORITY)
    assert by_authority.state is PowerState.ON
    unchecked = at(RedfishService(), read, trusted=False, certificate=CertificateCheck.NONE)
    assert unchecked.state is PowerState.ON


@pytest.mark.bad_input("power device with TLS errors", "power address of something else")
def test_a_port_without_tls_and_one_without_anybody():
    async def story() -> tuple[PowerReading, PowerReading]:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example.org ESMTP\r\n")
            await reader.read(1_000)
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def ask() -> PowerReading:
            settings = PowerSettings(driver=PowerDriver.REDFISH, address="127.0.0.1", port=port)
            return await read(RealPowerDevices().device(settings, {}))

        plain = await ask()
        server.close()
        await server.wait_closed()
        return plain, await ask()

    plain, nobody = asyncio.run(story())
    assert plain.code == "power.tls_failed"
    assert nobody.code == "power.unreachable"


@pytest.mark.bad_input("power address of something else")
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 No\r\nLocation: https://example.org/\r\nContent-Length: 0\r\n\r\n",
        b"220 mail.example ESMTP\r\n\r\n\r\n",
    ],
)
def test_what_is_no_redfish_service(answer: bytes):
    service = RedfishService()
    service.answer = answer
    assert at(service, read).code == "power.not_its_protocol"
    outcome = at(service, off)
    assert (outcome.result, outcome.code) == (Result.REFUSED, "power.not_its_protocol")


def test_one_that_leads_elsewhere_is_not_followed():
    service = RedfishService()
    for elsewhere in ("https://127.0.0.1:1/redfish/v1/Systems", "//127.0.0.1/x"):
        service.lead_to = elsewhere
        assert at(service, read).code == "power.not_its_protocol"


def test_an_answer_without_end():
    service = RedfishService()
    service.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 90000000\r\n\r\n" + b" " * 3_000_000
    assert at(service, read).code == "power.not_its_protocol"


@pytest.mark.parametrize("state", ["PoweringOff", "PoweringOn", "Paused"])
def test_what_still_has_power_is_on(state: str):
    service = RedfishService()
    service.state = state
    assert at(service, read).state is PowerState.ON


def test_a_state_that_nobody_knows():
    service = RedfishService()
    service.state = "null"
    reading = at(service, read)
    assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.status_unreadable")
    assert reading.identity.serial == "S123"


def test_only_a_forced_off_will_do():
    service = RedfishService()
    service.allowed = ["On", "GracefulShutdown", "ForceRestart", "PowerCycle"]
    outcome = at(service, off)
    assert (outcome.result, outcome.code) == (Result.REFUSED, "power.unsupported")
    assert service.on and service.orders == []


def test_several_systems_need_a_choice():
    service = RedfishService()
    service.systems = ["one", "two"]
    reading = at(service, read)
    assert reading.code == "power.unusable_settings" and "one, two" in reading.detail
    assert at(service, read, plug="one").state is PowerState.ON
    assert at(service, read, plug="../../SessionService").code == "power.unusable_settings"


def test_a_refusal_is_told_without_the_password():
    service = RedfishService()
    service.password = "another"
    reading = at(service, read)
    assert reading.code == "power.sign_in_refused"
    assert "who is ***?" in reading.detail


def test_an_authority_that_is_none():
    assert at(RedfishService(), read, authority_pem="hello").code == "power.unusable_settings"


def test_the_look_at_the_clock_comes_last():
    """Readings in front of the order take their time."""
    looks: list[bool] = []
    for deadline_ms in (1_500, 20_000):  # a busy machine may not get that far within the first
        service = RedfishService()

        async def late(
            device: PowerDevice,
            service: RedfishService = service,
            deadline_ms: int = deadline_ms,
        ) -> PowerOutcome:
            def may_go() -> bool:
                looks.append(True)
                service.hangs = True
                return True

            return await device.order(PowerAction.OFF, deadline_ms=deadline_ms, may_go=may_go)

        outcome = at(service, late)
        if looks:
            break
    assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.no_answer")
    assert looks == [True] and service.orders == []


@pytest.mark.bad_input("power address of something else")
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b",
    ],
    ids=["nested", "packed"],
)
def test_an_answer_that_is_small_and_grows(answer: bytes):
    service = RedfishService()
    if b"%d" in answer:
        packed = gzip.compress(json.dumps({"Systems": {"@odata.id": "/x"}}).encode())
        answer %= (len(packed), packed)
    service.answer = answer
    assert at(service, read).code == "power.not_its_protocol"


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example ESMTP\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90000000\r\n\r\n" + b" " * 3_000_000,
        b"HTTP/1.1 302 No\r\nLocation: https://example.org/\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=["garbage", "endless", "redirect", "hung up"],
)
def test_once_the_order_went_out_nothing_else_says_that_it_was_not_done(answer: bytes):
    service = RedfishService()
    service.answer_to_orders = answer
    outcome = at(service, off)
    assert service.orders == ["ForceOff"] and not service.on
    assert outcome.result is Result.UNKNOWN, outcome
