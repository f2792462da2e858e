"""The next messages of one receiver, made ready: events, names, addresses, secrets. Bounded by ``limit``."""

from collections.abc import Callable

import msgspec
import structlog

from virtha.control.known_settings import EVENT_RETENTION, NOTIFICATION_DEADLINE, setting_values
from virtha.control.parts_over import had_before, parts_over_with
from virtha.control.receiver_checks import kind_of
from virtha.model.codes import render
from virtha.model.errors import Failed
from virtha.model.event import Event
from virtha.model.ids import ClusterId, HostId, Revision, UserId, VmId
from virtha.model.incident import PathState, VmPath
from virtha.model.notification import (
    AlertmanagerSettings,
    Delivery,
    DeliveryState,
    Message,
    MessageGroup,
    Receiver,
    Subscription,
    VmLine,
)
from virtha.model.routing import GroupNote
from virtha.model.value import Value
from virtha.store.access import reaches_of_users
from virtha.store.body import Unreadable
from virtha.store.clusters import cluster_names
from virtha.store.deliveries import next_deliveries
from virtha.store.events import events_at
from virtha.store.hosts import host_names
from virtha.store.incidents import readable_paths_of
from virtha.store.installations import InstallationRow, the_installation
from virtha.store.notifications import ReceiverRow, find_subscription
from virtha.store.reach import Reach
from virtha.store.store import Transaction
from virtha.store.users import mail_address_of
from virtha.store.vms import vm_names

log = structlog.get_logger("virtha.control.due")
VMS_LISTED_MAX = 50
"""Of a host's failure, in one message; more are counted."""


class DueMessage(Value, frozen=True, kw_only=True):
    """``message`` None: it can't be sent, it ends in ``end`` for the reason ``code``."""

    delivery: Delivery
    event: Event | None
    message: Message | None = None
    end: DeliveryState = DeliveryState.DROPPED
    code: str = ""


class Due(Value, frozen=True, kw_only=True):
    """``secrets`` None: they can't be read, and ``problem`` says why. ``unreadable``: records that the messages do without."""

    receiver: Receiver
    items: tuple[DueMessage, ...]
    secrets: dict[str, str] | None
    problem: str = ""
    deadline_ms: int
    unreadable: frozenset[Unreadable] = frozenset()

    def __repr__(self) -> str:
        return f"Due({self.receiver.name}, {len(self.items)} messages)"


async def due_of(
    tx: Transaction, row: ReceiverRow, limit: int, opened: Callable[[ReceiverRow], dict[str, str]]
) -> Due | None:
    """None: nothing may go now."""
    deliveries = await next_deliveries(tx, row.receiver.id, limit)
    if not deliveries:
        return None
    events = await events_at(tx, [one.event_revision for one in deliveries])
    names = MessageMaker(tx, row.receiver, await the_installation(tx))
    secrets: dict[str, str] | None = None
    problem = ""
    try:
        secrets = opened(row)
    except Failed as error:
        problem = error.message
    items = tuple([await names.make(one, events.get(one.event_revision)) for one in deliveries])
    return Due(
        receiver=row.receiver,
        items=items,
        unreadable=frozenset(names.unreadable),
        secrets=secrets,
        problem=problem,
        deadline_ms=(await setting_values(tx)).get(NOTIFICATION_DEADLINE),
    )


