"""Subscriptions: who is told of which events, by which receiver."""

from typing import TypeVar
from uuid import uuid4

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from virtha.alerts.match import check_patterns, default_severity
from virtha.control.event_matchers import with_subject
from virtha.control.history import changes_between, record
from virtha.control.names import (
    NAME_LENGTH_MAX,
    check_limit,
    check_name,
    check_revision,
    page_of,
    taken,
    the_receiver,
    the_subscription,
    the_user,
)
from virtha.control.receiver_checks import check_address, kind_of
from virtha.control.requests import PageQuery, SubscriptionChange, SubscriptionCreate
from virtha.control.route_options import checked_route, how_asked, how_changed
from virtha.control.route_weight import weight_of
from virtha.control.views import Caller, Page, SubscriptionView
from virtha.model.errors import InvalidInput
from virtha.model.ids import Revision, SubscriptionId
from virtha.model.notification import Receiver, Subscription
from virtha.model.user import User
from virtha.store.clusters import find_cluster
from virtha.store.deliveries import drop_pending
from virtha.store.hosts import find_host
from virtha.store.notifications import (
    add_subscription,
    drop_subscription,
    find_receiver,
    find_subscription,
    save_subscription,
    subscriptions_after,
    subscriptions_of,
)
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.users import find_user
from virtha.store.vms import find_vm

log = structlog.get_logger("virtha.control.subscriptions")
T = TypeVar("T")
DROPPED = "notify.queue.dropped"


class Subscriptions:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, query: PageQuery) -> Page[SubscriptionView]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            rows, more = page_of(await subscriptions_after(tx, query.after or "", limit + 1), limit)
            return Page(
                items=tuple([await _view(tx, one) for one in rows]),
                revision=await tx.revision_now(),
                next=rows[-1].name if more else None,
            )

    async def get(self, ref: str) -> SubscriptionView:
        async with self._store.read() as tx:
            found = await _view(tx, await the_subscription(tx, ref))
        return await self._weighed(found)

    async def create(self, caller: Caller, request: SubscriptionCreate) -> SubscriptionView:
        severity = request.severity or default_severity(request.codes)
        codes = check_patterns(request.codes, severity)
        asked = how_asked(request)
        async with self._store.write() as tx:
            row = await the_receiver(tx, request.receiver, field="receiver")
            made = Subscription(
                id=SubscriptionId(str(uuid4())),
                name=await _new_name(tx, request.name, row.receiver),
                receiver_id=row.receiver.id,
                address=request.address,
                codes=codes,
                severity=severity,
                enabled=request.enabled,
            )
            made = checked_route(msgspec.structs.replace(made, **asked))
            made = await with_subject(
                tx, made, cluster=request.cluster, host=request.host, vm=request.vm
            )
            made = await _with_user(tx, made, request.user)
            await _check_whom(tx, row.receiver, made)
            saved = await add_subscription(tx, made)
            await _record(
                tx, "notify.subscription.created", row.receiver, None, saved, by=caller.name
            )
            view = await _view(tx, saved)
        return await self._weighed(view)

    async def change(
        self,
        caller: Caller,
        ref: str,
        request: SubscriptionChange,
        if_match: Revision | None = None,
    ) -> SubscriptionView:
        """Messages that wait go by the new address; those that a new limit excludes go all the same."""
        async with self._store.write() as tx:
            present = await the_subscription(tx, ref)
            check_revision(if_match, present.revision)
            receiver = (await the_receiver(tx, present.receiver_id)).receiver
            if request.name is not UNSET and request.name != present.name:
                await _check_new_name(tx, request.name)
            severity = _or(request.severity, present.severity)
            codes = _or(request.codes, present.codes)
            if (codes, severity) != (present.codes, present.severity):
                codes = check_patterns(codes, severity)
            enabled = _or(request.enabled, present.enabled)
            changed = msgspec.structs.replace(
                present,
                name=_or(request.name, present.name),
                address=_or(request.address, present.address),
                codes=codes,
                severity=severity,
                enabled=enabled,
                # What happened while it was switched off is not told afterwards.
                since=tx.revision if enabled and not present.enabled else present.since,
            )
            changed = checked_route(msgspec.structs.replace(changed, **how_changed(request)))
            changed = await with_subject(
                tx, changed, cluster=request.cluster, host=request.host, vm=request.vm
            )
            changed = await _with_user(tx, changed, request.user)
            await _check_whom(tx, receiver, changed)
            saved = await save_subscription(tx, changed)
            if not saved.enabled:
                await drop_pending(tx, code=DROPPED, subscription_id=saved.id)
            await _record(
                tx, "notify.subscription.changed", receiver, present, saved, by=caller.name
            )
            view = await _view(tx, saved)
        return await self._weighed(view)

    async def _weighed(self, view: SubscriptionView) -> SubscriptionView:
        """With what it would have told of what has happened. None where that can't be said: what was asked for is done, and an
        error would say that it is not."""
        try:
            weight = await weight_of(self._store, view.subscription)
        except Exception:  # a number to look at is not worth an answer that is wrong
            log.exception("a route can't be weighed", route=view.subscription.name)
            return view
        return msgspec.structs.replace(view, weight=weight)

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        """What still waits by it is dropped."""
        async with self._store.write() as tx:
            present = await the_subscription(tx, ref)
            check_revision(if_match, present.revision)
            await _end(tx, present, by=caller.name)


