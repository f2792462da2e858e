"""``/users``, ``/roles``, ``/permissions``: our users with their one role each, which holds for everything."""

from collections.abc import Awaitable, Callable
from uuid import UUID, uuid5

from virtha.api.ovirt.clusters import CLUSTER, DATA_CENTER, get_cluster, get_data_center
from virtha.api.ovirt.disks import get_disk
from virtha.api.ovirt.hosts import HOST, the_host
from virtha.api.ovirt.listing import gather, listed
from virtha.api.ovirt.route import (
    ADMINISTRATOR,
    Call,
    Handler,
    Reply,
    Route,
    get,
    listed_and_one,
    ref,
    searched,
)
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.sign_in import DOMAIN
from virtha.api.ovirt.storage import DOMAIN as STORAGE_DOMAIN
from virtha.api.ovirt.storage import get_domain
from virtha.api.ovirt.templates import TEMPLATE, get_template
from virtha.api.ovirt.vms import VM, the_vm
from virtha.control.requests import SearchQuery
from virtha.model.errors import NotFound
from virtha.model.user import Role, User

NAMESPACE = UUID("2d0c2d94-6f5e-4c0b-9d6b-3c1f5a8f6a11")
"""For ids of what is not kept: roles and permissions. Any fixed one serves."""
DOMAIN_ID = str(uuid5(NAMESPACE, DOMAIN))
_PERMITS = {
    Role.VIEWER: ("login",),
    Role.OPERATOR: ("login", "create_vm", "edit_vm_properties", "run_vm", "stop_vm", "migrate_vm"),
    Role.ADMINISTRATOR: ("login", "manipulate_users", "edit_storage_pool_configuration"),
}
USER = "/users/{user}"
_LINKS = ("eventsubscriptions", "permissions", "roles", "tags")


def role_id(role: Role) -> str:
    return str(uuid5(NAMESPACE, f"role {role.value}"))


def user_node(user: User) -> Node:
    return {
        **ref("users", user.id),
        "link": [(rel, f"/users/{user.id}/{rel}") for rel in _LINKS],
        "name": user.name,
        "user_name": f"{user.name}@{DOMAIN}",
        "principal": user.name,
        "namespace": "*",
        "email": user.email,
        "domain": {"id": DOMAIN_ID, "name": DOMAIN},
    }


def role_node(role: Role) -> Node:
    return {
        **ref("roles", role_id(role)),
        "link": [("permits", f"/roles/{role_id(role)}/permits")],
        "name": role.value,
        "description": "",
        "administrative": role is not Role.VIEWER,
        "mutable": False,
    }


def _permission_node(user: User) -> Node:
    return {
        **ref("permissions", str(uuid5(UUID(user.id), user.role.value))),
        "role": ref("roles", role_id(user.role)),
        "user": ref("users", user.id),
    }


async def _users(call: Call) -> list[User]:
    """For administrators all, for others themselves."""
    if call.known.users is None:
        call.known.users = await _read_users(call)
    return call.known.users


async def _read_users(call: Call) -> list[User]:
    if call.caller.role.may(Role.ADMINISTRATOR):
        return await gather(
            lambda limit, after: call.control.users.list(SearchQuery(limit=limit, after=after))
        )
    if call.caller.user_id is None:
        return []
    return [await call.control.users.get(call.caller.user_id)]


async def list_users(call: Call) -> Reply:
    found = await listed(call.parameters, "Users", call.control.users.list, SearchQuery())
    return Reply(shape="user", body=[user_node(user) for user in found])


async def the_user(call: Call) -> User:
    for user in await _users(call):
        if user.id == call.path["user"]:
            return user
    raise NotFound(f"there is no user with the id '{call.path['user'][:64]}'")


async def get_user(call: Call) -> Reply:
    return Reply(shape="user", body=user_node(await the_user(call)))


async def list_user_permissions(call: Call) -> Reply:
    return Reply(shape="permission", body=[_permission_node(await the_user(call))])


async def list_user_roles(call: Call) -> Reply:
    return Reply(shape="role", body=[role_node((await the_user(call)).role)])


async def list_user_tags(call: Call) -> Reply:
    await the_user(call)
    return Reply(shape="tag", body=[])


async def list_permissions(call: Call) -> Reply:
    return Reply(shape="permission", body=[_permission_node(it) for it in await _users(call)])


def _permissions_of(owner: Callable[[Call], Awaitable[object]]) -> Handler:
    """Each user's role holds for everything that there is. ``owner``: raises NotFound where it is not."""

    async def handle(call: Call) -> Reply:
        await owner(call)
        return await list_permissions(call)

    return handle


async def list_roles(_call: Call) -> Reply:
    return Reply(shape="role", body=[role_node(role) for role in Role])


def _role(call: Call) -> Role:
    for role in Role:
        if role_id(role) == call.path["role"]:
            return role
    raise NotFound(f"there is no role with the id '{call.path['role'][:64]}'")


async def get_role(call: Call) -> Reply:
    return Reply(shape="role", body=role_node(_role(call)))


async def list_permits(call: Call) -> Reply:
    role = _role(call)
    permits = [
        {
            **ref(f"roles/{role_id(role)}/permits", str(number)),
            "name": name,
            "administrative": role is Role.ADMINISTRATOR,
        }
        for number, name in enumerate(_PERMITS[role], 1)
    ]
    return Reply(shape="permit", body=permits)


def _permission_routes() -> tuple[Route, ...]:
    owners: dict[str, Callable[[Call], Awaitable[object]]] = {
        VM: the_vm,
        TEMPLATE: get_template,
        HOST: the_host,
        CLUSTER: get_cluster,
        DATA_CENTER: get_data_center,
        STORAGE_DOMAIN: get_domain,
        "/disks/{disk}": get_disk,
    }
    return tuple(
        route
        for path, owner in owners.items()
        for route in listed_and_one(f"{path}/permissions", _permissions_of(owner))
    )


ROUTES: tuple[Route, ...] = (
    searched("/users", list_users, ADMINISTRATOR),
    get(USER, get_user),
    *listed_and_one(f"{USER}/permissions", list_user_permissions),
    *listed_and_one(f"{USER}/roles", list_user_roles),
    get(f"{USER}/tags", list_user_tags),
    *listed_and_one("/permissions", list_permissions),
    get("/roles", list_roles),
    get("/roles/{role}", get_role),
    *listed_and_one("/roles/{role}/permits", list_permits),
    *_permission_routes(),
)
