"""What is known: status, operations, events, capabilities, codes; health and metrics of the server."""

import asyncio
from typing import Any

from virtha.api.inventory import accepted
from virtha.api.metrics import CONTENT_TYPE
from virtha.api.openapi import document_json
from virtha.api.route import OPEN, OPERATOR, VIEWER, Answer, Call, NoBody, NoQuery, PartQuery, Route
from virtha.api.stream import event_chunks, read_id
from virtha.control.requests import EventQuery, OperationQuery
from virtha.control.views import CapabilitiesView, ForeignDomains, Page, StatusView
from virtha.model.codes import REGISTRY, Code, Severity
from virtha.model.errors import Gone, InvalidInput, NotFound, Unavailable, VirthaError
from virtha.model.event import Event
from virtha.model.ids import Revision
from virtha.model.operation import Operation
from virtha.model.value import Request, Value

WAIT_MS_MAX = 60_000
HEALTH_DEADLINE_S = 2.0


class WaitQuery(Request, frozen=True, kw_only=True):
    """``wait_ms``: answer when the operation is over, or after that time as it stands."""

    wait_ms: int = 0


class StreamQuery(Request, frozen=True, kw_only=True):
    """``after``: the last revision that the reader has; left out, only what happens from now on. The
    header Last-Event-ID, sent by a reader that comes again, goes before it."""

    vm: str | None = None
    host: str | None = None
    code: str | None = None
    severity: Severity | None = None
    after: int | None = None


class Health(Value, frozen=True, kw_only=True):
    status: str
    revision: Revision


async def health(call: Call[NoQuery, NoBody]) -> Answer:
    """200 only if the store answers, in time."""
    try:
        async with asyncio.timeout(HEALTH_DEADLINE_S):
            revision = await call.control.events.current_revision()
    except TimeoutError:
        raise Unavailable("the database does not answer", fix="look at the server's log") from None
    except VirthaError as error:
        raise Unavailable(str(error), code=error.code, fix="look at the server's log") from error
    return Answer(body=Health(status="ok", revision=revision))


async def metrics(call: Call[NoQuery, NoBody]) -> Answer:
    await call.services.refresh_metrics()
    return Answer(raw=call.services.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def openapi(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(raw=document_json().encode())


async def get_status(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.status.get())


async def get_capabilities(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.hosts.capabilities())


async def list_codes(call: Call[PartQuery, NoBody]) -> Answer:
    codes: Page[Code] = Page(items=tuple(REGISTRY.values()), revision=Revision(0))
    return Answer(body=codes)


async def list_operations(call: Call[OperationQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.operations.list(call.query))


async def get_operation(call: Call[WaitQuery, NoBody]) -> Answer:
    operations, wait_ms = call.control.operations, call.query.wait_ms
    if not 0 <= wait_ms <= WAIT_MS_MAX:
        raise InvalidInput(
            f"{wait_ms} is out of range", field="wait_ms", allowed=(f"0 to {WAIT_MS_MAX}",)
        )
    if wait_ms == 0:
        operation = await operations.get(call.path["id"])
    else:
        operation = await call.services.unless_stopping(operations.wait(call.path["id"], wait_ms))
    return Answer(body=operation, revision=operation.revision)


async def cancel_operation(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.operations.cancel(call.caller, call.path["id"]))


async def list_foreign(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.operations.foreign(call.path["id"]))


async def list_events(call: Call[EventQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.events.list(call.query))


async def stream_events(call: Call[StreamQuery, NoBody]) -> Answer:
    """Everything that can be refused is refused before the first byte, with a status."""
    events, wanted = call.control.events, call.query
    known = read_id(call.headers.get("last-event-id"))
    try:
        place = await events.place(*known) if known else await events.place(wanted.after)
    except (InvalidInput, Gone) as error:
        error.field = "Last-Event-ID" if known else error.field
        raise
    query = EventQuery(
        vm=wanted.vm,
        host=wanted.host,
        code=wanted.code,
        severity=wanted.severity,
        limit=1,
    )
    await events.list(query)  # raises NotFound for an unknown VM or host

    async def still_allowed() -> None:
        if call.token is not None:
            await call.control.users.authenticate(call.token)

    return Answer(stream=event_chunks(events.follow(query, place), still_allowed, place))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/healthz",
        role=OPEN,
        summary="Whether the server answers, its store included",
        handler=health,
        answer=Health,
        errors=(Unavailable,),
    ),
    Route(
        method="GET",
        path="/metrics",
        role=OPEN,
        summary="Figures for Prometheus",
        handler=metrics,
        media_type="text/plain",
    ),
    Route(
        method="GET",
        path="/v1/openapi.json",
        role=OPEN,
        summary="This document",
        handler=openapi,
        answer=dict[str, Any],
    ),
    Route(
        method="GET",
        path="/v1/status",
        role=VIEWER,
        summary="Am I protected?",
        handler=get_status,
        answer=StatusView,
    ),
    Route(
        method="GET",
        path="/v1/capabilities",
        role=VIEWER,
        summary="Watchdog models and actions on offer, per machine type and host",
        handler=get_capabilities,
        answer=CapabilitiesView,
    ),
    Route(
        method="GET",
        path="/v1/codes",
        role=VIEWER,
        summary="Every event, reason and problem with its number",
        handler=list_codes,
        query=PartQuery,
        cut_by=lambda code: code.name,
        answer=Page[Code],
    ),
    Route(
        method="GET",
        path="/v1/operations",
        role=VIEWER,
        summary="List operations, newest first",
        handler=list_operations,
        query=OperationQuery,
        answer=Page[Operation],
    ),
    Route(
        method="GET",
        path="/v1/operations/{id}",
        role=VIEWER,
        summary="Show an operation, or wait for its end",
        handler=get_operation,
        query=WaitQuery,
        answer=Operation,
        errors=(Unavailable,),
    ),
    Route(
        method="POST",
        path="/v1/operations/{id}/cancel",
        role=OPERATOR,
        summary="Take an operation back, as long as it only makes or copies disks",
        handler=cancel_operation,
        answer=Operation,
        status=202,
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/v1/operations/{id}/foreign",
        role=VIEWER,
        summary="What a scan found or an adoption did",
        handler=list_foreign,
        answer=ForeignDomains,
    ),
    Route(
        method="GET",
        path="/v1/events",
        role=VIEWER,
        summary="List events",
        handler=list_events,
        query=EventQuery,
        answer=Page[Event],
        errors=(Gone, NotFound),
    ),
    Route(
        method="GET",
        path="/v1/events/stream",
        role=VIEWER,
        summary="Follow events as they happen (SSE), resumable",
        handler=stream_events,
        query=StreamQuery,
        errors=(Gone, NotFound),
        media_type="text/event-stream",
    ),
)
