"""Consoles of VMs: log and screenshot. What a guest shows may be secret, so viewers may not."""

from virtha.api.route import OPERATOR, Answer, Call, NoBody, NoQuery, Route
from virtha.control.requests import ConsoleLogQuery, ConsoleTicketCreate
from virtha.control.views import ConsoleLog, ConsoleTicket
from virtha.model.errors import Refused, Unavailable

PNG = "image/png"


async def get_log(call: Call[ConsoleLogQuery, NoBody]) -> Answer:
    log = call.control.consoles.log(call.ref, call.query)
    return Answer(body=await call.services.unless_stopping(log))


async def get_screenshot(call: Call[NoQuery, NoBody]) -> Answer:
    picture = call.control.consoles.screenshot(call.ref)
    return Answer(raw=await call.services.unless_stopping(picture))


async def create_ticket(call: Call[NoQuery, ConsoleTicketCreate]) -> Answer:
    made = await call.control.consoles.make_ticket(call.caller, call.ref, call.body)
    return Answer(body=made, location=made.path)


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/vms/{ref}/console-log",
        role=OPERATOR,
        summary="What a VM wrote to its serial port, from each host that has some of it",
        handler=get_log,
        query=ConsoleLogQuery,
        answer=ConsoleLog,
        errors=(Unavailable,),
    ),
    Route(
        method="GET",
        path="/v1/vms/{ref}/screenshot",
        role=OPERATOR,
        summary="What a VM's screen shows, as PNG",
        handler=get_screenshot,
        media_type=PNG,
        errors=(Refused, Unavailable),
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/console-tickets",
        role=OPERATOR,
        summary="A ticket for one WebSocket to /v1/console, within 60 s",
        handler=create_ticket,
        body=ConsoleTicketCreate,
        answer=ConsoleTicket,
        status=201,
        secret=True,
        errors=(Unavailable,),
    ),
)
