"""An ID token (OpenID Connect Core 1.0, section 3.1.3.7): whether it is the provider's word, for us, now, in this sign-in.

Signatures are joserfc's business; which algorithms are taken, with which keys, and what the claims must say, is ours.
"""

import hmac
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from virtha.model.errors import Unauthenticated, Unavailable

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Only those where the provider alone can sign: never `none`, and no HMAC, for its key is known to more than one."""
CLOCK_SKEW_S = 60
"""How far the provider's clock may be from ours; more is a fault to be mended, not to be borne."""
TOKEN_LENGTH_MAX = 65_536
SUBJECT_LENGTH_MAX = 255
"""OpenID Connect Core 1.0, section 2."""
_ASYMMETRIC = ("RSA", "EC")


class UnknownKey(Exception):
    """No key that we have has the token's key id: the provider may have changed its keys."""


def read_keys(published: Any) -> KeySet:
    """The provider's keys for signatures. Raises Unavailable when there is none."""
    keys = published.get("keys") if isinstance(published, dict) else None
    usable = [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict)
        and key.get("kty") in _ASYMMETRIC
        and key.get("use", "sig") == "sig"
        and "d" not in key
    ]
    try:
        return KeySet.import_key_set({"keys": usable})
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise unusable(f"it publishes no usable key: {str(error)[:200]}") from None


def check_id_token(
    text: str, keys: KeySet, *, issuer: str, client_id: str, nonce: str, now_s: float
) -> dict[str, Any]:
    """Its claims. ``now_s``: seconds since 1970.

    Raises Unauthenticated (`problem.sign_in.refused`), which says what is wrong with it; UnknownKey.
    """
    if len(text) > TOKEN_LENGTH_MAX:
        raise refused("its token is too long")
    try:
        header = jws.extract_compact(text.encode()).headers()
        if header.get("alg") not in ALGORITHMS:
            raise refused(f"its token is signed with '{str(header.get('alg'))[:20]}'")
        claims = jwt.decode(text, keys, algorithms=ALGORITHMS).claims
    except InvalidKeyIdError:
        raise UnknownKey from None
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise refused(f"its token is not what it signed: {str(error)[:200]}") from None
    _check_parties(claims, issuer, client_id)
    _check_times(claims, now_s)
    told = claims.get("nonce")
    if not isinstance(told, str) or not hmac.compare_digest(told.encode(), nonce.encode()):
        raise refused("its token belongs to another sign-in (nonce)")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_LENGTH_MAX:
        raise refused("its token names nobody (sub)")
    return claims


def _check_parties(claims: dict[str, Any], issuer: str, client_id: str) -> None:
    if claims.get("iss") != issuer:
        raise refused(f"its token is of another issuer, '{str(claims.get('iss'))[:100]}'")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences:
        raise refused("its token is for somebody else (aud)")
    # A token for several is taken only if it was made for us: any of them could have handed it in.
    if claims.get("azp", None if len(audiences) > 1 else client_id) != client_id:
        raise refused("its token was made for somebody else (azp)")


def _check_times(claims: dict[str, Any], now_s: float) -> None:
    if _seconds(claims, "exp") + CLOCK_SKEW_S <= now_s:
        raise refused("its token has expired: is one of the clocks wrong?")
    if _seconds(claims, "iat") - CLOCK_SKEW_S > now_s:
        raise refused("its token is of the future: is one of the clocks wrong?")
    if "nbf" in claims and _seconds(claims, "nbf") - CLOCK_SKEW_S > now_s:
        raise refused("its token is not valid yet: is one of the clocks wrong?")


def _seconds(claims: dict[str, Any], name: str) -> float:
    found = claims.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise refused(f"its token has no time '{name}'")
    return found


def refused(why: str) -> Unauthenticated:
    return Unauthenticated(
        f"the sign-in is not accepted: {why}", code="problem.sign_in.refused", fix="sign in anew"
    )


def unusable(why: str) -> Unavailable:
    return Unavailable(
        f"the provider of sign-ins can't be used: {why}",
        code="problem.sign_in.provider",
        fix="local users sign in with their passwords as ever",
    )
