"""`virtha hold`: no automatic action anywhere, until it is lifted."""

import msgspec

from virtha.control.effects import Dispatcher, Effects
from virtha.control.history import changes_between, record
from virtha.control.names import check_text
from virtha.control.requests import HoldPut
from virtha.control.views import Caller, HoldView
from virtha.model.errors import InvalidInput
from virtha.store.clusters import all_clusters
from virtha.store.installations import set_hold, the_installation
from virtha.store.store import Store


class Hold:
    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher

    async def get(self) -> HoldView:
        async with self._store.read() as tx:
            return HoldView(reason=(await the_installation(tx)).installation.hold)

    async def set(self, caller: Caller, request: HoldPut) -> HoldView:
        reason = check_text(request.reason, field="reason").strip()
        if not reason:
            raise InvalidInput(
                "is missing", field="reason", fix="say why: others will wonder at 3 a.m."
            )
        return await self._change(caller, reason)

    async def lift(self, caller: Caller) -> HoldView:
        return await self._change(caller, None)

    async def _change(self, caller: Caller, reason: str | None) -> HoldView:
        effects = Effects()
        async with self._store.write() as tx:
            present = (await the_installation(tx)).installation
            if present.hold != reason:
                await set_hold(tx, reason)
                told = changes_between(present, msgspec.structs.replace(present, hold=reason))
                if reason is None:
                    await record(tx, "hold.lifted", by=caller.name, **told)
                else:
                    await record(tx, "hold.set", by=caller.name, reason=reason, **told)
            # Also when nothing changed: who asks twice may doubt that the hosts got it.
            effects.clusters |= {cluster.id for cluster in await all_clusters(tx)}
        await self._dispatcher.carry_out(effects)
        return HoldView(reason=reason)
