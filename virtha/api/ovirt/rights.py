"""Who may use which route of the façade, and what of the records they see: by the native API's permissions, and its two looks.

oVirt's names of things onto ours; the looks themselves are ``api/admission.py``'s.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from virtha.api.admission import check_somewhere, depends_on_cluster, seeing_as
from virtha.api.ovirt.disks import owner_of_disk
from virtha.api.ovirt.route import Call, Known, Reply, Route, named
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.vm_node import BLANK, BLANK_NAME
from virtha.control.access_check import Reference
from virtha.model.access import Permission
from virtha.model.errors import VirthaError

KINDS = {
    "cluster": "cluster",
    "data_center": "cluster",  # one for each cluster
    "host": "host",
    "hosts": "host",
    "storage_domain": "storage domain",
    "storage_domains": "storage domain",
    "template": "template",
    "templates": "template",
    "vm": "vm",
    "vms": "vm",
}
"""What a path's parameter names, and a body's element, or each of its items, by id or name."""
_DISK = "disk"
_UNDER_DISKS = "/disks/"


async def check(call: Call, route: Route) -> None:
    """Raises Forbidden (they may not do that anywhere, or there), NotFound (of what they may not see)."""
    check_somewhere(call.caller, route)
    if not depends_on_cluster(call.caller, route):
        return
    in_path = [it async for it in _in_path(call, route)]
    in_body = [] if route.everywhere else list(_in_body(call.body))
    if in_path or in_body or route.method != "GET":
        await call.control.access.check(call.caller, route.permission, [*in_path, *in_body])


async def answered(call: Call, route: Route) -> Reply:
    """By the route's handler, whose looks see what the caller may see, and whose refusals name nothing else."""
    try:
        with seeing_as(call.control, call.caller, route):
            return await route.handler(call)
    except VirthaError as error:
        said = f"{call.path} {call.parameters} {call.body}"
        raise await call.control.access.without_unseen(call.caller, error, said) from error


async def _in_path(call: Call, route: Route) -> AsyncIterator[Reference]:
    for name, ref in call.path.items():
        if name in KINDS:
            yield Reference(KINDS[name], ref)
        elif name == _DISK and route.path.startswith(_UNDER_DISKS):
            with call.control.access.seen_by(call.caller, Permission.VIEW):
                # What is read so is a part, and nothing to decide on: hence not kept.
                owned = await owner_of_disk(replace(call, known=Known()))
            yield Reference(owned.kind, owned.owner_id)


def _in_body(body: Node) -> Iterator[Reference]:
    for name, value in body.items():
        nodes = value if isinstance(value, list | tuple) else [value]
        for node in nodes:
            if not isinstance(node, dict):
                continue
            ref = named(node)
            blank = name == "template" and ref in (BLANK, BLANK_NAME)
            if name in KINDS and ref is not None and not blank:
                yield Reference(KINDS[name], ref, name)
            yield from _in_body(node)
