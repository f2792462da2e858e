"""Disks and their attachments. A disk belongs to one VM or template here; there are none that float."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from virtha.api.ovirt.fault import incomplete, not_here, require
from virtha.api.ovirt.listing import gather, in_turns
from virtha.api.ovirt.operations import (
    all_being_added,
    being_added,
    status_of_addition,
    underway,
    waited,
)
from virtha.api.ovirt.route import (
    Call,
    Known,
    Reply,
    Route,
    delete,
    get,
    named,
    post,
    put,
    ref,
    searched,
)
from virtha.api.ovirt.search import noun, select
from virtha.api.ovirt.shape import TURN, Node
from virtha.api.ovirt.storage import DOMAIN, the_domain
from virtha.api.ovirt.templates import TEMPLATE, the_template
from virtha.api.ovirt.unkept import refuse_others
from virtha.api.ovirt.vm_node import BLANK
from virtha.api.ovirt.vms import VM, every_vm, the_vm
from virtha.control.requests import DiskCreate, DiskResize, SearchQuery
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.vm import Disk, DiskFormat, Vm

T = TypeVar("T")
_INTERFACES = {"virtio": "virtio", "scsi": "virtio_scsi", "sata": "sata", "ide": "ide"}
_FORMATS = {DiskFormat.QCOW2: "cow", DiskFormat.RAW: "raw"}
_UNKEPT: Node = {"active": True, "read_only": False, "uses_scsi_reservation": False}
_UNKEPT_DISK: Node = {
    "propagate_errors": False,  # the VM's storage_error_resume_behaviour says what follows
    "read_only": False,
    "shareable": False,
    "wipe_after_delete": False,
}
"""Of what is added here, and of its attachment."""
_LOCKS = {"vm.create", "vm.snapshot", "vm.resize", "vm.delete", "template.create"}
DISKS = noun("Disks", "disk", fields=("name", "alias", "id", "format", "storage"))
ATTACHMENTS, ATTACHMENT = "diskattachments", "diskattachments/{disk}"


class Owned:
    """A disk and whose it is. ``kind``: ``vm`` or ``template``. ``adding``: it is on its way to it."""

    def __init__(
        self, kind: str, owner_id: str, disk: Disk, *, first: bool, adding: bool = False
    ) -> None:
        self.kind = kind
        self.owner_id = owner_id
        self.disk = disk
        self.bootable = first
        self.adding = adding


def disk_node(owned: Owned, under_way: Collection[str] = ()) -> Node:
    disk = owned.disk
    owner = ref(f"{owned.kind}s", owned.owner_id)
    domain = ref("storagedomains", disk.storage_domain_id)
    return {
        **ref("disks", disk.id),
        "link": [(rel, f"/disks/{disk.id}/{rel}") for rel in ("permissions", "statistics")],
        "name": disk.name,
        "alias": disk.name,
        "description": disk.path,
        "content_type": "data",
        "format": _FORMATS[disk.format],
        "propagate_errors": False,
        "provisioned_size": disk.size_bytes,
        "read_only": disk.readonly,
        "shareable": False,
        "sparse": True,
        "status": "locked" if owned.adding or _LOCKS.intersection(under_way) else "ok",
        "storage_domains": [domain],
        "storage_type": "image",
        "wipe_after_delete": False,
        owned.kind: owner,
    }


def attachment_node(owned: Owned) -> Node:
    disk = owned.disk
    owner = ref(f"{owned.kind}s", owned.owner_id)
    return {
        **ref(f"{owned.kind}s/{owned.owner_id}/diskattachments", disk.id),
        "active": True,
        "bootable": owned.bootable,
        "disk": ref("disks", disk.id),
        "interface": _INTERFACES[disk.bus],
        "pass_discard": False,
        "read_only": disk.readonly,
        "uses_scsi_reservation": False,
        owned.kind: owner,
    }


def _owned(kind: str, owner_id: str, disks: tuple[Disk, ...]) -> list[Owned]:
    return [Owned(kind, owner_id, disk, first=not at) for at, disk in enumerate(disks)]


async def _with_coming(call: Call, vm: Vm) -> list[Owned]:
    """Of a VM, with those on their way to it: who was told of one finds it again, locked."""
    own = {disk.id for disk in vm.disks}
    coming = [it for it in await being_added(call, vm.id) if isinstance(it, Disk)]
    return _owned("vm", vm.id, vm.disks) + [
        Owned("vm", vm.id, disk, first=not own, adding=True)
        for disk in coming
        if disk.id not in own
    ]


async def _all(call: Call) -> list[Owned]:
    found: list[Owned] = []
    for at, view in enumerate(await every_vm(call)):
        found += await _with_coming(call, view.vm)
        if not at % TURN:
            await asyncio.sleep(0)
    return found + await _of_all_templates(call)


async def _of_all_templates(call: Call) -> list[Owned]:
    if call.known.templates is None:
        call.known.templates = await gather(
            lambda limit, after: call.control.templates.list(SearchQuery(limit=limit, after=after))
        )
    found: list[Owned] = []
    for view in call.known.templates:
        found += _owned("template", view.template.id, view.template.disks)
    return found


async def owner_of_disk(call: Call) -> Owned:
    """Of a VM that is known, of any, on its way to one, of a template: the cheapest to be looked at first."""
    wanted = call.path["disk"]
    view = call.known.disk_owners.get(wanted) or await call.control.vms.with_disk(wanted)
    if view is not None:
        there = _owned("vm", view.vm.id, view.vm.disks)
    else:
        there = [*await _coming(call, wanted), *await _of_all_templates(call)]
    for one in there:
        if one.disk.id == wanted:
            return one
    raise NotFound(f"there is no disk with the id '{wanted[:64]}'")


async def _coming(call: Call, wanted: str) -> list[Owned]:
    for vm_id, devices in (await all_being_added(call)).items():
        if any(one.id == wanted for one in devices):
            return await _with_coming(call, (await call.control.vms.get(vm_id)).vm)
    return []


async def list_disks(call: Call) -> Reply:
    return await _listed(call, await _all(call))


async def list_of_domain(call: Call) -> Reply:
    domain = (await the_domain(call)).domain
    there = [one for one in await _all(call) if one.disk.storage_domain_id == domain.id]
    return await _listed(call, there)


async def _listed(call: Call, there: list[Owned]) -> Reply:
    words = [
        (
            {
                "name": one.disk.name,
                "alias": one.disk.name,
                "id": one.disk.id,
                "format": _FORMATS[one.disk.format],
                "storage": one.disk.storage_domain_id,
            },
            one,
        )
        for one in there
    ]
    chosen = select(DISKS, words, call.parameters)
    open_ones = await underway(call) if chosen else {}
    nodes = await in_turns(chosen, lambda one: disk_node(one, open_ones.get(one.owner_id, ())))
    return Reply(shape="disk", body=nodes)


async def get_disk(call: Call) -> Reply:
    found = await owner_of_disk(call)
    open_ones = await underway(call, found.owner_id)
    return Reply(shape="disk", body=disk_node(found, open_ones.get(found.owner_id, ())))


async def list_statistics(call: Call) -> Reply:
    """None are kept of a disk."""
    await owner_of_disk(call)
    return Reply(shape="statistic", body=[])


async def refuse_disk(_call: Call) -> Reply:
    raise not_here("a disk that belongs to no VM", "add it to a VM: POST /vms/ID/diskattachments")


async def change_disk(call: Call) -> Reply:
    found = await owner_of_disk(call)
    await _grow(call, found, call.body)
    return await get_disk(call)


async def _grow(call: Call, found: Owned, body: Node) -> None:
    """A disk's size is all that can be changed of it. Raises Refused."""
    for name in ("name", "alias"):
        if body.get(name) not in (None, found.disk.name):
            raise Refused("a disk's name can't be changed", field=name, fix="leave it out")
    refuse_others(body, disk_node(found), *_UNKEPT_DISK)
    size = body.get("provisioned_size")
    if size is None or size == found.disk.size_bytes:
        return
    if found.kind != "vm":
        raise Refused("a template's disks stay as they are", field="provisioned_size")
    devices = call.control.vms.devices
    await waited(
        call,
        await devices.resize_disk(
            call.caller, found.owner_id, found.disk.id, DiskResize(size_bytes=size)
        ),
    )


