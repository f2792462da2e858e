"""Roles that people made, and who has which role where."""

from collections.abc import Collection

import msgspec
from sqlalchemy import delete, insert, or_, select, update

from virtha.model.access import FIXED, AccessRole, Grant, Permission
from virtha.model.ids import ClusterId, GrantId, RoleId, UserId
from virtha.model.user import Role
from virtha.store.body import decode, encode, in_parts
from virtha.store.reach import Reach
from virtha.store.schema import (
    access_grant,
    access_role,
    cluster,
    host,
    storage_domain,
    template,
    user_account,
    vm,
)
from virtha.store.store import Transaction, WriteTransaction

_SEEING = tuple(role.value for role in Role if Permission.VIEW in FIXED[role])
"""The fixed roles that see anything."""
_BLIND = tuple(role.value for role in Role if role.value not in _SEEING)


async def find_role(tx: Transaction, ref: str) -> AccessRole | None:
    """By id or name."""
    body = await tx.connection.scalar(
        select(access_role.c.body).where((access_role.c.id == ref) | (access_role.c.name == ref))
    )
    return None if body is None else decode(AccessRole, body)


async def roles_after(tx: Transaction, name: str, limit: int) -> tuple[AccessRole, ...]:
    """By name."""
    rows = await tx.connection.scalars(
        select(access_role.c.body)
        .where(access_role.c.name > name)
        .order_by(access_role.c.name)
        .limit(limit)
    )
    return tuple(decode(AccessRole, body) for body in rows)


async def add_role(tx: WriteTransaction, value: AccessRole) -> AccessRole:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        insert(access_role).values(
            id=saved.id, name=saved.name, body=encode(saved), revision=saved.revision
        )
    )
    return saved


async def save_role(tx: WriteTransaction, value: AccessRole) -> AccessRole:
    """Its name stays: grants and tokens know it by that."""
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        update(access_role)
        .where(access_role.c.id == saved.id)
        .values(body=encode(saved), revision=saved.revision)
    )
    return saved


async def drop_role(tx: WriteTransaction, role_id: RoleId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(access_role).where(access_role.c.id == role_id))


async def grants_of_user(
    tx: Transaction, user_id: UserId
) -> tuple[tuple[Grant, AccessRole | None], ...]:
    """With the role where people made it, in the order of roles' names and clusters; None: a fixed one, or there is none of that
    name."""
    rows = await tx.connection.execute(
        select(access_grant, access_role.c.body.label("role_body"))
        .join(access_role, access_role.c.name == access_grant.c.role, isouter=True)
        .where(access_grant.c.user_id == user_id)
        .order_by(access_grant.c.role, access_grant.c.cluster_id)
    )
    return tuple(
        (
            Grant(
                id=GrantId(row.id),
                user_id=UserId(row.user_id),
                role=row.role,
                cluster_id=None if row.cluster_id is None else ClusterId(row.cluster_id),
            ),
            None if row.role_body is None else decode(AccessRole, row.role_body),
        )
        for row in rows
    )


async def reaches_of_users(
    tx: Transaction, user_ids: Collection[UserId]
) -> dict[UserId, Reach | None]:
    """Which clusters each of them sees; None: all, and what belongs to none. Who is gone is left out.

    The same as by all that they may (``model/access.py``: seeing comes with every role but *none*), but from columns alone: it is asked
    before anybody is told of anything, and a role that can't be read must not be why nobody is. A user's role that a later version
    knows sees all, as each does that isn't *none*.
    """
    found: dict[UserId, Reach | None] = {}
    for some in in_parts(user_ids):
        users = await tx.connection.execute(
            select(user_account.c.id, user_account.c.role).where(user_account.c.id.in_(some))
        )
        found |= {UserId(row.id): frozenset() if row.role in _BLIND else None for row in users}
        grants = await tx.connection.execute(
            select(access_grant.c.user_id, access_grant.c.cluster_id)
            .join(access_role, access_role.c.name == access_grant.c.role, isouter=True)
            .where(
                access_grant.c.user_id.in_(some),
                or_(access_grant.c.role.in_(_SEEING), access_role.c.id.is_not(None)),
            )
        )
        for row in grants:
            user_id, reach = UserId(row.user_id), found[UserId(row.user_id)]
            if row.cluster_id is None:
                found[user_id] = None
            elif reach is not None:
                found[user_id] = reach | {ClusterId(row.cluster_id)}
    return found


async def add_grant_of_user(tx: WriteTransaction, value: Grant) -> None:
    _ = tx.revision
    await tx.connection.execute(
        insert(access_grant).values(
            id=value.id, user_id=value.user_id, role=value.role, cluster_id=value.cluster_id
        )
    )


async def drop_grant_of_user(tx: WriteTransaction, grant_id: GrantId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(access_grant).where(access_grant.c.id == grant_id))


async def names_elsewhere(
    tx: Transaction, words: Collection[str], reach: Collection[ClusterId]
) -> frozenset[str]:
    """Which of the words are names or ids of something in another cluster, or of one."""
    found: set[str] = set()
    for table, place in (
        (cluster, cluster.c.id),
        (host, host.c.cluster_id),
        (vm, vm.c.cluster_id),
        (storage_domain, storage_domain.c.cluster_id),
        (template, template.c.cluster_id),
    ):
        for some in in_parts(words):
            for column in (table.c.name, table.c.id):
                wanted = select(column).where(column.in_(some), place.not_in(sorted(reach)))
                found.update(await tx.connection.scalars(wanted))
    return frozenset(found)


async def users_with_role(tx: Transaction, role: str, limit: int) -> tuple[str, ...]:
    """Names, sorted, of those who have a grant of it."""
    rows = await tx.connection.scalars(
        select(user_account.c.name)
        .distinct()
        .join(access_grant, access_grant.c.user_id == user_account.c.id)
        .where(access_grant.c.role == role)
        .order_by(user_account.c.name)
        .limit(limit)
    )
    return tuple(rows)
