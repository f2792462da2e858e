"""Certificates that end, and their successors, over a live link."""

import asyncio
import time
from pathlib import Path

import pytest
from link_rig import Pki, beat, connected, run, server, until
from live_hosts import no_processes

from virtha.agent.files import Files
from virtha.agent.guardian_process import GuardianProcess
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HelloState, HostLink
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import CERTIFICATE_LIFE, certificate_ends, request_again
from virtha.model.ids import BootId
from virtha.wire.messages import PeerRole

pytestmark = pytest.mark.req("L6")
LIFE_MS = int(CERTIFICATE_LIFE.total_seconds()) * 1_000
LEFT_MS = 4_000


def ended(pem: str) -> bool:
    return certificate_ends(pem) < time.time_ns() // 1_000_000


@pytest.mark.parametrize("role", PeerRole)
def test_one_that_ends_in_mid_hello_or_mid_session_costs_no_session(
    pki: Pki, role: PeerRole
) -> None:
    """It was good when the connection was made. What is cut off for a date is no dead host (J2)."""

    async def story() -> None:
        async with server(pki) as rig:
            old = pki.host(signed_in_ms=LEFT_MS - LIFE_MS)
            rig.control.hello_gate.clear()
            host = rig.host(role, credentials=old)
            await until(lambda: rig.control.hellos or role is PeerRole.GUARDIAN, "its hello")
            await until(lambda: ended(old.certificate_pem), "it has ended")
            rig.control.hello_gate.set()
            await until(lambda: host.link.connected, "connected all the same")
            if role is PeerRole.GUARDIAN:
                assert host.link.send_beat(beat(1))
                await until(lambda: host.events.beats_acknowledged == [1], "its beat")
            assert host.events.ended == []

    run(story())


@pytest.mark.parametrize("role", PeerRole)
def test_the_next_connection_shows_the_next_one(pki: Pki, role: PeerRole) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            old = pki.host(signed_in_ms=LEFT_MS - LIFE_MS)
            host = await connected(rig, role, credentials=old)
            await until(lambda: ended(old.certificate_pem), "it has ended")
            host.link.use(pki.host())
            await asyncio.sleep(0)
            assert host.link.connected and host.events.ended == []
            rig.gateway.begin_anew("another instance")
            await until(lambda: len(host.events.welcomes) == 2, "connected again")

    run(story())


@pytest.mark.parametrize("role", PeerRole)
def test_without_a_next_one_it_is_told_why_it_stays_out(pki: Pki, role: PeerRole) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            old = pki.host(signed_in_ms=LEFT_MS - LIFE_MS)
            host = await connected(rig, role, credentials=old)
            await until(lambda: ended(old.certificate_pem), "it has ended")
            rig.gateway.begin_anew("another instance")
            await until(lambda: len(host.events.ended) >= 2, "refused")
            code, message = host.events.ended[1]
            assert code == "wire.refused.certificate" and "refuses" in message
            host.link.use(pki.host())
            await until(lambda: len(host.events.welcomes) == 2, "with the next one at once")

    run(story())


def test_a_guardian_shows_what_its_agent_laid_down_to_server_and_neighbours(
    pki: Pki, tmp_path: Path
) -> None:
    """The real process: its link, its probes of others and its answers to them."""

    async def story() -> None:
        async with server(pki) as rig:
            old = pki.host(signed_in_ms=-600 * 86_400_000)
            csr = request_again(old.key_pem, "h1")
            new_pem = pki.authority.sign_host(csr, host_id=old.host_id).certificate_pem
            paths = AgentPaths(root=str(tmp_path))
            paths.make_directories()
            paths.renewed_certificate.write_text(new_pem)
            boot = BootId("boot-1")
            guardian = GuardianProcess(
                paths=paths,
                boot=boot,
                clock=MachineClock(),
                files=Files(),
                look=no_processes,
                credentials=old,
                probe_port=0,
                probe_address="127.0.0.1",
            )
            link = HostLink(
                servers=(rig.address,),
                credentials=old,
                role=PeerRole.GUARDIAN,
                boot=boot,
                events=guardian,
                hello_state=HelloState,
            )
            guardian.connect(link)
            running = asyncio.create_task(guardian.run())
            try:
                await until(lambda: link.connected, "connected")
                assert link.credentials.certificate_pem == new_pem
                assert link.credentials.key_pem == old.key_pem
                assert guardian.probes is not None and guardian.listener is not None
                assert guardian.probes._credentials == link.credentials
                assert guardian.listener._credentials == link.credentials
            finally:
                guardian.stopping.set()
                await running

    run(story())
