"""The provider of sign-ins, with its sealed secret; which users are its people."""

from sqlalchemy import delete, func, insert, select, update

from virtha.model.ids import UserId
from virtha.model.sign_in import SignInProvider
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import decode, encode, put
from virtha.store.sign_in_schema import external_identity, sign_in_provider
from virtha.store.store import Transaction, WriteTransaction

ONLY = "provider"
"""The one row's id."""


class ProviderRow(Value, frozen=True, kw_only=True):
    """``sealed``: its secret as ``control/secret_box.py`` wrote it; None: it has none."""

    provider: SignInProvider
    sealed: str | None = None


class Vouched(Value, frozen=True, kw_only=True):
    """``at``: 0 where it was before this was kept."""

    at: UtcMillis


async def find_provider(tx: Transaction) -> ProviderRow | None:
    row = (
        await tx.connection.execute(select(sign_in_provider).where(sign_in_provider.c.id == ONLY))
    ).one_or_none()
    if row is None:
        return None
    return ProviderRow(provider=decode(SignInProvider, row.body), sealed=row.sealed)


async def save_provider(tx: WriteTransaction, value: SignInProvider, sealed: str | None) -> None:
    """``value`` with the transaction's revision."""
    assert value.revision == tx.revision
    values = {"body": encode(value), "sealed": sealed, "revision": value.revision}
    await put(tx, sign_in_provider, {"id": ONLY}, values)


async def drop_provider(tx: WriteTransaction) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(sign_in_provider))


async def sealed_provider_count(tx: Transaction) -> int:
    counted = await tx.connection.scalar(
        select(func.count())
        .select_from(sign_in_provider)
        .where(sign_in_provider.c.sealed.is_not(None))
    )
    return int(counted or 0)


async def user_of_identity(tx: Transaction, issuer: str, subject: str) -> UserId | None:
    found = await tx.connection.scalar(
        select(external_identity.c.user_id).where(
            external_identity.c.issuer == issuer, external_identity.c.subject == subject
        )
    )
    return UserId(found) if found is not None else None


async def add_identity(tx: WriteTransaction, issuer: str, subject: str, user_id: UserId) -> None:
    _ = tx.revision
    await tx.connection.execute(
        insert(external_identity).values(
            issuer=issuer, subject=subject, user_id=user_id, vouched=tx.clock.wall_ms()
        )
    )


async def save_vouched(tx: WriteTransaction, user_id: UserId) -> None:
    """The provider did so now."""
    await tx.connection.execute(
        update(external_identity)
        .where(external_identity.c.user_id == user_id)
        .values(vouched=tx.clock.wall_ms())
    )


async def last_vouched(tx: Transaction, user_id: UserId) -> Vouched | None:
    """None: no provider vouches for this user, who has a password here."""
    row = (
        await tx.connection.execute(
            select(external_identity.c.vouched).where(external_identity.c.user_id == user_id)
        )
    ).one_or_none()
    return None if row is None else Vouched(at=UtcMillis(row.vouched or 0))


async def is_of_provider(tx: Transaction, user_id: UserId) -> bool:
    """Whether a provider vouches for this user, who then has no password here."""
    found = await tx.connection.scalar(
        select(external_identity.c.user_id).where(external_identity.c.user_id == user_id)
    )
    return found is not None


async def people_of_issuer(tx: Transaction, issuer: str) -> tuple[UserId, ...]:
    """Whom ``issuer`` vouches for."""
    rows = await tx.connection.scalars(
        select(external_identity.c.user_id)
        .where(external_identity.c.issuer == issuer)
        .order_by(external_identity.c.user_id)
    )
    return tuple(UserId(one) for one in rows)
