"""The ASGI application: the route table turned into Litestar handlers, and errors into problems."""

import re
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from litestar import HttpMethod, Litestar, Request, route
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Method

from virtha.api.console_socket import console_handler
from virtha.api.decode import BODY_BYTES_MAX, decode_body, decode_query
from virtha.api.problems import (
    BY_STATUS,
    MEDIA_TYPE,
    TooLarge,
    UnsupportedMediaType,
    encode_problem,
    headers_of,
    problem_of,
)
from virtha.api.route import (
    IF_MATCH,
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
    Failed,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    VirthaError,
)
from virtha.model.ids import Revision
from virtha.model.user import Role

log = structlog.get_logger("virtha.api")
PEER_UID = "virtha_peer_uid"
"""Key in the ASGI connection state: the peer's uid on the Unix socket, set by the server from the
kernel's word. Absent on TCP; no header can set it."""
NOBODY = Caller(name="", role=Role.VIEWER)
ROOT = Caller(name="root", role=Role.ADMINISTRATOR)
AnyRequest = Request[Any, Any, Any]


def create_app(services: Services) -> Litestar:
    check_table(ROUTES)
    return Litestar(
        route_handlers=[
            *(_litestar_handler(one, services) for one in ROUTES),
            console_handler(services),
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
            answer = await _answer(one, request, services)
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
        assert isinstance(one.role, Role)
        if not caller.role.may(one.role):
            raise Forbidden(
                f"{caller.name} has the role {caller.role}; this needs {one.role}",
                allowed=tuple(role for role in Role if role.may(one.role)),
                fix="ask an administrator",
            )
    query: Any = decode_query(
        [(name, str(text)) for name, text in request.query_params.multi_items()], one.query
    )
    body = await _body(one, request)
    call: Call[Any, Any] = Call(
        services=services,
        caller=caller,
        token=token,
        address=request.client.host if request.client else "unix socket",
        path={name: str(value) for name, value in request.path_params.items()},
        query=query,
        body=body,
        if_match=_if_match(request) if one.conditional else None,
        headers={name.lower(): value for name, value in request.headers.items()},
    )
    return await one.handler(call)


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


def _if_match(request: AnyRequest) -> Revision | None:
    header = request.headers.get("if-match")
    if header is None or header.strip() == "*":
        return None
    if re.fullmatch(IF_MATCH, header.strip()) is None:
        raise InvalidInput(
            f"'{header}' is no ETag of ours",
            field="If-Match",
            fix='send the ETag that the object came with, for example "42"',
        )
    return Revision(int(header.strip().removeprefix("W/").strip('"')))


def _respond(one: Route, answer: Answer, services: Services) -> ASGIApp:
    headers = dict(answer.headers)
    if answer.revision is not None:
        headers["ETag"] = f'"{answer.revision}"'
    if answer.location is not None:
        headers["Location"] = answer.location
    headers.setdefault("Cache-Control", "no-store")
    if answer.stream is not None:
        return EventStreamResponse(answer.stream, headers, services.stopping, services.metrics)
    raw = answer.raw
    if raw is None and one.answer is not None:
        raw = encode(answer.body, one.answer)
    return ASGIResponse(
        body=raw or b"",
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
        case VirthaError():
            return error
        case NotFoundException():
            return NotFound(
                f"there is nothing at {path}", fix="GET /v1/openapi.json lists all paths"
            )
        case MethodNotAllowedException():
            return not_allowed(request.method, path, methods_of(path))
        case HTTPException() if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return TooLarge(
                "the body is too large", field="body", allowed=(f"up to {BODY_BYTES_MAX} bytes",)
            )
        case HTTPException() if error.status_code in BY_STATUS:
            return BY_STATUS[error.status_code](error.detail)
        case _:
            return _unexpected(request, error)


def _unexpected(request: AnyRequest, error: Exception) -> VirthaError:
    """A fault of ours: the user gets a number to quote, the log gets everything."""
    incident = uuid.uuid4().hex[:12]
    log.error(
        "request failed unexpectedly",
        incident=incident,
        method=request.method,
        path=request.url.path,
        exc_info=error,
    )
    return Failed(
        f"an error inside the server (incident {incident})",
        fix=f"the server's log has the details: look for {incident}",
    )


def methods_of(path: str) -> list[str]:
    """The methods that a concrete path takes, for Allow."""
    parts = path.rstrip("/").split("/")
    return sorted({one.method for one in ROUTES if _fits(one.path.split("/"), parts)})


def _fits(template: list[str], parts: list[str]) -> bool:
    return len(template) == len(parts) and all(
        want.startswith("{") or want == have for want, have in zip(template, parts, strict=True)
    )
