"""Power devices that only hosts reach: a real gateway over TLS, an agent's attempts, a real program; F5, ADR 18."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from link_rig import HostRig, Pki, ServerRig, start_server, until
from structlog.testing import capture_logs

from virtha.agent.power_attempts import PowerAttempts
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Term
from virtha.model.power import PowerAction
from virtha.model.power_settings import AskedFrom, PowerDriver, PowerHelp, PowerSettings
from virtha.ports.power import MayGoFor, PowerDevice
from virtha.wire.messages import Beat, PeerRole
from virtha.wire.power_messages import PowerWord

pytestmark = pytest.mark.req("F5", "F6")
H1, H2 = HostId("h1"), HostId("h2")
SECRET = 'p\'a$HOME;`x` "q"'
DEADLINE_MS = 60_000
SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
[ "$IPMI_PASSWORD" = "$(cat password)" ] || { echo "bad password $IPMI_PASSWORD" >&2; exit 1; }
echo "$1" >> asked
case "$1" in
status) cat state ;;
stop) echo off > state; [ ! -e hang ] || { echo $$ > hangs; sleep 1000; } ;;
esac
"""


class Neighbour:
    """h2, whose guardian beats and whose agent makes attempts."""

    def __init__(self, rig: ServerRig, allows: PowerHelp) -> None:
        credentials = rig.pki.host("h2")
        self.boot = BootId("boot-2")
        self._sequence = 0
        self.agent: HostRig = rig.host(
            credentials=credentials,
            boot=self.boot,
            on_power=self._on_power,
            power_drivers=allows.drivers,
        )
        self.guardian: HostRig = rig.host(
            PeerRole.GUARDIAN, credentials=credentials, boot=self.boot
        )
        self.words: list[PowerWord] = []
        self.attempts = PowerAttempts(
            host_id=H2,
            boot=self.boot,
            drivers=allows.drivers,
            devices=RealPowerDevices(),
            clock=MachineClock(),
            term_seen=lambda: Term(3),
            spawn=lambda name, work: asyncio.create_task(work, name=name),
            tell=lambda answer: self.agent.link.send_power(answer),
        )

    def _on_power(self, word: PowerWord) -> None:
        self.words.append(word)
        self.attempts.take(word)

    def beat(self) -> bool:
        self._sequence += 1
        return self.guardian.link.send_beat(
            Beat(
                sequence=self._sequence,
                boot=self.boot,
                monotonic_ms=int(MachineClock().monotonic_ms()),
                inventory_revision=1,
                agent_alive=True,
            )
        )


def settings(directory: Path) -> PowerSettings:
    script = directory / "switch"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    (directory / "password").write_text(SECRET)
    (directory / "state").write_text("on")
    return PowerSettings(
        driver=PowerDriver.COMMAND,
        asked_from=AskedFrom.AGENTS,
        executable=str(script),
        syntax="$IPMI_EXEC $IPMI_ACTION",
        stop="stop",
        status="status",
        address="bmc-h1",
    )


def device(rig: ServerRig, directory: Path) -> PowerDevice:
    async def among() -> tuple[HostId, ...]:
        return (H2,)

    secrets = {"password": SECRET}
    return rig.gateway.power.device(
        H1, "bmc", settings(directory), secrets, among=among, term=Term(3)
    )


async def able(rig: ServerRig) -> None:
    """Right before each attempt: on a busy machine a beat may be late."""
    await until(lambda: rig.gateway.power.able((H2,), PowerDriver.COMMAND), "it is able")


@asynccontextmanager
async def beating(neighbour: Neighbour) -> AsyncIterator[None]:

    async def beat() -> None:
        while True:
            neighbour.beat()
            await asyncio.sleep(0.2)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def play(
    pki: Pki,
    story: Callable[[ServerRig, Neighbour], Coroutine[Any, Any, None]],
    allows: PowerHelp = PowerHelp.ANY,
) -> list[Any]:
    """Returns what was logged."""

    async def main() -> None:
        rig = await start_server(pki)
        try:
            neighbour = Neighbour(rig, allows)
            async with beating(neighbour):
                await until(
                    lambda: (
                        rig.gateway.last_beat(H2) is not None and neighbour.agent.link.connected
                    ),
                    "h2",
                )
                await story(rig, neighbour)
        finally:
            await rig.stop()

    with capture_logs() as logged:
        asyncio.run(main())
    return list(logged)


def test_a_neighbour_reads_and_switches_and_its_password_is_in_no_log(
    pki: Pki, tmp_path: Path
) -> None:
    async def story(rig: ServerRig, neighbour: Neighbour) -> None:
        bmc = device(rig, tmp_path)
        await able(rig)
        assert (await bmc.status(deadline_ms=DEADLINE_MS)).state is PowerState.ON
        await able(rig)
        order = bmc.order(PowerAction.OFF, deadline_ms=DEADLINE_MS, may_go=MayGoFor(lambda: 60_000))
        assert (await order).result is Result.OK
        await able(rig)
        assert (await bmc.test(deadline_ms=DEADLINE_MS)).state is PowerState.OFF
        assert (tmp_path / "asked").read_text().split() == ["status", "stop", "status"]
        (tmp_path / "password").write_text("another")
        await able(rig)
        refused = await bmc.status(deadline_ms=DEADLINE_MS)
        assert refused.code == "power.failed" and "bad password ***" in refused.detail
        assert SECRET not in repr(neighbour.words)

    logged = play(pki, story)
    assert logged and SECRET not in repr(logged) and "HOME" not in repr(logged)


def test_an_agent_that_goes_in_the_middle_leaves_it_unknown_and_its_program_ends(
    pki: Pki, tmp_path: Path
) -> None:
    async def story(rig: ServerRig, neighbour: Neighbour) -> None:
        bmc = device(rig, tmp_path)
        (tmp_path / "hang").touch()
        await able(rig)
        order = asyncio.create_task(
            bmc.order(PowerAction.OFF, deadline_ms=DEADLINE_MS, may_go=MayGoFor(lambda: 60_000))
        )
        hangs = tmp_path / "hangs"
        await until(lambda: hangs.exists() and hangs.read_text().strip(), "its program runs")
        neighbour.agent.link.close()
        outcome = await order
        assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.neighbour_lost")
        neighbour.attempts.session_lost()
        process = int(hangs.read_text())
        await until(lambda: not runs(process), "its end")

    play(pki, story)


@pytest.mark.bad_input
def test_agents_that_do_not_or_may_not_are_never_sent_a_password(pki: Pki, tmp_path: Path) -> None:
    async def story(rig: ServerRig, neighbour: Neighbour) -> None:
        bmc = device(rig, tmp_path)
        rig.host(credentials=pki.host("h1"))  # an agent of before: it says nothing of power
        await until(lambda: rig.gateway.agent_connected(H1), "h1")
        await until(lambda: rig.gateway.power.able((H2,), PowerDriver.IPMI), "it is able")
        assert rig.gateway.power.able((H1, H2), PowerDriver.COMMAND) == ()
        assert rig.gateway.power.able((H1, H2), PowerDriver.IPMI) == (H2,)
        assert (await bmc.status(deadline_ms=DEADLINE_MS)).code == "power.no_neighbour"
        assert neighbour.words == []
        neighbour.guardian.link.close()
        await until(lambda: not rig.gateway.power.able((H2,), PowerDriver.IPMI), "silent")

    play(pki, story, PowerHelp.NETWORK)


def runs(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
