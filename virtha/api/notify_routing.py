"""Silences, inhibitions, and what became of an event at each route: thin over control."""

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
from virtha.control.requests import InhibitionCreate, SilenceCreate, SilenceQuery
from virtha.control.routing_views import EventFates, InhibitionView, SilenceView
from virtha.control.views import Page
from virtha.model.errors import InvalidInput, NotFound, Refused


async def list_silences(call: Call[SilenceQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.silences.list(call.query))


async def create_silence(call: Call[NoQuery, SilenceCreate]) -> Answer:
    made = await call.control.silences.create(call.caller, call.body)
    location = f"/v1/silences/{made.silence.id}"
    return Answer(body=made, revision=made.silence.revision, location=location)


async def get_silence(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.silences.get(call.path["id"])
    return Answer(body=view, revision=view.silence.revision)


async def end_silence(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.silences.end(call.caller, call.path["id"])
    return Answer(body=view, revision=view.silence.revision)


async def list_inhibitions(call: Call[PartQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.inhibitions.list())


async def create_inhibition(call: Call[NoQuery, InhibitionCreate]) -> Answer:
    made = await call.control.inhibitions.create(call.caller, call.body)
    location = f"/v1/inhibitions/{made.inhibition.id}"
    return Answer(body=made, revision=made.inhibition.revision, location=location)


async def get_inhibition(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.inhibitions.get(call.ref)
    return Answer(body=view, revision=view.inhibition.revision)


async def delete_inhibition(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.inhibitions.delete(call.caller, call.ref)
    return Answer()


async def get_fates(call: Call[NoQuery, NoBody]) -> Answer:
    text = call.path["id"]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidInput(
            f"'{text[:50]}' is no event's number", field="id", fix="use an event's revision"
        )
    return Answer(body=await call.control.events.fates(int(text)))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/silences",
        role=VIEWER,
        summary="List silences that have not ended, the next to end first",
        handler=list_silences,
        query=SilenceQuery,
        answer=Page[SilenceView],
    ),
    Route(
        method="POST",
        path="/v1/silences",
        role=OPERATOR,
        summary="Silence notifications of some events for a while",
        handler=create_silence,
        body=SilenceCreate,
        answer=SilenceView,
        status=201,
        errors=(NotFound, Refused),
    ),
    Route(
        method="GET",
        path="/v1/silences/{id}",
        role=VIEWER,
        summary="Show a silence",
        handler=get_silence,
        answer=SilenceView,
    ),
    Route(
        method="POST",
        path="/v1/silences/{id}/end",
        role=OPERATOR,
        summary="End a silence now; what it held back and still goes on is told",
        handler=end_silence,
        answer=SilenceView,
        errors=(Refused,),
    ),
    Route(
        method="GET",
        path="/v1/inhibitions",
        role=VIEWER,
        summary="List rules of inhibition",
        handler=list_inhibitions,
        query=PartQuery,
        cut_by=lambda one: one.inhibition.name,
        answer=Page[InhibitionView],
    ),
    Route(
        method="POST",
        path="/v1/inhibitions",
        role=ADMINISTRATOR,
        summary="Create a rule: while one problem is told of, events that it explains are not",
        handler=create_inhibition,
        body=InhibitionCreate,
        answer=InhibitionView,
        status=201,
        errors=(NotFound, Refused),
    ),
    Route(
        method="GET",
        path="/v1/inhibitions/{ref}",
        role=VIEWER,
        summary="Show a rule of inhibition",
        handler=get_inhibition,
        answer=InhibitionView,
    ),
    Route(
        method="DELETE",
        path="/v1/inhibitions/{ref}",
        role=ADMINISTRATOR,
        summary="Remove a rule of inhibition; what it held back and still goes on is told",
        handler=delete_inhibition,
        status=204,
    ),
    Route(
        method="GET",
        path="/v1/events/{id}/fates",
        role=VIEWER,
        summary="What became of an event at each notification route, and why",
        handler=get_fates,
        answer=EventFates,
    ),
)
