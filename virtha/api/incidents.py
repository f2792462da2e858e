"""The record of incidents (X4). Thin over control."""

from virtha.api.route import VIEWER, Answer, Call, NoBody, NoQuery, Route
from virtha.control.incident_views import IncidentSummary, IncidentView
from virtha.control.requests import IncidentQuery
from virtha.control.views import Page
from virtha.model.errors import InvalidInput, NotFound


async def list_incidents(call: Call[IncidentQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.incidents.list(call.query))


async def get_incident(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.incidents.get(call.path["id"]))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/incidents",
        role=VIEWER,
        summary="List failures of hosts, newest first",
        handler=list_incidents,
        query=IncidentQuery,
        answer=Page[IncidentSummary],
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/v1/incidents/{id}",
        role=VIEWER,
        summary="Show a failure: its timeline, what each step took, what became of each VM",
        handler=get_incident,
        answer=IncidentView,
        errors=(InvalidInput,),
    ),
)
