"""Power devices as a host asks them for others (implements ``ports.power.PowerDevices``): never one whose name leads back to
the asking host here, whatever the server's names say (ADR 18). What settings may say, the server checks first."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address

from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.own_addresses import is_own_address
from virtha.model.power import PowerAction
from virtha.model.power_settings import PowerDriver, PowerSettings
from virtha.ports.power import (
    AgentForm,
    MayGo,
    PowerDevice,
    PowerDevices,
    PowerOutcome,
    PowerReading,
)

OWN_HOST = "power.own_host"
UNRESOLVED = "power.unresolved"

Resolve = Callable[[str], Awaitable[list[str]]]
"""A name's addresses, as numbers. Raises OSError."""


class ElsewherePower:
    def __init__(self, devices: PowerDevices, resolve: Resolve | None = None) -> None:
        self._devices = devices
        self._resolve = resolve or _resolve

    def device(self, settings: PowerSettings, secrets: Mapping[str, str]) -> PowerDevice:
        device = self._devices.device(settings, secrets)
        if not settings.address or settings.driver is PowerDriver.COMMAND:
            return device  # what an address means to a script, the script knows
        return _Elsewhere(device, settings.address, self._resolve)

    async def agents(self) -> tuple[str, ...]:
        return await self._devices.agents()

    async def agent(self, name: str) -> AgentForm:
        return await self._devices.agent(name)


class _Elsewhere:
    """Implements ``PowerDevice``. The look takes its time from the attempt's own."""

    def __init__(self, device: PowerDevice, address: str, resolve: Resolve) -> None:
        self._device = device
        self._address = address
        self._resolve = resolve

    async def status(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(self._device.status, deadline_ms)

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(self._device.test, deadline_ms)

    async def _look(
        self, ask: Callable[..., Awaitable[PowerReading]], deadline_ms: int
    ) -> PowerReading:
        began = time.monotonic()
        objection = await self._objection(deadline_ms)
        if objection is not None:
            code, detail = objection
            return PowerReading(state=PowerState.UNKNOWN, code=code, detail=detail)
        return await ask(deadline_ms=_left_ms(deadline_ms, began))

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        began = time.monotonic()
        objection = await self._objection(deadline_ms)
        if objection is not None:
            code, detail = objection
            return PowerOutcome(result=Result.REFUSED, code=code, detail=detail)
        left_ms = _left_ms(deadline_ms, began)
        return await self._device.order(action, deadline_ms=left_ms, may_go=may_go)

    async def close(self) -> None:
        await self._device.close()

    async def _objection(self, deadline_ms: int) -> tuple[str, str] | None:
        """Code and words; nothing was done to the device."""
        try:
            async with asyncio.timeout(deadline_ms / 1_000):
                found = await self._resolve(self._address)
        except TimeoutError:
            return UNRESOLVED, f"{self._address}: no answer in time"
        except (OSError, UnicodeError):
            return None  # its driver meets the same, and says so in its own words
        home = [one for one in found if is_own_address(ip_address(one))]
        if home:
            # One among several is enough: a device's own name would not have it.
            return OWN_HOST, f"{self._address} is {home[0]} here, which is this host's own"
        return None


def _left_ms(deadline_ms: int, began: float) -> int:
    return max(1, deadline_ms - int((time.monotonic() - began) * 1_000))


async def _resolve(name: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))
