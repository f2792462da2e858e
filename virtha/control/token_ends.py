"""Until when an access token is good: one that a provider's user made, for no longer than that provider's word."""

from virtha.control.known_settings import TOKEN_VOUCHED, setting_values
from virtha.model.time import UtcMillis
from virtha.model.user import Token
from virtha.store.sign_in import last_vouched
from virtha.store.store import Transaction


async def end_of(tx: Transaction, token: Token) -> UtcMillis:
    """Of a token that a provider's user made it moves with each of their sign-ins; sign-ins themselves have their lifetime already."""
    if token.is_sign_in or token.user_id is None:
        return token.expires
    word = await last_vouched(tx, token.user_id)
    if word is None:
        return token.expires
    kept_ms = (await setting_values(tx)).get(TOKEN_VOUCHED)
    return UtcMillis(min(token.expires, word.at + kept_ms))
