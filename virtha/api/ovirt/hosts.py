"""``/hosts``: thin over the use cases of hosts, their maintenance and their power."""

from virtha.api.ovirt.fault import incomplete, not_here
from virtha.api.ovirt.host_node import host_node
from virtha.api.ovirt.listing import listed
from virtha.api.ovirt.operations import action_reply, done
from virtha.api.ovirt.route import (
    ADMINISTRATOR,
    Call,
    Reply,
    Route,
    action,
    delete,
    get,
    named,
    post,
    put,
    searched,
)
from virtha.api.ovirt.unkept import refuse_others
from virtha.control.power_views import HostPowerAction, HostPowerOrder
from virtha.control.requests import MaintenanceChange, SearchQuery
from virtha.control.views import HostView
from virtha.model.errors import (
    InvalidInput,
    NotFound,
    Refused,
    VirthaError,
)

HOST = "/hosts/{host}"
FENCE_WAIT_MS = 60_000
"""Off, with its reading back: a device takes tens of seconds (``fencing.order_deadline``)."""
FENCE_TYPES = ("manual", "restart", "start", "status", "stop")
_ORDERS = {
    "restart": HostPowerAction.REBOOT,
    "start": HostPowerAction.ON,
    "stop": HostPowerAction.OFF,
}


async def the_host(call: Call) -> HostView:
    """The host that the path names, by its id only. Raises NotFound."""
    host_id = call.path["host"]
    if host_id not in call.known.hosts:
        view = await call.control.hosts.get(host_id)
        if view.host.id != host_id:
            raise NotFound(f"there is no host with the id '{host_id[:64]}'")
        call.known.hosts[host_id] = view
    return call.known.hosts[host_id]


async def _node(call: Call, view: HostView) -> Reply:
    care = await call.control.host_care.maintenance(view.host.id)
    return Reply(shape="host", body=host_node(view, care))


async def list_hosts(call: Call) -> Reply:
    found = await listed(call.parameters, "Hosts", call.control.hosts.list, SearchQuery())
    call.known.hosts.update({view.host.id: view for view in found})
    cares = await call.control.host_care.in_maintenance()
    nodes = [host_node(view, cares.get(view.host.id)) for view in found]
    return Reply(shape="host", body=nodes)


async def get_host(call: Call) -> Reply:
    return await _node(call, await the_host(call))


async def refuse_host(_call: Call) -> Reply:
    raise not_here(
        "adding a host from here", "hosts join by themselves: 'virtha agent join' on the host"
    )


async def change_host(call: Call) -> Reply:
    """What the body says must be as it is, but for ``power_management.enabled``, which follows from the fence agents."""
    view = await the_host(call)
    fixed = {"name": view.host.name, "address": view.host.name}
    for name, present in fixed.items():
        if call.body.get(name) not in (None, present):
            raise Refused(f"a host's {name} can't be changed", field=name, fix="leave it out")
    cluster = named(call.body.get("cluster"))
    if cluster not in (None, view.host.cluster_id, view.cluster_name):
        raise Refused(
            f"{view.host.name} stays in {view.cluster_name}",
            field="cluster",
            fix="remove it, and let it join the other cluster",
        )
    refuse_others(call.body, {}, "power_management.kdump_detection")
    enabled = (call.body.get("power_management") or {}).get("enabled")
    if enabled is not None and enabled != bool(view.power):
        raise Refused(
            "power management is on when the host has a fence agent, else off",
            field="power_management.enabled",
            fix=f"{'add' if enabled else 'remove'} fence agents",
        )
    return await _node(call, view)


async def remove_host(call: Call) -> Reply:
    view = await the_host(call)
    await call.control.hosts.delete(call.caller, view.host.id)
    return Reply()


# Actions


async def activate(call: Call) -> Reply:
    return await _maintain(call, on=False)


async def deactivate(call: Call) -> Reply:
    return await _maintain(call, on=True)


async def _maintain(call: Call, *, on: bool) -> Reply:
    view = await the_host(call)
    asked = call.control.host_care.set_maintenance(
        call.caller, view.host.id, MaintenanceChange(on=on)
    )
    await call.services.unless_stopping(asked)
    return done()


async def fence(call: Call) -> Reply:
    view = await the_host(call)
    wanted = call.body.get("fence_type")
    if not wanted:
        raise incomplete("action", ["fenceType"], "fence")
    if wanted == "manual":
        raise _manual(view)
    if wanted == "status":
        return await _status(call, view)
    if wanted not in _ORDERS:
        raise InvalidInput(
            f"'{wanted[:64]}' is no fence type", field="fence_type", allowed=FENCE_TYPES
        )
    refuse_others(
        call.body,
        {},
        "maintenance_after_restart",
        fix="put it into maintenance first: POST deactivate",
    )
    order = HostPowerOrder(action=_ORDERS[wanted])
    operation = await call.control.host_power.begin(call.caller, view.host.id, order)
    return await action_reply(call, operation, FENCE_WAIT_MS)


def _manual(view: HostView) -> Refused:
    """P6: the word is bound to what the operator has looked at, and to the name that he typed. One request has neither."""
    name = view.host.name
    return Refused(
        f"that {name} is dead is not taken on one request's word: if it runs, its VMs run twice",
        field="fence_type",
        fix=f"look at it, then confirm: 'virtha host confirm-dead {name}'",
    )


async def _status(call: Call, view: HostView) -> Reply:
    """Of the first level that knows it: the next is asked only when this one does not say. A failure is told in the answer,
    as oVirt does it, once no level knows."""
    levels: dict[int, list[str]] = {}
    for one in await call.control.power.of_host(view.host.id):
        if one.power is not None:
            levels.setdefault(one.whole.level or 1, []).append(one.name)
    if not levels:
        raise NotFound(f"{view.host.name} has no fence agent", fix="add one: POST fenceagents")
    failures: list[str] = []
    for _, names in sorted(levels.items()):
        readings = [await _reading(call, view, name) for name in names]
        if "on" in readings or set(readings) == {"off"}:  # its devices feed the host together
            status = "on" if "on" in readings else "off"
            return done(power_management={"status": status})
        failures += [
            f"{name}: {one}"
            for name, one in zip(names, readings, strict=True)
            if isinstance(one, VirthaError)
        ]
    if failures:
        fault = {"reason": "Operation Failed", "detail": f"[{'; '.join(failures)}]"}
        return done("failed", fault=fault)
    return done(power_management={"status": "unknown"})


async def _reading(call: Call, view: HostView, name: str) -> str | VirthaError:
    """``on``, ``off``, ``unknown``, or why it could not be asked."""
    work = call.control.power_orders.status(view.host.id, name)
    try:
        return (await call.services.unless_stopping(work)).state.value
    except VirthaError as error:
        return error


ROUTES: tuple[Route, ...] = (
    searched("/hosts", list_hosts),
    post("/hosts", refuse_host, "host", ADMINISTRATOR),
    get(HOST, get_host),
    put(HOST, change_host, "host", ADMINISTRATOR),
    delete(HOST, remove_host, ADMINISTRATOR),
    action(f"{HOST}/activate", activate),
    action(f"{HOST}/deactivate", deactivate),
    action(f"{HOST}/fence", fence),
)
