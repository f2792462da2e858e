"""One route of the façade, what its handler is given and answers, and how a path finds it."""

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from virtha.api.ovirt.parameters import Parameters
from virtha.api.ovirt.shape import Node
from virtha.api.problems import MethodNotAllowed
from virtha.api.route import Services
from virtha.control import Control
from virtha.control.views import Caller, HostView, StorageView, TemplateView, VmView
from virtha.model.access import AREAS, Permission, Scope, needed
from virtha.model.errors import NotFound
from virtha.model.host import Cluster
from virtha.model.ids import ClusterId, TemplateId, VmId
from virtha.model.snapshot import Snapshot
from virtha.model.user import Role, User
from virtha.model.vm import Disk, Nic

VIEWER, OPERATOR, ADMINISTRATOR = Role.VIEWER, Role.OPERATOR, Role.ADMINISTRATOR
AREA_OF = {
    "": "status",
    "capabilities": "capabilities",
    "clusterlevels": "capabilities",
    "clusters": "clusters",
    "datacenters": "clusters",
    "disks": "vms",
    "events": "events",
    "hosts": "hosts",
    "jobs": "operations",
    "networks": "hosts",
    "operatingsystems": "capabilities",
    "permissions": "sessions",  # the caller's own; administrators see everybody's
    "roles": "capabilities",
    "storagedomains": "storage-domains",
    "tags": "capabilities",
    "templates": "templates",
    "users": "sessions",  # as permissions are
    "vms": "vms",
    "vnicprofiles": "hosts",
}
"""By a path's first word: the native area (``model/access.py``) whose permission opens it."""
Method = Literal["GET", "POST", "PUT", "DELETE"]


@dataclass(kw_only=True)
class Known:
    """What this request has read already: following the links of a list reads none of it again. None: not yet."""

    vms: dict[str, VmView] = field(default_factory=dict)
    all_vms: Sequence[VmView] | None = None
    hosts: dict[str, HostView] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    domains: dict[str, StorageView] = field(default_factory=dict)
    all_domains: Sequence[StorageView] | None = None
    disk_owners: dict[str, VmView] = field(default_factory=dict)
    """Of the disks of ``vms``, by the disk's id."""
    underway: Mapping[str, set[str]] | None = None
    """Kinds of open operations, by the id of what they are about."""
    being_added: Mapping[VmId, tuple[Disk | Nic, ...]] | None = None
    snapshots: dict[VmId, Sequence[Snapshot]] = field(default_factory=dict)
    """Of those of ``vms`` of which they were asked for; so ``templates_of``."""
    templates_of: dict[VmId, TemplateId | None] = field(default_factory=dict)
    bridges: tuple[tuple[ClusterId, str], ...] | None = None
    templates: Sequence[TemplateView] | None = None
    users: list[User] | None = None

    def vms_without(self, of: Container[VmId]) -> list[VmId]:
        """Those that were read and aren't in ``of``: of the links of a list's first VM, of all of them."""
        return [view.vm.id for view in self.vms.values() if view.vm.id not in of]

    def add_vms(self, views: Sequence[VmView]) -> None:
        for view in views:
            self.vms[view.vm.id] = view
            self.disk_owners.update({disk.id: view for disk in view.vm.disks})


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, signed in and allowed. ``path``: what stands for each ``{name}`` of the route."""

    services: Services
    caller: Caller
    path: dict[str, str]
    parameters: Parameters
    body: Node
    known: Known = field(default_factory=Known)

    @property
    def control(self) -> Control:
        return self.services.control


@dataclass(frozen=True, kw_only=True)
class Reply:
    """``body``: one node, a sequence of nodes (a collection), or None: nothing but the status. ``followed``: its links may have
    brought in more than there are nodes."""

    shape: str = ""
    body: Node | Sequence[Node] | None = None
    status: int = 200
    followed: bool = False


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """``reads``: the type of the body; empty: there is none to be read. ``action``: its faults are actions that failed.
    ``searched``: it reads ``search``; where that is not read it is refused, for an answer of all would look like one that was
    found."""

    method: Method
    path: str
    role: Role
    handler: Handler
    reads: str = ""
    action: bool = False
    searched: bool = False
    own_area: str | None = None
    """Where it is not that of the path's first word."""
    everywhere: bool = False
    """It makes something that is in no cluster yet: what its body names of one's own is no right to it."""

    def __post_init__(self) -> None:
        assert isinstance(self.role, Role), f"{self.path}: needs a role"
        assert self.permission in Permission, f"{self.path}: needs a permission"
        may_change = self.permission is not Permission.VIEW
        assert self.method == "GET" or may_change, f"{self.path}: changes need a permission"
        assert self.path.startswith("/") or not self.path, self.path

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def area(self) -> str:
        """Of the native API. Raises KeyError: nobody has said yet what that is in it."""
        return self.own_area or AREA_OF[self.path.split("/")[1] if self.path else ""]

    @property
    def scope(self) -> Scope:
        return AREAS[self.area]

    @property
    def permission(self) -> Permission:
        """Raises ValueError: its area has none of that level."""
        return needed(self.area, self.role)


