"""Users and tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import delete, func, insert, or_, select, update

from virtha.model.ids import Revision, TokenId, UserId
from virtha.model.user import Role, Token, TokenKind, User
from virtha.model.value import Value
from virtha.store.body import decode, encode, in_parts
from virtha.store.schema import token, user_account
from virtha.store.sign_in_schema import external_identity
from virtha.store.store import Transaction, WriteTransaction


class UserRow(Value, frozen=True, kw_only=True):
    user: User
    password_hash: str


class MailAddress(NamedTuple):
    """``email`` None: the user has none."""

    enabled: bool
    email: str | None


class TokenRow(Value, frozen=True, kw_only=True):
    token: Token
    secret_hash: str


async def find_user(tx: Transaction, ref: str) -> UserRow | None:
    """By id or name."""
    row = (
        await tx.connection.execute(
            select(user_account).where(or_(user_account.c.id == ref, user_account.c.name == ref))
        )
    ).one_or_none()
    if row is None:
        return None
    return UserRow(user=_user(row), password_hash=row.password_hash)


async def mail_address_of(tx: Transaction, user_id: UserId) -> MailAddress | None:
    """By id, whatever else of the user can't be read; None: the user is gone."""
    columns = (user_account.c.enabled, user_account.c.email)
    query = select(*columns).where(user_account.c.id == user_id)
    row = (await tx.connection.execute(query)).one_or_none()
    return None if row is None else MailAddress(*row)


async def users_after(tx: Transaction, name: str, limit: int) -> tuple[User, ...]:
    rows = await tx.connection.execute(
        select(user_account)
        .where(user_account.c.name > name)
        .order_by(user_account.c.name)
        .limit(limit)
    )
    return tuple(_user(row) for row in rows)


async def users_with_ids(tx: Transaction, ids: Sequence[str]) -> tuple[User, ...]:
    """Those that there are, in the order of ``ids``."""
    found: dict[str, User] = {}
    for some in in_parts(ids):
        rows = await tx.connection.execute(select(user_account).where(user_account.c.id.in_(some)))
        found |= {row.id: _user(row) for row in rows}
    return tuple(found[one] for one in ids if one in found)


def _user(row: Any) -> User:
    return User(
        id=UserId(row.id),
        name=row.name,
        role=Role(row.role),
        enabled=row.enabled,
        email=row.email,
        revision=Revision(row.revision),
    )


async def add_user(tx: WriteTransaction, value: User, password_hash: str) -> User:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        insert(user_account).values(
            id=saved.id,
            name=saved.name,
            role=saved.role.value,
            enabled=saved.enabled,
            password_hash=password_hash,
            email=saved.email,
            revision=saved.revision,
        )
    )
    return saved


async def save_user(tx: WriteTransaction, value: User, password_hash: str | None = None) -> User:
    """``password_hash`` None: the present one stays."""
    saved = msgspec.structs.replace(value, revision=tx.revision)
    values: dict[str, object] = {
        "role": saved.role.value,
        "enabled": saved.enabled,
        "email": saved.email,
        "revision": saved.revision,
    }
    if password_hash is not None:
        values["password_hash"] = password_hash
    await tx.connection.execute(
        update(user_account).where(user_account.c.id == saved.id).values(**values)
    )
    return saved


async def drop_user(tx: WriteTransaction, user_id: UserId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(user_account).where(user_account.c.id == user_id))


async def enabled_administrators(tx: Transaction, *, but: UserId) -> int:
    """Other than ``but``, with a password here: those of a provider can't come in while it is away."""
    counted = await tx.connection.scalar(
        select(func.count())
        .select_from(user_account)
        .where(
            user_account.c.role == Role.ADMINISTRATOR.value,
            user_account.c.enabled.is_(True),
            user_account.c.id != but,
            user_account.c.id.not_in(select(external_identity.c.user_id)),
        )
    )
    return int(counted or 0)


async def find_token(tx: Transaction, token_id: str) -> TokenRow | None:
    row = (await tx.connection.execute(select(token).where(token.c.id == token_id))).one_or_none()
    if row is None:
        return None
    return TokenRow(token=decode(Token, row.body), secret_hash=row.secret_hash)


async def tokens_after(
    tx: Transaction, kind: TokenKind, token_id: str, limit: int
) -> tuple[Token, ...]:
    rows = await tx.connection.scalars(
        select(token.c.body)
        .where(token.c.kind == kind.value, token.c.id > token_id)
        .order_by(token.c.id)
        .limit(limit)
    )
    return tuple(decode(Token, body) for body in rows)


async def access_tokens(tx: Transaction, user_id: UserId | None, limit: int) -> tuple[Token, ...]:
    """Newest first. ``user_id`` None: of all users."""
    where = [token.c.kind == TokenKind.ACCESS.value]
    if user_id is not None:
        where.append(token.c.user_id == user_id)
    rows = await tx.connection.scalars(
        select(token.c.body).where(*where).order_by(token.c.revision.desc()).limit(limit)
    )
    return tuple(decode(Token, body) for body in rows)


async def users_with_token_for(tx: Transaction, role: str, now: int, limit: int) -> tuple[str, ...]:
    """Names, sorted, of those who have an access token for it that has not expired at ``now``."""
    rows = await tx.connection.execute(
        select(user_account.c.name, token.c.body)
        .join(token, token.c.user_id == user_account.c.id)
        .where(token.c.kind == TokenKind.ACCESS.value, token.c.expires > now)
    )
    found = {row.name for row in rows if decode(Token, row.body).role == role}
    return tuple(sorted(found)[:limit])


async def add_token(tx: WriteTransaction, value: Token, secret_hash: str) -> Token:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        insert(token).values(
            id=saved.id,
            kind=saved.kind.value,
            secret_hash=secret_hash,
            cluster_id=saved.cluster_id,
            user_id=saved.user_id,
            expires=saved.expires,
            body=encode(saved),
            revision=saved.revision,
        )
    )
    return saved


async def save_token(tx: WriteTransaction, value: Token) -> Token:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        update(token)
        .where(token.c.id == saved.id)
        .values(body=encode(saved), expires=saved.expires, revision=saved.revision)
    )
    return saved


async def drop_token(tx: WriteTransaction, token_id: TokenId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(token).where(token.c.id == token_id))


async def drop_tokens_of(tx: WriteTransaction, user_id: UserId) -> None:
    """Signs the user out everywhere."""
    await tx.connection.execute(delete(token).where(token.c.user_id == user_id))


async def drop_access_tokens(tx: WriteTransaction) -> None:
    """Signs everybody out everywhere. Join tokens stay."""
    await tx.connection.execute(delete(token).where(token.c.kind == TokenKind.ACCESS.value))


async def drop_expired_access_tokens(tx: WriteTransaction, now: int) -> None:
    """Only sign-ins: an expired join token stays, so that its use can be told from an unknown one."""
    await tx.connection.execute(
        delete(token).where(token.c.kind == TokenKind.ACCESS.value, token.c.expires < now)
    )
