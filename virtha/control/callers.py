"""Who asks, and what they may: a user's role and grants, less what a token leaves out."""

from virtha.control.views import Caller
from virtha.model.access import FIXED, AccessRole, Permission, Rights, rights_of
from virtha.model.user import Role, Token, User
from virtha.store.access import find_role, grants_of_user
from virtha.store.store import Transaction


async def caller_of(tx: Transaction, user: User, token: Token | None = None) -> Caller:
    """``token`` None: all that the user may."""
    grants = await grants_of_user(tx, user.id)
    is_narrow = token is not None and (token.role is not None or token.cluster_id is not None)
    token_id = token.id if token is not None else None
    signed_in = token is None or token.is_sign_in
    if not grants and not is_narrow:
        return Caller(
            name=user.name,
            role=user.role,
            user_id=user.id,
            token_id=token_id,
            signed_in=signed_in,
        )
    rights = rights_of(user.role)
    for grant, made in grants:
        permissions = permissions_of(grant.role, made)
        if permissions:
            rights = rights.with_grant(permissions, grant.cluster_id)
    if token is not None and is_narrow:
        allowed = await _allowed(tx, token.role) if token.role is not None else None
        rights = rights.narrowed(allowed, token.cluster_id)
    return Caller(
        name=user.name,
        role=_fixed_role(rights),
        user_id=user.id,
        more=rights,
        is_narrow=is_narrow,
        token_id=token_id,
        signed_in=signed_in,
    )


async def _allowed(tx: Transaction, role: str) -> frozenset[Permission]:
    return permissions_of(role, await find_role(tx, role))


def permissions_of(name: str, made: AccessRole | None) -> frozenset[Permission]:
    """``made``: the role of that name that people made. Empty: there is no such role any more."""
    if made is not None:
        return frozenset({Permission.VIEW, *made.permissions})
    return FIXED[Role(name)] if name in list(Role) else frozenset()


def _fixed_role(rights: Rights) -> Role:
    """The highest that they fill in all clusters: whoever asks by roles never lets in too many."""
    return max((one for one in Role if FIXED[one] <= rights.everywhere), key=list(Role).index)
