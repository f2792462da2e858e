"""The watchdog of a VM, and of a template: the same routes for both, thin over control."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from virtha.api.route import OPERATOR, VIEWER, Answer, Call, NoBody, NoQuery, Route
from virtha.control import Control
from virtha.control.requests import WatchdogRequest
from virtha.control.views import Caller
from virtha.model.ids import Revision
from virtha.model.template import Template
from virtha.model.vm import Vm
from virtha.model.watchdog import Watchdog

V = TypeVar("V")
Shown = TypeVar("Shown", covariant=True)
Owner = Vm | Template


class Keeper(Protocol[Shown]):
    """The use cases of what has one; they answer with its view."""

    async def with_watchdog(self, ref: str) -> Owner: ...

    async def add_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None
    ) -> Shown: ...

    async def put_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None
    ) -> Shown: ...

    async def remove_watchdog(
        self, caller: Caller, ref: str, if_match: Revision | None
    ) -> Shown: ...


def watchdog_routes(
    collection: str,
    owner: str,
    *,
    keeper: Callable[[Control], Keeper[V]],
    record: Callable[[V], Owner],
) -> tuple[Route, ...]:
    """``owner`` is for people: whose it is."""
    path = f"/v1/{collection}/{{ref}}/watchdog"

    def changed(view: V) -> Answer:
        one = record(view)
        return Answer(
            body=one.watchdog,
            revision=one.revision,
            location=f"/v1/{collection}/{one.id}/watchdog",
        )

    async def get_watchdog(call: Call[NoQuery, NoBody]) -> Answer:
        one = await keeper(call.control).with_watchdog(call.ref)
        return Answer(body=one.watchdog, revision=one.revision)

    async def add_watchdog(call: Call[NoQuery, WatchdogRequest]) -> Answer:
        cards = keeper(call.control)
        return changed(await cards.add_watchdog(call.caller, call.ref, call.body, call.if_match))

    async def put_watchdog(call: Call[NoQuery, WatchdogRequest]) -> Answer:
        cards = keeper(call.control)
        return changed(await cards.put_watchdog(call.caller, call.ref, call.body, call.if_match))

    async def remove_watchdog(call: Call[NoQuery, NoBody]) -> Answer:
        await keeper(call.control).remove_watchdog(call.caller, call.ref, call.if_match)
        return Answer()

    return (
        Route(
            method="GET",
            path=path,
            role=VIEWER,
            summary=f"Show {owner}'s watchdog",
            handler=get_watchdog,
            answer=Watchdog,
        ),
        Route(
            method="POST",
            path=path,
            role=OPERATOR,
            summary=f"Give {owner} its watchdog",
            handler=add_watchdog,
            body=WatchdogRequest,
            answer=Watchdog,
            status=201,
            conditional=True,
        ),
        Route(
            method="PUT",
            path=path,
            role=OPERATOR,
            summary=f"Replace {owner}'s watchdog",
            handler=put_watchdog,
            body=WatchdogRequest,
            answer=Watchdog,
            conditional=True,
        ),
        Route(
            method="DELETE",
            path=path,
            role=OPERATOR,
            summary=f"Remove {owner}'s watchdog",
            handler=remove_watchdog,
            status=204,
            conditional=True,
        ),
    )
