"""Readiness: what would fail today (X5). Thin over control."""

from virtha.api.route import VIEWER, Answer, Call, NoBody, NoQuery, Route
from virtha.control.readiness_views import ReadinessView


async def get_readiness(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.readiness.all())


async def get_cluster_readiness(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.readiness.of_cluster(call.ref))


async def get_host_readiness(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.readiness.of_host(call.ref))


async def get_vm_readiness(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.readiness.of_vm(call.ref))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/readiness",
        role=VIEWER,
        summary="What would fail today, of all there is",
        handler=get_readiness,
        answer=ReadinessView,
    ),
    Route(
        method="GET",
        path="/v1/clusters/{ref}/readiness",
        role=VIEWER,
        summary="What would fail today in a cluster, its hosts and VMs",
        handler=get_cluster_readiness,
        answer=ReadinessView,
    ),
    Route(
        method="GET",
        path="/v1/hosts/{ref}/readiness",
        role=VIEWER,
        summary="What would fail if this host died now",
        handler=get_host_readiness,
        answer=ReadinessView,
    ),
    Route(
        method="GET",
        path="/v1/vms/{ref}/readiness",
        role=VIEWER,
        summary="What would keep this VM from coming back",
        handler=get_vm_readiness,
        answer=ReadinessView,
    ),
)
