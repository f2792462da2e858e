"""The IPMI driver against ipmi_sim: what goes wrong with BMCs, told as what it is."""

import asyncio
import os
from pathlib import Path

import pytest
from own_bmc import PASSWORD, IpmiSim
from own_web_server import WebServer
from power_places import ipmi
from wrong_port import SOMETHING_ELSE, answering_port

from virtha.drivers import bounded_program
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.power_settings import IpmiPrivilege, PowerDriver, PowerSettings
from virtha.ports.power import PowerOutcome, PowerReading

pytestmark = pytest.mark.req("F9")


def settings(port: int, **more: object) -> PowerSettings:
    return PowerSettings(
        driver=PowerDriver.IPMI,
        **{"address": "127.0.0.1", "port": port, "user": "admin", **more},
    )


def attempts(
    one: PowerSettings, password: str = PASSWORD, deadline_ms: int = 20_000
) -> tuple[PowerReading, PowerOutcome]:
    async def both() -> tuple[PowerReading, PowerOutcome]:
        device = RealPowerDevices().device(one, {"password": password})
        return (
            await device.status(deadline_ms=deadline_ms),
            await device.order(PowerAction.OFF, deadline_ms=deadline_ms, may_go=lambda: True),
        )

    return asyncio.run(both())


@pytest.fixture
def bmc(tmp_path: Path):
    sim = IpmiSim(tmp_path)
    sim.start()
    yield sim
    sim.stop()


@pytest.mark.bad_input("IPMI cipher mismatch")
def test_a_cipher_suite_that_it_refuses(bmc: IpmiSim):
    reading, outcome = attempts(settings(bmc.port, cipher=17))
    assert reading.code == outcome.code == "power.cipher_refused"
    assert outcome.result is Result.REFUSED
    assert (bmc.directory / "orders").read_text() == ""


@pytest.mark.bad_input("IPMI cipher mismatch")
def test_the_next_suite_is_tried_and_told(bmc: IpmiSim, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("virtha.drivers.power_ipmi.CIPHERS", (17, 3))
    reading, outcome = attempts(settings(bmc.port))
    assert reading.state is PowerState.ON and "cipher suite 3" in reading.detail
    assert outcome.result is Result.OK
    assert (bmc.directory / "orders").read_text() == "0\n"


@pytest.mark.bad_input("wrong power password")
def test_an_unknown_user(bmc: IpmiSim):
    reading, outcome = attempts(settings(bmc.port, user="nobody", cipher=3))
    assert reading.code == outcome.code == "power.sign_in_refused"


def test_a_user_who_may_only_look(bmc: IpmiSim):
    reading, outcome = attempts(settings(bmc.port, cipher=3, privilege=IpmiPrivilege.USER))
    assert reading.state is PowerState.ON
    assert outcome.result is not Result.OK and outcome.code == "power.not_permitted", outcome
    assert (bmc.directory / "power").read_text() == "1"


@pytest.mark.bad_input("port without IPMI")
@pytest.mark.parametrize("words", [SOMETHING_ELSE, None], ids=["other words", "an echo"])
def test_a_port_that_answers_something_else(words: bytes | None):
    """What is no IPMI is no answer; an order to it may have been anything."""
    with answering_port(words) as port:
        reading, outcome = attempts(settings(port, cipher=3))
    assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.no_answer"), reading
    assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.no_answer"), outcome


@pytest.mark.bad_input("port without IPMI")
def test_a_web_server_is_no_bmc():
    async def story() -> PowerReading:
        async with WebServer().running() as port:
            device = RealPowerDevices().device(settings(port, cipher=3), {"password": "x"})
            return await device.status(deadline_ms=20_000)

    assert asyncio.run(story()).code == "power.no_answer"


def test_a_name_without_an_address():
    reading, outcome = attempts(settings(623, address="nosuch.invalid", cipher=3))
    assert reading.code == outcome.code == "power.unresolved"


def test_the_password_is_in_no_command_line(tmp_path: Path):
    async def story() -> list[str]:
        seen: list[str] = []
        async with ipmi(tmp_path) as place:
            place.hang()
            attempt = asyncio.create_task(place.device().status(deadline_ms=60_000))
            for _ in range(20):
                before = len(seen)
                while not (attempt.done() or any("ipmitool" in one for one in seen[before:])):
                    await asyncio.sleep(0.02)
                    seen.extend(_command_lines())
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
        return seen

    seen = asyncio.run(story())
    assert any("ipmitool" in one for one in seen)
    assert [one for one in seen if PASSWORD in one] == []


def _command_lines() -> list[str]:
    """Of what this process has begun: others on this machine may be tests that show passwords on purpose."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for one in Path("/proc").glob("[0-9]*"):
        try:
            fields = (one / "stat").read_text().rpartition(")")[2].split()
            lines[int(one.name)] = (one / "cmdline").read_text()
        except OSError:
            continue
        parents[int(one.name)] = int(fields[1])

    def is_ours(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return [line for pid, line in lines.items() if is_ours(pid)]


_SLOW_TOOL = """#!/bin/sh
here=$(dirname "$0")
while [ "$1" != -C ]; do shift; done
echo "$2" >> "$here/tried"
[ "$2" = 3 ] && { echo "Error: invalid authentication algorithm" >&2; exit 1; }
[ -e "$here/hurry" ] || sleep 1000
echo "Chassis Power is on"
"""


def test_a_refused_suite_is_remembered_though_the_next_took_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a short deadline no reading would ever come about: each would begin with the refusal."""
    tool, tried = tmp_path / "ipmitool", tmp_path / "tried"
    tool.write_text(_SLOW_TOOL)
    tool.chmod(0o755)
    path = f"{tmp_path}:{bounded_program.SEARCH_PATH}"
    monkeypatch.setattr(bounded_program, "SEARCH_PATH", path)

    async def story() -> tuple[PowerReading, PowerReading]:
        device = RealPowerDevices().device(settings(623), {"password": "x"})
        # It refuses the first one in no time, but on a machine that has much to do.
        for deadline_ms in (300, 3_000, 20_000):
            late = await device.status(deadline_ms=deadline_ms)
            if tried.exists() and "17" in tried.read_text().split():
                break
        (tmp_path / "hurry").touch()
        return late, await device.status(deadline_ms=20_000)

    late, read = asyncio.run(story())
    assert (late.code, read.state) == ("power.no_answer", PowerState.ON), (late, read)
    assert tried.read_text().split()[-3:] == ["3", "17", "17"]
