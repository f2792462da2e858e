"""What an operator says about a host: maintenance, and that it is dead. Thin over control."""

from virtha.api.route import OPERATOR, VIEWER, Answer, Call, NoBody, NoQuery, Route
from virtha.control.requests import DeathConfirmation, MaintenanceChange
from virtha.control.views import DeathTicket, DeathView, MaintenanceView
from virtha.model.errors import Unavailable


async def get_maintenance(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.host_care.maintenance(call.ref))


async def set_maintenance(call: Call[NoQuery, MaintenanceChange]) -> Answer:
    asked = call.control.host_care.set_maintenance(call.caller, call.ref, call.body)
    return Answer(body=await call.services.unless_stopping(asked))


async def create_death_ticket(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.host_care.ask_about_death(call.caller, call.ref))


async def confirm_dead(call: Call[NoQuery, DeathConfirmation]) -> Answer:
    word = call.control.host_care.confirm_death(call.caller, call.ref, call.body)
    return Answer(body=await call.services.unless_stopping(word))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/hosts/{ref}/maintenance",
        role=VIEWER,
        summary="Whether a host is in maintenance, and which VMs it may still hold",
        handler=get_maintenance,
        answer=MaintenanceView,
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/maintenance",
        role=OPERATOR,
        summary="Put a host into maintenance, or take it out",
        handler=set_maintenance,
        body=MaintenanceChange,
        answer=MaintenanceView,
        errors=(Unavailable,),
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/death-tickets",
        role=OPERATOR,
        summary="What it means to confirm that this host is dead, and a ticket for that, good for 10 min",
        handler=create_death_ticket,
        answer=DeathTicket,
        status=201,
        secret=True,
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/confirm-dead",
        role=OPERATOR,
        summary="Your word that a host is dead: its VMs start elsewhere, and if it runs, they run twice",
        handler=confirm_dead,
        body=DeathConfirmation,
        answer=DeathView,
        errors=(Unavailable,),
    ),
)
