"""Requests and views of roles, grants and sessions."""

from msgspec import UNSET, UnsetType

from virtha.model.access import FIXED, Grant, Permission
from virtha.model.ids import Revision, RoleId, TokenId
from virtha.model.time import UtcMillis
from virtha.model.user import Role
from virtha.model.value import Request, Value

ROLES_MAX = 200
DAY_MS = 86_400_000


class RoleCreate(Request, frozen=True, kw_only=True):
    """``permissions`` beyond seeing, which every grant gives."""

    name: str
    description: str = ""
    permissions: tuple[Permission, ...]


class RoleChange(Request, frozen=True, kw_only=True):
    """``permissions`` replaces all of them. The name stays."""

    description: str | UnsetType = UNSET
    permissions: tuple[Permission, ...] | UnsetType = UNSET


class GrantCreate(Request, frozen=True, kw_only=True):
    """``role``: its name. ``cluster`` by id or name; None: in all clusters."""

    role: str
    cluster: str | None = None


class AccessTokenCreate(Request, frozen=True, kw_only=True):
    """``expires_ms`` is a duration from now. ``role``: the name of the role that it is good for, at most; none: all that you may.
    ``cluster``: it is good there only. It never may more than its user, also later."""

    description: str
    expires_ms: int = 90 * DAY_MS
    role: str | None = None
    cluster: str | None = None


class RoleView(Value, frozen=True, kw_only=True):
    """``id`` None: a fixed role."""

    id: RoleId | None = None
    name: str
    description: str = ""
    permissions: tuple[Permission, ...]
    revision: Revision = Revision(0)


class GrantView(Value, frozen=True, kw_only=True):
    """``cluster_name`` None: in all clusters."""

    grant: Grant
    cluster_name: str | None = None


class SessionItem(Value, frozen=True, kw_only=True):
    """A sign-in, or an access token that somebody made, without its secret. ``description`` is empty for a sign-in; ``role`` and
    ``cluster_name``: what it is narrowed to. ``expires`` of a token that a provider's user made moves with their sign-ins."""

    id: TokenId
    user: str
    description: str
    address: str
    role: str | None
    cluster_name: str | None
    created: UtcMillis
    expires: UtcMillis


class AccessTokenSecret(Value, frozen=True, kw_only=True):
    """``token`` is shown this once."""

    token: str
    session: SessionItem


_DESCRIPTIONS = {
    Role.VIEWER: "sees everything",
    Role.OPERATOR: "what VMs and hosts need day by day",
    Role.ADMINISTRATOR: "everything",
}


def fixed_role_views() -> tuple[RoleView, ...]:
    return tuple(
        RoleView(
            name=role.value,
            description=_DESCRIPTIONS[role],
            permissions=tuple(sorted(FIXED[role] - {Permission.VIEW})),
        )
        for role in _DESCRIPTIONS
    )
