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


class Vms:
    async def list(self, query: VmQuery) -> Page[VmView]:
        raise NotImplementedError

    async def get(self, ref: str) -> VmView:
        raise NotImplementedError

    async def create(self, caller: Caller, request: VmCreate) -> Operation:
        raise NotImplementedError

    async def change(
        self, caller: Caller, ref: str, request: VmChange, if_match: Revision | None = None
    ) -> VmView:
        raise NotImplementedError

    async def delete(
        self,
        caller: Caller,
        ref: str,
        *,
        keep_disks: bool = False,
        if_match: Revision | None = None,
    ) -> Operation:
        raise NotImplementedError

    async def start(self, caller: Caller, ref: str, request: VmStart) -> Operation:
        raise NotImplementedError

    async def shutdown(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def power_off(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def reboot(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def reset(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def pause(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def resume(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def release(self, caller: Caller, ref: str) -> Operation:
        raise NotImplementedError

    async def watchdog(self, ref: str) -> Watchdog:
        raise NotImplementedError

    async def add_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None = None
    ) -> VmView:
        raise NotImplementedError

    async def put_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None = None
    ) -> VmView:
        raise NotImplementedError

    async def remove_watchdog(
        self, caller: Caller, ref: str, if_match: Revision | None = None
    ) -> VmView:
        raise NotImplementedError
