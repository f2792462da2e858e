"""The gateway over the real use cases and a real SQLite: nothing lost, nothing doubled, beats untouched."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from link_rig import HostRig, MemoryOutbox, Recorder, SystemClock, until

from virtha.control.control import Control, make_control
from virtha.control.installation import initialise
from virtha.control.requests import EventQuery, JoinRequest, TokenCreate
from virtha.control.views import Caller
from virtha.drivers.link import HostCredentials, HostLink
from virtha.drivers.pki import (
    LocalAuthority,
    create_authority,
    make_key_and_csr,
    server_context,
)
from virtha.model.ids import BootId, Term
from virtha.model.user import Role
from virtha.server.gateway import Gateway
from virtha.store import open_store
from virtha.wire.messages import Beat, PeerRole

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
BOOT = BootId("boot-1")


class Installed:
    """One installation on disk; ``server`` runs it, and may run it again."""

    def __init__(self, path: Path) -> None:
        self.database = path / "virtha.db"
        self.clock = SystemClock()
        self.port = 0

    async def initialise(self) -> None:
        store = await open_store(f"sqlite:///{self.database}", clock=self.clock)
        made = await initialise(
            store=store, name="virtha", administrator="admin", password="long enough 1"
        )
        await store.close()
        self.installation_id = made.id
        self.authority_pem, key = create_authority(made.id, now=self.clock.wall_ms())
        self.authority = LocalAuthority(self.authority_pem, key)
        pem, server_key = self.authority.issue_server_certificate(("127.0.0.1",))
        self.context = server_context(self.authority_pem, pem, server_key)

    @asynccontextmanager
    async def server(self) -> AsyncIterator[tuple[Control, Gateway]]:
        store = await open_store(f"sqlite:///{self.database}", clock=self.clock)
        gateway = Gateway(clock=self.clock, installation_id=self.installation_id)
        control = make_control(
            store=store, links=gateway, authority=self.authority, clock=self.clock
        )
        self.port = await gateway.start(
            control, term=Term(1), context=self.context, host="127.0.0.1", port=self.port
        )
        try:
            yield control, gateway
        finally:
            await gateway.close()
            await store.close()

    async def join(self, control: Control) -> HostCredentials:
        secret = (await control.tokens.create(ADMIN, TokenCreate())).secret
        key, csr = make_key_and_csr("h1")
        answer = await control.join.join(
            JoinRequest(token=secret, csr_pem=csr, name="h1"), address="127.0.0.1"
        )
        return HostCredentials(
            installation_id=answer.installation_id,
            host_id=answer.host_id,
            authority_pem=answer.authority_pem,
            certificate_pem=answer.certificate_pem,
            key_pem=key,
        )

    def connect(self, credentials: HostCredentials, role: PeerRole) -> HostRig:
        events = Recorder()
        outbox = MemoryOutbox() if role is PeerRole.AGENT else None
        link = HostLink(
            servers=(f"127.0.0.1:{self.port}",),
            credentials=credentials,
            role=role,
            boot=BOOT,
            events=events,
            outbox=outbox,
            jitter=lambda: 0.0,
        )
        return HostRig(link, events, outbox, asyncio.create_task(link.run()))


async def recorded(control: Control) -> list[int | None]:
    query = EventQuery(code="host.libvirt.lost", order="asc", limit=1_000)
    return [event.host_sequence for event in (await control.events.list(query)).items]


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
                sent = time.monotonic()
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
                assert time.monotonic() - sent < 1.0
            assert agent.events.facts_acknowledged == []
            other.execute("ROLLBACK")
            other.close()
            await until(lambda: agent.events.facts_acknowledged == [10], "facts", seconds=20)
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