class MessageMaker:
    """Of one snapshot. Looks up each name once, however many messages need it."""

    def __init__(self, tx: Transaction, receiver: Receiver, installation: InstallationRow) -> None:
        self._tx = tx
        self._receiver = receiver
        self._installation = installation.installation
        self._names: dict[str, str | None] = {}
        self.unreadable: set[Unreadable] = set()
        """Records that were left out."""
        self._subscriptions: dict[str, Subscription | None] = {}
        self._reaches: dict[UserId, Reach | None] = {}
        self._events_kept_ms: int | None = None

    async def make(self, one: Delivery, event: Event | None) -> DueMessage:
        if event is None:
            return DueMessage(
                delivery=one,
                event=None,
                end=DeliveryState.EXPIRED,
                code="notify.queue.event_gone",
            )
        address = one.address
        if one.subscription_id is not None:
            try:
                address, reach = await self._whom_by(one.subscription_id)
                one, event = await self._as_seen(one, event, reach)
            except _Unwanted:
                return DueMessage(delivery=one, event=event, code="notify.queue.dropped")
            except Failed as error:  # a route that can't be read: it goes where it was to go
                log.error("a message is sent as it was made", delivery=one.id, why=error.message)
        if address is None and kind_of(self._receiver.settings) == "mail":
            return DueMessage(
                delivery=one,
                event=event,
                end=DeliveryState.REFUSED,
                code="notify.queue.no_address",
            )
        one = msgspec.structs.replace(one, address=address)
        return DueMessage(
            delivery=one, event=event, message=await self.message(one, event, address)
        )

    async def message(self, one: Delivery, event: Event, address: str | None) -> Message:
        told = event.fields
        group = await self._group(one.about, event) if one.about is not None else None
        events = (event, *(group.others if group is not None else ()))
        return Message(
            delivery_id=one.id,
            address=address,
            event=event,
            installation_id=self._installation.id,
            installation=self._installation.name,
            cluster=await self._name("cluster", event.cluster_id) or _text(told.get("cluster")),
            host=await self._name("host", event.host_id) or _text(told.get("host")),
            vm=await self._name("vm", event.vm_id) or _text(told.get("vm")),
            created=one.created,
            test=one.test,
            group=group,
            over=await self._over(events),
            had=await self._had(events),
        )

    async def _over(self, events: tuple[Event, ...]) -> dict[Revision, tuple[Event, ...]]:
        if kind_of(self._receiver.settings) != "alertmanager":
            return {}
        found = {one.revision: await parts_over_with(self._tx, one) for one in events}
        return {revision: over for revision, over in found.items() if over}

    async def _had(self, events: tuple[Event, ...]) -> dict[Revision, tuple[str, ...]]:
        settings = self._receiver.settings
        if not isinstance(settings, AlertmanagerSettings):
            return {}
        if self._events_kept_ms is None:
            self._events_kept_ms = (await setting_values(self._tx)).get(EVENT_RETENTION)
        if self._events_kept_ms < settings.resolve_after_ms:
            return {}  # an alert may outlive its event
        found = {one.revision: await had_before(self._tx, one) for one in events}
        return {revision: had for revision, had in found.items() if had is not None}

    async def _group(self, note: GroupNote, main: Event) -> MessageGroup:
        """As things are now: of its VMs the message says where they have got to by then."""
        events = await events_at(self._tx, note.revisions)
        others = tuple(
            events[one] for one in note.revisions if one in events and one != main.revision
        )
        vms: tuple[VmLine, ...] = ()
        left_out = 0
        if note.incident_id is not None:
            found, unreadable = await readable_paths_of(self._tx, note.incident_id)
            self.unreadable |= {*unreadable}
            paths = sorted(found, key=lambda one: one.vm)
            vms = tuple(_line(one) for one in paths[:VMS_LISTED_MAX])
            left_out = len(paths) + len(unreadable) - len(vms)
        gone = len(note.revisions) - len(events)
        return MessageGroup(
            note=note,
            others=others,
            more=note.counted + gone,
            cause=await self._name("host", note.host_id),
            vms=vms,
            vms_left_out=left_out,
            names=await self._names_in(others),
        )

    async def _names_in(self, events: tuple[Event, ...]) -> dict[str, str]:
        """Of those that don't say them."""
        found: dict[str, str] = {}
        for one in events:
            host_id = None if {"host", "name"} & {*one.fields} else one.host_id
            vm_id = None if "vm" in one.fields else one.vm_id
            for kind, its_id in (("cluster", one.cluster_id), ("host", host_id), ("vm", vm_id)):
                name = await self._name(kind, its_id)
                if its_id is not None and name is not None:
                    found[its_id] = name
        return found

    async def _whom_by(self, subscription_id: str) -> tuple[str | None, Reach | None]:
        """As the route is now: the address, and what may be told there. Raises _Unwanted, Failed (its record can't be read)."""
        subscription = await self._subscription(subscription_id)
        if subscription is None or not subscription.enabled:
            raise _Unwanted
        return await self._address(subscription), await self._reach(subscription)

    async def _reach(self, one: Subscription) -> Reach | None:
        if one.user_id is None:
            return None
        if one.user_id not in self._reaches:
            self._reaches |= await reaches_of_users(self._tx, (one.user_id,))
        return self._reaches.get(one.user_id, frozenset())

    async def _as_seen(
        self, one: Delivery, event: Event, reach: Reach | None
    ) -> tuple[Delivery, Event]:
        """What the message tells whom it goes to: a right may have been taken away since it was made. Raises _Unwanted: they may see
        nothing of it."""
        if reach is None:
            return one, event
        if one.about is None:
            if event.cluster_id not in reach:
                raise _Unwanted
            return one, event
        events = await events_at(self._tx, one.about.revisions)
        revisions = tuple(
            revision
            for revision in one.about.revisions
            if revision not in events or events[revision].cluster_id in reach
        )
        about = msgspec.structs.replace(one.about, revisions=revisions)
        if event.cluster_id in reach:
            return msgspec.structs.replace(one, about=about), event
        left = [events[revision] for revision in revisions if revision in events]
        if not left:
            raise _Unwanted
        # What it was mainly about, and the failure that explains it, is not theirs to see.
        about = msgspec.structs.replace(about, host_id=None, incident_id=None)
        return msgspec.structs.replace(one, about=about), left[0]

    async def _subscription(self, subscription_id: str) -> Subscription | None:
        if subscription_id not in self._subscriptions:
            found = await find_subscription(self._tx, subscription_id)
            self._subscriptions[subscription_id] = found
        return self._subscriptions[subscription_id]

    async def _address(self, one: Subscription) -> str | None:
        if one.user_id is None:
            return one.address
        key = f"user {one.user_id}"
        if key not in self._names:
            user = await mail_address_of(self._tx, one.user_id)
            if user is None or not user.enabled:
                raise _Unwanted
            self._names[key] = user.email
        return self._names[key]

    async def _name(self, kind: str, found_id: str | None) -> str | None:
        """None: nothing is named, or it is gone."""
        if found_id is None:
            return None
        if found_id not in self._names:
            self._names[found_id] = await self._look_up(kind, found_id)
        return self._names[found_id]

    async def _look_up(self, kind: str, found_id: str) -> str | None:
        """By their columns: a name needs no record that can be read."""
        if kind == "cluster":
            return (await cluster_names(self._tx)).get(ClusterId(found_id))
        if kind == "host":
            return (await host_names(self._tx, (HostId(found_id),))).get(HostId(found_id))
        return (await vm_names(self._tx, (VmId(found_id),))).get(VmId(found_id))


def _line(path: VmPath) -> VmLine:
    why = render(path.code, {}) if path.code is not None and path.state is PathState.DOWN else ""
    return VmLine(vm=path.vm, state=path.state.value, host=path.host, why=why)


class _Unwanted(Exception):
    """The subscription is gone or switched off, or its user is."""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
