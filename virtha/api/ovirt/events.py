"""``/events``: the audit log. An event's id is its revision, its code the number of ours (``docs/reference/codes.md``)."""

from virtha.api.ovirt.fault import not_here
from virtha.api.ovirt.listing import gather
from virtha.api.ovirt.parameters import Parameters
from virtha.api.ovirt.route import Call, Reply, Route, delete, get, post, ref
from virtha.api.ovirt.search import parse_search, select
from virtha.api.ovirt.shape import Node
from virtha.control.requests import EventQuery
from virtha.control.views import Page
from virtha.model.codes import REGISTRY, Severity
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.event import Event

EVENTS_DEFAULT = 1_000
EVENTS_MAX = 10_000
"""Of one answer: there may be millions, and oVirt's clients ask for all of them."""
_SEVERITIES = {
    Severity.INFO: "normal",
    Severity.WARNING: "warning",
    Severity.ERROR: "error",
    Severity.ALERT: "alert",
}


def event_node(event: Event) -> Node:
    code = REGISTRY.get(event.code)
    node: Node = {
        **ref("events", event.revision),
        "description": event.message,
        "code": code.number if code is not None else 0,
        "custom_id": -1,
        "index": event.revision,
        "origin": "virtha",
        "severity": _SEVERITIES[event.severity],
        "time": event.at,
        # oVirt has a number only: clients that know us find the name here.
        "custom_data": event.code,
    }
    if event.operation_id is not None:
        node["correlation_id"] = event.operation_id
    if event.cluster_id is not None:
        node["cluster"] = ref("clusters", event.cluster_id)
        node["data_center"] = ref("datacenters", event.cluster_id)
    if event.host_id is not None:
        node["host"] = ref("hosts", event.host_id)
    if event.vm_id is not None:
        node["vm"] = ref("vms", event.vm_id)
    if event.user is not None:
        node["user"] = {"name": event.user}
    return node


def event_words(event: Event) -> dict[str, str]:
    code = REGISTRY.get(event.code)
    return {
        "severity": _SEVERITIES[event.severity],
        "type": str(code.number) if code is not None else "",
        "code": event.code,
        "message": event.message,
        "vm.id": event.vm_id or "",
        "host.id": event.host_id or "",
        "event_vm": str(event.fields.get("vm", "")) if event.vm_id is not None else "",
        "event_host": str(event.fields.get("host", "")) if event.host_id is not None else "",
        "correlation_id": event.operation_id or "",
        "usrname": event.user or "",
        "origin": "virtha",
    }


async def list_events(call: Call) -> Reply:
    """Newest first. ``from``: those after that id, and of these the oldest ``max``, so that who follows skips none."""
    parameters = call.parameters
    begin = parameters.integer("from")
    search = parse_search(parameters.search)
    if search.terms or search.page is not None:
        # Among the newest: until the search is the database's.
        found = await _some(call, begin, EVENTS_MAX)
        chosen = select([(event_words(it), it) for it in found], search, _bounded(parameters))
        return Reply(shape="event", body=[event_node(it) for it in chosen])
    found = await _some(call, begin, _bounded(parameters).max or 0)
    return Reply(shape="event", body=[event_node(it) for it in found])


def _bounded(parameters: Parameters) -> Parameters:
    wanted = EVENTS_DEFAULT if parameters.max is None else parameters.max
    return Parameters(
        given=parameters.given,
        max=min(wanted, EVENTS_MAX),
        search=parameters.search,
        case_sensitive=parameters.case_sensitive,
    )


async def _some(call: Call, begin: int | None, at_most: int) -> list[Event]:
    if begin is not None and begin < 0:
        raise InvalidInput(f"{begin} is no id of an event", field="from", fix="use an event's id")

    async def page(limit: int, after: str | None) -> Page[Event]:
        start = int(after) if after is not None else begin
        order = "desc" if begin is None else "asc"
        return await call.control.events.list(
            EventQuery(limit=limit, after=start, order=order)  # type: ignore[arg-type]  # two words
        )

    found = await gather(page, at_most)
    return found if begin is None else list(reversed(found))


async def get_event(call: Call) -> Reply:
    text = call.path["event"]
    if text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0:
        query = EventQuery(limit=1, after=int(text) - 1, order="asc")
        for event in (await call.control.events.list(query)).items:
            if event.revision == int(text):
                return Reply(shape="event", body=event_node(event))
    raise NotFound(f"there is no event '{text[:64]}', or it is no longer kept")


async def refuse_event(_call: Call) -> Reply:
    raise not_here("writing the audit log from outside", "it is kept as its retention says")


ROUTES: tuple[Route, ...] = (
    get("/events", list_events),
    post("/events", refuse_event, "event"),
    get("/events/{event}", get_event),
    delete("/events/{event}", refuse_event),
)
