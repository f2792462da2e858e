"""Signing in by somebody else's word: the provider (OpenID Connect), and what it says of a person."""

from typing import Any

from virtha.model.ids import Revision
from virtha.model.user import Role
from virtha.model.value import Value


class SignInProvider(Value, frozen=True, kw_only=True):
    """Who vouches for people, and what its word is worth here. Without its secret, which is sealed beside it.

    ``issuer``: the provider's own name, a URL; below it lies what it publishes of itself. ``roles``: from a value of
    the claim ``roles_claim`` to a role here; of several the highest counts. ``redirect_uris``: where it may send
    a browser back to, beside programs on the user's own machine. ``authority_pem``: whom its certificate is
    of; None: one that the server's system trusts.
    """

    issuer: str
    client_id: str
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    name_claim: str = "preferred_username"
    roles_claim: str = "groups"
    roles: dict[str, Role] = {}
    redirect_uris: tuple[str, ...] = ()
    authority_pem: str | None = None
    revision: Revision = Revision(0)


class BegunSignIn(Value, frozen=True, kw_only=True):
    """One sign-in under way. ``state`` comes back with the browser, ``nonce`` in the token; ``verifier`` proves to the
    provider that who brings the code is who asked for it (PKCE, RFC 7636). Each has 256 random bits."""

    redirect_uri: str
    state: str
    nonce: str
    verifier: str


class Identity(Value, frozen=True, kw_only=True):
    """Whom the provider vouches for. ``issuer`` and ``subject`` together are one person for ever; names may change."""

    issuer: str
    subject: str
    claims: dict[str, Any]
