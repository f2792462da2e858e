"""Sign-ins and access tokens: which there are, making one that may less, ending one."""

from typing import Any
from uuid import uuid4

from virtha.control.access_views import (
    DAY_MS,
    AccessTokenCreate,
    AccessTokenSecret,
    SessionItem,
)
from virtha.control.history import changes_between, record
from virtha.control.names import check_text, the_cluster, the_user
from virtha.control.roles import check_role_name
from virtha.control.secret_tokens import access_text, hash_secret, make_secret
from virtha.control.token_ends import end_of
from virtha.control.views import Caller, Page
from virtha.model.access import Permission
from virtha.model.errors import Forbidden, InvalidInput, NotFound, Refused, Unauthenticated
from virtha.model.ids import ClusterId, TokenId, UserId
from virtha.model.time import UtcMillis, format_duration_ms
from virtha.model.user import Token, TokenKind
from virtha.store.clusters import cluster_names
from virtha.store.reach import seeing
from virtha.store.store import Store, Transaction
from virtha.store.users import access_tokens, add_token, drop_token, find_token, find_user

EXPIRES_MS_MIN = 1_000
EXPIRES_MS_MAX = 366 * DAY_MS
SHOWN_MAX = 1_000
TOKENS_OF_USER_MAX = 200
"""Sign-ins among them; enough for programs that never sign out to be noticed before they fill the database."""


class Sessions:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, caller: Caller, user: str | None) -> Page[SessionItem]:
        """Newest first. ``user``: id or name; None: the caller's own, of root everybody's. A token that is for less shows itself only.
        Raises Forbidden (somebody else's, and not an administrator), NotFound."""
        with seeing(caller.rights.reach):
            async with self._store.read() as tx:
                names = await cluster_names(tx)
        with seeing(None):  # they are the caller's own, whatever else they may see
            async with self._store.read() as tx:
                user_id = await _whose(tx, caller, user)
                now = self._store.clock.wall_ms()
                found = await access_tokens(tx, user_id, SHOWN_MAX)
                items = [
                    await _item(tx, one, names)
                    for one in found
                    if one.expires > now and (not caller.is_narrow or one.id == caller.token_id)
                ]
                return Page(items=tuple(items), revision=await tx.revision_now())

    async def end(self, caller: Caller, token_id: str) -> None:
        """Raises NotFound, also of somebody else's, unless the caller administers users."""
        async with self._store.write() as tx:
            row = await find_token(tx, token_id)
            token = row.token if row is not None else None
            others = Permission.USERS in caller.rights.everywhere
            mine = caller.user_id is not None and not caller.is_narrow
            if (
                token is None
                or token.kind is not TokenKind.ACCESS
                or token.user_id is None
                or not (others or (mine and token.user_id == caller.user_id))
            ):
                raise NotFound(
                    f"there is no session {token_id[:64]}", fix="'virtha session list' shows yours"
                )
            user = await find_user(tx, token.user_id)
            assert user is not None, "its tokens go with it"
            await drop_token(tx, token.id)
            told: dict[str, Any] = {
                "user": user.user.name,
                "description": token.description or "sign-in",
            }
            await record(tx, "session.ended", by=caller.name, **told)

    async def create_token(
        self, caller: Caller, request: AccessTokenCreate, *, address: str
    ) -> AccessTokenSecret:
        """Raises InvalidInput, NotFound, Forbidden (by a token that is no sign-in), Refused (too many), Unauthenticated (the
        sign-in has ended meanwhile)."""
        _check_token(request)
        if caller.user_id is None:
            raise InvalidInput(
                "root on the Unix socket is no user whose token it could be",
                field="Authorization",
                fix="sign in as a user: 'virtha login URL'",
            )
        if not caller.signed_in:
            # It would outlive the one that it came from, and whoever found that.
            raise Forbidden(
                "an access token makes no others",
                code="problem.token.narrow",
                fix="sign in: 'virtha login URL'",
            )
        secret, cluster_id = make_secret(), await self._cluster_for(caller, request)
        async with self._store.write() as tx:
            if caller.token_id is None or await find_token(tx, caller.token_id) is None:
                # What ended all that their user had, while this request was under way, must not miss this one.
                raise Unauthenticated(
                    "the sign-in has ended meanwhile", fix="sign in: 'virtha login URL'"
                )
            if request.role is not None:
                await check_role_name(tx, request.role)
            now = tx.clock.wall_ms()
            present = await access_tokens(tx, caller.user_id, SHOWN_MAX)
            if sum(one.expires > now for one in present) >= TOKENS_OF_USER_MAX:
                raise Refused(
                    f"{caller.name} has {TOKENS_OF_USER_MAX} sessions and tokens",
                    fix="end some: 'virtha session list', 'virtha session end ID'",
                )
            token = Token(
                id=TokenId(str(uuid4())),
                kind=TokenKind.ACCESS,
                user_id=caller.user_id,
                cluster_id=cluster_id,
                role=request.role,
                description=request.description,
                address=address,
                created=now,
                expires=UtcMillis(now + request.expires_ms),
                uses_max=None,
            )
            saved = await add_token(tx, token, hash_secret(secret))
            item = await _item(tx, saved, await cluster_names(tx))
            await record(
                tx,
                "session.token_created",
                by=caller.name,
                user=caller.name,
                description=request.description,
                role=request.role or "all that its user may",
                where=item.cluster_name or "all clusters",
                address=address,
                **changes_between(None, saved),
            )
        return AccessTokenSecret(token=access_text(saved.id, secret), session=item)

    async def _cluster_for(self, caller: Caller, request: AccessTokenCreate) -> ClusterId | None:
        """Looked up as its caller sees it. Raises NotFound."""
        if request.cluster is None:
            return None
        with seeing(caller.rights.reach):
            async with self._store.read() as tx:
                return (await the_cluster(tx, request.cluster, field="cluster")).id


def _check_token(request: AccessTokenCreate) -> None:
    if not request.description.strip():
        raise InvalidInput("is missing", field="description", fix="say what the token is for")
    check_text(request.description, field="description")
    if not EXPIRES_MS_MIN <= request.expires_ms <= EXPIRES_MS_MAX:
        between = f"{format_duration_ms(EXPIRES_MS_MIN)} to {format_duration_ms(EXPIRES_MS_MAX)}"
        raise InvalidInput(
            f"{format_duration_ms(request.expires_ms)} is out of range",
            field="expires_ms",
            allowed=(between,),
        )


async def _whose(tx: Transaction, caller: Caller, user: str | None) -> UserId | None:
    if user is None:
        return caller.user_id  # root on the socket: everybody's
    if Permission.USERS not in caller.rights.everywhere:
        raise Forbidden("only administrators see others' sessions", field="user")
    return (await the_user(tx, user, field="user")).user.id


async def _item(tx: Transaction, token: Token, names: dict[ClusterId, str]) -> SessionItem:
    assert token.user_id is not None, "an access token is a user's"
    user = await find_user(tx, token.user_id)
    cluster_id = token.cluster_id
    return SessionItem(
        id=token.id,
        user=user.user.name if user is not None else token.user_id,
        description=token.description,
        address=token.address,
        role=token.role,
        cluster_name=names.get(cluster_id, cluster_id) if cluster_id is not None else None,
        created=token.created,
        expires=await end_of(tx, token),
    )
