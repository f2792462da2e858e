"""Users whom a provider of sign-ins vouches for: made at their first sign-in, their role told anew at each."""

from uuid import uuid4

import msgspec

from virtha.control.history import changes_between, record
from virtha.control.subscriptions import end_subscriptions_of
from virtha.control.users import check_user_name
from virtha.model.errors import Conflict, Forbidden, InvalidInput
from virtha.model.ids import UserId
from virtha.model.sign_in import Identity, SignInProvider
from virtha.model.user import Role, User
from virtha.store.sign_in import add_identity, people_of_issuer, save_vouched, user_of_identity
from virtha.store.store import WriteTransaction
from virtha.store.users import add_user, drop_tokens_of, find_user, save_user

NO_PASSWORD = ""
"""Stands for a password's hash; nothing that is typed matches it."""


def role_of(provider: SignInProvider, identity: Identity) -> Role | None:
    """The highest that its claim gives: a list of values, or one."""
    claim = identity.claims.get(provider.roles_claim)
    values = claim if isinstance(claim, list) else [claim]
    given = {
        provider.roles[one] for one in values if isinstance(one, str) and one in provider.roles
    }
    return next((role for role in reversed(Role) if role in given), None)


async def vouched_user(
    tx: WriteTransaction, provider: SignInProvider, identity: Identity
) -> UserId | None:
    """Whose sign-in it is, with the role that the provider gives now. None: it gives none; where the user has sign-ins from
    before, they end (the caller commits, and says so).

    Raises Conflict: the name belongs to a user of ours, which nobody takes over by being called so elsewhere.
    """
    user_id = await user_of_identity(tx, identity.issuer, identity.subject)
    role = role_of(provider, identity)
    if user_id is None:
        return await _new_user(tx, provider, identity, role) if role is not None else None
    row = await find_user(tx, user_id)
    assert row is not None, "the reference is the database's own"
    if role is None:
        await drop_tokens_of(tx, user_id)
        # Nor are they told by mail what they could not look at.
        await _set_role(tx, row.user, Role.NONE)
        return None
    await save_vouched(tx, user_id)
    await _set_role(tx, row.user, role)
    return user_id


async def _set_role(tx: WriteTransaction, user: User, role: Role) -> None:
    """As the provider says."""
    if user.role is role:
        return
    saved = await save_user(tx, msgspec.structs.replace(user, role=role))
    await record(
        tx,
        "user.changed",
        by=user.name,
        user=user.name,
        role=role.value,
        enabled=saved.enabled,
        **changes_between(user, saved),
    )


async def dismiss_people(tx: WriteTransaction, issuer: str, *, by: str) -> None:
    """Whom ``issuer`` vouched for is signed out, and told of nothing more: nobody says any longer what they may."""
    for user_id in await people_of_issuer(tx, issuer):
        row = await find_user(tx, user_id)
        assert row is not None, "the reference is the database's own"
        await drop_tokens_of(tx, user_id)
        await end_subscriptions_of(tx, row.user, by=by)


async def _new_user(
    tx: WriteTransaction, provider: SignInProvider, identity: Identity, role: Role
) -> UserId:
    told = identity.claims.get(provider.name_claim)
    try:
        name = check_user_name(told if isinstance(told, str) else "")
    except (InvalidInput, Conflict) as error:
        raise Conflict(
            f"the provider's '{provider.name_claim}' can't be a user's name here: {error.message}",
            code="problem.sign_in.refused",
            fix="let the provider say another one, or choose another name_claim",
        ) from None
    if await find_user(tx, name) is not None:
        raise Conflict(
            f"there is a user '{name}' here already, who is somebody else",
            code="problem.name_taken",
            field="name",
            fix="rename one of them, or delete the user here",
        )
    user = User(id=UserId(str(uuid4())), name=name, role=role)
    saved = await add_user(tx, user, NO_PASSWORD)
    await add_identity(tx, identity.issuer, identity.subject, saved.id)
    await record(tx, "user.created", by=name, user=name, role=role.value)
    return saved.id


def no_role(provider: SignInProvider) -> Forbidden:
    return Forbidden(
        f"nothing in the provider's '{provider.roles_claim}' stands for a role here",
        code="problem.sign_in.no_role",
        fix="ask an administrator: 'virtha sign-in-provider show' lists what does",
    )
