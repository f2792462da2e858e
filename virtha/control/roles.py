"""Roles that people made, and who has which role in which cluster."""

from uuid import uuid4

import msgspec
from msgspec import UNSET

from virtha.control.access_views import (
    ROLES_MAX,
    GrantCreate,
    GrantView,
    RoleChange,
    RoleCreate,
    RoleView,
    fixed_role_views,
)
from virtha.control.callers import permissions_of
from virtha.control.history import changes_between, record
from virtha.control.names import (
    check_name,
    check_revision,
    check_text,
    missing,
    taken,
    the_cluster,
    the_user,
)
from virtha.control.views import Caller, Page
from virtha.model.access import RESERVED_PERMISSIONS, AccessRole, Grant, Permission
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused
from virtha.model.ids import ClusterId, GrantId, Revision, RoleId
from virtha.model.user import Role
from virtha.store.access import (
    add_grant_of_user,
    add_role,
    drop_grant_of_user,
    drop_role,
    find_role,
    grants_of_user,
    roles_after,
    save_role,
    users_with_role,
)
from virtha.store.clusters import cluster_names
from virtha.store.store import Store, Transaction
from virtha.store.users import users_with_token_for

GRANTS_MAX = 200
"""Of one user: they are read with each request."""
_NAMED_MAX = 5


class Roles:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self) -> Page[RoleView]:
        """All in one page: the fixed ones first."""
        async with self._store.read() as tx:
            made = await roles_after(tx, "", ROLES_MAX)
            items = (*fixed_role_views(), *(_view(role) for role in made))
            return Page(items=items, revision=await tx.revision_now())

    async def get(self, ref: str) -> RoleView:
        """Raises NotFound."""
        for view in fixed_role_views():
            if view.name == ref:
                return view
        async with self._store.read() as tx:
            return _view(await _the_role(tx, ref))

    async def create(self, caller: Caller, request: RoleCreate) -> RoleView:
        check_name(request.name)
        check_text(request.description, field="description")
        permissions = _checked(request.permissions)
        async with self._store.write() as tx:
            if request.name in list(Role) or await find_role(tx, request.name) is not None:
                raise taken("role", request.name)
            if len(await roles_after(tx, "", ROLES_MAX)) == ROLES_MAX:
                raise Refused(f"there are {ROLES_MAX} roles", fix="delete one that nobody needs")
            made = AccessRole(
                id=RoleId(str(uuid4())),
                name=request.name,
                description=request.description,
                permissions=permissions,
            )
            saved = await add_role(tx, made)
            told = changes_between(None, saved)
            await record(tx, "role.created", by=caller.name, role=saved.name, **told)
            return _view(saved)

    async def change(
        self, caller: Caller, ref: str, request: RoleChange, if_match: Revision | None = None
    ) -> RoleView:
        """Holds from the next request of those who have it."""
        _check_made(ref)
        async with self._store.write() as tx:
            present = await _the_role(tx, ref)
            check_revision(if_match, present.revision)
            changed = present
            if request.description is not UNSET:
                text = check_text(request.description, field="description")
                changed = msgspec.structs.replace(changed, description=text)
            if request.permissions is not UNSET:
                permissions = _checked(request.permissions)
                changed = msgspec.structs.replace(changed, permissions=permissions)
            saved = await save_role(tx, changed)
            told = changes_between(present, saved)
            await record(tx, "role.changed", by=caller.name, role=saved.name, **told)
            return _view(saved)

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        """Raises Refused (`problem.role.in_use`)."""
        _check_made(ref)
        async with self._store.write() as tx:
            present = await _the_role(tx, ref)
            check_revision(if_match, present.revision)
            users = await users_with_role(tx, present.name, _NAMED_MAX)
            if users:
                raise Refused(
                    f"users have it: {', '.join(users)}",
                    code="problem.role.in_use",
                    fix="take it from them first: 'virtha user revoke USER ROLE'",
                )
            users = await users_with_token_for(tx, present.name, tx.clock.wall_ms(), _NAMED_MAX)
            if users:
                # They would be good for nothing, and another role of that name would revive them.
                raise Refused(
                    f"access tokens are for it, of {', '.join(users)}",
                    code="problem.role.in_use",
                    fix="end them first: 'virtha session list --user USER', 'virtha session end ID'",
                )
            await drop_role(tx, present.id)
            told = changes_between(present, None)
            await record(tx, "role.deleted", by=caller.name, role=present.name, **told)

    # grants

    async def of_user(self, ref: str) -> Page[GrantView]:
        """All in one page. Raises NotFound."""
        async with self._store.read() as tx:
            user = (await the_user(tx, ref)).user
            names = await cluster_names(tx)
            found = await grants_of_user(tx, user.id)
            items = tuple(_grant_view(grant, names) for grant, _ in found)
            return Page(items=items, revision=await tx.revision_now())

    async def grant(self, caller: Caller, ref: str, request: GrantCreate) -> GrantView:
        """Raises NotFound, InvalidInput (an unknown role; a fixed one without a cluster), Conflict."""
        async with self._store.write() as tx:
            user = (await the_user(tx, ref)).user
            cluster_id = None
            if request.cluster is not None:
                cluster_id = (await the_cluster(tx, request.cluster, field="cluster")).id
            await _check_role(tx, request.role, everywhere=cluster_id is None)
            present = await grants_of_user(tx, user.id)
            if any((one.role, one.cluster_id) == (request.role, cluster_id) for one, _ in present):
                raise Conflict(f"{user.name} has that already", field="role")
            if len(present) >= GRANTS_MAX:
                raise Refused(f"{user.name} has {GRANTS_MAX} grants", fix="take one away first")
            made = Grant(
                id=GrantId(str(uuid4())),
                user_id=user.id,
                role=request.role,
                cluster_id=cluster_id,
            )
            await add_grant_of_user(tx, made)
            view = _grant_view(made, await cluster_names(tx))
            where = view.cluster_name or "all clusters"
            await record(
                tx, "user.granted", by=caller.name, user=user.name, role=made.role, where=where
            )
            return view

    async def revoke(self, caller: Caller, ref: str, grant_id: str) -> None:
        """Raises NotFound."""
        async with self._store.write() as tx:
            user = (await the_user(tx, ref)).user
            found = next(
                (one for one, _ in await grants_of_user(tx, user.id) if one.id == grant_id), None
            )
            if found is None:
                raise NotFound(
                    f"{user.name} has no grant {grant_id[:64]}",
                    fix=f"'virtha user grants {user.name}' shows them",
                )
            view = _grant_view(found, await cluster_names(tx))
            await drop_grant_of_user(tx, found.id)
            where = view.cluster_name or "all clusters"
            await record(
                tx, "user.revoked", by=caller.name, user=user.name, role=found.role, where=where
            )


