"""May they do that there? The one check between a request and its use case, for whatever the request names.

Use cases decide on all records. So what a request names is looked up here first, as its caller sees it: of what they may not see they
are told that it isn't there, before any use case can say anything of it.
"""

import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from typing import NamedTuple

from virtha.control.names import the_cluster, the_host, the_storage, the_template, the_vm
from virtha.control.operations import the_operation_cluster
from virtha.control.tokens import the_join_token
from virtha.control.views import Caller
from virtha.model.access import Permission
from virtha.model.errors import Forbidden, VirthaError
from virtha.model.ids import ClusterId
from virtha.store.access import names_elsewhere
from virtha.store.clusters import cluster_names
from virtha.store.reach import seeing
from virtha.store.store import Store, Transaction


class Reference(NamedTuple):
    """What a request names. ``ref`` None: the only cluster there is. ``field`` None: it is in the path."""

    kind: str
    ref: str | None
    field: str | None = None


async def _of_cluster(tx: Transaction, one: Reference) -> ClusterId | None:
    return (await the_cluster(tx, one.ref, field=one.field)).id


async def _of_host(tx: Transaction, one: Reference) -> ClusterId | None:
    return (await the_host(tx, one.ref or "", field=one.field)).host.cluster_id


async def _of_vm(tx: Transaction, one: Reference) -> ClusterId | None:
    return (await the_vm(tx, one.ref or "", field=one.field)).vm.cluster_id


async def _of_storage(tx: Transaction, one: Reference) -> ClusterId | None:
    return (await the_storage(tx, one.ref or "", field=one.field)).cluster_id


async def _of_template(tx: Transaction, one: Reference) -> ClusterId | None:
    return (await the_template(tx, one.ref or "", field=one.field)).cluster_id


async def _of_operation(tx: Transaction, one: Reference) -> ClusterId | None:
    return await the_operation_cluster(tx, one.ref or "")


async def _of_token(tx: Transaction, one: Reference) -> ClusterId | None:
    return (await the_join_token(tx, one.ref or "")).token.cluster_id


_CLUSTER_OF: dict[str, Callable[[Transaction, Reference], Awaitable[ClusterId | None]]] = {
    "cluster": _of_cluster,
    "host": _of_host,
    "vm": _of_vm,
    "storage domain": _of_storage,
    "template": _of_template,
    "operation": _of_operation,
    "token": _of_token,
}
UNSEEN = "(in another cluster)"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KINDS = frozenset(_CLUSTER_OF)
"""What can be named. Each belongs to one cluster."""


class AccessCheck:
    def __init__(self, store: Store) -> None:
        self._store = store

    def seen_by(self, caller: Caller, permission: Permission) -> AbstractContextManager[None]:
        """Reads within it see the clusters in which the caller may that."""
        return seeing(caller.rights.reach_for(permission))

    async def without_unseen(self, caller: Caller, error: VirthaError, said: str) -> VirthaError:
        """What a use case refuses it says of all records: names of what the caller may not see are taken out of it, but for those that
        the request, ``said``, brought itself."""
        reach = caller.rights.reach
        if reach is None:
            return error
        told = (error.message, error.fix, *error.allowed)
        words = set().union(*map(_words, told)) - _words(said)
        with seeing(None):
            async with self._store.read() as tx:
                unseen = await names_elsewhere(tx, words, reach)
        if not unseen:
            return error
        # Longer ones first: one may be in another.
        names = "|".join(re.escape(one) for one in sorted(unseen, key=len, reverse=True))
        whole = re.compile(rf"(?<![A-Za-z0-9._-])(?:{names})(?![A-Za-z0-9_-])")
        message, fix, *allowed = (whole.sub(UNSEEN, text) for text in told)
        return error.reworded(message, allowed=tuple(allowed), fix=fix)

    async def check(
        self, caller: Caller, permission: Permission, named: Collection[Reference]
    ) -> dict[Reference, ClusterId | None]:
        """To which cluster each of ``named`` belongs. Raises NotFound, InvalidInput (a cluster must be named), and Forbidden: the
        caller lacks the permission in one of them, or nothing is named and they have it in some clusters only."""
        rights = caller.rights
        if permission in rights.everywhere:
            return {}
        with seeing(rights.reach):
            async with self._store.read() as tx:
                found = {one: await _CLUSTER_OF[one.kind](tx, one) for one in named}
                names = await cluster_names(tx)
        if not found:
            raise lacking(caller, permission, "in all clusters")
        for cluster_id in found.values():
            if cluster_id is None or permission not in rights.in_cluster(cluster_id):
                where = names.get(cluster_id, "") if cluster_id is not None else ""
                raise lacking(caller, permission, f"in cluster {where}" if where else "there")
        return found


def _words(text: str) -> set[str]:
    return {one.strip(".") for one in _WORD.findall(text)}


def lacking(caller: Caller, permission: Permission, where: str = "") -> Forbidden:
    return Forbidden(
        f"{caller.name} has not the permission {permission.value}{' ' * bool(where)}{where}",
        allowed=(permission.value,),
        fix="ask an administrator for a role that has it: 'virtha role list'",
    )
