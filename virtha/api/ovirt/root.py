"""The API's root, and what it says of itself: capabilities (W4), operating systems, roles, tags, icons of nothing."""

import time

from virtha.api.ovirt.clusters import VERSION
from virtha.api.ovirt.listing import gather
from virtha.api.ovirt.route import Call, Reply, Route, get, post, ref
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.vm_node import BLANK
from virtha.control.requests import SearchQuery
from virtha.model.errors import NotFound, Refused
from virtha.model.user import Role

ROOT_TAG = "00000000-0000-0000-0000-000000000000"
COLLECTIONS = (
    "capabilities",
    "clusters",
    "clusterlevels",
    "datacenters",
    "disks",
    "events",
    "hosts",
    "jobs",
    "networks",
    "operatingsystems",
    "permissions",
    "roles",
    "storagedomains",
    "tags",
    "templates",
    "users",
    "vms",
    "vnicprofiles",
)
_SEARCHED = (
    "clusters",
    "datacenters",
    "disks",
    "events",
    "hosts",
    "storagedomains",
    "templates",
    "vms",
)
_SYSTEMS = (
    ("0", "other", "Other OS", "x86_64"),
    ("5", "other_linux", "Linux", "x86_64"),
    ("2001", "other_s390x", "Other OS", "s390x"),
)


async def get_root(call: Call) -> Reply:
    totals = (await call.control.status.get()).totals
    storage = await gather(
        lambda limit, after: call.control.storage.list(SearchQuery(limit=limit, after=after))
    )
    installation = (await call.control.installation.row()).installation
    me: Node = {"user_name": call.caller.name}
    if call.caller.user_id is not None:
        me = ref("users", call.caller.user_id)
    body: Node = {
        "link": [*((name, f"/{name}") for name in COLLECTIONS), *_search_links()],
        "product_info": {
            "name": "virtha",
            "vendor": "virtha",
            "instance_id": installation.id,
            "version": {**VERSION, "build": 0, "revision": 0, "full_version": "4.5.0-virtha"},
        },
        "special_objects": {
            "blank_template": ref("templates", BLANK),
            "root_tag": ref("tags", ROOT_TAG),
        },
        "summary": {
            "hosts": {"active": totals.hosts_up, "total": totals.hosts},
            "storage_domains": {"active": len(storage), "total": len(storage)},
            "users": await _users(call),
            "vms": {"active": totals.vms_running, "total": totals.vms},
        },
        "time": int(time.time() * 1_000),
        "authenticated_user": me,
        "effective_user": me,
    }
    return Reply(shape="api", body=body)


def _search_links() -> list[tuple[str, str]]:
    return [(f"{name}/search", f"/{name}?search={{query}}") for name in _SEARCHED]


async def _users(call: Call) -> Node | None:
    """Administrators only: who there is, is not for others to know."""
    if not call.caller.role.may(Role.ADMINISTRATOR):
        return None
    users = await gather(
        lambda limit, after: call.control.users.list(SearchQuery(limit=limit, after=after))
    )
    return {"active": sum(user.enabled for user in users), "total": len(users)}


async def get_capabilities(call: Call) -> Reply:
    """As the source document has it: what watchdogs there are at all. Which fit a VM, its refusal names."""
    found = await call.control.hosts.capabilities()
    models = {model.value: None for offer in found.watchdogs for model in offer.accepted}
    body: Node = {
        "version": {"major": 4, "minor": 6},
        "watchdog_models": list(models),
        "watchdog_actions": [action.value for action in found.actions],
    }
    return Reply(shape="capabilities", body=body)


def _system(identifier: str, name: str, description: str, architecture: str) -> Node:
    return {
        "id": identifier,
        "href": f"/operatingsystems/{identifier}",
        "name": name,
        "description": description,
        "architecture": architecture,
        "tpm_support": "unsupported",
    }


async def list_systems(_call: Call) -> Reply:
    return Reply(shape="operating_system", body=[_system(*one) for one in _SYSTEMS])


async def get_system(call: Call) -> Reply:
    for one in _SYSTEMS:
        if one[0] == call.path["id"]:
            return Reply(shape="operating_system", body=_system(*one))
    raise NotFound(f"there is no operating system '{call.path['id'][:64]}'")


def _root_tag() -> Node:
    return {
        "id": ROOT_TAG,
        "href": f"/tags/{ROOT_TAG}",
        "name": "root",
        "description": "root",
        "comment": "",
    }


async def list_tags(_call: Call) -> Reply:
    return Reply(shape="tag", body=[_root_tag()])


async def get_tag(call: Call) -> Reply:
    if call.path["id"] != ROOT_TAG:
        raise NotFound(f"there is no tag '{call.path['id'][:64]}'")
    return Reply(shape="tag", body=_root_tag())


async def refuse_tag(_call: Call) -> Reply:
    raise Refused("tags are not kept by this server", fix="use names and descriptions")


ROUTES: tuple[Route, ...] = (
    get("", get_root),
    get("/capabilities", get_capabilities),
    get("/operatingsystems", list_systems),
    get("/operatingsystems/{id}", get_system),
    get("/tags", list_tags),
    post("/tags", refuse_tag, "tag"),
    get("/tags/{id}", get_tag),
    *(
        post(f"/{kind}/{{{kind}}}/tags", refuse_tag, "tag")
        for kind in ("vms", "templates", "hosts")
    ),
)
