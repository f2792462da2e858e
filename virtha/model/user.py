"""Users, the fixed roles, tokens and settings."""

from enum import StrEnum

from virtha.model.ids import ClusterId, Revision, TokenId, UserId
from virtha.model.time import UtcMillis
from virtha.model.value import Value


class Role(StrEnum):
    """What a user may in all clusters. Each may all that the one before may."""

    NONE = "none"
    """Nothing, but for what grants say (model/access.py)."""
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"

    def may(self, needed: "Role") -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


class User(Value, frozen=True, kw_only=True):
    """Without the password hash, which never leaves the store."""

    id: UserId
    name: str
    role: Role
    enabled: bool = True
    email: str | None = None
    """Where notifications for this user go (F4)."""
    revision: Revision = Revision(0)


class TokenKind(StrEnum):
    JOIN = "join"
    """Lets one host (or several, ``uses_max``) join a cluster."""
    ACCESS = "access"
    """Signs a user in to the API."""


class Token(Value, frozen=True, kw_only=True):
    """A token without its secret, of which only a hash is stored."""

    id: TokenId
    kind: TokenKind
    cluster_id: ClusterId | None = None
    """Of an access token: it is good in that cluster only; None: wherever its user may."""
    user_id: UserId | None = None
    role: str | None = None
    """Of an access token: the role that it is good for, at most; None: all that its user may."""
    description: str = ""
    """Of an access token: empty for a sign-in by password."""
    address: str = ""
    """Where an access token was asked for from."""
    created: UtcMillis = UtcMillis(0)
    expires: UtcMillis
    uses: int = 0
    uses_max: int | None = 1
    revision: Revision = Revision(0)

    @property
    def is_sign_in(self) -> bool:
        """Of an access token: somebody came with a password or a provider's word, and didn't have it made."""
        return not self.description


class SettingScope(StrEnum):
    GLOBAL = "global"
    CLUSTER = "cluster"
    HOST = "host"


class Setting(Value, frozen=True, kw_only=True):
    """One value at one scope; the narrowest scope that has a value wins."""

    key: str
    scope: SettingScope
    subject: str = ""
    """Id of the cluster or host; empty for the global scope."""
    value: str
    revision: Revision = Revision(0)
