"""Sign-ins by a provider: setting it up, beginning one, finishing one.

Between the two nothing is kept here: what the end needs is sealed and given to who begins. So no stranger can fill the
server's memory, and a sign-in survives a restart; and who brings a code that was meant for another's browser lacks
what that one was given.
"""

import hmac
import re
import secrets
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET

from virtha.control.history import changes_between, record, secrets_changed
from virtha.control.names import check_revision
from virtha.control.provider_users import dismiss_people, no_role, vouched_user
from virtha.control.receiver_checks import check_pem
from virtha.control.refusals_told import RefusalsTold
from virtha.control.requests import SignInBegin, SignInFinish, SignInProviderPut
from virtha.control.secret_box import SecretBox
from virtha.control.sign_in_brake import SignInBrake
from virtha.control.users import Users
from virtha.control.views import BegunSignInView, Caller, SessionView, SignInProviderView
from virtha.model.errors import Failed, InvalidInput, NotFound, Unauthenticated, VirthaError
from virtha.model.ids import Revision
from virtha.model.sign_in import BegunSignIn, Identity, SignInProvider
from virtha.model.time import UtcMillis
from virtha.ports.clock import Clock
from virtha.ports.identity_provider import IdentityProvider
from virtha.store.sign_in import (
    ProviderRow,
    drop_provider,
    find_provider,
    save_provider,
)
from virtha.store.store import Store

