"""Who may come in: the one place where a request's caller is held against its route, before any handler.

Three looks: may they do that anywhere; may they do it to what the request names; and what their reads see. Handlers and use cases ask
nothing of it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import msgspec

from virtha.api.route import OPEN, Access, Route
from virtha.control import Control
from virtha.control.access_check import Reference, lacking
from virtha.control.views import Caller
from virtha.model.access import Permission, Scope
from virtha.model.errors import Forbidden
from virtha.model.user import Role


class Guarded(Protocol):
    """A route, of this API or of the façade, as far as it matters here."""

    @property
    def method(self) -> str: ...
    @property
    def role(self) -> Access: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def permission(self) -> Permission: ...


PATH_KINDS = {
    ("clusters", "ref"): "cluster",
    ("hosts", "ref"): "host",
    ("operations", "id"): "operation",
    ("storage-domains", "ref"): "storage domain",
    ("templates", "ref"): "template",
    ("tokens", "id"): "token",
    ("vms", "ref"): "vm",
}
"""What a path names, by its first word and the parameter. Others (`disk`, `key`) name a part of that."""
FIELD_KINDS = {
    "cluster": "cluster",
    "host": "host",
    "storage_domain": "storage domain",
    "template": "template",
    "vm": "vm",
}
"""What a field of a query or a body names, wherever it stands in it."""
DEFAULTS_TO_ONLY = "cluster"
"""Left out, the only one there is."""


def check_somewhere(caller: Caller, route: Guarded) -> None:
    """Before anything of the request is read. Raises Forbidden: its caller may not do that anywhere."""
    rights, permission = caller.rights, route.permission
    if caller.is_narrow and route.scope is not Scope.OWN and not rights.somewhere(Permission.VIEW):
        # Not empty lists: its program would take them for an installation with nothing in it.
        raise Forbidden(
            "the token is for a role or a cluster that its user no longer has",
            code="problem.token.powerless",
            fix="make another one: 'virtha session token'; 'virtha user grants USER' shows what they have",
        )
    if route.scope is Scope.INSTALLATION:
        allowed = permission in rights.everywhere
    else:
        # Lists of who may see nothing are empty.
        allowed = permission is Permission.VIEW or rights.somewhere(permission)
    if not allowed:
        raise _forbidden(caller, route)


def _forbidden(caller: Caller, route: Guarded) -> Forbidden:
    if caller.more is not None:
        return lacking(caller, route.permission)
    assert isinstance(route.role, Role)
    return Forbidden(
        f"{caller.name} has the role {caller.role}; this needs {route.role}",
        allowed=tuple(role for role in Role if role.may(route.role)),
        fix="ask an administrator",
    )


async def check_path(
    control: Control, caller: Caller, route: Route, path: dict[str, str]
) -> tuple[Reference, ...]:
    """What the path names, looked at before the rest is read. Raises as ``AccessCheck.check`` does."""
    if not depends_on_cluster(caller, route):
        return ()
    named = tuple(_in_path(route, path))
    if named:
        await control.access.check(caller, route.permission, named)
    return named


async def check_fields(
    control: Control,
    caller: Caller,
    route: Route,
    query: Any,
    body: Any,
    in_path: tuple[Reference, ...],
) -> Any:
    """The body, with the only cluster there is where none was named. Raises as ``AccessCheck.check`` does, also where a change names
    nothing at all and its caller may make it in some clusters only."""
    if not depends_on_cluster(caller, route):
        return body
    named = (*_in_fields(query), *_in_fields(body))
    if not named and (in_path or route.method == "GET"):
        return body  # a list, of which reads see what they may
    found = await control.access.check(caller, route.permission, named)
    for one, cluster_id in found.items():
        if one.ref is None:
            body = msgspec.structs.replace(body, **{DEFAULTS_TO_ONLY: cluster_id})
    return body


def defaulted(body: Any, said: Any) -> str | None:
    """The cluster that ``check_fields`` wrote into ``body``, which its sender ``said`` without; None: nothing was."""
    if not isinstance(said, dict) or said.get(DEFAULTS_TO_ONLY) is not None:
        return None
    chosen = getattr(body, DEFAULTS_TO_ONLY, None)
    return chosen if isinstance(chosen, str) else None


def depends_on_cluster(caller: Caller, route: Guarded) -> bool:
    """Not where they may it everywhere; nor where reads see to it: looking at what one may see at all."""
    is_look = route.permission is Permission.VIEW
    everywhere = route.permission in caller.rights.everywhere
    return not everywhere and not is_look and route.scope is Scope.CLUSTER


def _in_path(route: Route, path: dict[str, str]) -> Iterator[Reference]:
    word = route.path.split("/")[2]
    for name, ref in path.items():
        if (kind := PATH_KINDS.get((word, name))) is not None:
            yield Reference(kind, ref)


def _in_fields(value: Any, *, outermost: bool = True) -> Iterator[Reference]:
    """Of a struct, and of the structs in it."""
    if isinstance(value, tuple):
        for one in value:
            yield from _in_fields(one, outermost=False)
    if not isinstance(value, msgspec.Struct):
        return
    for name in value.__struct_fields__:
        inner, kind = getattr(value, name), FIELD_KINDS.get(name)
        if kind is not None and isinstance(inner, str):
            yield Reference(kind, inner, name)
        elif name == DEFAULTS_TO_ONLY and inner is None and outermost:
            yield Reference("cluster", None, name)
        else:
            yield from _in_fields(inner, outermost=False)


def seeing_as(control: Control, caller: Caller, route: Guarded) -> AbstractContextManager[None]:
    """What reads see in it: of a request that changes nothing, what its caller may see. What changes something decides on all
    records, after ``check_here``."""
    if route.method != "GET" or route.role == OPEN:
        return nullcontext()
    return control.access.seen_by(caller, route.permission)
