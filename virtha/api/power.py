"""Power devices of clusters and hosts: thin over control."""

from virtha.api.route import (
    ADMINISTRATOR,
    OPERATOR,
    VIEWER,
    Answer,
    Call,
    NoBody,
    NoQuery,
    PartQuery,
    Route,
)
from virtha.control.power_views import (
    ClusterPowerView,
    HostPowerOrder,
    HostPowerView,
    PowerPut,
    PowerStatusView,
    PowerTestView,
)
from virtha.control.views import Page
from virtha.model.errors import Conflict, Failed, NotFound, Refused, Unavailable
from virtha.model.ids import Revision
from virtha.model.operation import Operation
from virtha.ports.power import AgentForm


async def list_cluster_power(call: Call[PartQuery, NoBody]) -> Answer:
    found = await call.control.power.of_cluster(call.ref)
    revision = max((one.power.revision for one in found), default=Revision(0))
    return Answer(body=Page(items=found, revision=revision))


async def put_cluster_power(call: Call[NoQuery, PowerPut]) -> Answer:
    view = await call.control.power.put_of_cluster(
        call.caller, call.ref, call.path["key"], call.body, call.if_match
    )
    return Answer(body=view, revision=view.power.revision)


async def delete_cluster_power(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.power.delete_of_cluster(
        call.caller, call.ref, call.path["key"], call.if_match
    )
    return Answer()


async def list_host_power(call: Call[PartQuery, NoBody]) -> Answer:
    found = await call.control.power.of_host(call.ref)
    revision = max((one.power.revision for one in found if one.power), default=Revision(0))
    return Answer(body=Page(items=found, revision=revision))


async def get_host_power(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.power.get(call.ref, call.path["key"])
    return Answer(body=view, revision=view.power.revision if view.power else None)


async def put_host_power(call: Call[NoQuery, PowerPut]) -> Answer:
    view = await call.control.power.put_of_host(
        call.caller, call.ref, call.path["key"], call.body, call.if_match
    )
    return Answer(body=view, revision=view.power.revision if view.power else None)


async def delete_host_power(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.power.delete_of_host(call.caller, call.ref, call.path["key"], call.if_match)
    return Answer()


async def read_power(call: Call[NoQuery, NoBody]) -> Answer:
    work = call.control.power_orders.status(call.ref, call.path["key"])
    return Answer(body=await call.services.unless_stopping(work))


async def test_power(call: Call[NoQuery, NoBody]) -> Answer:
    work = call.control.power_orders.test(call.caller, call.ref, call.path["key"])
    return Answer(body=await call.services.unless_stopping(work))


async def order_power(call: Call[NoQuery, HostPowerOrder]) -> Answer:
    return Answer(body=await call.control.host_power.begin(call.caller, call.ref, call.body))


async def list_agents(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.power.agents())


async def get_agent(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.power.agent(call.path["key"]))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/clusters/{ref}/power",
        role=VIEWER,
        summary="List what a cluster says of its hosts' power devices",
        handler=list_cluster_power,
        query=PartQuery,
        cut_by=lambda one: one.power.name,
        answer=Page[ClusterPowerView],
    ),
    Route(
        method="PUT",
        path="/v1/clusters/{ref}/power/{key}",
        role=ADMINISTRATOR,
        summary="Set up a power device for all hosts of a cluster; its secrets are never shown",
        handler=put_cluster_power,
        body=PowerPut,
        answer=ClusterPowerView,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/clusters/{ref}/power/{key}",
        role=ADMINISTRATOR,
        summary="Remove a power device's settings from a cluster",
        handler=delete_cluster_power,
        status=204,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/hosts/{ref}/power",
        role=VIEWER,
        summary="List a host's power devices, with what its cluster says",
        handler=list_host_power,
        query=PartQuery,
        cut_by=lambda one: one.name,
        answer=Page[HostPowerView],
    ),
    Route(
        method="GET",
        path="/v1/hosts/{ref}/power/{key}",
        role=VIEWER,
        summary="Show a power device of a host",
        handler=get_host_power,
        answer=HostPowerView,
    ),
    Route(
        method="PUT",
        path="/v1/hosts/{ref}/power/{key}",
        role=ADMINISTRATOR,
        summary="Set up a power device of a host; its secrets are never shown",
        handler=put_host_power,
        body=PowerPut,
        answer=HostPowerView,
        conditional=True,
        errors=(Conflict, Failed, Unavailable),
    ),
    Route(
        method="DELETE",
        path="/v1/hosts/{ref}/power/{key}",
        role=ADMINISTRATOR,
        summary="Remove a power device from a host",
        handler=delete_host_power,
        status=204,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/power/{key}/status",
        role=OPERATOR,
        summary="Ask a power device for its state now",
        handler=read_power,
        answer=PowerStatusView,
        errors=(Failed, Unavailable),
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/power/{key}/test",
        role=OPERATOR,
        summary="Test a power device; nothing is switched",
        handler=test_power,
        answer=PowerTestView,
        errors=(Failed, Unavailable),
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/power",
        role=OPERATOR,
        summary="Switch a host off, on, or off and on again, or light its identify LED",
        handler=order_power,
        body=HostPowerOrder,
        answer=Operation,
        status=202,
        errors=(Conflict, Refused, Failed, Unavailable),
    ),
    Route(
        method="GET",
        path="/v1/power/agents",
        role=VIEWER,
        summary="List the fence agents that are installed on this server",
        handler=list_agents,
        answer=tuple[str, ...],
        errors=(Unavailable,),
    ),
    Route(
        method="GET",
        path="/v1/power/agents/{key}",
        role=VIEWER,
        summary="What a fence agent can be told, from its own metadata",
        handler=get_agent,
        answer=AgentForm,
        errors=(NotFound, Failed, Unavailable),
    ),
)
