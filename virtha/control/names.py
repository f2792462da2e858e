"""Finding records by id or name, and checking names; every error says what there is."""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Generic, NamedTuple, TypeVar

from virtha.control.requests import LIST_LIMIT_MAX
from virtha.model.errors import Conflict, InvalidInput, NotFound, Stale
from virtha.model.host import Cluster, StorageDomain
from virtha.model.ids import ANY_REVISION, Revision
from virtha.model.notification import Subscription
from virtha.model.template import Template
from virtha.store.clusters import all_clusters, clusters_after, find_cluster, find_storage
from virtha.store.hosts import HostRow, find_host, hosts_after
from virtha.store.notifications import (
    ReceiverRow,
    find_receiver,
    find_subscription,
    receivers_after,
    subscriptions_after,
)
from virtha.store.store import Transaction
from virtha.store.templates import find_template, templates_after
from virtha.store.users import UserRow, find_user, users_after
from virtha.store.vms import VmFilter, VmRow, find_vm, vms_after

T = TypeVar("T")
Near = TypeVar("Near")
NAME_LENGTH_MAX = 63
"""A DNS label's (RFC 1035): names end up as host names and file names."""
TEXT_LENGTH_MAX = 1_000
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SIMILAR_LOOKED_AT = 500
_NOUNS = {
    "cluster": "cluster",
    "host": "host",
    "receiver": "notify receiver list",
    "role": "role",
    "storage domain": "storage",
    "subscription": "notify subscriptions",
    "template": "template",
    "user": "user",
    "VM": "vm",
}
"""Of the kinds that are found by name: the words of the command line that list them; a single word is followed by ``list``."""


def check_name(name: str, *, field: str = "name") -> str:
    """Raises InvalidInput. An id's shape is refused: it would be ambiguous wherever either may stand."""
    if not name:
        raise InvalidInput("is missing", field=field, fix="give a name")
    if len(name) > NAME_LENGTH_MAX:
        raise InvalidInput(
            f"has {len(name)} characters", field=field, allowed=(f"1 to {NAME_LENGTH_MAX}",)
        )
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"'{name}' is no name",
            field=field,
            allowed=(
                "letters, digits, '.', '_' and '-', beginning and ending with a letter or digit",
            ),
        )
    if _UUID.fullmatch(name.lower()):
        raise InvalidInput(f"'{name}' looks like an id", field=field, fix="choose another name")
    return name


def is_id(text: str) -> bool:
    """Whether it has an id's shape."""
    return _UUID.fullmatch(text) is not None


def check_text(text: str, *, field: str) -> str:
    if len(text) > TEXT_LENGTH_MAX:
        raise InvalidInput(
            f"has {len(text)} characters", field=field, allowed=(f"at most {TEXT_LENGTH_MAX}",)
        )
    return text


def check_limit(limit: int) -> int:
    if not 1 <= limit <= LIST_LIMIT_MAX:
        raise InvalidInput(
            f"{limit} is out of range", field="limit", allowed=(f"1 to {LIST_LIMIT_MAX}",)
        )
    return limit


def check_revision(if_match: Revision | None, present: Revision) -> None:
    """``present``: 0: it is not there. Raises Stale."""
    if if_match == ANY_REVISION:
        if not present:
            raise Stale(
                "it is not there", field="If-Match", fix="leave the condition out to make it"
            )
        return
    if if_match is not None and if_match != present:
        raise Stale(
            f"it is at revision {present} by now, not {if_match}",
            field="If-Match",
            fix="load it again, look at what changed, then repeat",
        )


def taken(kind: str, name: str, *, field: str = "name") -> Conflict:
    return Conflict(
        f"there is a {kind} '{name}' already",
        code="problem.name_taken",
        field=field,
        fix="choose another name",
    )


