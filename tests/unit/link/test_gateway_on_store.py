"""The gateway over the real use cases and a real SQLite: nothing lost, nothing doubled, beats untouched."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from installed import ADMIN, BOOT, Installed, recorded
from link_rig import until

from virtha.wire.messages import Beat, PeerRole


@pytest.mark.req("W7", "L6")
def test_facts_once_and_in_order_over_a_server_restart(tmp_path: Path) -> None:
    async def story() -> None:
        installed = Installed(tmp_path)
        await installed.initialise()
        async with installed.server() as (control, _):
            host = installed.connect(await installed.join(control), PeerRole.AGENT)
            assert host.outbox is not None
            host.outbox.write(300)
            await until(lambda: host.events.facts_acknowledged[-1:] == [300], "the first 300")
            host.outbox.write(100)
            host.link.facts_written()
        host.outbox.write(100)
        async with installed.server() as (control, _):
            await until(lambda: host.events.facts_acknowledged[-1:] == [500], "all")
            assert await recorded(control) == list(range(1, 501))
            assert len(host.events.settings) == 2
            await host.stop()

    asyncio.run(story())


@pytest.mark.req("W7")
@pytest.mark.bad_input("locked database")
def test_a_locked_database_delays_facts_and_no_beat(tmp_path: Path) -> None:
    async def story() -> None:
        installed = Installed(tmp_path)
        await installed.initialise()
        async with installed.server() as (control, gateway):
            credentials = await installed.join(control)
            agent = installed.connect(credentials, PeerRole.AGENT)
            guardian = installed.connect(credentials, PeerRole.GUARDIAN)
            await until(lambda: agent.link.connected and guardian.link.connected, "connected")
            other = sqlite3.connect(installed.database, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            assert agent.outbox is not None
            agent.outbox.write(10)
            agent.link.facts_written()
            await until(lambda: gateway.metrics().facts_waiting == 10, "facts wait")
            for sequence in range(100):
                guardian.link.send_beat(
                    Beat(
                        sequence=sequence,
                        boot=BOOT,
                        monotonic_ms=sequence,
                        inventory_revision=0,
                        agent_alive=True,
                    )
                )
                await until(
                    lambda n=sequence: guardian.events.beats_acknowledged[-1:] == [n], "beat"
                )
            assert agent.events.facts_acknowledged == []
            other.execute("ROLLBACK")
            other.close()
            await until(lambda: agent.events.facts_acknowledged == [10], "facts")
            assert await recorded(control) == list(range(1, 11))
            await agent.stop()
            await guardian.stop()

    asyncio.run(story())


@pytest.mark.req("L6")
def test_a_removed_host_stays_out(tmp_path: Path) -> None:
    async def story() -> None:
        installed = Installed(tmp_path)
        await installed.initialise()
        async with installed.server() as (control, gateway):
            credentials = await installed.join(control)
            agent = installed.connect(credentials, PeerRole.AGENT)
            guardian = installed.connect(credentials, PeerRole.GUARDIAN)
            await until(lambda: agent.link.connected and guardian.link.connected, "connected")
            await control.hosts.delete(ADMIN, "h1")
            await until(lambda: len(agent.events.ended) >= 2, "refused again")
            await until(lambda: len(guardian.events.ended) >= 2, "refused again")
            assert {code for code, _ in agent.events.ended} == {"wire.refused.revoked"}
            assert {code for code, _ in guardian.events.ended} == {"wire.refused.revoked"}
            assert not gateway.agent_connected(credentials.host_id)
            await agent.stop()
            await guardian.stop()

    asyncio.run(story())