BEGUN_MS_MAX = 600_000
"""How long a person may take to sign in at the provider."""
RANDOM_BYTES = 32
"""Of state, nonce and verifier: 43 characters, the least that a verifier may have (RFC 7636, section 4.1)."""
URL_LENGTH_MAX = 2_000
TEXT_LENGTH_MAX = 500
LIST_LENGTH_MAX = 200
LOOPBACK = ("127.0.0.1", "::1")
"""Addresses, not `localhost`: a name could be made to lead elsewhere (RFC 8252, section 8.3)."""
_SEALED_OF = "sign-in under way"
_SECRET_OF = "sign-in provider"  # noqa: S105 - what the seal is bound to
CODE_LENGTH_MAX = 8_192
"""Providers say nothing of it; those that put all they know into it make some 2,000 characters."""
_BRAKED = ("problem.sign_in.refused", "problem.sign_in.provider")
"""After these the address has to wait: by each, anybody could have us ask the provider."""
_TOLD = ("problem.sign_in.refused", "problem.sign_in.no_role", "problem.name_taken")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""RFC 6749, section 3.3."""


class ProviderSignIns:
    def __init__(
        self, store: Store, clock: Clock, box: SecretBox, users: Users, provider: IdentityProvider
    ) -> None:
        self._store = store
        self._clock = clock
        self._box = box
        self._users = users
        self._provider = provider
        self._brake = SignInBrake()
        self._told = RefusalsTold()

    # the provider

    async def get(self) -> SignInProviderView:
        return _view(await self._row())

    async def put(
        self, caller: Caller, request: SignInProviderPut, if_match: Revision | None = None
    ) -> SignInProviderView:
        """Nothing is asked of the provider: it may be away, or not be there yet. Another issuer signs those out whom the one
        before vouched for."""
        check_provider(request)
        async with self._store.write() as tx:
            row = await find_provider(tx)
            check_revision(if_match, row.provider.revision if row is not None else Revision(0))
            sealed = row.sealed if row is not None else None
            if request.client_secret is UNSET:
                _check_same_place(request, row)
            else:
                sealed = self._seal_secret(request.client_secret)
            provider = SignInProvider(
                issuer=request.issuer,
                client_id=request.client_id,
                scopes=request.scopes,
                name_claim=request.name_claim,
                roles_claim=request.roles_claim,
                roles=request.roles,
                redirect_uris=request.redirect_uris,
                authority_pem=request.authority_pem,
                revision=tx.revision,
            )
            await save_provider(tx, provider, sealed)
            if row is not None and row.provider.issuer != provider.issuer:
                await dismiss_people(tx, row.provider.issuer, by=caller.name)
            await record(
                tx,
                "sign_in_provider.changed",
                by=caller.name,
                issuer=provider.issuer,
                client_id=provider.client_id,
                roles_claim=provider.roles_claim,
                roles=", ".join(f"{one}={role}" for one, role in sorted(provider.roles.items())),
                **changes_between(row.provider if row is not None else None, provider),
                **secrets_changed(_given_secrets(row, sealed)),
            )
            return _view(ProviderRow(provider=provider, sealed=sealed))

    async def delete(self, caller: Caller, if_match: Revision | None = None) -> None:
        """Its users stay, are signed out, are sent no more notifications, and can't sign in."""
        async with self._store.write() as tx:
            row = _there(await find_provider(tx))
            check_revision(if_match, row.provider.revision)
            await drop_provider(tx)
            await dismiss_people(tx, row.provider.issuer, by=caller.name)
            told = changes_between(row.provider, None)
            await record(
                tx, "sign_in_provider.removed", by=caller.name, issuer=row.provider.issuer, **told
            )

    # signing in

    async def begin(self, request: SignInBegin) -> BegunSignInView:
        """Raises NotFound (`problem.sign_in.none`), InvalidInput, Unavailable (`problem.sign_in.provider`)."""
        provider = (await self._row()).provider
        check_redirect(request.redirect_uri, provider)
        begun = BegunSignIn(
            redirect_uri=request.redirect_uri,
            state=secrets.token_urlsafe(RANDOM_BYTES),
            nonce=secrets.token_urlsafe(RANDOM_BYTES),
            verifier=secrets.token_urlsafe(RANDOM_BYTES),
        )
        url = await self._provider.address(provider, begun)
        expires = UtcMillis(self._clock.wall_ms() + BEGUN_MS_MAX)
        kept = {
            **msgspec.structs.asdict(begun),
            "issuer": provider.issuer,
            "client_id": provider.client_id,
            "expires": str(expires),
        }
        sealed = self._box.seal(kept, of=_SEALED_OF)
        return BegunSignInView(url=url, sign_in=sealed, expires=expires)

    async def finish(self, request: SignInFinish, *, address: str) -> SessionView:
        """Raises Unauthenticated (`problem.sign_in.refused`, `problem.sign_in.limited`), Forbidden
        (`problem.sign_in.no_role`), Conflict, Unavailable (`problem.sign_in.provider`), InvalidInput, NotFound."""
        row = await self._row()
        if not 0 < len(request.code) <= CODE_LENGTH_MAX:
            raise InvalidInput(
                f"has {len(request.code)} characters",
                field="code",
                allowed=(f"1 to {CODE_LENGTH_MAX}",),
                fix="send what the browser brought back",
            )
        ended: SessionView | VirthaError
        # Whose it is nobody knows yet: the brake is per place, so that nobody shuts out others.
        async with self._brake.turn(None, address, self._clock) as began:
            try:
                ended = await self._redeemed(row, request, address)
            except VirthaError as error:
                if error.code not in _BRAKED:
                    raise
                ended = error
            else:
                self._brake.succeeded(None, address, began)
        if isinstance(ended, VirthaError):
            raise ended
        return ended

    async def _redeemed(self, row: ProviderRow, request: SignInFinish, address: str) -> SessionView:
        begun = self._begun(request, row.provider)
        # From here on a refusal is an event: before, anybody writes what they like, and no provider was asked.
        try:
            identity = await self._provider.redeem(
                row.provider, self._open_secret(row), begun, request.code
            )
            return await self._session(row.provider, identity, address)
        except VirthaError as error:
            if error.code in _TOLD:
                await self._tell(row.provider, error, address)
            raise

    def _begun(self, request: SignInFinish, provider: SignInProvider) -> BegunSignIn:
        """What ``begin`` sealed, when it is for this and still good."""
        try:
            kept = self._box.open(request.sign_in, of=_SEALED_OF)
            expires = int(kept.pop("expires"))
        except (Failed, KeyError, ValueError):
            raise InvalidInput(
                "is no sign-in that this server began", field="sign_in", fix="begin anew"
            ) from None
        if expires <= self._clock.wall_ms():
            raise _refused("it took too long")
        if (kept.pop("issuer"), kept.pop("client_id")) != _name_of(provider):
            raise _refused("the provider was changed meanwhile")
        begun = BegunSignIn(**kept)
        if not hmac.compare_digest(begun.state.encode(), request.state.encode()):
            raise _refused("the browser brought back another sign-in (state)")
        if request.iss is not None and request.iss != provider.issuer:
            # RFC 9207: another provider's answer, mixed into ours.
            raise _refused("the browser comes from another provider (iss)")
        return begun

    async def _session(
        self, provider: SignInProvider, identity: Identity, address: str
    ) -> SessionView:
        async with self._store.write() as tx:
            # The provider was asked meanwhile, which may take seconds: what counts is whom we believe now.
            row = await find_provider(tx)
            if row is None or _name_of(row.provider) != _name_of(provider):
                raise _refused("the provider was changed meanwhile")
            user_id = await vouched_user(tx, row.provider, identity)
            if user_id is not None:
                # Here, not afterwards: who ends the sessions of the provider's people must not miss this one.
                return await self._users.open_vouched(tx, user_id, address=address)
        raise no_role(row.provider)

    async def _tell(self, provider: SignInProvider, error: VirthaError, address: str) -> None:
        untold = self._told.count(error.code, address, self._clock.monotonic_ms())
        if untold is None:
            return
        why = error.message if untold == 0 else f"{error.message} ({untold} more since the last)"
        async with self._store.write() as tx:
            await record(
                tx,
                "sign_in_provider.refused",
                issuer=provider.issuer,
                why=why,
                address=address,
            )

    # rows

    async def _row(self) -> ProviderRow:
        async with self._store.read() as tx:
            return _there(await find_provider(tx))

    def _seal_secret(self, secret: str | None) -> str | None:
        return self._box.seal({"client_secret": secret}, of=_SECRET_OF) if secret else None

    def _open_secret(self, row: ProviderRow) -> str | None:
        if row.sealed is None:
            return None
        return self._box.open(row.sealed, of=_SECRET_OF)["client_secret"]


