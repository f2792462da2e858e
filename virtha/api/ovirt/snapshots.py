"""Snapshots of VMs' disks. oVirt's ``description`` is our name; the present state is oVirt's ``Active VM``."""

import re
import time
from collections.abc import Collection

from virtha.api.ovirt.fault import not_here, require
from virtha.api.ovirt.operations import action_reply, status_of_addition, waited
from virtha.api.ovirt.route import Call, Reply, Route, action, delete, get, post, ref
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.unkept import refuse_others
from virtha.api.ovirt.vms import VM, the_vm
from virtha.control.names import is_id
from virtha.control.requests import SnapshotCreate
from virtha.model.errors import NotFound
from virtha.model.snapshot import Snapshot, SnapshotState
from virtha.model.time import format_utc

SNAPSHOTS = f"{VM}/snapshots"
SNAPSHOT = f"{SNAPSHOTS}/{{snapshot}}"
ACTIVE = "Active VM"
_STATES = {
    SnapshotState.CREATING: "locked",
    SnapshotState.READY: "ok",
    SnapshotState.REVERTING: "in_preview",
    SnapshotState.DELETING: "locked",
}
NAME_CHARACTERS = 59
"""Of 63, with room for a number."""
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
    vm_id, known = (await the_vm(call)).vm.id, call.known
    if vm_id not in known.snapshots:
        ids = known.vms_without(known.snapshots)
        known.snapshots.update(await call.control.snapshots.of_vms(ids))
    found = known.snapshots[vm_id]
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
    only = _disks_meant(call.body)
    text = call.body["description"]
    taken = {one.name for one in (await call.control.snapshots.list(vm.id)).items}
    name = call.body.get("name") or name_for(text, taken, int(time.time() * 1_000))
    request = SnapshotCreate(name=name, description=text)
    operation = await call.control.snapshots.create(call.caller, vm.id, request, only=only)
    status = status_of_addition(await waited(call, operation))
    for one in (await call.control.snapshots.list(vm.id)).items:
        if one.name == name:
            return Reply(shape="snapshot", body=snapshot_node(one), status=status)
    raise NotFound(f"snapshot '{name}' is gone already")


def name_for(description: str, taken: Collection[str], now: int) -> str:
    """Of the description's letters, or, where it has none of ours, of the time; numbered where that is taken: oVirt's
    snapshots have no names, so none of theirs is refused for one. ``now``: milliseconds since 1970."""
    base = _NOT_IN_NAMES.sub("-", description).strip("-._")[:NAME_CHARACTERS].strip("-._")
    if not base or is_id(base.lower()):
        base = "snapshot-" + re.sub(r"[^0-9T]", "", format_utc(now))[:15]
    numbers = range(2, len(taken) + 3)
    return next(it for it in (base, *(f"{base}-{number}" for number in numbers)) if it not in taken)


async def restore(call: Call) -> Reply:
    """What was written since is lost, on all disks: where some are named, they must be all. Of a VM that is down only."""
    found = await _the_snapshot(call)
    refuse_others(call.body, {}, "restore_memory")
    snapshots = call.control.snapshots
    operation = await snapshots.revert(
        call.caller, found.vm_id, found.id, only=_disks_meant(call.body)
    )
    return await action_reply(call, operation)


def _disks_meant(body: Node) -> tuple[str, ...] | None:
    """Ids, or nothing of one that is named otherwise; None: none are named, so all are meant. An attachment has the id of
    its disk."""
    if "disks" not in body and "disk_attachments" not in body:
        return None
    attached = [it.get("disk") or it for it in body.get("disk_attachments", ())]
    return tuple({it.get("id", ""): None for it in (*body.get("disks", ()), *attached)})


async def remove_snapshot(call: Call) -> Reply:
    found = await _the_snapshot(call)
    await waited(call, await call.control.snapshots.delete(call.caller, found.vm_id, found.id))
    return Reply()


ROUTES: tuple[Route, ...] = (
    get(SNAPSHOTS, list_snapshots),
    post(SNAPSHOTS, add_snapshot, "snapshot"),
    get(SNAPSHOT, get_snapshot),
    delete(SNAPSHOT, remove_snapshot),
    action(f"{SNAPSHOT}/restore", restore),
)
