"""What one route is: method, path, role, types, handler. Router and OpenAPI document both come from it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from virtha.api.metrics import Metrics
from virtha.api.problems import MethodNotAllowed
from virtha.control import Control
from virtha.control.views import Caller
from virtha.model.access import AREAS, Permission, Scope, needed
from virtha.model.errors import (
    Conflict,
    Forbidden,
    Gone,
    InvalidInput,
    NotFound,
    Refused,
    Stale,
    Unauthenticated,
    Unavailable,
    VirthaError,
)
from virtha.model.ids import Revision
from virtha.model.user import Role
from virtha.model.value import Request
from virtha.ports.authority import Authority

Q = TypeVar("Q")
B = TypeVar("B")
T = TypeVar("T")
OPEN: Literal["open"] = "open"
Access = Role | Literal["open"]
VIEWER, OPERATOR, ADMINISTRATOR = Role.VIEWER, Role.OPERATOR, Role.ADMINISTRATOR
JSON = "application/json"


class NoQuery(Request, frozen=True, kw_only=True):
    """A route without parameters refuses them all, so that a misspelt one is not silently ignored."""


class PartQuery(Request, frozen=True, kw_only=True):
    """Of a list that is never long: without ``limit`` all of it."""

    limit: int | None = None
    after: str | None = None


class NoBody(Request, frozen=True, kw_only=True):
    """A route without a body."""


async def _nothing() -> None:
    """No gauges to bring up to date."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the handlers work with; made by the wiring."""

    control: Control
    authority: Authority
    metrics: Metrics = field(default_factory=Metrics)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server stops: streams and waits end at once, so that nothing waits for them."""
    refresh_metrics: Callable[[], Awaitable[None]] = _nothing
    """Brings gauges up to date when they are read."""
    origins: frozenset[str] = frozenset()
    """``server.toml``'s: of browsers that come through a proxy which gives the server another Host."""

    async def unless_stopping(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises Unavailable as soon as the server stops; the work is cancelled then."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Unavailable("the server is stopping", fix="ask again in a moment")
            return task.result()
        finally:
            stop.cancel()
            task.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Q, B]):
    """One request as its handler sees it: typed, authenticated, allowed."""

    services: "Services"
    caller: Caller
    """Of an open route: nobody, with the role viewer and no name."""
    token: str | None
    """The access token's text, if there was one."""
    address: str
    """Where the request came from, for the audit log."""
    path: dict[str, str]
    query: Q
    body: B
    if_match: Revision | None
    headers: dict[str, str]
    """Names in lower case."""

    @property
    def control(self) -> Control:
        return self.services.control

    @property
    def ref(self) -> str:
        return self.path["ref"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """``revision`` becomes the ETag; ``stream`` takes the place of ``body``."""

    body: Any = None
    status: int | None = None
    """None: the route's own."""
    revision: int | None = None
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    stream: AsyncGenerator[bytes, None] | None = None


Handler = Callable[[Call[Any, Any]], Awaitable[Answer]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """``role`` has no default: a route nobody has thought about must not exist. It is the least of the fixed roles that may use it, and
    with its area the permission that it needs (``model/access.py``)."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    """With ``{ref}`` and ``{key}`` for path parameters."""
    role: Access
    summary: str
    handler: Handler
    query: type = NoQuery
    body: type = NoBody
    answer: Any = None
    """Type of the answer's body; None: there is none."""
    status: int = 200
    media_type: str = JSON
    conditional: bool = False
    """Honours If-Match."""
    cut_by: Callable[[Any], str] | None = None
    """Each item's own key, of a list that comes whole and is cut into pages here; its query is a PartQuery."""
    secret: bool = False
    """What it answers is shown once and kept nowhere."""
    errors: tuple[type[VirthaError], ...] = ()
    """Beyond those that every route may answer."""
    own_area: str | None = None
    """Where it is not the first word of its path: what may be granted apart from the rest."""

    def __post_init__(self) -> None:
        assert self.role == OPEN or isinstance(self.role, Role), f"{self.path}: needs a role"
        assert self.path.startswith("/") and self.method in METHODS, self.path
        assert self.status in (200, 201, 202, 204), self.path
        if self.role != OPEN:
            assert self.area in AREAS, f"{self.path}: of which area is it?"
            assert self.permission in Permission, f"{self.path}: needs a permission"
            may_change = self.permission is not Permission.VIEW or self.scope is Scope.OWN
            assert self.method == "GET" or may_change, f"{self.path}: changes need a permission"
        assert (self.cut_by is not None) == issubclass(self.query, PartQuery), self.path

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def area(self) -> str:
        return self.own_area or self.path.split("/")[2]

    @property
    def scope(self) -> Scope:
        return AREAS[self.area]

    @property
    def permission(self) -> Permission:
        """Of a route that is not open. Raises ValueError: its area has none of that level."""
        assert isinstance(self.role, Role), self.path
        return needed(self.area, self.role)

    @property
    def parameters(self) -> list[str]:
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    @property
    def has_body(self) -> bool:
        return self.body is not NoBody

    @property
    def keyed(self) -> bool:
        """Honours Idempotency-Key: it makes something, or sets something going."""
        makes = self.method == "POST" and self.status in (201, 202)
        return makes and self.role != OPEN and not self.secret

    @property
    def tagged(self) -> bool:
        """Its answer has an ETag of its own and honours If-None-Match."""
        return self.method == "GET" and self.answer is not None

    @property
    def problems(self) -> list[type[VirthaError]]:
        """Every error that the route may answer, by status."""
        found: set[type[VirthaError]] = {InvalidInput, *self.errors}
        if self.role != OPEN:
            found |= {Unauthenticated, Forbidden}
        if self.parameters:
            found.add(NotFound)
        if self.method != "GET":
            found |= {Conflict, Refused}
        if self.conditional:
            found.add(Stale)
        if self.cut_by is not None:
            found.add(Gone)
        return sorted(found, key=lambda error: error.http_status)


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def check_table(routes: tuple[Route, ...]) -> None:
    """Fails at construction of the app: two routes of one name, or one without a thought-out role."""
    seen: set[str] = set()
    for route in routes:
        assert isinstance(route, Route), f"{route!r} is no Route"
        assert route.name not in seen, f"{route.name} is there twice"
        seen.add(route.name)


def not_allowed(method: str, path: str, allowed: list[str]) -> MethodNotAllowed:
    return MethodNotAllowed(
        f"{method} is not possible on {path}", field="method", allowed=tuple(allowed)
    )