def check_provider(request: SignInProviderPut) -> None:
    """Raises InvalidInput."""
    _check_url(request.issuer, field="issuer")
    if urlsplit(request.issuer).query:
        raise InvalidInput("has a query", field="issuer", fix="write it as the provider does")
    for field in ("client_id", "name_claim", "roles_claim"):
        _check_text(getattr(request, field), field=field)
    if isinstance(request.client_secret, str):
        _check_text(request.client_secret, field="client_secret")
    for index, scope in enumerate(_short_list(request.scopes, field="scopes")):
        _check_text(scope, field=f"scopes[{index}]")
        if not _SCOPE.fullmatch(scope):
            raise InvalidInput(f"'{scope}' is no scope", field=f"scopes[{index}]")
    if "openid" not in request.scopes:
        raise InvalidInput("lack 'openid'", field="scopes", fix="without it nobody is vouched for")
    if not request.roles:
        raise InvalidInput(
            "is empty", field="roles", fix="say which values of the claim stand for which role"
        )
    for value in _short_list(tuple(request.roles), field="roles"):
        _check_text(value, field="roles")
    for index, uri in enumerate(_short_list(request.redirect_uris, field="redirect_uris")):
        _check_url(uri, field=f"redirect_uris[{index}]")
    check_pem(request.authority_pem, field="authority_pem")


def _given_secrets(row: ProviderRow | None, sealed: str | None) -> tuple[str, ...]:
    """Sealed anew it never looks the same."""
    present = row.sealed if row is not None else None
    return ("client_secret",) if sealed != present else ()


def _check_same_place(request: SignInProviderPut, row: ProviderRow | None) -> None:
    """A secret goes only where whoever knows it sent it. Raises InvalidInput."""
    if row is None or row.sealed is None:
        return
    present = row.provider
    if (request.issuer, request.authority_pem) != (present.issuer, present.authority_pem):
        raise InvalidInput(
            "is kept for another issuer or authority",
            field="client_secret",
            fix="give it anew, or null where there is none",
        )


def check_redirect(uri: str, provider: SignInProvider) -> None:
    """Raises InvalidInput. What is let through here, the provider must know as well."""
    _check_url(uri, field="redirect_uri")
    parts = urlsplit(uri)
    if uri in provider.redirect_uris or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise InvalidInput(
        f"'{uri}' is not one of those set up",
        field="redirect_uri",
        allowed=(*provider.redirect_uris, "http://127.0.0.1:PORT/…"),
    )


def _check_url(text: str, *, field: str) -> None:
    """https, or http to the own machine, where nobody is in between."""
    try:
        parts = urlsplit(text)
        _ = parts.port
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    own = parts.scheme == "http" and host in (*LOOPBACK, "localhost")
    if (
        not host
        or not (parts.scheme == "https" or own)
        or parts.username is not None
        or parts.fragment
        or len(text) > URL_LENGTH_MAX
        or not text.isascii()
        or any(one <= " " for one in text)
    ):
        raise InvalidInput(
            f"'{text[:100]}' can't be used",
            field=field,
            allowed=("an address of https, without user and fragment", "http://127.0.0.1:PORT/…"),
        )


def _check_text(text: str, *, field: str) -> None:
    if not 0 < len(text) <= TEXT_LENGTH_MAX:
        raise InvalidInput(
            f"has {len(text)} characters", field=field, allowed=(f"1 to {TEXT_LENGTH_MAX}",)
        )


def _short_list(items: tuple[str, ...], *, field: str) -> tuple[str, ...]:
    if len(items) > LIST_LENGTH_MAX:
        raise InvalidInput(
            f"are {len(items)}", field=field, allowed=(f"at most {LIST_LENGTH_MAX}",)
        )
    return items


def _name_of(provider: SignInProvider) -> tuple[str, str]:
    """Whose word for whom: with another of either, what was begun is void."""
    return provider.issuer, provider.client_id


def _there(row: ProviderRow | None) -> ProviderRow:
    if row is None:
        raise NotFound(
            "no provider of sign-ins is set up",
            code="problem.sign_in.none",
            fix="sign in with a password; an administrator can set one up: virtha sign-in-provider",
        )
    return row


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(
        f"the sign-in is not accepted: {why}", code="problem.sign_in.refused", fix="sign in anew"
    )


def _view(row: ProviderRow) -> SignInProviderView:
    return SignInProviderView(provider=row.provider, has_secret=row.sealed is not None)
