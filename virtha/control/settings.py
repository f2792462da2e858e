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


class Settings:
    async def list(self) -> tuple[SettingView, ...]:
        raise NotImplementedError

    async def put(
        self,
        caller: Caller,
        key: str,
        request: SettingPut,
        *,
        scope: SettingScope = SettingScope.GLOBAL,
        subject: str | None = None,
    ) -> SettingView:
        raise NotImplementedError

    async def delete(
        self,
        caller: Caller,
        key: str,
        *,
        scope: SettingScope = SettingScope.GLOBAL,
        subject: str | None = None,
    ) -> None:
        raise NotImplementedError
