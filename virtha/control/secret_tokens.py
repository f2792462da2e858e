"""Token texts: `virtha-join.<id>.<secret>.<authority fingerprint>`, `virtha-access.<id>.<secret>`.

Only a hash of the secret is stored. It has 256 random bits, so a fast hash is enough; a slow one is
for what people think up.
"""

import hashlib
import hmac
import re
import secrets

from virtha.model.ids import TokenId
from virtha.model.value import Value

SECRET_BYTES = 32
TEXT_LENGTH_MAX = 512
_JOIN = re.compile(r"virtha-join\.([0-9a-f-]{36})\.([A-Za-z0-9_-]{43})\.([0-9a-f]{64})")
_ACCESS = re.compile(r"virtha-access\.([0-9a-f-]{36})\.([A-Za-z0-9_-]{43})")


class TokenText(Value, frozen=True, kw_only=True):
    token_id: TokenId
    secret: str
    fingerprint: str | None = None


def make_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_matches(secret: str, secret_hash: str) -> bool:
    return hmac.compare_digest(hash_secret(secret), secret_hash)


def join_text(token_id: TokenId, secret: str, fingerprint: str) -> str:
    return f"virtha-join.{token_id}.{secret}.{fingerprint}"


def access_text(token_id: TokenId, secret: str) -> str:
    return f"virtha-access.{token_id}.{secret}"


def parse_join(text: str) -> TokenText | None:
    match = _JOIN.fullmatch(text.strip()[:TEXT_LENGTH_MAX])
    if match is None:
        return None
    return TokenText(token_id=TokenId(match[1]), secret=match[2], fingerprint=match[3])


def parse_access(text: str) -> TokenText | None:
    match = _ACCESS.fullmatch(text.strip()[:TEXT_LENGTH_MAX])
    return TokenText(token_id=TokenId(match[1]), secret=match[2]) if match is not None else None
