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


class Operations:
    async def list(self, query: OperationQuery) -> Page[Operation]:
        raise NotImplementedError

    async def get(self, operation_id: str) -> Operation:
        raise NotImplementedError

    async def wait(self, operation_id: str, timeout_ms: int) -> Operation:
        raise NotImplementedError

    async def foreign(self, operation_id: str) -> ForeignDomains:
        raise NotImplementedError
