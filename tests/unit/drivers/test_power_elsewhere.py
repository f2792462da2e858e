"""What a host asks for others: never itself, whatever a device's name leads to here (F5, ADR 18)."""

import asyncio
from typing import Any

import pytest
from played_power import PlayedPower

from virtha.drivers import power_elsewhere
from virtha.drivers.power_elsewhere import ElsewherePower
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.power_settings import PowerDriver, PowerSettings

pytestmark = pytest.mark.req("F5", "P1")
DEADLINE_MS = 60_000


def asked(*leads_to: str, **settings: Any) -> tuple[list[str], Any, Any]:
    """What the device was asked; a reading of it, and how an order ended."""

    async def resolve(name: str) -> list[str]:
        if not leads_to:
            raise OSError(-2, "Name or service not known")
        return list(leads_to)

    async def main() -> tuple[Any, Any]:
        given = PowerSettings(**{"driver": PowerDriver.IPMI, "address": "bmc", **settings})
        device = ElsewherePower(power, resolve).device(given, {})
        reading = await device.status(deadline_ms=DEADLINE_MS)
        order = await device.order(PowerAction.OFF, deadline_ms=DEADLINE_MS, may_go=lambda: True)
        assert (await device.test(deadline_ms=DEADLINE_MS)).code == reading.code
        await device.close()
        return reading, order

    power = PlayedPower()
    machine = power.add("bmc")
    reading, order = asyncio.run(main())
    return machine.asked, reading, order


@pytest.mark.bad_input("power address of the host that asks")
@pytest.mark.parametrize(
    "leads_to", ["127.0.0.1", "127.0.1.1", "::1", "169.254.1.1", "fe80::1%2", "::ffff:127.0.0.1"]
)
def test_a_name_that_leads_back_here_is_not_asked(leads_to: str) -> None:
    for addresses in ((leads_to,), ("192.0.2.1", leads_to)):
        was_asked, reading, order = asked(*addresses)
        assert was_asked == []
        assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.own_host")
        assert (order.result, order.code) == (Result.REFUSED, "power.own_host")
        assert leads_to in order.detail and "bmc" in order.detail


def test_what_leads_elsewhere_is_asked() -> None:
    was_asked, reading, order = asked("192.0.2.1", "2001:db8::1")
    assert was_asked == ["status", "off", "status"]
    assert reading.state is PowerState.ON and order.result is Result.OK


def test_a_name_without_an_address_is_its_drivers_to_tell() -> None:
    assert asked()[0] == ["status", "off", "status"]


def test_what_an_address_means_to_a_script_the_script_knows() -> None:
    assert asked("127.0.0.1", driver=PowerDriver.COMMAND)[0] == ["status", "off", "status"]


def test_the_look_takes_its_time_from_the_attempts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(name: str) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        settings = PowerSettings(driver=PowerDriver.IPMI, address="bmc")
        device = ElsewherePower(power, never).device(settings, {})
        order = await device.order(PowerAction.OFF, deadline_ms=20, may_go=lambda: True)
        assert (order.result, order.code) == (Result.REFUSED, "power.unresolved")

    power = PlayedPower()
    machine = power.add("bmc")
    asyncio.run(main())
    assert machine.asked == []

    async def slow(name: str) -> list[str]:
        clock.now_s += 0.5
        return ["192.0.2.1"]

    heard = Heard()

    async def later() -> int:
        settings = PowerSettings(driver=PowerDriver.IPMI, address="bmc")
        device = ElsewherePower(heard, slow).device(settings, {})
        await device.order(PowerAction.OFF, deadline_ms=DEADLINE_MS, may_go=lambda: True)
        return heard.deadline_ms

    clock = Clock()
    monkeypatch.setattr(power_elsewhere, "time", clock)
    assert asyncio.run(later()) == DEADLINE_MS - 500


class Clock:
    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class Heard(PlayedPower):
    deadline_ms = 0

    def device(self, settings: PowerSettings, secrets: Any) -> Any:
        return self

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: Any) -> Any:
        self.deadline_ms = deadline_ms


def test_this_machines_own_names_and_numbers_in_any_spelling() -> None:
    """Through the system's own resolver."""

    async def main(address: str) -> str | None:
        settings = PowerSettings(driver=PowerDriver.IPMI, address=address)
        power = PlayedPower()
        power.add(address)
        device = ElsewherePower(power).device(settings, {})
        return (await device.status(deadline_ms=DEADLINE_MS)).code

    for address in ("localhost", "127.1", "0x7f000001", "::1", "169.254.1.1"):
        assert asyncio.run(main(address)) == "power.own_host", address
