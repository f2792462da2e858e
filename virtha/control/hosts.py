"""Bodies follow."""

from collections.abc import AsyncIterator, Sequence

from virtha.control.requests import *
from virtha.control.views import *
from virtha.model.event import Event
from virtha.model.facts import Fact, Image
from virtha.model.host import Cluster, HostState, Installation
from virtha.model.ids import BootId, HostId, Revision
from virtha.model.operation import Operation
from virtha.model.policy import Policy
from virtha.model.user import SettingScope, Token, User
from virtha.model.watchdog import Watchdog
from virtha.model.orders import HostSettings


class Hosts:
    async def list(self, query: PageQuery) -> Page[HostView]:
        raise NotImplementedError

    async def get(self, ref: str) -> HostView:
        raise NotImplementedError

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        raise NotImplementedError

    async def scan(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def adopt(self, caller: Caller, ref: str, request: AdoptRequest) -> Operation:
        raise NotImplementedError

    async def hello(self, host_id: HostId, *, boot: BootId, certificate_serial: str, term_seen: int, fact_sequence_last: int) -> HelloAnswer:
        raise NotImplementedError

    async def agent_lost(self, host_id: HostId) -> None:
        raise NotImplementedError

    async def presence_changed(self, host_id: HostId, state: HostState) -> None:
        raise NotImplementedError

    async def settings_for_host(self, host_id: HostId) -> HostSettings:
        raise NotImplementedError

    async def certificate_allowed(self, host_id: HostId, serial: str) -> bool:
        raise NotImplementedError

    async def capabilities(self) -> CapabilitiesView:
        raise NotImplementedError

    async def all_ids(self) -> tuple[HostId, ...]:
        raise NotImplementedError
