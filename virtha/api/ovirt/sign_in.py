"""Who asks: oVirt's names and tokens onto our users and sessions.

oVirt writes ``name@domain``. Ours are all of the one domain ``internal``; no name of ours holds an @. An access token of
``/ovirt-engine/sso/oauth/token`` is a session's as ``/v1/sessions`` gives it. Basic, which comes with each request, signs in
once and keeps the session.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import secrets
from collections import OrderedDict
from urllib.parse import parse_qsl

import msgspec

from virtha.api.route import Services
from virtha.control import Control
from virtha.control.requests import SessionCreate
from virtha.control.views import Caller, SessionView
from virtha.model.errors import Forbidden, InvalidInput, Unauthenticated, VirthaError

DOMAIN = "internal"
SCOPE = "ovirt-app-api"
SESSIONS_KEPT_MAX = 1_000
GRANT = "password"
FIELDS_MAX = 16
"""Of a form: the SDK sends four."""


def own_name(text: str) -> str:
    """``admin@internal`` to ``admin``. Raises Unauthenticated: of a domain that there is not."""
    name, at, domain = text.rpartition("@")
    if not at:
        return text
    if domain != DOMAIN:
        raise Unauthenticated(
            f"there is no domain '{domain[:64]}'",
            code="problem.password.wrong",
            fix=f"sign in as NAME@{DOMAIN}",
        )
    return name


class BasicSessions:
    """Which session a name and password have opened; kept by a digest, so that no password is."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._tokens: OrderedDict[bytes, str] = OrderedDict()

    async def caller(self, control: Control, credentials: bytes, address: str) -> Caller:
        """Raises Unauthenticated."""
        digest = hmac.digest(self._key, credentials, hashlib.sha256)
        kept = self._tokens.get(digest)
        if kept is not None:
            try:
                return await control.users.authenticate(kept)
            except Unauthenticated:
                self._tokens.pop(digest, None)  # it ended, or the password was changed
        user, _, password = _text(credentials).partition(":")
        made = await control.users.sign_in(
            SessionCreate(user=own_name(user), password=password), address=address
        )
        self._tokens[digest] = made.token
        while len(self._tokens) > SESSIONS_KEPT_MAX:
            self._tokens.popitem(last=False)
        return await control.users.authenticate(made.token)


async def caller_of(
    header: str | None, services: Services, basic: BasicSessions, address: str
) -> Caller:
    """Raises Unauthenticated."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return await services.control.users.authenticate(value.strip())
    if scheme.lower() == "basic":
        try:
            credentials = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise _no_sign_in("the Authorization header is not understood") from None
        return await basic.caller(services.control, credentials, address)
    raise _no_sign_in("no sign-in came with the request")


def _no_sign_in(message: str) -> Unauthenticated:
    return Unauthenticated(
        message, fix=f"send 'Authorization: Bearer TOKEN', or Basic with NAME@{DOMAIN}"
    )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


# The single sign-on's own requests: forms in, JSON out


async def token(raw: bytes, services: Services, address: str) -> tuple[int, bytes]:
    """``POST /ovirt-engine/sso/oauth/token``: status and body. Clients look for ``error``, not at the status. Raises what
    ``failed_sign`` tells them."""
    form = _form(raw)
    grant = form.get("grant_type", "")
    if grant != GRANT:
        return 400, _error("unsupported_grant_type", f"'{grant[:64]}'; allowed: {GRANT}")
    if not form.get("username") or "password" not in form:
        return 400, _error("invalid_request", "username and password are needed")
    try:
        wanted = SessionCreate(user=own_name(form["username"]), password=form["password"])
        made = await services.control.users.sign_in(wanted, address=address)
    except Unauthenticated as error:
        return 401, _error("access_denied", f"Cannot authenticate user: {error}.")
    return 200, _granted(made)


def _granted(made: SessionView) -> bytes:
    return msgspec.json.encode(
        {
            "access_token": made.token,
            "scope": SCOPE,
            "exp": str(made.expires),
            "token_type": "bearer",
        }
    )


async def log_out(raw: bytes, services: Services) -> tuple[int, bytes]:
    """Also for a token that is over already: that is what was wanted."""
    form = _form(raw)
    with contextlib.suppress(Unauthenticated):
        await services.control.users.sign_out(form.get("token", ""))
    return 200, b"{}"


def failed_sign(error: VirthaError) -> tuple[int, bytes]:
    """Status and body of whatever else went wrong."""
    wrong = isinstance(error, InvalidInput | Forbidden)
    code = "invalid_request" if wrong else "server_error"
    return error.http_status, _error(code, str(error))


def _form(raw: bytes) -> dict[str, str]:
    """Raises InvalidInput."""
    try:
        return dict(parse_qsl(_text(raw), keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError:
        raise InvalidInput(
            "the form has too many fields", field="body", allowed=(f"up to {FIELDS_MAX}",)
        ) from None


def _error(code: str, description: str) -> bytes:
    return msgspec.json.encode(
        {"error": code, "error_code": code, "error_description": description}
    )