async def remove_disk(call: Call) -> Reply:
    """Of oVirt's the data goes; ours are removed with their VM, else kept. Raises Refused."""
    found = await owner_of_disk(call)
    raise Refused(
        f"the data of {found.disk.name} is deleted only with its {found.kind}",
        fix=f"DELETE /vms/{found.owner_id}/diskattachments/{found.disk.id} takes it away and keeps its file",
    )


# Attachments


async def _of_vm(call: Call) -> list[Owned]:
    return await _with_coming(call, (await the_vm(call)).vm)


async def _of_template(call: Call) -> list[Owned]:
    if call.path["template"] == BLANK:
        return []
    template = (await the_template(call)).template
    return _owned("template", template.id, template.disks)


def _chosen(call: Call, there: list[Owned]) -> Owned:
    for one in there:
        if one.disk.id == call.path["disk"]:
            return one
    raise NotFound(f"it has no disk with the id '{call.path['disk'][:64]}'")


async def list_of_vm(call: Call) -> Reply:
    return Reply(shape="disk_attachment", body=[attachment_node(one) for one in await _of_vm(call)])


async def get_of_vm(call: Call) -> Reply:
    return Reply(shape="disk_attachment", body=attachment_node(_chosen(call, await _of_vm(call))))


async def list_of_template(call: Call) -> Reply:
    nodes = [attachment_node(one) for one in await _of_template(call)]
    return Reply(shape="disk_attachment", body=nodes)