def missing(kind: str, ref: str, names: Iterable[str], *, field: str | None = None) -> NotFound:
    near = tuple(get_close_matches(ref, list(names), n=3))
    listing = _NOUNS[kind] if " " in _NOUNS[kind] else f"{_NOUNS[kind]} list"
    return NotFound(
        f"there is no {kind} '{ref[: NAME_LENGTH_MAX + 1]}'",
        field=field,
        fix=f"did you mean {' or '.join(near)}?" if near else f"'virtha {listing}' shows all",
    )


class _Kind(NamedTuple, Generic[T, Near]):
    """What can be found by name or id. ``after``: by name, to see which are near."""

    noun: str
    find: Callable[[Transaction, str], Awaitable[T | None]]
    after: Callable[[Transaction, str, int], Awaitable[Sequence[Near]]] | None
    name: Callable[[Near], str]


async def _vms_after(tx: Transaction, after: str, limit: int) -> Sequence[VmRow]:
    return await vms_after(tx, VmFilter(), after, limit)


_CLUSTER = _Kind("cluster", find_cluster, clusters_after, lambda cluster: cluster.name)
_HOST = _Kind("host", find_host, hosts_after, lambda row: row.host.name)
_STORAGE: _Kind[StorageDomain, StorageDomain] = _Kind(
    "storage domain", find_storage, None, lambda domain: domain.name
)
_VM = _Kind("VM", find_vm, _vms_after, lambda row: row.vm.name)
_USER = _Kind("user", find_user, users_after, lambda user: user.name)
_RECEIVER = _Kind("receiver", find_receiver, receivers_after, lambda row: row.receiver.name)
_SUBSCRIPTION = _Kind(
    "subscription", find_subscription, subscriptions_after, lambda subscription: subscription.name
)
_TEMPLATE = _Kind("template", find_template, templates_after, lambda template: template.name)


async def _the(kind: _Kind[T, Near], tx: Transaction, ref: str, field: str | None) -> T:
    """Raises NotFound, which names what is near."""
    found = await kind.find(tx, ref)
    if found is None:
        near = await kind.after(tx, "", _SIMILAR_LOOKED_AT) if kind.after is not None else ()
        raise missing(kind.noun, ref, map(kind.name, near), field=field)
    return found


async def the_cluster(tx: Transaction, ref: str | None, *, field: str | None = None) -> Cluster:
    """``ref`` None: the only one there is. Raises NotFound, InvalidInput (several)."""
    if ref is not None:
        return await _the(_CLUSTER, tx, ref, field)
    clusters = await all_clusters(tx)
    if len(clusters) == 1:
        return clusters[0]
    raise InvalidInput(
        "is missing, and there are several" if clusters else "there is none yet",
        field="cluster",
        allowed=tuple(cluster.name for cluster in clusters[:10]),
        fix="name the cluster" if clusters else "create one first",
    )


async def the_host(tx: Transaction, ref: str, *, field: str | None = None) -> HostRow:
    return await _the(_HOST, tx, ref, field)


async def the_storage(tx: Transaction, ref: str, *, field: str | None = None) -> StorageDomain:
    return await _the(_STORAGE, tx, ref, field)


async def the_vm(tx: Transaction, ref: str, *, field: str | None = None) -> VmRow:
    return await _the(_VM, tx, ref, field)


async def the_user(tx: Transaction, ref: str, *, field: str | None = None) -> UserRow:
    return await _the(_USER, tx, ref, field)


async def the_receiver(tx: Transaction, ref: str, *, field: str | None = None) -> ReceiverRow:
    return await _the(_RECEIVER, tx, ref, field)


async def the_subscription(tx: Transaction, ref: str, *, field: str | None = None) -> Subscription:
    return await _the(_SUBSCRIPTION, tx, ref, field)


async def the_template(tx: Transaction, ref: str, *, field: str | None = None) -> Template:
    return await _the(_TEMPLATE, tx, ref, field)


def page_of(rows: tuple[T, ...], limit: int) -> tuple[tuple[T, ...], bool]:
    """Of ``limit + 1`` rows asked for: those to show, and whether there are more."""
    return rows[:limit], len(rows) > limit
