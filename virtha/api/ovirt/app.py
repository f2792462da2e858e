"""The façade as Litestar handlers: requests in oVirt's manner to the table's handlers, their answers and errors back."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus

from litestar import HttpMethod, Request, route
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from virtha.api.admission import check_somewhere
from virtha.api.errors import as_ours
from virtha.api.ovirt import json_codec, xml_codec
from virtha.api.ovirt.admission import XML, body_kind, check_form_size, check_removal, check_site
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.fault import (
    NotAcceptable,
    Unexpected,
    fault_headers,
    fault_of,
    not_here,
    status_of,
)
from virtha.api.ovirt.follow import Links
from virtha.api.ovirt.parameters import Parameters, check_known, read_parameters
from virtha.api.ovirt.rights import answered, check
from virtha.api.ovirt.route import Call, Reply, Route, Routes
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.sign_in import BasicSessions, caller_of, failed_sign, log_out, token
from virtha.api.ovirt.table import ROUTES
from virtha.api.route import JSON, Services
from virtha.control.views import Caller
from virtha.model.errors import InvalidInput, NotFound, VirthaError

ENGINE = "/ovirt-engine"
ROOTS = (f"{ENGINE}/api", "/api")
"""The second as in the source document; hrefs begin with the one that was asked."""
SIGN_IN = ("/sso/oauth/token",)
LOG_OUT = ("/services/sso-logout", "/sso/oauth/revoke")
VERSION = "4"
READ_AS_XML = (XML, "text/xml", "application/*", "*/*", "text/*")
METHODS = [one for one in HttpMethod if one not in (HttpMethod.OPTIONS, HttpMethod.TRACE)]
AnyRequest = Request[object, object, object]  # type: ignore[type-var]  # of whatever user and state
TABLE = Routes(ROUTES)


def ovirt_handlers(services: Services) -> Sequence[HTTPRouteHandler]:
    facade = Facade(services)
    paths = [path for root in ROOTS for path in (root, f"{root}/{{rest:path}}")]

    @route(paths, http_method=METHODS, status_code=200, name="ovirt")
    async def api(request: AnyRequest) -> ASGIApp:
        return await facade.answer(request)

    @route(f"{ENGINE}/{{rest:path}}", http_method=METHODS, status_code=200, name="ovirt-services")
    async def engine(request: AnyRequest) -> ASGIApp:
        return await facade.service(request)

    return (api, engine)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """In which form an answer goes out."""

    json: bool = False
    base: str = ROOTS[0]

    @property
    def media_type(self) -> str:
        return JSON if self.json else XML


class Facade:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._basic = BasicSessions()

    async def answer(self, request: AnyRequest) -> ASGIApp:
        began, method = time.perf_counter(), _method(request)
        base = next(one for one in ROOTS if request.scope["path"].startswith(one))
        form, found = _Form(base=base), None
        try:
            form = replace(form, json=_wants_json(request.headers.get("accept")))
            path, pairs = _apart(request.scope["path"].removeprefix(base))
            _check_version(request.headers.get("version"))
            check_site(method, request.headers, self._services.origins)
            caller = await self._caller(request)
            found, named = TABLE.find(method, path)
            pairs += [(name, str(text)) for name, text in request.query_params.multi_items()]
            parameters = read_parameters(pairs)
            if method == "DELETE":
                check_known(parameters)
            reply = await self._handle(request, found, named, parameters, caller)
            response = await _respond(reply, form)
        except Exception as error:
            # Whatever it is, stock clients read a fault; ``as_ours`` logs what is a mistake of ours.
            reply = _fault(as_ours(request, error, Unexpected), found)
            response = await _respond(reply, form, _headers(error))
        label = base + found.path if found is not None else "none"
        self._services.metrics.requests.labels(
            method if found is not None else "none", label, str(reply.status)
        ).observe(time.perf_counter() - began)
        return response

    async def _caller(self, request: AnyRequest) -> Caller:
        header = request.headers.get("authorization")
        return await caller_of(header, self._services, self._basic, _address(request))

    async def _handle(
        self,
        request: AnyRequest,
        found: Route,
        named: dict[str, str],
        parameters: Parameters,
        caller: Caller,
    ) -> Reply:
        check_somewhere(caller, found)
        if parameters.search.strip() and not found.searched:
            raise InvalidInput(
                f"is not read at {found.path or '/'}",
                field="search",
                fix="leave it out, and look through the answer",
            )
        if "schema" in parameters.given:
            raise not_here("the XML schema", "oVirt's own describes the same types")
        call = Call(
            services=self._services,
            caller=caller,
            path=named,
            parameters=parameters,
            body=await _body(request, found),
        )
        await check(call, found)
        reply = _cut(await answered(call, found), parameters.max)
        # What was carried out is not answered as refused because a link of the answer can't be followed.
        if parameters.follow and reply.body and found.method == "GET":
            await self._follow(call, reply)
            return replace(reply, followed=True)
        return reply

    async def _follow(self, call: Call, reply: Reply) -> None:
        async def look(href: str) -> Reply:
            found, named = TABLE.find("GET", href)
            linked = replace(call, path=named, parameters=Parameters(), body={})
            await check(linked, found)
            return await answered(linked, found)

        assert reply.body is not None
        nodes = [reply.body] if isinstance(reply.body, dict) else list(reply.body)
        await Links(look).follow(SHAPES[reply.shape], nodes, call.parameters.follow)

    # What oVirt has beside its API

    async def service(self, request: AnyRequest) -> ASGIApp:
        path, method = request.scope["path"].removeprefix(ENGINE), _method(request)
        if method == "POST" and path in (*SIGN_IN, *LOG_OUT):
            return await self._sign(request, path)
        try:
            if (method, path) == ("GET", "/services/pki-resource"):
                certificate = self._services.authority.certificate_pem()
                return _plain(certificate.encode(), 200, "application/x-x509-ca-cert")
            raise NotFound(f"there is nothing at {ENGINE}{path[:200]}")
        except Exception as error:  # as above
            known = as_ours(request, error, Unexpected)
            return await _respond(_fault(known, None), _Form(), _headers(error))

    async def _sign(self, request: AnyRequest, path: str) -> ASGIApp:
        """Its clients read nothing but JSON, of whatever went wrong."""
        try:
            check_site(request.method, request.headers, self._services.origins)
            raw = await request.body()
            check_form_size(raw)
            if path in SIGN_IN:
                status, body = await token(raw, self._services, _address(request))
            else:
                status, body = await log_out(raw, self._services)
            return _plain(body, status, JSON)
        except Exception as error:  # as above
            known = as_ours(request, error, Unexpected)
            status, body = failed_sign(known)
            return _plain(body, status, JSON, _headers(error))


def _method(request: AnyRequest) -> str:
    """HEAD is answered as GET is; its body is left out by whoever sends it."""
    return "GET" if request.method == HttpMethod.HEAD else request.method


def _address(request: AnyRequest) -> str:
    return request.client.host if request.client else "unix socket"


def _check_version(header: str | None) -> None:
    if header is not None and header.strip() not in ("", VERSION):
        raise InvalidInput(
            f"version {header[:16]} of the API is not offered", field="Version", allowed=(VERSION,)
        )


def _apart(path: str) -> tuple[str, list[tuple[str, str]]]:
    """``/v4/vms;max=1`` to ``/vms`` and its matrix parameters."""
    if path.startswith(f"/v{VERSION}/") or path == f"/v{VERSION}":
        path = path.removeprefix(f"/v{VERSION}")
    parts, pairs = [], []
    for part in path.split("/"):
        name, *given = part.split(";")
        parts.append(name)
        pairs += [(one.partition("=")[0], one.partition("=")[2]) for one in given if one]
    return "/".join(parts), pairs


def _wants_json(accept: str | None) -> bool:
    """XML unless JSON is preferred. Raises NotAcceptable."""
    ranges = []
    for one in (accept or XML).lower().split(","):
        name, *rest = (part.strip() for part in one.split(";"))
        quality = next((part[2:] for part in rest if part.startswith("q=")), "1")
        try:
            ranges.append((float(quality), name))
        except ValueError:
            ranges.append((0.0, name))
    best = {name: quality for quality, name in sorted(ranges)}
    json = best.get(JSON, 0.0)
    xml = max((best.get(name, 0.0) for name in READ_AS_XML), default=0.0)
    if not json and not xml:
        raise NotAcceptable("neither XML nor JSON is accepted", field="Accept", allowed=(XML, JSON))
    return json > xml or (json == xml and XML not in best and "*/*" not in best)


def _cut(reply: Reply, at_most: int | None) -> Reply:
    """``max`` holds of each collection, also of those that are read whole."""
    if reply.body is None or isinstance(reply.body, dict) or at_most is None:
        return reply
    return replace(reply, body=reply.body[:at_most])


async def _body(request: AnyRequest, found: Route) -> Node:
    if found.method == "DELETE":
        check_removal(await request.body())
    if not found.reads:
        return {}
    raw, header = await request.body(), request.headers.get("content-type")
    shape = SHAPES[found.reads]
    kind = body_kind(header) if raw or header is not None else XML
    if not raw.strip():
        if found.action:
            return {}
        raise InvalidInput("the body is missing", field="body", fix=f"send a <{shape.name}>")
    if kind == JSON:
        return json_codec.decode(raw, shape)
    return xml_codec.decode(raw, shape)


async def _respond(
    reply: Reply, form: _Form, headers: dict[str, str] | None = None
) -> ASGIResponse:
    if reply.body is None:
        return _plain(b"", reply.status, form.media_type, headers)
    codec = json_codec if form.json else xml_codec
    shape, body = SHAPES[reply.shape], reply.body
    if isinstance(body, dict):
        if reply.status in (HTTPStatus.CREATED, HTTPStatus.ACCEPTED):
            headers = {"Location": form.base + body["href"], **(headers or {})}
        write = partial(codec.encode_one, shape, body, form.base)
        # Of followed links a single node may have 20,000 behind it: beats are read beside it.
        raw = await asyncio.to_thread(write) if reply.followed else write()
        return _plain(raw, reply.status, form.media_type, headers)
    parts = codec.encode_many(shape, body, form.base)
    if reply.followed:
        raw = await asyncio.to_thread(b"".join, parts)
        return _plain(raw, reply.status, form.media_type, headers)
    written = []
    for part in parts:
        written.append(part)
        await asyncio.sleep(0)  # 20,000 VMs take a second: beats don't wait for all of it
    return _plain(b"".join(written), reply.status, form.media_type, headers)


def _plain(
    raw: bytes, status: int, media_type: str, headers: dict[str, str] | None = None
) -> ASGIResponse:
    return ASGIResponse(
        body=raw,
        status_code=status,
        media_type=media_type,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def _fault(error: VirthaError, found: Route | None) -> Reply:
    fault, status = fault_of(error), status_of(error)
    if found is not None and found.action:
        body = {"status": "failed", "fault": fault}
        return Reply(shape="action", body=body, status=status)
    return Reply(shape="fault", body=fault, status=status)


def _headers(error: Exception) -> dict[str, str]:
    if not isinstance(error, VirthaError):
        return {}
    headers = fault_headers(error)
    if error.http_status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(error.allowed)
    return headers
