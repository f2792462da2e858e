"""An attempt at another host's power device by `virtha agent run` itself, a process, over its own session (ADR 18)."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from link_rig import INSTALLATION, HostRig, Pki, ServerRig, start_server, until
from test_power_by_neighbours import DEADLINE_MS, H2, SECRET, device, runs

from virtha.agent.identity import Identity
from virtha.agent.paths import AgentPaths
from virtha.drivers.machine_clock import MachineClock
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId
from virtha.model.power import PowerAction
from virtha.model.power_settings import PowerDriver
from virtha.ports.power import MayGoFor, PowerDevice
from virtha.wire.messages import Beat, PeerRole

pytestmark = pytest.mark.req("F5", "J7")
BOOT = BootId("boot-2")
Story = Callable[[ServerRig, asyncio.subprocess.Process, PowerDevice], Coroutine[Any, Any, None]]


def settle(root: Path, pki: Pki, server: str, allows: str) -> None:
    """What joining and an administrator write on h2; no libvirt answers there."""
    paths = AgentPaths(root=str(root))
    paths.identity.mkdir(parents=True)
    identity = Identity(
        host_id=H2, number=2, name="h2", installation_id=INSTALLATION, servers=(server,)
    )
    (paths.identity / "identity.json").write_bytes(msgspec.json.encode(identity))
    credentials = pki.host("h2")
    (paths.identity / "authority.crt").write_text(credentials.authority_pem)
    (paths.identity / "host.crt").write_text(credentials.certificate_pem)
    (paths.identity / "host.key").write_text(credentials.key_pem)
    (paths.identity / "host.key").chmod(0o600)
    paths.properties.parent.mkdir(parents=True)
    uri = f"qemu+unix:///system?socket={root}/no-libvirt"
    paths.properties.write_text(f"hypervisor.uri={uri}\npower.attempts={allows}\n")
    (root / "boot_id").write_text(f"{BOOT}\n")


@asynccontextmanager
async def agent_of(root: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    here = {
        "VIRTHA_BOOT_ID_FILE": str(root / "boot_id"),
        "VIRTHA_LIBVIRT_HOOKS": str(root / "hooks"),
    }
    with (root / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "virtha.cli.main", "agent", "run", "--root", str(root)),
            env={**os.environ, **here},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 60)


@asynccontextmanager
async def beating(guardian: HostRig) -> AsyncIterator[None]:
    """The host's guardian, without which nobody is chosen."""

    async def beat() -> None:
        sequence = 0
        while True:
            sequence += 1
            guardian.link.send_beat(
                Beat(
                    sequence=sequence,
                    boot=BOOT,
                    monotonic_ms=int(MachineClock().monotonic_ms()),
                    inventory_revision=1,
                    agent_alive=True,
                )
            )
            await asyncio.sleep(0.2)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def play(pki: Pki, directory: Path, story: Story, allows: str = "any") -> str:
    """Returns all that the agent logged."""
    root, switch = directory / "h2", directory / "switch"
    switch.mkdir()

    async def main() -> None:
        rig = await start_server(pki)
        settle(root, pki, rig.address, allows)
        guardian = rig.host(PeerRole.GUARDIAN, credentials=pki.host("h2"), boot=BOOT)
        try:
            async with beating(guardian), agent_of(root) as process:
                await until(lambda: rig.gateway.agent_connected(H2), "the agent's session")
                await story(rig, process, device(rig, switch))
        finally:
            await rig.stop()

    asyncio.run(main())
    return (root / "agent.log").read_text()


async def able(rig: ServerRig, driver: PowerDriver = PowerDriver.COMMAND) -> None:
    await until(lambda: rig.gateway.power.able((H2,), driver), "it is able")


async def hanging(rig: ServerRig, bmc: PowerDevice, switch: Path) -> tuple[Any, int]:
    """An order under way, and the process of the program that it runs."""
    (switch / "hang").touch()
    await able(rig)
    order = asyncio.create_task(
        bmc.order(PowerAction.OFF, deadline_ms=DEADLINE_MS, may_go=MayGoFor(lambda: 60_000))
    )
    hangs = switch / "hangs"
    await until(lambda: hangs.exists() and hangs.read_text().strip(), "its program runs")
    return order, int(hangs.read_text())


def test_it_reads_switches_and_ends_with_its_session_what_it_began(
    pki: Pki, tmp_path: Path
) -> None:
    async def story(rig: ServerRig, process: asyncio.subprocess.Process, bmc: PowerDevice) -> None:
        await able(rig)
        assert (await bmc.status(deadline_ms=DEADLINE_MS)).state is PowerState.ON
        order, program = await hanging(rig, bmc, tmp_path / "switch")
        assert runs(program)
        await rig.gateway.close()  # as if the server were gone: nobody would hear how it ended
        outcome = await order
        assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.neighbour_lost")
        await until(lambda: not runs(program), "its program's end")
        assert process.returncode is None, "it lives, and looks for a server"

    logged = play(pki, tmp_path, story)
    assert "no session" in logged and SECRET not in logged


def test_what_it_may_not_it_is_not_asked(pki: Pki, tmp_path: Path) -> None:
    async def story(rig: ServerRig, process: asyncio.subprocess.Process, bmc: PowerDevice) -> None:
        await able(rig, PowerDriver.IPMI)
        assert (await bmc.status(deadline_ms=DEADLINE_MS)).code == "power.no_neighbour"
        assert not (tmp_path / "switch" / "asked").exists()

    play(pki, tmp_path, story, "network")
