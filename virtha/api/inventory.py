"""Clusters, hosts, storage domains: thin over control."""

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
from virtha.control.requests import (
    AdoptRequest,
    ClusterChange,
    ClusterCreate,
    SearchQuery,
    StorageCreate,
)
from virtha.control.views import BrakeView, HostView, Page, StorageView
from virtha.model.errors import NotFound, Unavailable
from virtha.model.facts import Image
from virtha.model.host import Cluster
from virtha.model.operation import Operation
from virtha.model.policy import Policy
from virtha.model.value import Request


class DeleteHostQuery(Request, frozen=True, kw_only=True):
    """``powered_off``: the operator's word for a host that has not spoken since a restore."""

    powered_off: bool = False


def accepted(operation: Operation) -> Answer:
    return Answer(body=operation, location=f"/v1/operations/{operation.id}")


async def list_clusters(call: Call[SearchQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.clusters.list(call.query))


async def create_cluster(call: Call[NoQuery, ClusterCreate]) -> Answer:
    made = await call.control.clusters.create(call.caller, call.body)
    return Answer(body=made, revision=made.revision, location=f"/v1/clusters/{made.id}")


async def get_cluster(call: Call[NoQuery, NoBody]) -> Answer:
    cluster = await call.control.clusters.get(call.ref)
    return Answer(body=cluster, revision=cluster.revision)


async def change_cluster(call: Call[NoQuery, ClusterChange]) -> Answer:
    changed = await call.control.clusters.change(call.caller, call.ref, call.body, call.if_match)
    return Answer(body=changed, revision=changed.revision)


async def delete_cluster(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.clusters.delete(call.caller, call.ref, call.if_match)
    return Answer()


async def get_brake(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.freeing.brake(call.ref))


async def lift_brake(call: Call[NoQuery, NoBody]) -> Answer:
    lifting = call.control.freeing.lift_brake(call.caller, call.ref)
    return Answer(body=await call.services.unless_stopping(lifting))


async def get_policy(call: Call[NoQuery, NoBody]) -> Answer:
    cluster = await call.control.clusters.get(call.ref)
    return Answer(body=cluster.policy, revision=cluster.revision)


async def put_policy(call: Call[NoQuery, Policy]) -> Answer:
    changed = await call.control.clusters.put_policy(
        call.caller, call.ref, call.body, call.if_match
    )
    return Answer(body=changed.policy, revision=changed.revision)


async def list_hosts(call: Call[SearchQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.hosts.list(call.query))


async def get_host(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.hosts.get(call.ref)
    return Answer(body=view, revision=view.host.revision)


async def delete_host(call: Call[DeleteHostQuery, NoBody]) -> Answer:
    await call.control.hosts.delete(
        call.caller, call.ref, call.if_match, powered_off=call.query.powered_off
    )
    return Answer()


async def scan_host(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.hosts.scan(call.caller, call.ref))


async def adopt(call: Call[NoQuery, AdoptRequest]) -> Answer:
    return accepted(await call.control.hosts.adopt(call.caller, call.ref, call.body))


async def list_storage(call: Call[SearchQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.storage.list(call.query))


async def create_storage(call: Call[NoQuery, StorageCreate]) -> Answer:
    made = await call.control.storage.create(call.caller, call.body)
    location = f"/v1/storage-domains/{made.domain.id}"
    return Answer(body=made, revision=made.domain.revision, location=location)


async def get_storage(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.storage.get(call.ref)
    return Answer(body=view, revision=view.domain.revision)


async def delete_storage(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.storage.delete(call.caller, call.ref, call.if_match)
    return Answer()


async def list_images(call: Call[PartQuery, NoBody]) -> Answer:
    images = await call.control.storage.images(call.ref)
    return Answer(body=Page(items=images, revision=await call.control.events.current_revision()))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/clusters",
        role=VIEWER,
        summary="List clusters",
        handler=list_clusters,
        query=SearchQuery,
        answer=Page[Cluster],
    ),
    Route(
        method="POST",
        path="/v1/clusters",
        role=ADMINISTRATOR,
        summary="Create a cluster",
        handler=create_cluster,
        body=ClusterCreate,
        answer=Cluster,
        status=201,
    ),
    Route(
        method="GET",
        path="/v1/clusters/{ref}",
        role=VIEWER,
        summary="Show a cluster",
        handler=get_cluster,
        answer=Cluster,
    ),
    Route(
        method="PATCH",
        path="/v1/clusters/{ref}",
        role=ADMINISTRATOR,
        summary="Change a cluster",
        handler=change_cluster,
        body=ClusterChange,
        answer=Cluster,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/clusters/{ref}",
        role=ADMINISTRATOR,
        summary="Delete an empty cluster",
        handler=delete_cluster,
        status=204,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/clusters/{ref}/brake",
        role=VIEWER,
        summary="Whether power orders wait, for too many hosts fell silent at once",
        handler=get_brake,
        answer=BrakeView,
    ),
    Route(
        method="DELETE",
        path="/v1/clusters/{ref}/brake",
        role=OPERATOR,
        own_area="hosts",
        summary="Let power orders go out again, although so many hosts fell silent",
        handler=lift_brake,
        answer=BrakeView,
        errors=(Unavailable,),
    ),
    Route(
        method="GET",
        path="/v1/clusters/{ref}/policy",
        role=VIEWER,
        summary="Show a cluster's policy",
        handler=get_policy,
        answer=Policy,
    ),
    Route(
        method="PUT",
        path="/v1/clusters/{ref}/policy",
        role=ADMINISTRATOR,
        summary="Replace a cluster's policy",
        handler=put_policy,
        body=Policy,
        answer=Policy,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/hosts",
        role=VIEWER,
        summary="List hosts",
        handler=list_hosts,
        query=SearchQuery,
        answer=Page[HostView],
    ),
    Route(
        method="GET",
        path="/v1/hosts/{ref}",
        role=VIEWER,
        summary="Show a host",
        handler=get_host,
        answer=HostView,
    ),
    Route(
        method="DELETE",
        path="/v1/hosts/{ref}",
        role=ADMINISTRATOR,
        summary="Remove a host that holds no VM",
        handler=delete_host,
        query=DeleteHostQuery,
        status=204,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/scan",
        role=OPERATOR,
        summary="Look for libvirt domains that virtha does not manage",
        handler=scan_host,
        answer=Operation,
        status=202,
        errors=(Unavailable,),
    ),
    Route(
        method="POST",
        path="/v1/hosts/{ref}/adopt",
        role=OPERATOR,
        summary="Adopt existing libvirt domains",
        handler=adopt,
        body=AdoptRequest,
        answer=Operation,
        status=202,
        errors=(Unavailable,),
    ),
    Route(
        method="GET",
        path="/v1/storage-domains",
        role=VIEWER,
        summary="List storage domains",
        handler=list_storage,
        query=SearchQuery,
        answer=Page[StorageView],
    ),
    Route(
        method="POST",
        path="/v1/storage-domains",
        role=ADMINISTRATOR,
        summary="Add a storage domain",
        handler=create_storage,
        body=StorageCreate,
        answer=StorageView,
        status=201,
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/v1/storage-domains/{ref}",
        role=VIEWER,
        summary="Show a storage domain",
        handler=get_storage,
        answer=StorageView,
    ),
    Route(
        method="DELETE",
        path="/v1/storage-domains/{ref}",
        role=ADMINISTRATOR,
        summary="Remove a storage domain without disks; its files stay",
        handler=delete_storage,
        status=204,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/storage-domains/{ref}/images",
        role=VIEWER,
        summary="List the images of a storage domain",
        handler=list_images,
        query=PartQuery,
        cut_by=lambda image: image.path,
        answer=Page[Image],
    ),
)
