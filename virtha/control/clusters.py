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


class Clusters:
    async def list(self, query: PageQuery) -> Page[Cluster]:
        raise NotImplementedError

    async def get(self, ref: str) -> Cluster:
        raise NotImplementedError

    async def create(self, caller: Caller, request: ClusterCreate) -> Cluster:
        raise NotImplementedError

    async def change(
        self, caller: Caller, ref: str, request: ClusterChange, if_match: Revision | None = None
    ) -> Cluster:
        raise NotImplementedError

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        raise NotImplementedError

    async def put_policy(
        self, caller: Caller, ref: str, policy: Policy, if_match: Revision | None = None
    ) -> Cluster:
        raise NotImplementedError
