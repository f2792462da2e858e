"""The server's settings for this host: newest only, into gate, disk and sentinel, in that order."""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from virtha.agent.grant_keeper import GrantKeeper
from virtha.agent.host_context import HostContext
from virtha.agent.order_desk import OrderDesk
from virtha.agent.records import SettingsStore
from virtha.model.facts import Happened
from virtha.model.ids import VmId
from virtha.model.orders import HostSettings
from virtha.sentinel.events import Configured

_log = structlog.get_logger(__name__)


class SettingsKeeper:
    def __init__(
        self,
        host: HostContext,
        store: SettingsStore,
        desk: OrderDesk,
        grants: GrantKeeper,
        *,
        on_applied: Callable[[], None],
    ) -> None:
        self._host = host
        self._store = store
        self._desk = desk
        self._grants = grants
        self._on_applied = on_applied
        self._waiting: HostSettings | None = None
        self._come = asyncio.Event()

    def take(self, settings: HostSettings) -> None:
        present = self._waiting or self._host.settings
        if settings.installation_id != self._host.installation_id:
            _log.error("settings of another installation ignored", of=settings.installation_id)
            return
        if present is not None and _is_older(settings, present):
            _log.info("older settings ignored", term=settings.term, revision=settings.revision)
            return
        self._waiting = settings
        self._host.settled.clear()
        self._come.set()

    async def run(self) -> None:
        """The newest only: of several that came while one was written, the last says all."""
        while True:
            await self._come.wait()
            self._come.clear()
            settings, self._waiting = self._waiting, None
            if settings is not None:
                await self._apply(settings)
            if self._waiting is None:
                self._host.settled.set()

    async def _apply(self, settings: HostSettings) -> None:
        host = self._host
        host.settings = msgspec.structs.replace(
            settings, term=max(settings.term, self._desk.term_seen)
        )
        self._desk.term_seen = host.settings.term
        try:
            self._grants.grant_adopted(settings)
            await host.disk(self.write_gate, host.settings)
            await host.disk(self._store.save, host.settings)
        except OSError as error:
            # Acted on all the same; after a restart of the agent the server sends them again.
            _log.error("settings can't be kept", error=str(error))
            await host.facts.emit(
                [Happened(code="host.disk.full", fields={"name": host.host_name})]
            )
        await host.loop.told(
            Configured(policy=settings.policy, hold=settings.hold, vms=settings.vms)
        )
        self._on_applied()

    def write_gate(self, settings: HostSettings) -> None:
        own = {record.vm.id: record.vm.name for record in self._host.loop.records()}
        self._host.gate.write(settings, extra=own)

    async def given_back(self, vm_id: VmId) -> None:
        """It is unmanaged from here on, also for the guardian, and also after a restart of the agent:
        its QEMU runs on, and a managed one without a grant would be killed."""
        host = self._host
        if host.settings is None:
            return
        left = tuple(held for held in host.settings.vms if held.vm.id != vm_id)
        host.settings = msgspec.structs.replace(host.settings, vms=left)
        await host.disk(self._store.save, host.settings)
        own = {r.vm.id: r.vm.name for r in host.loop.records() if r.vm.id != vm_id}
        await host.disk(host.gate.write, host.settings, extra=own)


def _is_older(settings: HostSettings, present: HostSettings) -> bool:
    """By term first: a database restored from a backup counts its revisions from there again."""
    return (settings.term, settings.revision) < (present.term, present.revision)
