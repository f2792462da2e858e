"""Snapshots of VMs' disks: thin over control."""

from virtha.api.inventory import accepted
from virtha.api.route import OPERATOR, VIEWER, Answer, Call, NoBody, NoQuery, PartQuery, Route
from virtha.control.requests import SnapshotCreate
from virtha.control.views import Page
from virtha.model.errors import NotFound
from virtha.model.operation import Operation
from virtha.model.snapshot import Snapshot


async def list_snapshots(call: Call[PartQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.snapshots.list(call.ref))


async def create_snapshot(call: Call[NoQuery, SnapshotCreate]) -> Answer:
    return accepted(await call.control.snapshots.create(call.caller, call.ref, call.body))


async def revert_snapshot(call: Call[NoQuery, NoBody]) -> Answer:
    name = call.path["id"]
    return accepted(await call.control.snapshots.revert(call.caller, call.ref, name))


async def delete_snapshot(call: Call[NoQuery, NoBody]) -> Answer:
    name = call.path["id"]
    return accepted(await call.control.snapshots.delete(call.caller, call.ref, name))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/vms/{ref}/snapshots",
        role=VIEWER,
        summary="List a VM's snapshots, oldest first",
        handler=list_snapshots,
        query=PartQuery,
        cut_by=lambda snapshot: snapshot.id,
        answer=Page[Snapshot],
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/snapshots",
        role=OPERATOR,
        summary="Make a snapshot of all disks of a VM; one that runs is frozen for it",
        handler=create_snapshot,
        body=SnapshotCreate,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/snapshots/{id}/revert",
        role=OPERATOR,
        summary="Put the disks of a VM that is down back to a snapshot",
        handler=revert_snapshot,
        answer=Operation,
        status=202,
        errors=(NotFound,),
    ),
    Route(
        method="DELETE",
        path="/v1/vms/{ref}/snapshots/{id}",
        role=OPERATOR,
        summary="Delete a snapshot; the disks stay as they are",
        handler=delete_snapshot,
        answer=Operation,
        status=202,
        errors=(NotFound,),
    ),
)
