"""The gateway: who is let in, what is sent on, and what a slow or broken database does (nothing)."""

import asyncio
from typing import Any

import msgspec
import pytest
from link_rig import (
    H1,
    INSTALLATION,
    Pki,
    beat,
    connected,
    order,
    peer,
    run,
    server,
    settings,
    until,
)

from virtha.drivers import link_server
from virtha.drivers.link import HelloState
from virtha.model.errors import Unavailable
from virtha.model.ids import HostId, Term
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.ports.hosts import HostLinks
from virtha.server import gateway as gateway_module
from virtha.wire.messages import PeerRole


def test_it_is_the_port(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            links: HostLinks = rig.gateway
            assert not links.agent_connected(H1)
            assert links.last_beat(H1) is None
            assert not links.deliver(H1, order("a"))
            links.configure(H1, settings(2))
            links.disconnect(H1, "wire.refused.revoked")

    run(story())


def test_hello_brings_welcome_settings_and_unfinished_orders(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            rig.control.orders = [order("a"), order("b")]
            host = await connected(rig)
            await until(lambda: len(host.events.orders) == 2, "orders")
            assert [o.operation_id for o in host.events.orders] == ["a", "b"]
            assert [s.revision for s in host.events.settings] == [1]
            assert host.events.welcomes[0].installation_id == INSTALLATION
            assert rig.gateway.agent_connected(H1)
            assert rig.gateway.deliver(H1, order("c"))
            await until(lambda: len(host.events.orders) == 3, "the third")

    run(story())


def test_a_host_that_is_away_gets_its_orders_after_hello(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            assert not rig.gateway.deliver(H1, order("a"))
            rig.control.orders = [order("a")]  # the use case keeps it
            host = await connected(rig)
            await until(lambda: host.events.orders, "order")

    run(story())


def test_an_order_given_while_a_hello_is_answered_is_not_lost(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            rig.control.orders = [order("old")]
            rig.control.hello_gate.clear()
            host = rig.host()
            await until(lambda: rig.control.hellos, "hello reaches the use case")
            # The answer's orders are read already; these come too late for it.
            assert rig.gateway.deliver(H1, order("new"))
            assert rig.gateway.deliver(H1, order("old"))
            rig.gateway.configure(H1, settings(5))
            rig.control.hello_gate.set()
            await until(lambda: len(host.events.orders) == 2, "both")
            assert [o.operation_id for o in host.events.orders] == ["old", "new"]
            assert [s.revision for s in host.events.settings] == [5]

    run(story())


def test_an_order_that_waits_for_a_hello_that_fails_goes_to_the_live_session(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = await connected(rig)
            rig.control.hello_gate.clear()
            second = rig.host()
            await until(lambda: len(rig.control.hellos) == 2, "second hello")
            assert rig.gateway.deliver(H1, order("a"))
            second.link.close()
            await second.task
            rig.control.hello_gate.set()
            await until(lambda: host.events.orders, "order")
            assert rig.gateway.agent_connected(H1)
            assert rig.gateway.deliver(H1, order("b"))
            await until(lambda: len(host.events.orders) == 2, "and it goes on")

    run(story())


def test_older_settings_are_not_sent(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = await connected(rig)
            rig.gateway.configure(H1, settings(9))
            rig.gateway.configure(H1, settings(8))
            rig.gateway.configure(H1, settings(10))
            await until(lambda: host.events.settings[-1].revision == 10, "settings")
            assert [s.revision for s in host.events.settings] == [1, 9, 10]

    run(story())


def test_the_newest_session_of_a_role_wins(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            first = await connected(rig, credentials=credentials)
            guardian = await connected(rig, PeerRole.GUARDIAN, credentials=credentials)
            second = await connected(rig, credentials=credentials)
            await until(lambda: first.events.ended, "the first is closed")
            assert first.events.ended[0][0] == "wire.closed.replaced"
            assert guardian.link.connected and second.link.connected
            assert rig.gateway.agent_connected(H1)
            assert rig.gateway.deliver(H1, order("a"))
            await until(lambda: second.events.orders, "to the newest")
            assert not first.events.orders

    run(story())


@pytest.mark.req("F9")
def test_a_late_answer_to_a_former_boot_does_not_bring_it_back(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            rig.control.hello_gate.clear()
            former = rig.host(credentials=credentials, boot="boot-1")
            await until(lambda: rig.control.hellos, "the former boot's hello is being answered")
            guardian = await connected(
                rig, PeerRole.GUARDIAN, credentials=credentials, boot="boot-2"
            )
            await until(lambda: former.events.ended, "the former boot's session is over")
            assert former.events.ended[0][0] == "wire.closed.replaced"
            former.link.close()
            await former.task
            rig.control.hello_gate.set()
            await connected(rig, credentials=pki.host(HostId("h2")))  # so that answer is over too
            assert guardian.link.connected
            presence = rig.gateway.presence(H1)
            assert presence is not None
            assert (presence.agent_connected, presence.boot) == (False, "boot-2")

    run(story())


def test_a_new_boots_first_session_ends_those_of_the_former_one(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            agent = await connected(rig, credentials=credentials, boot="boot-1")
            guardian = await connected(
                rig, PeerRole.GUARDIAN, credentials=credentials, boot="boot-1"
            )
            rig.host(credentials=credentials, boot="boot-2")
            await until(lambda: agent.events.ended and guardian.events.ended, "both are over")
            assert {one.events.ended[0][0] for one in (agent, guardian)} == {"wire.closed.replaced"}

    run(story())


@pytest.mark.req("F9")
def test_a_hello_of_a_former_boot_read_after_the_later_ones_does_not_count(pki: Pki) -> None:
    """P4: the present boot's copies would be taken for dead while they write."""

    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            former = await peer(rig, pki, credentials)
            agent = await connected(rig, credentials=credentials, boot="boot-2")
            former.hello("boot-1")
            assert await former.ended_by() == "wire.refused.overtaken"
            guardian = await connected(
                rig, PeerRole.GUARDIAN, credentials=credentials, boot="boot-2"
            )
            assert agent.link.connected and guardian.link.connected
            assert rig.control.boots == ["boot-2"], "nothing was recorded of the former one"
            assert rig.gateway.presence(H1).boot == "boot-2"

    run(story())


def test_a_boot_that_connected_before_another_was_heard_is_taken_when_it_comes_again(
    pki: Pki,
) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            early = await peer(rig, pki, credentials)
            late = await peer(rig, pki, credentials)
            late.hello("boot-1")  # in truth the former one: its hello was read first
            await until(lambda: rig.gateway.agent_connected(H1), "boot-1")
            early.hello("boot-2")
            assert await early.ended_by() == "wire.refused.overtaken"
            assert rig.control.boots == ["boot-1"]
            await connected(rig, credentials=credentials, boot="boot-2")
            assert rig.gateway.presence(H1).boot == "boot-2"

    run(story())


def test_an_older_connection_of_the_same_boot_does_not_replace_a_newer_one(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            older = await peer(rig, pki, credentials)
            newer = await connected(rig, credentials=credentials, boot="boot-1")
            older.hello("boot-1")
            assert await older.ended_by() == "wire.closed.replaced"
            assert newer.link.connected and rig.gateway.agent_connected(H1)

    run(story())


@pytest.mark.req("F9")
def test_a_new_boot_ends_also_a_session_whose_successor_is_still_being_answered(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            former = await connected(rig, credentials=credentials, boot="boot-1")
            rig.control.hello_gate.clear()
            rig.host(credentials=credentials, boot="boot-1")
            await until(lambda: len(rig.control.hellos) == 2, "its successor is being answered")
            await connected(rig, PeerRole.GUARDIAN, credentials=credentials, boot="boot-2")
            await until(lambda: former.events.ended, "the former boot's session is over")
            assert not rig.gateway.agent_connected(H1)
            rig.control.hello_gate.set()

    run(story())


@pytest.mark.req("F9")
def test_sessions_are_as_patient_as_the_clusters_policy(pki: Pki) -> None:
    async def story() -> None:
        policy = PROFILES[Profile.FAST]
        async with server(pki, policy=policy) as rig:
            credentials = pki.host()
            for role in PeerRole:
                host = await connected(rig, role, credentials=credentials)
                (welcome,) = host.events.welcomes
                assert welcome.silence_ms == policy.detection.session_silence_ms == 3_000
                assert welcome.beat_interval_ms == policy.detection.beat_interval_ms == 500

    run(story())


@pytest.mark.parametrize("role", PeerRole)
@pytest.mark.parametrize("term_seen", [3, 9])
def test_a_term_that_a_host_has_of_another_server_is_counted_past(
    pki: Pki, role: PeerRole, term_seen: int
) -> None:
    """M1: a restored database; also for a guardian, whose agent may be down."""

    async def story() -> None:
        async with server(pki) as rig:
            state = HelloState(term_seen=Term(term_seen))
            host = await connected(rig, role, hello_state=lambda: state)
            assert host.events.welcomes[-1].term == term_seen + 1
            again = await connected(
                rig, role, hello_state=lambda: HelloState(term_seen=Term(term_seen + 1))
            )
            assert again.events.welcomes[-1].term == term_seen + 1, "that was our own"

    run(story())


@pytest.mark.req("L6")
def test_revoked_certificates_are_refused(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = await connected(rig)
            guardian = await connected(rig, PeerRole.GUARDIAN)
            line = rig.gateway.presence(H1)
            assert line is not None and line.agent_connected and line.guardian_connected
            rig.control.revoked = {
                connection.certificate_serial for connection in rig.gateway._link._connections
            }
            rig.gateway.disconnect(H1, "wire.refused.revoked")
            await until(lambda: host.events.ended and guardian.events.ended, "both end")
            assert host.events.ended[0][0] == guardian.events.ended[0][0] == "wire.refused.revoked"
            await until(lambda: len(host.events.ended) >= 2, "and stay out")
            assert host.events.ended[1][0] == "wire.refused.revoked"
            assert not rig.gateway.agent_connected(H1)

    run(story())


def test_a_database_outage_keeps_known_guardians_in_and_tells_agents(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            guardian = await connected(rig, PeerRole.GUARDIAN, credentials=credentials)
            guardian.link.close()
            await guardian.task
            rig.control.fail = Unavailable("the disk is gone")
            again = await connected(rig, PeerRole.GUARDIAN, credentials=credentials)
            assert again.link.send_beat(beat(1))
            await until(lambda: rig.gateway.last_beat(H1) is not None, "beat")
            agent = rig.host(credentials=credentials)
            await until(lambda: agent.events.ended, "told")
            assert agent.events.ended[0][0] == "wire.refused.unavailable"
            assert "the disk is gone" in agent.events.ended[0][1]
            unknown = rig.host(PeerRole.GUARDIAN, credentials=pki.host("h9"))
            await until(lambda: unknown.events.ended, "refused")
            assert unknown.events.ended[0][0] == "wire.refused.unavailable"
            rig.control.fail = None
            await until(lambda: agent.link.connected, "the agent is back by itself")

    run(story())


def test_a_hello_that_takes_too_long_is_told(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "HELLO_DEADLINE_S", 0.05)

    async def story() -> None:
        async with server(pki) as rig:
            rig.control.hello_gate.clear()
            host = rig.host()
            await until(lambda: host.events.ended, "told")
            code, message = host.events.ended[0]
            assert code == "wire.refused.unavailable" and "slow" in message
            rig.control.hello_gate.set()
            await until(lambda: host.link.connected, "connected")

    run(story())


def test_beats_and_presence(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            guardian = await connected(rig, PeerRole.GUARDIAN)
            hours_ms = 3 * 3_600_000
            wall_ms = rig.gateway._clock.wall_ms() + hours_ms
            guardian.link.send_beat(beat(7, wall_ms=wall_ms))
            await until(lambda: guardian.events.beats_acknowledged == [7], "beat")
            last = rig.gateway.last_beat(H1)
            assert last is not None
            assert (last.sequence, last.monotonic_ms, last.boot) == (7, 10_007, "boot-1")
            assert last.agent_alive
            presence = rig.gateway.presence(H1)
            assert presence is not None and presence.guardian_connected
            assert not presence.agent_connected
            assert presence.clock_offset_ms is not None
            assert abs(presence.clock_offset_ms - hours_ms) < 2_000
            sighting = rig.gateway.sighting(H1)
            assert (sighting.agent_connected, sighting.agent_seen) == (False, None)
            assert sighting.beat_received == last.received_at
            agent = await connected(rig)
            assert rig.gateway.sighting(H1).agent_connected
            agent.link.close()
            await agent.task
            await until(lambda: not rig.gateway.agent_connected(H1), "gone")
            await until(lambda: rig.control.lost == [H1], "told")
            seen = rig.gateway.sighting(H1).agent_seen
            assert seen is not None and seen <= rig.gateway._clock.monotonic_ms()
            # The newest beat outlives its session: a grant may still quote it.
            guardian.link.close()
            await guardian.task
            assert rig.gateway.last_beat(H1) == last

    run(story())


def test_metrics_count_sessions_and_ends(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            await connected(rig)
            guardian = await connected(rig, PeerRole.GUARDIAN)
            await connected(rig, credentials=pki.host("h2"))
            metrics = rig.gateway.metrics()
            assert (metrics.agents, metrics.guardians, metrics.connections) == (2, 1, 3)
            guardian.link.close()
            await guardian.task
            await until(lambda: rig.gateway.metrics().guardians == 0, "gone")
            assert rig.gateway.metrics().ended == {"wire.closed.shutdown": 1}

    run(story())


def test_settings_that_fit_no_frame_are_refused_with_a_code(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            hello = rig.control.hello

            async def too_much(host_id: HostId, **rest: Any) -> Any:
                answer = await hello(host_id, **rest)
                return msgspec.structs.replace(answer, settings=settings(2, "x" * (2 << 20)))

            monkeypatch.setattr(rig.control, "hello", too_much)
            host = rig.host()
            await until(lambda: host.events.ended, "refused")
            assert host.events.ended[0][0] == "wire.refused.frame_size"
            assert not rig.gateway.agent_connected(H1)

    run(story())


def test_connections_that_say_nothing_are_bounded(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "HANDSHAKES_MAX", 5)

    async def story() -> None:
        async with server(pki) as rig:
            writers = []
            for _ in range(12):
                _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
                writers.append(writer)
            await until(lambda: rig.gateway.metrics().connections == 5, "the rest is cut")
            for writer in writers:
                writer.close()
            await until(lambda: rig.gateway.metrics().connections == 0, "closed")
            await connected(rig)

    run(story())