def _view(role: AccessRole) -> RoleView:
    return RoleView(
        id=role.id,
        name=role.name,
        description=role.description,
        permissions=role.permissions,
        revision=role.revision,
    )


def _grant_view(grant: Grant, names: dict[ClusterId, str]) -> GrantView:
    name = names.get(grant.cluster_id, grant.cluster_id) if grant.cluster_id is not None else None
    return GrantView(grant=grant, cluster_name=name)


def _checked(permissions: tuple[Permission, ...]) -> tuple[Permission, ...]:
    """Sorted, each once, without ``view``. Raises InvalidInput."""
    wanted = set(permissions) - {Permission.VIEW}
    if reserved := sorted(wanted & RESERVED_PERMISSIONS):
        raise InvalidInput(
            f"{reserved[0].value} is for administrators: who has it may give themselves all others",
            field="permissions",
            allowed=tuple(one.value for one in Permission if one not in RESERVED_PERMISSIONS),
            fix="give the user the role administrator, or leave it out",
        )
    return tuple(sorted(wanted))


def _check_made(ref: str) -> None:
    if ref in list(Role):
        raise Refused(
            f"{ref} is a fixed role", code="problem.role.fixed", fix="create a role of your own"
        )


async def _the_role(tx: Transaction, ref: str) -> AccessRole:
    found = await find_role(tx, ref)
    if found is None:
        made = await roles_after(tx, "", ROLES_MAX)
        raise missing("role", ref, [role.name for role in made])
    return found


async def check_role_name(tx: Transaction, name: str) -> None:
    """Raises InvalidInput: there is no such role."""
    if not permissions_of(name, await find_role(tx, name)):
        made = [role.name for role in await roles_after(tx, "", ROLES_MAX)]
        fixed = [role.value for role in Role if role is not Role.NONE]
        raise InvalidInput(
            f"there is no role '{name[:64]}'",
            field="role",
            allowed=tuple([*fixed, *made][:20]),
            fix="'virtha role list' shows all",
        )


async def _check_role(tx: Transaction, name: str, *, everywhere: bool) -> None:
    await check_role_name(tx, name)
    if everywhere and name in list(Role):
        raise InvalidInput(
            f"the role {name} in all clusters is not granted, it is the user's own",
            field="cluster",
            fix=f"name a cluster, or 'virtha user edit USER --role {name}'",
        )
