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


class StorageDomains:
    async def list(self, query: PageQuery) -> Page[StorageView]:
        raise NotImplementedError

    async def get(self, ref: str) -> StorageView:
        raise NotImplementedError

    async def create(self, caller: Caller, request: StorageCreate) -> StorageView:
        raise NotImplementedError

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        raise NotImplementedError

    async def images(self, ref: str) -> tuple[Image, ...]:
        raise NotImplementedError
