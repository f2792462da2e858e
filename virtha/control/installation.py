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


class InstallationFacts:
    async def get(self) -> Installation:
        raise NotImplementedError

    async def started(self, *, version: str) -> None:
        raise NotImplementedError

    async def stopped(self) -> None:
        raise NotImplementedError