async def get_of_template(call: Call) -> Reply:
    node = attachment_node(_chosen(call, await _of_template(call)))
    return Reply(shape="disk_attachment", body=node)


async def attach(call: Call) -> Reply:
    """A new disk. One that is there already belongs to somebody."""
    view = await the_vm(call)
    require("disk_attachment", call.body, "disk")
    said = call.body["disk"]
    first = {"bootable": not await _of_vm(call)}
    refuse_others(call.body, _UNKEPT | first, *_UNKEPT, *first)
    refuse_others(said, _UNKEPT_DISK, *_UNKEPT_DISK, within="disk.")
    if named({"id": said.get("id")}):
        raise not_here("attaching a disk of another VM", "describe a new one")
    if said.get("provisioned_size") is None:
        raise incomplete("disk_attachment", ["disk.provisionedSize"])
    request = DiskCreate(
        name=said.get("alias") or said.get("name"),
        size_bytes=said["provisioned_size"],
        format=_format_of(said),
        storage_domain=next((named(one) for one in said.get("storage_domains", ())), None),
        bus=_bus_of(call.body),
    )
    devices = call.control.vms.devices
    operation = await devices.add_disk(call.caller, view.vm.id, request)
    made = await devices.added_by(operation.id)
    assert isinstance(made, Disk), "it is what was asked for"
    seen = await waited(call, operation)
    added = Owned("vm", view.vm.id, made, first=first["bootable"], adding=not seen.is_over)
    status = status_of_addition(seen)
    return Reply(shape="disk_attachment", body=attachment_node(added), status=status)


def _format_of(said: Node) -> DiskFormat:
    return _of_word(_FORMATS, said.get("format") or "cow", "disk.format")


def _bus_of(body: Node) -> str:
    return _of_word(_INTERFACES, body.get("interface") or "virtio", "interface")


def _of_word(words: Mapping[T, str], text: str, field: str) -> T:
    """``words``: ours to oVirt's. Raises InvalidInput."""
    for ours, word in words.items():
        if text == word:
            return ours
    raise InvalidInput(f"'{text[:64]}' is no value", field=field, allowed=tuple(words.values()))


async def change_attachment(call: Call) -> Reply:
    found = _chosen(call, await _of_vm(call))
    if call.body.get("active") is False:
        raise not_here("a disk that is attached and not active", "DELETE the attachment")
    shown = attachment_node(found)
    refuse_others(call.body, shown, "uses_scsi_reservation", "bootable")
    for name, present in shown.items():
        if name in ("interface", "read_only") and call.body.get(name) not in (None, present):
            raise Refused(f"a disk's {name} can't be changed", field=name, fix="leave it out")
    await _grow(call, found, call.body.get("disk") or {})
    return await get_of_vm_now(call)


async def get_of_vm_now(call: Call) -> Reply:
    return await get_of_vm(replace(call, known=Known()))  # it was changed meanwhile


async def detach(call: Call) -> Reply:
    found = _chosen(call, await _of_vm(call))
    if not call.parameters.flag("detach_only", default=True):
        raise not_here("deleting the data of one disk", "leave detach_only out: its file stays")
    devices = call.control.vms.devices
    await waited(call, await devices.remove_disk(call.caller, found.owner_id, found.disk.id))
    return Reply()


ROUTES: tuple[Route, ...] = (
    searched("/disks", list_disks),
    post("/disks", refuse_disk, "disk"),
    get("/disks/{disk}", get_disk),
    put("/disks/{disk}", change_disk, "disk"),
    delete("/disks/{disk}", remove_disk),
    get("/disks/{disk}/statistics", list_statistics),
    searched(f"{DOMAIN}/disks", list_of_domain),
    get(f"{VM}/{ATTACHMENTS}", list_of_vm),
    post(f"{VM}/{ATTACHMENTS}", attach, "disk_attachment"),
    get(f"{VM}/{ATTACHMENT}", get_of_vm),
    put(f"{VM}/{ATTACHMENT}", change_attachment, "disk_attachment"),
    delete(f"{VM}/{ATTACHMENT}", detach),
    get(f"{TEMPLATE}/{ATTACHMENTS}", list_of_template),
    get(f"{TEMPLATE}/{ATTACHMENT}", get_of_template),
)
