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


class Users:
    async def sign_in(self, request: SessionCreate, *, address: str) -> SessionView:
        raise NotImplementedError

    async def authenticate(self, token: str) -> Caller:
        raise NotImplementedError

    async def sign_out(self, token: str) -> None:
        raise NotImplementedError

    async def list(self, query: PageQuery) -> Page[User]:
        raise NotImplementedError

    async def get(self, ref: str) -> User:
        raise NotImplementedError

    async def create(self, caller: Caller, request: UserCreate) -> User:
        raise NotImplementedError

    async def change(
        self, caller: Caller, ref: str, request: UserChange, if_match: Revision | None = None
    ) -> User:
        raise NotImplementedError

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        raise NotImplementedError
