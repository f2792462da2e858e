"""Sign-in by OpenID Connect: authorization code with PKCE, discovery, the provider's keys as they change.

Nothing that the provider says is believed beyond what it is for: its addresses must be as safe as its own, redirects
are not followed, answers are bounded in size and time.
"""

import asyncio
import base64
import hashlib
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx

from virtha import __version__
from virtha.drivers.connection_errors import certificate_error
from virtha.drivers.oidc_token import (
    Keys,
    UnknownKey,
    check_id_token,
    read_keys,
    refused,
    unusable,
)
from virtha.model.errors import Unavailable
from virtha.model.sign_in import BegunSignIn, Identity, SignInProvider
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.ports.clock import Clock

DEADLINE_S = 10.0
"""Of one request to the provider: a person waits for it."""
ANSWER_BYTES_MAX = 1 << 20
KEPT_MS = 600_000
"""How long what the provider publishes of itself is believed without asking again."""
KEYS_AGAIN_MS = 10_000
"""Tokens with unknown keys make us ask for keys no more often than this."""
ANSWERS_NOT_MS = 5_000
"""A provider that did not answer is asked no sooner again: anybody may begin a sign-in, and each would wait for it anew."""
PROVIDERS_KEPT_MAX = 8
DISCOVERY = "/.well-known/openid-configuration"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OUT_OF_TIME = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED."""
_OF_ANOTHER_NAME = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH."""
_CODE_REFUSED = ("invalid_grant", "access_denied")
"""RFC 6749, section 5.2: about this code; the others are about us or the provider."""


class Published(Value, frozen=True, kw_only=True):
    """What the provider says of itself (OpenID Connect Discovery 1.0, section 3)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    secret_in_form: bool = False
    """It takes our secret in the request's form; else in the header."""


class _Known:
    """What is known of one provider. ``asking``: one at a time asks what it publishes, and the others have it from there."""

    def __init__(self, trust: ssl.SSLContext, *, given: bool) -> None:
        """``given``: whether it trusts the settings' own authority, not the system's."""
        self.trust = trust
        self.given = given
        self.asking = asyncio.Lock()
        self.published: Published | None = None
        self.published_at = Millis(0)
        self.keys: Keys | None = None
        self.keys_at = Millis(0)
        self.failed: Unavailable | None = None
        self.failed_at = Millis(0)


