"""The ASGI application: the route table turned into Litestar handlers, and errors into problems."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import HttpMethod, Litestar, Request, route
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Method

from virtha.api.admission import check_fields, check_path, check_somewhere, defaulted, seeing_as
from virtha.api.console_socket import console_handler
from virtha.api.cursors import paged, placed
from virtha.api.decode import BODY_BYTES_MAX, decode_body, decode_query
from virtha.api.entity_tags import is_known, revision_in, tag_of
from virtha.api.errors import as_ours
from virtha.api.keyed import answer_once, key_of
from virtha.api.ovirt.app import ovirt_handlers
from virtha.api.problems import (
    MEDIA_TYPE,
    UnsupportedMediaType,
    encode_problem,
    headers_of,
    problem_of,
)
from virtha.api.route import (
    JSON,
    OPEN,
    Answer,
    Call,
    NoBody,
    Route,
    Services,
    check_table,
    not_allowed,
)
from virtha.api.stream import EventStreamResponse
from virtha.api.table import ROUTES
from virtha.api.times import encode
from virtha.control import Control
from virtha.control.views import Caller
from virtha.model.errors import (
    InvalidInput,
    NotFound,
    Unauthenticated,
    VirthaError,
)
from virtha.model.ids import Revision
from virtha.model.user import Role

PEER_UID = "virtha_peer_uid"
"""Key in the ASGI connection state: the peer's uid on the Unix socket, set by the server from the
kernel's word. Absent on TCP; no header can set it."""
NOBODY = Caller(name="", role=Role.VIEWER)
ROOT = Caller(name="root", role=Role.ADMINISTRATOR)
AnyRequest = Request[Any, Any, Any]
Handler = Callable[[], Awaitable[Answer]]


def create_app(services: Services) -> Litestar:
    check_table(ROUTES)
    return Litestar(
        route_handlers=[
            *(_litestar_handler(one, services) for one in ROUTES),
            console_handler(services),
            *ovirt_handlers(services),
        ],
        exception_handlers={Exception: _make_exception_handler(services)},
        openapi_config=None,  # ours comes from the same table: virtha/api/openapi.py
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,  # or it takes over the process's logging, and so the server's logs
        debug=False,
    )


