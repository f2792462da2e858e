"""What may be changed here of a user whom a provider of sign-ins vouches for."""

from msgspec import UNSET

from virtha.control.requests import UserChange
from virtha.model.errors import Conflict
from virtha.model.user import User
from virtha.store.sign_in import is_of_provider
from virtha.store.store import Transaction


async def check_its_own(tx: Transaction, user: User, change: UserChange) -> None:
    """Raises Conflict: a provider's user has no password here, and the role that the provider says."""
    told = [name for name in ("password", "role") if getattr(change, name) is not UNSET]
    if told and await is_of_provider(tx, user.id):
        raise Conflict(
            f"{user.name} signs in by the provider, which says this",
            code="problem.user.of_provider",
            field=told[0],
            fix="change it there; here the user can be locked out, or deleted",
        )
