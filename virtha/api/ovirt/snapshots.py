"""Snapshots of VMs' disks. oVirt's ``description`` is our name; the present state is oVirt's ``Active VM``."""

import re

from virtha.api.ovirt.fault import not_here, require
from virtha.api.ovirt.operations import action_reply, waited
from virtha.api.ovirt.route import Call, Reply, Route, action, delete, get, post, ref
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.vms import VM, the_vm
from virtha.control.requests import SnapshotCreate
from virtha.model.errors import NotFound
from virtha.model.snapshot import Snapshot, SnapshotState

SNAPSHOTS = f"{VM}/snapshots"
SNAPSHOT = f"{SNAPSHOTS}/{{snapshot}}"
ACTIVE = "Active VM"
_STATES = {
    SnapshotState.CREATING: "locked",
    SnapshotState.READY: "ok",
    SnapshotState.REVERTING: "in_preview",
    SnapshotState.DELETING: "locked",
}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def snapshot_node(snapshot: Snapshot) -> Node:
    node: Node = {
        **ref(f"vms/{snapshot.vm_id}/snapshots", snapshot.id),
        "actions": ("restore",),
        "description": snapshot.description or snapshot.name,
        "name": snapshot.name,
        "date": snapshot.created,
        "persist_memorystate": False,
        "snapshot_status": _STATES[snapshot.state],
        "snapshot_type": "regular",
        "vm": ref("vms", snapshot.vm_id),
    }
    return node


def _active(vm_id: str) -> Node:
    return {
        **ref(f"vms/{vm_id}/snapshots", vm_id),
        "description": ACTIVE,
        "persist_memorystate": False,
        "snapshot_status": "ok",
        "snapshot_type": "active",
        "vm": ref("vms", vm_id),
    }


async def list_snapshots(call: Call) -> Reply:
    vm_id = (await the_vm(call)).vm.id
    found = (await call.control.snapshots.list(vm_id)).items
    return Reply(shape="snapshot", body=[_active(vm_id), *(snapshot_node(one) for one in found)])


async def _the_snapshot(call: Call) -> Snapshot:
    vm_id = (await the_vm(call)).vm.id
    for one in (await call.control.snapshots.list(vm_id)).items:
        if one.id == call.path["snapshot"]:
            return one
    raise NotFound(f"there is no snapshot with the id '{call.path['snapshot'][:64]}'")


async def get_snapshot(call: Call) -> Reply:
    vm_id = (await the_vm(call)).vm.id
    if call.path["snapshot"] == vm_id:
        return Reply(shape="snapshot", body=_active(vm_id))
    return Reply(shape="snapshot", body=snapshot_node(await _the_snapshot(call)))


async def add_snapshot(call: Call) -> Reply:
    vm = (await the_vm(call)).vm
    require("snapshot", call.body, "description")
    if call.body.get("persist_memorystate"):
        raise not_here("a snapshot with the memory", "leave persist_memorystate out")
    text = call.body["description"]
    name = call.body.get("name") or _NOT_IN_NAMES.sub("-", text).strip("-._")[:63].strip("-._")
    request = SnapshotCreate(name=name, description=text)
    operation = await call.control.snapshots.create(call.caller, vm.id, request)
    await waited(call, operation)
    for one in (await call.control.snapshots.list(vm.id)).items:
        if one.name == name:
            return Reply(shape="snapshot", body=snapshot_node(one), status=201)
    raise NotFound(f"snapshot '{name}' is gone already")


async def restore(call: Call) -> Reply:
    """What was written since is lost; of a VM that is down only."""
    found = await _the_snapshot(call)
    snapshots = call.control.snapshots
    return await action_reply(call, await snapshots.revert(call.caller, found.vm_id, found.name))


async def remove_snapshot(call: Call) -> Reply:
    found = await _the_snapshot(call)
    await waited(call, await call.control.snapshots.delete(call.caller, found.vm_id, found.name))
    return Reply()


ROUTES: tuple[Route, ...] = (
    get(SNAPSHOTS, list_snapshots),
    post(SNAPSHOTS, add_snapshot, "snapshot"),
    get(SNAPSHOT, get_snapshot),
    delete(SNAPSHOT, remove_snapshot),
    action(f"{SNAPSHOT}/restore", restore),
)
