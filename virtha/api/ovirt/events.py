"""``/events``: the audit log. An event's id is its revision, its code the number of ours (``docs/reference/codes.md``)."""

from typing import Any

import msgspec

from virtha.api.ovirt.fault import not_here
from virtha.api.ovirt.listing import gather, size_of_page, the_search
from virtha.api.ovirt.route import Call, Reply, Route, delete, get, post, ref, searched
from virtha.api.ovirt.shape import Node
from virtha.control.requests import EventQuery
from virtha.control.searching import show_search, too_costly
from virtha.control.views import Page
from virtha.model.codes import REGISTRY, Severity
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.event import Event
from virtha.search import Query

EVENTS_DEFAULT = 1_000
EVENTS_MAX = 10_000
"""Of one answer: there may be millions, and oVirt's clients ask for all of them."""
LOOKS_MAX = 200
"""At parts of the log, for one answer; the store bounds each: some 5 s in all."""
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


async def list_events(call: Call) -> Reply:
    """Newest first. ``from``: those after that id, and of these the oldest ``max``, so that who follows skips none."""
    parameters = call.parameters
    begin = parameters.integer("from")
    if begin is not None and begin < 0:
        raise InvalidInput(f"{begin} is no id of an event", field="from", fix="use an event's id")
    search = the_search(parameters, "Events")
    if search is not None and search.page is not None:
        found = await _numbered(call, begin, search)
    else:
        found = await _some(call, begin, search)
    return Reply(shape="event", body=[event_node(it) for it in found])


async def _numbered(call: Call, begin: int | None, search: Query) -> list[Event]:
    if begin is not None:
        raise InvalidInput(
            "is asked for together with a page's number", field="from", fix="leave one of them out"
        )
    query = _query(call, search, limit=size_of_page(call.parameters))
    return list((await call.control.events.list(query)).items)


def _query(call: Call, search: Query | None, **more: Any) -> EventQuery:
    text = show_search(search) if search is not None else None
    return EventQuery(search=text, case_sensitive=call.parameters.case_sensitive, **more)


async def _some(call: Call, begin: int | None, search: Query | None) -> list[Event]:
    """Of the log in its order, or against it. Raises InvalidInput: too much of it would be looked at."""
    descending = search is None or search.sort is None or search.sort.descending
    upward = begin is not None or not descending
    if search is not None:
        search = msgspec.structs.replace(search, sort=None)
    looks = 0

    async def page(limit: int, after: str | None) -> Page[Event]:
        nonlocal looks
        looks += 1
        if looks > LOOKS_MAX:
            raise too_costly()
        start = int(after) if after is not None else begin
        order = "asc" if upward else "desc"
        return await call.control.events.list(
            _query(call, search, limit=limit, after=start, order=order)
        )

    wanted = call.parameters.max
    found = await gather(page, EVENTS_DEFAULT if wanted is None else min(wanted, EVENTS_MAX))
    return found if upward is not descending else list(reversed(found))


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
    searched("/events", list_events),
    post("/events", refuse_event, "event"),
    get("/events/{event}", get_event),
    delete("/events/{event}", refuse_event),
)