class OidcProvider:
    """Implements ``IdentityProvider``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str | None], _Known] = {}

    async def address(self, provider: SignInProvider, begun: BegunSignIn) -> str:
        published = await self._discovered(self._known_of(provider), provider)
        endpoint = published.authorization_endpoint
        digest = hashlib.sha256(begun.verifier.encode()).digest()
        query = urlencode(
            {
                "response_type": "code",
                "client_id": provider.client_id,
                "redirect_uri": begun.redirect_uri,
                "scope": " ".join(provider.scopes),
                "state": begun.state,
                "nonce": begun.nonce,
                "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
                "code_challenge_method": "S256",
            }
        )
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"

    async def redeem(
        self, provider: SignInProvider, secret: str | None, begun: BegunSignIn, code: str
    ) -> Identity:
        known = self._known_of(provider)
        published = await self._discovered(known, provider)
        tokens = await self._tokens(provider, known, published, secret, begun, code)
        id_token = tokens.get("id_token")
        if not isinstance(id_token, str):
            raise unusable("it gave no ID token: is 'openid' among the scopes?")
        claims = await self._checked(provider, known, published, id_token, begun.nonce)
        wanted = {provider.name_claim, provider.roles_claim}
        access, endpoint = tokens.get("access_token"), published.userinfo_endpoint
        if not wanted <= claims.keys() and endpoint is not None and isinstance(access, str):
            claims = {**await self._more(known, endpoint, access, claims["sub"]), **claims}
        return Identity(issuer=provider.issuer, subject=claims["sub"], claims=claims)

    async def _tokens(
        self,
        provider: SignInProvider,
        known: _Known,
        published: Published,
        secret: str | None,
        begun: BegunSignIn,
        code: str,
    ) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": begun.redirect_uri,
            "code_verifier": begun.verifier,
        }
        headers = {}
        if secret is None:
            form["client_id"] = provider.client_id
        elif published.secret_in_form:
            form |= {"client_id": provider.client_id, "client_secret": secret}
        else:
            # RFC 6749, section 2.3.1: both are form-encoded before they are joined.
            pair = f"{quote(provider.client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        status, answer = await self._ask(
            known, "POST", published.token_endpoint, headers=headers, form=form
        )
        if status == 200:
            return answer
        error = str(answer.get("error"))[:100]
        if error in _CODE_REFUSED:
            raise refused(f"the provider refuses its code ({error})")
        raise unusable(f"it answers {status} ({error}): are client id and secret right?")

    async def _checked(
        self,
        provider: SignInProvider,
        known: _Known,
        published: Published,
        id_token: str,
        nonce: str,
    ) -> dict[str, Any]:
        """Its claims; its keys are asked for again when it is signed with one that we don't know."""

        def check(keys: Keys) -> dict[str, Any]:
            return check_id_token(
                id_token,
                keys,
                issuer=provider.issuer,
                client_id=provider.client_id,
                nonce=nonce,
                now_s=self._clock.wall_ms() / 1_000,
            )

        try:
            return check(await self._keys(known, published))
        except UnknownKey:
            pass
        try:
            return check(await self._keys(known, published, again=True))
        except UnknownKey:
            raise refused(
                "its token is signed with a key that the provider doesn't publish"
            ) from None

    async def _more(
        self, known: _Known, endpoint: str, access: str, subject: str
    ) -> dict[str, Any]:
        """What the token didn't say of the person."""
        headers = {"Authorization": f"Bearer {access}"}
        status, answer = await self._ask(known, "GET", endpoint, headers=headers)
        if status != 200:
            raise unusable(f"it tells nothing of the person ({status})")
        if answer.get("sub") != subject:
            # OpenID Connect Core 1.0, section 5.3.2: the answer may be about another.
            raise refused("the provider tells of somebody else (sub)")
        return answer

    def _known_of(self, provider: SignInProvider) -> _Known:
        key, now = (provider.issuer, provider.authority_pem), self._clock.monotonic_ms()
        known = self._known.get(key)
        if known is None or (known.published and now - known.published_at >= KEPT_MS):
            self._known.pop(key, None)
            while len(self._known) >= PROVIDERS_KEPT_MAX:
                self._known.pop(next(iter(self._known)))
            self._known[key] = known = _Known(
                _trust(provider), given=provider.authority_pem is not None
            )
        return known

    async def _discovered(self, known: _Known, provider: SignInProvider) -> Published:
        present = known.published
        if present is not None:
            return present
        async with known.asking:
            if known.published is not None:
                return known.published
            if known.failed and self._clock.monotonic_ms() - known.failed_at < ANSWERS_NOT_MS:
                raise _once_more(known.failed)
            url = provider.issuer.rstrip("/") + DISCOVERY
            try:
                status, answer = await self._ask(known, "GET", url)
                if status != 200:
                    raise unusable(f"{url} answers {status}")
                known.published = read_published(answer, provider.issuer)
            except Unavailable as error:
                known.failed, known.failed_at = _once_more(error), self._clock.monotonic_ms()
                raise
            known.published_at = self._clock.monotonic_ms()
            return known.published

    async def _keys(self, known: _Known, published: Published, *, again: bool = False) -> Keys:
        async with known.asking:
            now = self._clock.monotonic_ms()
            if known.keys is not None and (not again or now - known.keys_at < KEYS_AGAIN_MS):
                return known.keys
            # Before it is asked: if it answers garbage, what we have is asked for again no sooner.
            known.keys_at = now
            status, answer = await self._ask(known, "GET", published.jwks_uri)
            if status != 200:
                raise unusable(f"its keys answer {status}")
            known.keys = read_keys(answer)
            return known.keys

    async def _ask(
        self,
        known: _Known,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object."""
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                httpx.AsyncClient(verify=known.trust, trust_env=False) as client,
                client.stream(
                    method,
                    url,
                    headers={
                        "Accept": "application/json",
                        # What is packed is bounded only once it is unpacked.
                        "Accept-Encoding": "identity",
                        "User-Agent": f"virtha/{__version__}",
                        **(headers or {}),
                    },
                    data=form,
                ) as answer,
            ):
                return answer.status_code, _object(await _beginning(answer), url)
        except TimeoutError:
            raise unusable(f"{url} does not answer within {DEADLINE_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            certificate = certificate_error(error)
            if certificate is not None:
                raise _untrusted(url, certificate, given=known.given) from None
            raise unusable(f"{url}: {str(error)[:200] or type(error).__name__}") from None


def read_published(answer: Mapping[str, Any], issuer: str) -> Published:
    """Raises Unavailable (`problem.sign_in.provider`)."""
    if answer.get("issuer") != issuer:
        raise unusable(f"it calls itself '{str(answer.get('issuer'))[:200]}', not '{issuer}'")
    endpoints: dict[str, str] = {}
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
        found = answer.get(name)
        if found is None and name == "userinfo_endpoint":
            continue
        if not isinstance(found, str) or not safe_url(found) or _leads_home(found, issuer):
            raise unusable(f"its {name} is missing, or no address of https")
        endpoints[name] = found
    methods = answer.get("code_challenge_methods_supported", ["S256"])
    if not isinstance(methods, list) or "S256" not in methods:
        raise unusable("it knows no PKCE with S256")
    # Left out means client_secret_basic (OpenID Connect Discovery 1.0, section 3). The form is preferred: not all
    # providers decode what RFC 6749 has us encode in the header.
    ways = answer.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    in_form = isinstance(ways, list) and "client_secret_post" in ways
    return Published(
        authorization_endpoint=endpoints["authorization_endpoint"],
        token_endpoint=endpoints["token_endpoint"],
        jwks_uri=endpoints["jwks_uri"],
        userinfo_endpoint=endpoints.get("userinfo_endpoint"),
        secret_in_form=in_form,
    )


def safe_url(text: str) -> bool:
    """https, or http to this machine itself, where nobody is in between."""
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)


def _leads_home(url: str, issuer: str) -> bool:
    """http is to this machine itself: no provider elsewhere has an address there."""
    return url[:5].lower() == "http:" and issuer[:5].lower() != "http:"


def _trust(provider: SignInProvider) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=provider.authority_pem)
    except (OSError, ValueError) as error:
        raise unusable(
            f"its authority can't be read: {str(error)[:200]}",
            field="authority_pem",
            fix="give the authority's certificate as PEM",
        ) from None


def _untrusted(url: str, error: ssl.SSLCertVerificationError, *, given: bool) -> Unavailable:
    why = f"the certificate of {url} is not accepted: {error.verify_message}"
    if error.verify_code in _OUT_OF_TIME:
        return unusable(
            why, field="issuer", fix="have it renewed there, if this machine's clock is right"
        )
    if error.verify_code in _OF_ANOTHER_NAME:
        return unusable(
            why,
            field="issuer",
            fix="set the provider up by a name that its certificate has, or have this one put into it",
        )
    whose = (
        "is of another authority than the one given"
        if given
        else "is of none that the system trusts"
    )
    return unusable(
        f"{why} (it {whose})",
        field="authority_pem",
        fix="give the certificate of its authority: virtha sign-in-provider set … --authority FILE",
    )


def _once_more(error: Unavailable) -> Unavailable:
    """A new one: a raised error keeps what it was raised from."""
    return Unavailable(error.message, code=error.code, field=error.field, fix=error.fix)


async def _beginning(answer: httpx.Response) -> bytes:
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise unusable(f"{answer.url} answers packed, which it was not asked for")
    read = bytearray()
    async for chunk in answer.aiter_raw():
        read += chunk
        if len(read) > ANSWER_BYTES_MAX:
            raise unusable(f"it answers more than {ANSWER_BYTES_MAX} bytes")
    return bytes(read)


def _object(raw: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise unusable(f"{url} answers no JSON object")
    return found