def get(path: str, handler: Handler, role: Role = VIEWER, area: str | None = None) -> Route:
    return Route(method="GET", path=path, role=role, handler=handler, own_area=area)


def searched(path: str, handler: Handler, role: Role = VIEWER, area: str | None = None) -> Route:
    return Route(method="GET", path=path, role=role, handler=handler, searched=True, own_area=area)


def post(
    path: str,
    handler: Handler,
    reads: str,
    role: Role = OPERATOR,
    area: str | None = None,
    *,
    everywhere: bool = False,
) -> Route:
    return Route(
        method="POST",
        path=path,
        role=role,
        handler=handler,
        reads=reads,
        own_area=area,
        everywhere=everywhere,
    )


def put(path: str, handler: Handler, reads: str, role: Role = OPERATOR) -> Route:
    return Route(method="PUT", path=path, role=role, handler=handler, reads=reads)


def delete(path: str, handler: Handler, role: Role = OPERATOR, area: str | None = None) -> Route:
    return Route(method="DELETE", path=path, role=role, handler=handler, own_area=area)


def action(path: str, handler: Handler, role: Role = OPERATOR) -> Route:
    return Route(method="POST", path=path, role=role, handler=handler, reads="action", action=True)


def listed_and_one(path: str, handler: Handler) -> tuple[Route, Route]:
    """A collection, and each of its items by id: of what is never asked for so often that it needed a way of its own."""

    async def one(call: Call) -> Reply:
        reply = await handler(call)
        assert isinstance(reply.body, Sequence)
        for node in reply.body:
            if str(node["id"]) == call.path["item"]:
                return Reply(shape=reply.shape, body=node)
        raise NotFound(f"there is no {reply.shape} with the id '{call.path['item'][:64]}' there")

    return (get(path, handler), get(f"{path}/{{item}}", one))


class Routes:
    """Finds a route by method and path. A part that is written out goes before one that may be anything."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.all = tuple(routes)
        names = [one.name for one in routes]
        assert len(set(names)) == len(names), "a route is there twice"
        self._by_length: dict[int, list[tuple[list[str], Route]]] = {}
        for one in sorted(routes, key=lambda route: route.path.count("{")):
            parts = _parts(one.path)
            self._by_length.setdefault(len(parts), []).append((parts, one))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Raises NotFound, MethodNotAllowed."""
        there = _parts(path)
        fitting = [
            (route, dict(_named(parts, there)))
            for parts, route in self._by_length.get(len(there), ())
            if _fits(parts, there)
        ]
        for route, named in fitting:
            if route.method == method:
                return route, named
        if fitting:
            raise MethodNotAllowed(
                f"{method} is not possible on {path}",
                field="method",
                allowed=tuple(sorted({route.method for route, _ in fitting})),
            )
        raise NotFound(
            f"there is nothing at {path[:200]}", fix="the API's root lists what there is"
        )


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _fits(parts: list[str], there: list[str]) -> bool:
    return all(
        want.startswith("{") or want == have for want, have in zip(parts, there, strict=True)
    )


def _named(parts: list[str], there: list[str]) -> list[tuple[str, str]]:
    return [
        (want[1:-1], have) for want, have in zip(parts, there, strict=True) if want.startswith("{")
    ]


def ref(kind: str, identifier: Any) -> Node:
    """A link to another object, as oVirt writes it: its id and where it is."""
    return {"href": f"/{kind}/{identifier}", "id": identifier}


def named(body: Node | None) -> str | None:
    """What a body says of another object: its id, else its name; None: neither."""
    if not body:
        return None
    text = body.get("id") or body.get("name")
    return str(text) if text else None
