"""An ID token (OpenID Connect Core 1.0, section 3.1.3.7): whether it is the provider's word, for us, now, in this sign-in.

Signatures are joserfc's business; which algorithms are taken, with which keys, and what the claims must say, is ours.
"""

import hmac
import math
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, JoseError
from joserfc.jwk import ECKey, JWKRegistry, RSAKey

from virtha.model.errors import Unauthenticated, Unavailable

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Only those where the provider alone can sign: never `none`, and no HMAC, for its key is known to more than one."""
CLOCK_SKEW_S = 60
"""How far the provider's clock may be from ours; more is a fault to be mended, not to be borne."""
TOKEN_LENGTH_MAX = 65_536
SUBJECT_LENGTH_MAX = 255
"""OpenID Connect Core 1.0, section 2."""
_ASYMMETRIC = ("RSA", "EC")
RSA_BITS_MIN = 2_048
"""RFC 7518, sections 3.3 and 3.5."""
KEYS_MAX = 100
"""Providers publish one to ten; of a longer list the first are looked at."""
_SAID_LENGTH_MAX = 500
Keys = tuple[RSAKey | ECKey, ...]


class UnknownKey(Exception):
    """None of the keys that we have is the token's, by its key id or, where it has none, by its signature: the provider may have
    changed its keys."""


def read_keys(published: Any) -> Keys:
    """The provider's keys for signatures; one that can't be used hides no other (RFC 7517, section 5). Raises Unavailable
    when there is none."""
    found = published.get("keys") if isinstance(published, dict) else None
    usable, why = [], "none is for signatures by RSA or EC"
    for key in found[:KEYS_MAX] if isinstance(found, list) else []:
        if not isinstance(key, dict) or key.get("kty") not in _ASYMMETRIC:
            continue
        if key.get("use", "sig") != "sig" or "d" in key:
            continue
        if key["kty"] == "RSA" and len(str(key.get("n"))) * 6 < RSA_BITS_MIN:  # Base64
            why = f"less than {RSA_BITS_MIN} bits"
            continue
        try:
            read = JWKRegistry.import_key(key)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            why = str(error)[:200]
            continue
        if isinstance(read, RSAKey | ECKey):
            usable.append(read)
    if not usable:
        raise unusable(f"it publishes no usable key: {why}")
    return tuple(usable)


def check_id_token(
    text: str, keys: Keys, *, issuer: str, client_id: str, nonce: str, now_s: float
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
        claims = _signed_by_one_of(keys, text, header)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise refused(f"its token is not what it signed: {str(error)[:200]}") from None
    _check_parties(claims, issuer, client_id)
    _check_times(claims, now_s)
    told = claims.get("nonce")
    if not isinstance(told, str) or not hmac.compare_digest(told.encode(), nonce.encode()):
        raise refused("its token belongs to another sign-in (nonce)")
    subject = claims.get("sub")
    # Not all that JSON can say can be stored: no NUL, no half of a surrogate pair.
    if (
        not isinstance(subject, str)
        or not 0 < len(subject) <= SUBJECT_LENGTH_MAX
        or not subject.isprintable()
    ):
        raise refused("its token names nobody (sub)")
    return claims


def _signed_by_one_of(keys: Keys, text: str, header: dict[str, Any]) -> dict[str, Any]:
    """By the key that it names; where one of both has no name, by any. Raises UnknownKey, JoseError."""
    named, algorithm = header.get("kid"), header["alg"]
    key_type = "EC" if algorithm.startswith("ES") else "RSA"
    fitting = [key for key in keys if named is None or key.kid in (None, named)]
    for key in fitting:
        if key.key_type != key_type or key.alg not in (None, algorithm):
            continue
        try:
            return jwt.decode(text, key, algorithms=[algorithm]).claims
        except BadSignatureError:
            continue
    if named is not None and any(key.kid == named for key in fitting):
        raise BadSignatureError
    raise UnknownKey


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
    found: Any = claims.get(name)
    number = isinstance(found, int) and not isinstance(found, bool)
    # Python reads more as JSON than JSON is: NaN is before and after nothing.
    if not number and not (isinstance(found, float) and math.isfinite(found)):
        raise refused(f"its token has no time '{name}'")
    seconds: float = found
    return seconds


def refused(why: str) -> Unauthenticated:
    return Unauthenticated(
        f"the sign-in is not accepted: {_printable(why)}",
        code="problem.sign_in.refused",
        fix="sign in anew",
    )


def unusable(why: str, *, field: str | None = None, fix: str = "") -> Unavailable:
    """``field``, ``fix``: of the provider's settings, where the trouble may lie in them."""
    meanwhile = "local users sign in with their passwords as ever"
    return Unavailable(
        f"the provider of sign-ins can't be used: {_printable(why)}",
        code="problem.sign_in.provider",
        field=field,
        fix=f"{fix}; {meanwhile}" if fix else meanwhile,
    )


def _printable(text: str) -> str:
    """With what the provider said in it, which goes into events and answers: they can hold neither NUL nor half of a
    surrogate pair, and a terminal obeys the rest of what can't be printed."""
    shown = text[:_SAID_LENGTH_MAX]
    return "".join(one if one.isprintable() else "?" for one in shown)
