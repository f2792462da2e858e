"""Certificates that end, and their successors, over a live link."""

import asyncio
import time

import pytest
from link_rig import Pki, beat, connected, run, server, until

from virtha.drivers.pki import CERTIFICATE_LIFE, certificate_ends
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
