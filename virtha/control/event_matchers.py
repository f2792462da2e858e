"""What people say of events that they mean, checked, with the ids of what it names."""

from typing import TypeVar

import msgspec
from msgspec import UnsetType

from virtha.alerts.match import check_labels, check_patterns
from virtha.control.names import the_cluster, the_host, the_vm
from virtha.control.requests import MatcherRequest
from virtha.model.errors import InvalidInput
from virtha.model.notification import Subscription
from virtha.model.routing import Matcher
from virtha.store.store import Transaction

S = TypeVar("S", Subscription, Matcher)


async def with_subject(
    tx: Transaction,
    one: S,
    *,
    cluster: str | UnsetType | None,
    host: str | UnsetType | None,
    vm: str | UnsetType | None,
    prefix: str = "",
) -> S:
    """With the ids of what is named. Raises NotFound (the field), InvalidInput where nothing could match."""
    limits: dict[str, str | None] = {}
    inside: list[tuple[str, str]] = []
    if not isinstance(cluster, UnsetType):
        limits["cluster_id"] = (
            (await the_cluster(tx, cluster, field=f"{prefix}cluster")).id
            if cluster is not None
            else None
        )
    if not isinstance(host, UnsetType):
        row = await the_host(tx, host, field=f"{prefix}host") if host is not None else None
        limits["host_id"] = row.host.id if row is not None else None
        inside += [("host", row.host.cluster_id)] if row is not None else []
    if not isinstance(vm, UnsetType):
        found = await the_vm(tx, vm, field=f"{prefix}vm") if vm is not None else None
        limits["vm_id"] = found.vm.id if found is not None else None
        inside += [("vm", found.vm.cluster_id)] if found is not None else []
    changed: S = msgspec.structs.replace(one, **limits)
    for field, cluster_id in inside:
        if changed.cluster_id not in (None, cluster_id):
            raise InvalidInput(
                "is in another cluster than the one named: no event could ever match",
                field=f"{prefix}{field}",
                fix="leave one of them out",
            )
    return changed


async def matcher_from(tx: Transaction, request: MatcherRequest, *, field: str) -> Matcher:
    """Raises InvalidInput and NotFound (fields ``<field>.…``)."""
    codes = check_patterns(request.codes, request.severity, field=f"{field}.codes")
    check_labels(request.labels, codes, field=f"{field}.labels")
    return await with_subject(
        tx,
        Matcher(codes=codes, severity=request.severity, labels=request.labels),
        cluster=request.cluster,
        host=request.host,
        vm=request.vm,
        prefix=f"{field}.",
    )
