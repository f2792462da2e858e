"""``/users/{id}/eventsubscriptions``: subscriptions by mail to a user, by oVirt's names of events (W7).

Also to ``watchdog_event``, which oVirt lists in its log and lets nobody subscribe to.
"""

from virtha.api.ovirt.fault import not_here, require
from virtha.api.ovirt.listing import gather
from virtha.api.ovirt.route import ADMINISTRATOR, Call, Reply, Route, delete, get, post, ref
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.users import USER, the_user
from virtha.control.requests import PageQuery, SubscriptionCreate
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused
from virtha.model.notification import Subscription
from virtha.model.user import User

SHAPE = "event_subscription"
SUBSCRIPTIONS = f"{USER}/eventsubscriptions"
AREA = "subscriptions"
EVENTS: dict[str, tuple[str, ...]] = {
    "ha_vm_failed": ("vm.crashed", "vm.panicked", "vm.stopped_unexpectedly"),
    "ha_vm_restart_failed": ("vm.restart.failed", "vm.restart.exhausted", "vm.recovery_failed"),
    "host_failure": ("host.unreachable", "host.judged_dead"),
    "host_recover_failed": ("fence.failed",),
    "host_set_nonoperational": ("host.agent.down",),
    "host_set_nonoperational_domain": ("storage.unusable",),
    "host_time_drift_alert": ("host.clock.wrong",),
    "irs_failure": ("storage.outage",),
    "user_host_maintenance": ("host.maintenance.begun",),
    "vm_console_connected": ("vm.console.opened",),
    "vm_console_disconnected": ("vm.console.closed",),
    "vm_down_error": ("vm.stopped_unexpectedly",),
    "vm_failure": ("vm.crashed",),
    "vm_migration_failed": ("vm.migration_failed",),
    "vm_migration_start": ("vm.migration_began",),
    "vm_not_responding": ("vm.panicked",),
    "vm_paused": ("vm.paused", "vm.io_error.paused"),
    "vm_recovered_from_pause_error": ("vm.io_error.resumed",),
    "watchdog_event": ("vm.watchdog.fired", "vm.watchdog.reconstructed", "vm.watchdog.unknown"),
}
"""oVirt's name to our codes; no two alike, so that a subscription says by its codes which it is."""
_NAMES = {codes: name for name, codes in EVENTS.items()}


def _node(user: User, one: Subscription) -> Node:
    return {
        **ref(f"users/{user.id}/eventsubscriptions", one.id),
        "address": user.email,
        "event": _NAMES[one.codes],
        "notification_method": "smtp",
        "user": ref("users", user.id),
    }


async def _of(call: Call, user: User) -> list[Subscription]:
    """Those to this user that oVirt has a word for."""
    found = await gather(
        lambda limit, after: call.control.subscriptions.list(PageQuery(limit=limit, after=after))
    )
    mine = [one.subscription for one in found if one.subscription.user_id == user.id]
    return [one for one in mine if one.codes in _NAMES]


async def list_subscriptions(call: Call) -> Reply:
    user = await the_user(call)
    return Reply(shape=SHAPE, body=[_node(user, one) for one in await _of(call, user)])


async def _the_subscription(call: Call, user: User) -> Subscription:
    for one in await _of(call, user):
        if one.id == call.path["subscription"]:
            return one
    raise NotFound(f"{user.name} has no such subscription")


async def get_subscription(call: Call) -> Reply:
    user = await the_user(call)
    return Reply(shape=SHAPE, body=_node(user, await _the_subscription(call, user)))


async def add_subscription(call: Call) -> Reply:
    """By the first mail receiver that is in use."""
    user, body = await the_user(call), call.body
    require(SHAPE, body, "event")
    event = body["event"]
    if event not in EVENTS:
        raise InvalidInput(
            f"'{event[:64]}' is no event that can be subscribed to here",
            field="event",
            allowed=tuple(EVENTS),
        )
    if body.get("notification_method", "smtp") != "smtp":
        raise not_here("a user's subscription by SNMP", "'virtha notify subscribe'")
    if body.get("address") not in (None, "", user.email):
        raise InvalidInput(
            f"is not {user.name}'s own",
            field="address",
            allowed=(user.email,) if user.email else (),
            fix=f"virtha user edit {user.name} --email ADDRESS",
        )
    if any(one.codes == EVENTS[event] for one in await _of(call, user)):
        raise Conflict(f"{user.name} is subscribed to {event} already", field="event")
    request = SubscriptionCreate(
        receiver=await _mail_receiver(call), user=user.id, codes=EVENTS[event]
    )
    made = await call.control.subscriptions.create(call.caller, request)
    return Reply(shape=SHAPE, body=_node(user, made.subscription), status=201)


async def _mail_receiver(call: Call) -> str:
    for one in await gather(
        lambda limit, after: call.control.receivers.list(PageQuery(limit=limit, after=after))
    ):
        if one.kind == "mail" and one.receiver.enabled:
            return one.receiver.name
    raise Refused("there is no mail server to send by", fix="add one: 'virtha notify receiver add'")


async def remove_subscription(call: Call) -> Reply:
    user = await the_user(call)
    one = await _the_subscription(call, user)
    await call.control.subscriptions.delete(call.caller, one.id)
    return Reply()


ROUTES: tuple[Route, ...] = (
    get(SUBSCRIPTIONS, list_subscriptions, area=AREA),
    post(SUBSCRIPTIONS, add_subscription, SHAPE, ADMINISTRATOR, AREA),
    get(f"{SUBSCRIPTIONS}/{{subscription}}", get_subscription, area=AREA),
    delete(f"{SUBSCRIPTIONS}/{{subscription}}", remove_subscription, ADMINISTRATOR, AREA),
)
