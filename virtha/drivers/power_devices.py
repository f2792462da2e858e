"""The power devices that this server can reach (implements ``ports.power.PowerDevices``)."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from virtha.drivers.bounded_program import SEARCH_PATH, find_program
from virtha.drivers.power_command import CommandPower
from virtha.drivers.power_fence_agent import AgentForms, FenceAgentPower
from virtha.drivers.power_ipmi import IpmiPower
from virtha.drivers.power_redfish import RedfishPower
from virtha.model.errors import InvalidInput
from virtha.model.power_settings import PowerDriver, PowerSettings
from virtha.ports.power import AgentForm, PowerDevice

AGENT_NAME = re.compile(r"fence_[a-z0-9][a-z0-9_-]{0,60}")


class RealPowerDevices:
    def __init__(self) -> None:
        self._forms = AgentForms()

    def device(self, settings: PowerSettings, secrets: Mapping[str, str]) -> PowerDevice:
        match settings.driver:
            case PowerDriver.COMMAND:
                return CommandPower(settings, secrets)
            case PowerDriver.IPMI:
                return IpmiPower(settings, secrets)
            case PowerDriver.REDFISH:
                return RedfishPower(settings, secrets)
            case PowerDriver.FENCE_AGENT:
                return FenceAgentPower(settings, secrets, self._forms)
            case None:
                raise InvalidInput("it names no driver", field="driver", allowed=tuple(PowerDriver))
            case _:
                assert_never(settings.driver)

    async def agents(self) -> tuple[str, ...]:
        return await asyncio.to_thread(_installed)

    async def agent(self, name: str) -> AgentForm:
        if not AGENT_NAME.fullmatch(name):
            raise InvalidInput(
                f"'{name}' is no fence agent's name", field="agent", fix="such as fence_apc"
            )
        return await self._forms.form(name)


def _installed() -> tuple[str, ...]:
    found = {
        one.name
        for place in SEARCH_PATH.split(":")
        for one in Path(place).glob("fence_*")
        if AGENT_NAME.fullmatch(one.name) and find_program(one.name)
    }
    return tuple(sorted(found))
