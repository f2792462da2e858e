"""Facts at the gateway: acknowledged when they are recorded, once and in order, whatever the database does."""

import asyncio
from collections.abc import Sequence

import pytest
from link_rig import H1, Pki, beat, connected, run, server, start_server, until

from virtha.model.errors import Unavailable
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId
from virtha.server.gateway import Gateway
from virtha.wire.messages import Beat, PeerRole


class Engines:
    """Whoever is told beside the use cases, and says when a host may forget its facts."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.carried_by: set[BootId] = set()

    def beat(self, host_id: HostId, beat: Beat) -> None: ...

    def session(
        self, host_id: HostId, role: PeerRole, boot: BootId, *, up: bool, broken: bool = False
    ) -> None: ...

    async def facts(
        self, host_id: HostId, boot: BootId, facts: Sequence[Fact], recorded: int
    ) -> None:
        self.carried_by.add(boot)
        self._gateway.acknowledge(host_id, recorded)


@pytest.mark.req("F9")
def test_facts_come_with_the_boot_whose_session_brought_them(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            rig.gateway.watcher = engines = Engines(rig.gateway)
            host = await connected(rig, boot="boot-7")
            host.outbox.write(2)
            host.link.facts_written()
            await until(lambda: host.events.facts_acknowledged[-1:] == [2], "acknowledged")
            assert engines.carried_by == {"boot-7"}

    run(story())


@pytest.mark.req("W7")
def test_facts_are_acknowledged_after_the_commit_only(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = await connected(rig)
            guardian = await connected(rig, PeerRole.GUARDIAN)
            rig.control.gate.clear()  # the database hangs
            host.outbox.write(3)
            host.link.facts_written()
            await until(lambda: rig.gateway.metrics().facts_waiting == 3, "facts wait")
            for sequence in range(20):
                guardian.link.send_beat(beat(sequence))
            await until(lambda: len(guardian.events.beats_acknowledged) == 20, "beats don't")
            assert host.events.facts_acknowledged == []
            rig.control.gate.set()
            await until(lambda: host.events.facts_acknowledged == [3], "acknowledged")
            assert rig.gateway.metrics().facts == 3

    run(story())


@pytest.mark.req("W7")
def test_facts_wait_while_the_store_is_unavailable(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = await connected(rig)
            rig.control.fail = Unavailable("locked", code="problem.database.locked")
            host.outbox.write(5)
            host.link.facts_written()
            await until(lambda: rig.gateway.metrics().store_retries >= 2, "retries")
            assert host.events.facts_acknowledged == [] and host.link.connected
            rig.control.fail = None
            await until(lambda: host.events.facts_acknowledged == [5], "acknowledged")
            assert [fact.sequence for fact in rig.control.recorded[H1]] == [1, 2, 3, 4, 5]

    run(story())


def test_a_mistake_while_recording_ends_the_session_and_loses_nothing(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = await connected(rig, jitter=lambda: 0.0)
            other = await connected(rig, credentials=pki.host("h2"))
            rig.control.fail = KeyError("a mistake of ours")
            host.outbox.write(5)
            host.link.facts_written()
            await until(lambda: host.events.ended, "the session ends")
            assert host.events.ended[0][0] == "wire.refused.unavailable"
            assert other.link.connected
            rig.control.fail = None
            await until(lambda: host.events.facts_acknowledged[-1:] == [5], "they come again")
            assert [fact.sequence for fact in rig.control.recorded[H1]] == [1, 2, 3, 4, 5]

    run(story())


def test_facts_of_a_replaced_session_are_recorded_once(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            credentials = pki.host()
            first = await connected(rig, credentials=credentials)
            rig.control.gate.clear()
            first.outbox.write(1_000)
            first.link.facts_written()
            await until(lambda: rig.gateway.metrics().facts_waiting == 1_000, "facts wait")
            second = rig.host(credentials=credentials)
            second.outbox.facts = list(first.outbox.facts)
            await until(lambda: second.link.connected, "second")
            first.link.close()
            await until(lambda: rig.gateway.metrics().facts_waiting > 1_000, "both sent them")
            rig.control.gate.set()
            await until(lambda: second.events.facts_acknowledged[-1:] == [1_000], "acknowledged")
            sequences = [fact.sequence for fact in rig.control.recorded[H1]]
            assert sequences == list(range(1, 1_001))
            assert first.events.facts_acknowledged == []

    run(story())


def test_closing_finishes_the_commit_under_way(pki: Pki) -> None:
    async def story() -> None:
        rig = await start_server(pki)
        host = await connected(rig)
        rig.control.gate.clear()
        host.outbox.write(10)
        host.link.facts_written()
        await until(lambda: rig.gateway.metrics().facts_waiting == 10, "facts wait")
        closing = asyncio.create_task(rig.gateway.close())
        await until(lambda: host.events.ended, "goodbye")
        assert host.events.ended[0][0] == "wire.closed.shutdown"
        rig.control.gate.set()
        await closing
        assert rig.control.acknowledged(H1) == 10
        await host.stop()

    run(story())
