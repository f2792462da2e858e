"""Settings at their scopes, and the hold on automatic action."""

from virtha.api.route import (
    ADMINISTRATOR,
    OPERATOR,
    VIEWER,
    Answer,
    Call,
    NoBody,
    NoQuery,
    PartQuery,
    Route,
)
from virtha.control.requests import HoldPut, SettingPut
from virtha.control.views import HoldView, Page, SettingView
from virtha.model.ids import Revision
from virtha.model.user import SettingScope
from virtha.model.value import Request


class ScopeQuery(Request, frozen=True, kw_only=True):
    """``subject``: id or name of the cluster or host; none for the global scope."""

    scope: SettingScope = SettingScope.GLOBAL
    subject: str | None = None


async def list_settings(call: Call[PartQuery, NoBody]) -> Answer:
    settings = await call.control.settings.list()
    revision = max((setting.revision for setting in settings), default=Revision(0))
    return Answer(body=Page(items=settings, revision=revision))


async def put_setting(call: Call[ScopeQuery, SettingPut]) -> Answer:
    query = call.query
    setting = await call.control.settings.put(
        call.caller,
        call.path["key"],
        call.body,
        scope=query.scope,
        subject=query.subject,
        if_match=call.if_match,
    )
    return Answer(body=setting, revision=setting.revision)


async def delete_setting(call: Call[ScopeQuery, NoBody]) -> Answer:
    query = call.query
    await call.control.settings.delete(
        call.caller,
        call.path["key"],
        scope=query.scope,
        subject=query.subject,
        if_match=call.if_match,
    )
    return Answer()


async def get_hold(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.hold.get())


async def set_hold(call: Call[NoQuery, HoldPut]) -> Answer:
    return Answer(body=await call.control.hold.set(call.caller, call.body))


async def lift_hold(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.hold.lift(call.caller))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/settings",
        role=VIEWER,
        summary="List settings",
        handler=list_settings,
        query=PartQuery,
        cut_by=lambda one: f"{one.key} {one.scope} {one.subject}",
        answer=Page[SettingView],
    ),
    Route(
        method="PUT",
        path="/v1/settings/{key}",
        role=ADMINISTRATOR,
        summary="Set a setting at a scope",
        handler=put_setting,
        query=ScopeQuery,
        body=SettingPut,
        answer=SettingView,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/settings/{key}",
        role=ADMINISTRATOR,
        summary="Back to the default or the wider scope",
        handler=delete_setting,
        query=ScopeQuery,
        status=204,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/hold",
        role=VIEWER,
        summary="Whether automatic action is on hold",
        handler=get_hold,
        answer=HoldView,
    ),
    Route(
        method="PUT",
        path="/v1/hold",
        role=OPERATOR,
        summary="Hold all automatic action",
        handler=set_hold,
        body=HoldPut,
        answer=HoldView,
    ),
    Route(
        method="DELETE",
        path="/v1/hold",
        role=OPERATOR,
        summary="Let automatic action run again",
        handler=lift_hold,
        answer=HoldView,
    ),
)
