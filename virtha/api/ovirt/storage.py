"""``/storagedomains``: thin over the use cases of storage domains."""

from virtha.api.ovirt.clusters import DATA_CENTER, cluster_ref, the_cluster
from virtha.api.ovirt.fault import not_here, require
from virtha.api.ovirt.listing import listed
from virtha.api.ovirt.route import (
    ADMINISTRATOR,
    Call,
    Reply,
    Route,
    delete,
    get,
    post,
    ref,
    searched,
)
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.unkept import refuse_others
from virtha.control.requests import SearchQuery, StorageCreate
from virtha.control.views import StorageView
from virtha.model.errors import NotFound
from virtha.model.host import CephPool

DOMAIN = "/storagedomains/{storage_domain}"
ATTACHED = f"{DATA_CENTER}/storagedomains"


def domain_node(view: StorageView) -> Node:
    domain = view.domain
    usable = [said for said in view.usable_by.values() if said is not None]
    node: Node = {
        **ref("storagedomains", domain.id),
        "link": [(rel, f"/storagedomains/{domain.id}/{rel}") for rel in ("disks", "permissions")],
        "name": domain.name,
        "description": "",
        "comment": "",
        "available": view.free_bytes,
        "used": max(view.size_bytes - view.free_bytes, 0),
        "data_centers": [ref("datacenters", domain.cluster_id)],
        "external_status": "ok",
        "master": False,
        "status": _status(usable),
        "storage": _storage(view),
        "storage_format": "v5",
        "type": "data",
    }
    return node


def _status(usable: list[bool]) -> str:
    """By what its hosts say of it."""
    if not usable:
        return "unknown"
    return "active" if any(usable) else "inactive"


def _storage(view: StorageView) -> Node:
    if isinstance(view.domain.ceph, CephPool):
        return {"type": "managed_block_storage", "path": view.domain.path}
    return {"type": "posixfs", "path": view.domain.path}


async def the_domain(call: Call) -> StorageView:
    """The one that the path names, by its id only. Raises NotFound."""
    domain_id = call.path["storage_domain"]
    view = await call.control.storage.get(domain_id)
    if view.domain.id != domain_id:
        raise NotFound(f"there is no storage domain with the id '{domain_id[:64]}'")
    return view


async def list_domains(call: Call) -> Reply:
    found = await listed(call.parameters, "Storage", call.control.storage.list, SearchQuery())
    return Reply(shape="storage_domain", body=[domain_node(view) for view in found])


async def list_attached(call: Call) -> Reply:
    cluster = await the_cluster(call, "data_center")
    found = await listed(
        call.parameters,
        "Storage",
        call.control.storage.list,
        SearchQuery(),
        cluster=cluster.id,
    )
    return Reply(shape="storage_domain", body=[domain_node(view) for view in found])


async def get_attached(call: Call) -> Reply:
    cluster, view = await the_cluster(call, "data_center"), await the_domain(call)
    if view.domain.cluster_id != cluster.id:
        raise NotFound(f"{view.domain.name} does not belong to {cluster.name}")
    return Reply(shape="storage_domain", body=domain_node(view))


async def get_domain(call: Call) -> Reply:
    return Reply(shape="storage_domain", body=domain_node(await the_domain(call)))


async def add_domain(call: Call) -> Reply:
    """A directory that all hosts of the cluster see under one path: mounted by their administrators, not by us."""
    body = call.body
    require("storage_domain", body, "name", "storage.path", "storage.type")
    kind = body["storage"]["type"]
    if kind not in ("posixfs", "localfs"):
        raise not_here(
            f"storage of type {kind[:64]}",
            "mount it on every host, and add that directory: type posixfs",
        )
    refuse_others(body, {}, "wipe_after_delete")
    said = body.get("data_center") or {}
    cluster = await cluster_ref(call, said) if said else None
    made = await call.control.storage.create(
        call.caller,
        StorageCreate(name=body["name"], path=body["storage"]["path"], cluster=cluster),
    )
    return Reply(shape="storage_domain", body=domain_node(made), status=201)


async def remove_domain(call: Call) -> Reply:
    view = await the_domain(call)
    await call.control.storage.delete(call.caller, view.domain.id)
    return Reply()


ROUTES: tuple[Route, ...] = (
    searched("/storagedomains", list_domains),
    post("/storagedomains", add_domain, "storage_domain", ADMINISTRATOR),
    get(DOMAIN, get_domain),
    delete(DOMAIN, remove_domain, ADMINISTRATOR),
    searched(ATTACHED, list_attached),
    get(f"{ATTACHED}/{{storage_domain}}", get_attached),
)