async def end_subscriptions_of(tx: WriteTransaction, user: User, *, by: str) -> None:
    """With the user they go."""
    for one in await subscriptions_of(tx, user.id):
        await _end(tx, one, by=by)


async def _end(tx: WriteTransaction, one: Subscription, *, by: str) -> None:
    receiver = (await the_receiver(tx, one.receiver_id)).receiver
    await drop_subscription(tx, one.id)
    await drop_pending(tx, code=DROPPED, subscription_id=one.id)
    await _record(tx, "notify.subscription.removed", receiver, one, None, by=by)


async def _record(
    tx: WriteTransaction,
    code: str,
    receiver: Receiver,
    before: Subscription | None,
    after: Subscription | None,
    *,
    by: str,
) -> None:
    """Of no cluster, also where it tells of one only: who sees that one sees no subscription, nor whom it tells."""
    one = after or before
    assert one is not None
    await record(
        tx,
        code,
        by=by,
        subscription=one.name,
        receiver=receiver.name,
        receiver_id=receiver.id,
        **changes_between(before, after),
    )


def _or(given: T | UnsetType, present: T) -> T:
    return present if isinstance(given, UnsetType) else given


async def _with_user(
    tx: Transaction, one: Subscription, user: str | UnsetType | None
) -> Subscription:
    if isinstance(user, UnsetType):
        return one
    found = await the_user(tx, user, field="user") if user is not None else None
    user_id = found.user.id if found is not None else None
    return msgspec.structs.replace(one, user_id=user_id)


async def _check_whom(tx: Transaction, receiver: Receiver, one: Subscription) -> None:
    """Mail needs an address, or a user who has one; others have none."""
    if kind_of(receiver.settings) != "mail":
        for field, value in (("address", one.address), ("user", one.user_id)):
            if value is not None:
                raise InvalidInput(
                    f"{receiver.name} is no mail receiver: it has its one destination itself",
                    field=field,
                    fix="leave it out",
                )
        return
    if one.address is not None and one.user_id is not None:
        raise InvalidInput("excludes a user", field="address", fix="give one of them")
    if one.address is not None:
        check_address(one.address, field="address")
        return
    if one.user_id is None:
        raise InvalidInput("is missing", field="address", fix="give an address or a user")
    found = await find_user(tx, one.user_id)
    assert found is not None, "a foreign key holds it"
    if found.user.email is None:
        raise InvalidInput(
            f"{found.user.name} has no e-mail address",
            field="user",
            fix=f"virtha user edit {found.user.name} --email ADDRESS; or give an address here",
        )


async def _new_name(tx: Transaction, wanted: str | None, receiver: Receiver) -> str:
    if wanted is not None:
        await _check_new_name(tx, wanted)
        return wanted
    number = 1
    # Room for the number, or a long receiver's name would make one that is too long.
    stem = receiver.name[: NAME_LENGTH_MAX - 8].rstrip("._-")
    while await find_subscription(tx, f"{stem}-{number}") is not None:
        number += 1
    return f"{stem}-{number}"


async def _check_new_name(tx: Transaction, name: str) -> None:
    check_name(name)
    if await find_subscription(tx, name) is not None:
        raise taken("subscription", name)


async def _view(tx: Transaction, one: Subscription) -> SubscriptionView:
    receiver = await find_receiver(tx, one.receiver_id)
    user = await find_user(tx, one.user_id) if one.user_id is not None else None
    cluster = await find_cluster(tx, one.cluster_id) if one.cluster_id is not None else None
    host = await find_host(tx, one.host_id) if one.host_id is not None else None
    vm = await find_vm(tx, one.vm_id) if one.vm_id is not None else None
    assert receiver is not None, "a foreign key holds it"
    return SubscriptionView(
        subscription=one,
        receiver_name=receiver.receiver.name,
        user_name=user.user.name if user is not None else None,
        cluster_name=cluster.name if cluster is not None else None,
        host_name=host.host.name if host is not None else None,
        vm_name=vm.vm.name if vm is not None else None,
    )
