"""A hello counts from the moment on at which its certificate is accepted (P4): before, it touches nothing of the host."""

import asyncio

import pytest
from link_rig import H1, Pki, ServerRig, connected, peer, run, server, until

from virtha.model.errors import Unavailable
from virtha.wire.messages import PeerRole

pytestmark = pytest.mark.req("F9")


def held_up(rig: ServerRig) -> asyncio.Event:
    """The next question for a certificate is, until that is set."""
    check = asyncio.Event()
    rig.control.checks.append(check)
    return check


async def revoke_newest(rig: ServerRig) -> None:
    """The certificate of whoever connected last."""
    link = rig.gateway._link
    assert link is not None
    newest = max(link._connections, key=lambda one: one.number)
    await until(lambda: newest.certificate_serial, "the server's side of the handshake")
    rig.control.revoked.add(newest.certificate_serial)


@pytest.mark.req("L6")
@pytest.mark.parametrize("role", list(PeerRole))
def test_a_revoked_certificate_of_that_host_ends_nobody(pki: Pki, role: PeerRole) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            agent = await connected(rig, credentials=credentials)
            guardian = await connected(rig, PeerRole.GUARDIAN, credentials=credentials)
            early = await peer(rig, pki, credentials)
            stranger = await peer(rig, pki, pki.host())
            await revoke_newest(rig)
            stranger.hello("boot-9", role)
            assert await stranger.ended_by() == "wire.refused.revoked"
            assert agent.link.connected and guardian.link.connected
            presence = rig.gateway.presence(H1)
            assert presence is not None and presence.boot == "boot-1"
            assert (presence.agent_connected, presence.guardian_connected) == (True, True)
            # The host has booted, and connected before that stranger said anything.
            early.hello("boot-2")
            await until(lambda: rig.gateway.presence(H1).boot == "boot-2", "not overtaken by it")

    run(story())


def test_a_revoked_certificate_does_not_cost_a_known_guardian_its_way_in(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            guardian = await connected(rig, PeerRole.GUARDIAN, credentials=credentials)
            stranger = await peer(rig, pki, pki.host())
            await revoke_newest(rig)
            stranger.hello("boot-1", PeerRole.GUARDIAN)
            assert await stranger.ended_by() == "wire.refused.revoked"
            guardian.link.close()
            await guardian.task
            rig.control.fail = Unavailable("the disk is gone")
            await connected(rig, PeerRole.GUARDIAN, credentials=credentials)

    run(story())


def test_a_former_boots_hello_is_not_put_on_record_behind_a_later_ones(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            check = held_up(rig)
            former = await peer(rig, pki, credentials)
            former.hello("boot-1")
            await until(lambda: not rig.control.checks, "its certificate is being looked at")
            later = await connected(rig, credentials=credentials, boot="boot-2")
            check.set()
            assert await former.ended_by() == "wire.refused.overtaken"
            assert later.link.connected and rig.control.boots == ["boot-2"]

    run(story())


def test_a_later_boot_that_connects_while_the_former_ones_hello_is_checked_is_not_overtaken(
    pki: Pki,
) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            former_check, later_check = held_up(rig), held_up(rig)
            former = await peer(rig, pki, credentials)
            former.hello("boot-1")
            await until(lambda: len(rig.control.checks) == 1, "the former one is being looked at")
            later = rig.host(credentials=credentials, boot="boot-2")
            await until(lambda: not rig.control.checks, "the later one too")
            former_check.set()
            await until(lambda: rig.control.boots == ["boot-1"], "they count in their order")
            later_check.set()
            await until(lambda: later.link.connected, "the later one")
            assert rig.control.boots == ["boot-1", "boot-2"] and not later.events.ended

    run(story())


def test_who_was_sent_away_meanwhile_does_not_come_in_by_an_older_look(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            check = held_up(rig)
            host = await peer(rig, pki, pki.host())
            host.hello("boot-1")
            await until(lambda: not rig.control.checks, "its certificate is being looked at")
            rig.gateway.disconnect(H1, "wire.refused.revoked")
            check.set()
            assert await host.ended_by() == "wire.closed.replaced"
            assert rig.control.boots == [] and rig.gateway.presence(H1) is None

    run(story())


def test_who_left_before_the_look_was_over_is_not_put_on_record(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            check = held_up(rig)
            host = rig.host()
            await until(lambda: not rig.control.checks, "its certificate is being looked at")
            host.link.close()
            await host.task
            await until(lambda: rig.gateway.metrics().connections == 0, "it is gone")
            check.set()
            await until(lambda: not rig.gateway._tasks, "the look is over")
            assert rig.control.boots == []

    run(story())
