"""Fence agents of Debian's package, as they are: metadata of all, and one that keeps its state in a file."""

import asyncio
from pathlib import Path

import pytest

from virtha.drivers.power_agent_form import agent_form
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.errors import Failed, InvalidInput, NotFound
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.power_settings import PowerDriver, PowerSettings

pytestmark = pytest.mark.req("F9")


def test_it_reads_a_form_from_the_metadata():
    form = asyncio.run(RealPowerDevices().agent("fence_ipmilan"))
    assert (form.address_name, form.user_name) == ("ip", "username")
    assert (form.password_name, form.plug_name) == ("password", "plug")
    known = {one.name: one for one in form.parameters}
    assert known["privlvl"].options == ("callback", "user", "operator", "administrator")
    assert known["ipport"].kind == "integer" and known["password"].secret
    assert "login" not in known, "what is deprecated is not offered"
    assert {"on", "off", "status"} <= set(form.actions)


def test_those_that_are_installed_are_listed():
    found = asyncio.run(RealPowerDevices().agents())
    assert {"fence_ipmilan", "fence_apc", "fence_dummy"} <= set(found)
    assert found == tuple(sorted(found))


def test_one_with_its_state_in_a_file(tmp_path: Path):
    settings = PowerSettings(
        driver=PowerDriver.FENCE_AGENT,
        agent="fence_dummy",
        parameters={"status_file": str(tmp_path / "state"), "type": "file"},
    )

    async def story() -> None:
        device = RealPowerDevices().device(settings, {})
        for action, state in ((PowerAction.ON, PowerState.ON), (PowerAction.OFF, PowerState.OFF)):
            outcome = await device.order(action, deadline_ms=20_000, may_go=lambda: True)
            assert outcome.result is Result.OK, outcome
            assert (await device.status(deadline_ms=20_000)).state is state

    asyncio.run(story())


def test_one_that_can_not_be_used_says_so():
    settings = PowerSettings(driver=PowerDriver.FENCE_AGENT, agent="fence_apc")
    reading = asyncio.run(RealPowerDevices().device(settings, {}).status(deadline_ms=20_000))
    assert reading.state is PowerState.UNKNOWN
    assert reading.code in ("power.unusable_settings", "power.failed") and reading.detail


def test_names_that_are_none():
    devices = RealPowerDevices()
    for name in ("../bin/sh", "fence_x;id", "sh", ""):
        with pytest.raises(InvalidInput):
            asyncio.run(devices.agent(name))
    with pytest.raises(NotFound):
        asyncio.run(devices.agent("fence_nosuch"))
    settings = PowerSettings(driver=PowerDriver.FENCE_AGENT, agent="fence_nosuch")
    outcome = asyncio.run(
        devices.device(settings, {}).order(PowerAction.OFF, deadline_ms=2_000, may_go=lambda: True)
    )
    assert (outcome.result, outcome.code) == (Result.REFUSED, "power.program_missing")


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "hello",
        "<resource-agent>",
        "<other/>",
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><resource-agent>&b;</resource-agent>',
        '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><resource-agent>&f;</resource-agent>',
    ],
)
def test_metadata_that_is_none(xml: str):
    with pytest.raises(Failed):
        agent_form("fence_x", xml)
