"""An installation on disk with its gateway on loopback: real use cases, real SQLite, real certificates."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from argon2 import PasswordHasher
from empty_database import lay_empty_database
from link_rig import HostRig, MemoryOutbox, Recorder

from virtha.control.control import Control, make_control
from virtha.control.installation import initialise
from virtha.control.passwords import Passwords
from virtha.control.requests import EventQuery, JoinRequest, SearchQuery, TokenCreate
from virtha.control.views import Caller
from virtha.drivers.link import HostCredentials, HostLink
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import (
    LocalAuthority,
    create_authority,
    make_key_and_csr,
    server_context,
)
from virtha.model.ids import BootId, Term
from virtha.model.policy import Policy
from virtha.model.user import Role
from virtha.server.engines import Engines
from virtha.server.gateway import Gateway
from virtha.store import open_store
from virtha.wire.messages import PeerRole

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
BOOT = BootId("boot-1")


class Installed:
    """One installation on disk; ``server`` runs it, and may run it again."""

    def __init__(self, path: Path) -> None:
        self.database = path / "virtha.db"
        self.clock = MachineClock()
        self.port = 0

    async def initialise(self) -> None:
        lay_empty_database(self.database.parent)
        store = await open_store(f"sqlite:///{self.database}", clock=self.clock)
        made = await initialise(
            store=store,
            name="virtha",
            administrator="admin",
            password="long enough 1",
            passwords=Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)),
        )
        await store.close()
        self.installation_id = made.id
        self.authority_pem, key = create_authority(made.id, now=self.clock.wall_ms())
        self.authority = LocalAuthority(self.authority_pem, key, wall_ms=self.clock.wall_ms)
        pem, server_key = self.authority.issue_server_certificate(("127.0.0.1",))
        self.context = server_context(self.authority_pem, pem, server_key)

    @asynccontextmanager
    async def server(
        self, *, policy: Policy | None = None
    ) -> AsyncIterator[tuple[Control, Gateway]]:
        store = await open_store(f"sqlite:///{self.database}", clock=self.clock)
        gateway = Gateway(
            clock=self.clock,
            installation_id=self.installation_id,
        )
        control = make_control(
            store=store, links=gateway, authority=self.authority, clock=self.clock
        )
        if policy is not None:
            (cluster,) = (await control.clusters.list(SearchQuery())).items
            await control.clusters.put_policy(ADMIN, cluster.id, policy)
        self.port = await gateway.start(
            control, term=Term(1), context=self.context, host="127.0.0.1", port=self.port
        )
        try:
            yield control, gateway
        finally:
            await gateway.close()
            await store.close()

    @asynccontextmanager
    async def led_server(
        self, journals: Path, *, policy: Policy
    ) -> AsyncIterator[tuple[Control, Engines]]:
        """With its engines, which the caller runs."""
        store = await open_store(f"sqlite:///{self.database}", clock=self.clock)
        gateway = Gateway(clock=self.clock, installation_id=self.installation_id)
        engines = Engines(
            gateway=gateway,
            clock=self.clock,
            journals=journals,
            installation_id=self.installation_id,
        )
        control = make_control(
            store=store,
            links=gateway,
            authority=self.authority,
            clock=self.clock,
            leaders=engines,
        )
        try:
            term = await control.installation.started(version="test")
            (cluster,) = (await control.clusters.list(SearchQuery())).items
            await control.clusters.put_policy(ADMIN, cluster.id, policy)
            await engines.begin(control, term)
            self.port = await gateway.start(
                control, term=term, context=self.context, host="127.0.0.1", port=self.port
            )
            yield control, engines
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

    def connect(self, credentials: HostCredentials, role: PeerRole, *, port: int = 0) -> HostRig:
        """``port``: of something between; 0: the gateway's own."""
        events = Recorder()
        outbox = MemoryOutbox() if role is PeerRole.AGENT else None
        link = HostLink(
            servers=(f"127.0.0.1:{port or self.port}",),
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