def _litestar_handler(one: Route, services: Services) -> HTTPRouteHandler:
    @route(_litestar_path(one.path), http_method=_methods(one), status_code=200, name=one.name)
    async def handle(request: AnyRequest) -> ASGIApp:
        if request.method == "OPTIONS":
            allow = ", ".join([*methods_of(one.path), "OPTIONS"])
            return ASGIResponse(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": allow})
        began = time.perf_counter()
        status = 500
        try:
            answer = _encoded(one, await _answer(one, request, services))
            answer = _unless_known(one, answer, request)
            status = answer.status or one.status
            return _respond(one, answer, services)
        except VirthaError as error:
            status = error.http_status
            raise
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            services.metrics.requests.labels(one.method, one.path, str(status)).observe(
                time.perf_counter() - began
            )

    return handle


def _methods(one: Route) -> list[HttpMethod | Method]:
    """The first route of a path answers OPTIONS for all: Litestar's own names one handler's methods."""
    first = next(other for other in ROUTES if other.path == one.path)
    return [one.method, "OPTIONS"] if one is first else [one.method]


def _litestar_path(path: str) -> str:
    return path.replace("}", ":str}")


async def _answer(one: Route, request: AnyRequest, services: Services) -> Answer:
    token = _bearer(request)
    caller = NOBODY
    if one.role != OPEN:
        caller = await authenticate(request, token, services.control)
        check_somewhere(caller, one)
    path = {name: str(value) for name, value in request.path_params.items()}
    named = await check_path(services.control, caller, one, path) if one.role != OPEN else ()
    query: Any = decode_query(
        [(name, str(text)) for name, text in request.query_params.multi_items()], one.query
    )
    query = placed(one, path, query)
    key = key_of(one, request.headers)
    body = await _body(one, request)
    if one.role != OPEN:
        body = await check_fields(services.control, caller, one, query, body, named)
    call: Call[Any, Any] = Call(
        services=services,
        caller=caller,
        token=token,
        address=request.client.host if request.client else "unix socket",
        path=path,
        query=query,
        body=body,
        if_match=_if_match(one, request),
        headers={name.lower(): value for name, value in request.headers.items()},
    )
    handler = _handler(one, request, call)
    with seeing_as(services.control, caller, one):
        if key is None:
            return paged(one, path, query, await handler())
        return await answer_once(one, call, key, await _said(request, call), handler)


def _handler(one: Route, request: AnyRequest, call: Call[Any, Any]) -> Handler:
    """The route's own, whose refusals name nothing that its caller may not see: also where they are kept to be told again."""

    async def carried_out() -> Answer:
        try:
            return await one.handler(call)
        except VirthaError as error:
            if one.role == OPEN:
                raise
            said = f"{request.url} {call.path} {call.query} {call.body}"
            access = call.control.access
            raise await access.without_unseen(call.caller, error, said) from error

    return carried_out


async def _said(request: AnyRequest, call: Call[Any, Any]) -> bytes:
    """All that is asked for: the same, however its JSON is written."""
    raw = await request.body()
    body = msgspec.json.decode(raw) if raw.strip() else {}
    said = [
        request.method,
        request.url.path,
        request.url.query,
        request.headers.get("if-match", ""),
        body,
    ]
    if (chosen := defaulted(call.body, body)) is not None:
        # The only cluster that they saw then: another one later is another request.
        said.append(chosen)
    return msgspec.json.encode(said, order="sorted")


async def authenticate(request: AnyRequest, token: str | None, control: Control) -> Caller:
    """A token wins over the socket's peer, so that root can try out what another user may."""
    if token is not None:
        return await control.users.authenticate(token)
    if request.scope.get("state", {}).get(PEER_UID) == 0:
        return ROOT
    raise Unauthenticated(
        "no access token",
        fix="sign in with `virtha login URL`, or send the header Authorization: Bearer …",
    )


def _bearer(request: AnyRequest) -> str | None:
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(
            "the Authorization header is not understood", allowed=("Bearer virtha-access.…",)
        )
    return token.strip()


async def _body(one: Route, request: AnyRequest) -> Any:
    raw = await request.body()
    if not one.has_body:
        if raw.strip() not in (b"", b"{}"):
            raise InvalidInput("takes no body", field="body", fix="leave the body out")
        return NoBody()
    content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if raw and content_type != JSON:
        raise UnsupportedMediaType(
            f"the body is {content_type}",
            field="Content-Type",
            allowed=(JSON,),
            fix="send JSON with the header Content-Type: application/json",
        )
    if one.method == "PUT" and not raw.strip():
        # Not `{}`: a client whose body got lost must not put all back to its defaults.
        raise InvalidInput(
            "the body is missing", field="body", fix="send the whole object; {} is all defaults"
        )
    return decode_body(raw, one.body)


def _if_match(one: Route, request: AnyRequest) -> Revision | None:
    """Raises InvalidInput: a condition that nobody looks at must not be taken for one that was met."""
    for name, honoured in (("If-Match", one.conditional), ("If-None-Match", False)):
        if one.method != "GET" and not honoured and name.lower() in request.headers:
            raise InvalidInput(
                f"{one.name} has no such condition", field=name, fix="leave the header out"
            )
    header = request.headers.get("if-match")
    return revision_in(header) if header is not None and one.conditional else None


def _encoded(one: Route, answer: Answer) -> Answer:
    """With its bytes."""
    if answer.raw is not None or answer.stream is not None or one.answer is None:
        return answer
    return replace(answer, raw=encode(answer.body, one.answer))


def _unless_known(one: Route, answer: Answer, request: AnyRequest) -> Answer:
    """With its ETag, and nothing else where the sender has it already."""
    headers = {}
    if one.tagged:
        headers["ETag"] = tag_of(answer.revision, answer.raw)
    elif answer.revision is not None:
        headers["ETag"] = tag_of(answer.revision)
    answer = replace(answer, headers={**headers, **answer.headers})
    known = request.headers.get("if-none-match")
    if one.tagged and known is not None and is_known(known, headers["ETag"]):
        return replace(answer, raw=b"", status=HTTPStatus.NOT_MODIFIED)
    return answer


def _respond(one: Route, answer: Answer, services: Services) -> ASGIApp:
    headers = dict(answer.headers)
    if answer.location is not None:
        headers["Location"] = answer.location
    headers.setdefault("Cache-Control", "no-store")
    if answer.stream is not None:
        return EventStreamResponse(answer.stream, headers, services.stopping, services.metrics)
    return ASGIResponse(
        body=answer.raw or b"",
        status_code=answer.status or one.status,
        media_type=one.media_type,
        headers=headers,
    )


def _make_exception_handler(
    services: Services,
) -> Callable[[AnyRequest, Exception], Response[bytes]]:
    def handle(request: AnyRequest, error: Exception) -> Response[bytes]:
        known = _as_ours(request, error)
        if isinstance(error, NotFoundException | MethodNotAllowedException):
            # Never reached a handler, hence not counted there. Path and method are a stranger's
            # text and no labels: otherwise a scanner fills our memory with series.
            services.metrics.requests.labels("none", "none", str(known.http_status)).observe(0)
        headers = {"Cache-Control": "no-store", **headers_of(known)}
        if known.http_status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(known.allowed)
        return Response(
            encode_problem(problem_of(known)),
            status_code=known.http_status,
            media_type=MEDIA_TYPE,
            headers=headers,
        )

    return handle


def _as_ours(request: AnyRequest, error: Exception) -> VirthaError:
    path = request.url.path
    match error:
        case NotFoundException():
            return NotFound(
                f"there is nothing at {path}", fix="GET /v1/openapi.json lists all paths"
            )
        case MethodNotAllowedException():
            return not_allowed(request.method, path, methods_of(path))
        case _:
            return as_ours(request, error)


def methods_of(path: str) -> list[str]:
    """The methods that a concrete path takes, for Allow: those of the template that it is routed by. ``/v1/sessions/tokens``
    is written out in one, and is no id of a session."""
    parts = path.rstrip("/").split("/")
    fitting = [one for one in ROUTES if _fits(one.path.split("/"), parts)]
    closest = max((_written_out(one.path) for one in fitting), default=0)
    return sorted({one.method for one in fitting if _written_out(one.path) == closest})


def _fits(template: list[str], parts: list[str]) -> bool:
    return len(template) == len(parts) and all(
        want.startswith("{") or want == have for want, have in zip(template, parts, strict=True)
    )


def _written_out(template: str) -> int:
    return sum(not part.startswith("{") for part in template.split("/"))
