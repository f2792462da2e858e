"""Users and their sign-ins."""

from typing import Any
from uuid import uuid4

import msgspec
from msgspec import UNSET

from virtha.control.callers import caller_of
from virtha.control.history import changes_between, record
from virtha.control.known_settings import SESSION_LIFETIME, setting_values
from virtha.control.names import (
    check_limit,
    check_name,
    check_revision,
    page_of,
    taken,
    the_user,
)
from virtha.control.passwords import PASSWORD_LENGTH_MAX, Passwords, check_password
from virtha.control.receiver_checks import check_address
from virtha.control.requests import SearchQuery, SessionCreate, UserChange, UserCreate
from virtha.control.searching import page_of_search
from virtha.control.secret_tokens import (
    TokenText,
    access_text,
    hash_secret,
    make_secret,
    parse_access,
    secret_matches,
)
from virtha.control.sign_in_brake import SignInBrake
from virtha.control.subscriptions import end_subscriptions_of
from virtha.control.token_ends import end_of
from virtha.control.user_origin import check_its_own
from virtha.control.views import Caller, CurrentSession, Page, SessionView
from virtha.model.errors import Conflict, Refused, Unauthenticated
from virtha.model.ids import Revision, TokenId, UserId
from virtha.model.time import UtcMillis, format_utc
from virtha.model.user import Role, Token, TokenKind, User
from virtha.ports.clock import Clock
from virtha.store.clusters import cluster_names
from virtha.store.reach import seeing
from virtha.store.search_fields import USERS
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.users import (
    UserRow,
    add_token,
    add_user,
    drop_expired_access_tokens,
    drop_token,
    drop_tokens_of,
    drop_user,
    enabled_administrators,
    find_token,
    find_user,
    save_user,
    users_after,
    users_with_ids,
)

EXPIRED_KEPT_MS = 86_400_000
"""For so long who comes with an access token that has expired is told that, and not that it is wrong."""
RESERVED = ("root", "virtha")
"""Root on the Unix socket, and the server itself, are told apart from users by these names."""


def _not_signed_in() -> Unauthenticated:
    return Unauthenticated(
        "the access token is wrong, or its sign-in has ended", fix="sign in: 'virtha login URL'"
    )


class Users:
    def __init__(self, store: Store, clock: Clock, passwords: Passwords) -> None:
        self._store = store
        self._clock = clock
        self._passwords = passwords
        self._brake = SignInBrake()

    # sign-in

    async def sign_in(self, request: SessionCreate, *, address: str) -> SessionView:
        """One message whatever was wrong. Raises Unauthenticated: `problem.password.wrong`, `.sign_in.limited`."""
        name = request.user[:64]
        async with self._brake.turn(name, address, self._clock) as began:
            row = await self._who_knows(request)
            if row is not None:
                self._brake.succeeded(name, address, began)
        session = await self._session_of(row, address) if row is not None else None
        if session is None:
            await self._failed(request.user, address)
            raise Unauthenticated(
                "user name or password is wrong", code="problem.password.wrong", fix="try again"
            )
        return session

    async def _who_knows(self, request: SessionCreate) -> UserRow | None:
        """The user of that name, if it may sign in and the password is right."""
        async with self._store.read() as tx:
            row = await find_user(tx, request.user)
        # By name only: an id is no name to sign in with.
        row = row if row is not None and row.user.name == request.user else None
        right = await self._passwords.matches(
            request.password[: PASSWORD_LENGTH_MAX + 1],
            # A user of a provider has none: as with no user, so that it takes as long.
            (row.password_hash or None) if row else None,
        )
        return row if row is not None and right and row.user.enabled else None

    async def _failed(self, name: str, address: str) -> None:
        """A name that nobody has locks nobody out: of that only its place is told, should it try many."""
        shown = name[:64] if name[:64].isprintable() else "?"
        shut = self._brake.failed(name[:64], address, self._clock.monotonic_ms())
        async with self._store.write() as tx:
            await record(tx, "user.sign_in_failed", address=address, user=shown)
            row = await find_user(tx, name)
            if any(of is not None for of, _ in shut) and row is not None and row.user.name == name:
                await record(tx, "user.locked_out", address=address, user=name)
            if any(of is None for of, _ in shut):
                await record(tx, "sign_in.address_limited", address=address)

    async def unlock(self, caller: Caller, ref: str) -> None:
        """Ends the lock-out after failed sign-ins, wherever they came from. Raises NotFound."""
        async with self._store.write() as tx:
            user = (await the_user(tx, ref)).user
            await record(tx, "user.unlocked", by=caller.name, user=user.name)
        self._brake.lift(user.name)

    async def _session_of(self, judged: UserRow, address: str) -> SessionView | None:
        """None: while the password was looked at, which takes its time, the user was locked out, removed or given another one.
        What ended their sessions then must not miss this one."""
        async with self._store.write() as tx:
            row = await find_user(tx, judged.user.id)
            if row is None or not row.user.enabled or row.password_hash != judged.password_hash:
                return None
            return await _open_session(tx, row.user, address)

    async def open_vouched(
        self, tx: WriteTransaction, user_id: UserId, *, address: str
    ) -> SessionView:
        """For whom a provider vouches, in the transaction that finds the provider still believed. Raises Unauthenticated: the user is
        locked out or no more."""
        row = await find_user(tx, user_id)
        if row is None or not row.user.enabled:
            raise Unauthenticated(
                "the user is locked out here",
                code="problem.sign_in.refused",
                fix="ask an administrator",
            )
        return await _open_session(tx, row.user, address)

    async def authenticate(self, token: str) -> Caller:
        """Raises Unauthenticated (`problem.token.expired` to who knows an expired token's secret)."""
        caller, _ = await self._signed_in(token)
        return caller

    async def current(self, token: str) -> CurrentSession:
        """What a sign-in says of itself. Raises Unauthenticated as ``authenticate`` does."""
        caller, signed_in = await self._signed_in(token)
        return CurrentSession(
            user=caller.name,
            role=caller.role,
            by="token",
            token_id=signed_in.id,
            created=signed_in.created,
            expires=signed_in.expires,
            **await self._may(caller),
        )

    async def _may(self, caller: Caller) -> dict[str, Any]:
        """By clusters' names, as a session shows it."""
        rights = caller.rights
        async with self._store.read() as tx:
            names = await cluster_names(tx) if rights.within else {}
        return {
            "permissions": tuple(sorted(rights.everywhere)),
            "clusters": {
                names.get(one, one): tuple(sorted(found)) for one, found in rights.within.items()
            },
        }

    async def _signed_in(self, token: str) -> tuple[Caller, Token]:
        parsed = parse_access(token)
        if parsed is None:
            raise _not_signed_in()
        # Whatever they may see: a stream asks in the midst of it whether it may go on.
        with seeing(None):
            return await self._caller(parsed)

    async def _caller(self, parsed: TokenText) -> tuple[Caller, Token]:
        async with self._store.read() as tx:
            row = await find_token(tx, parsed.token_id)
            if (
                row is None
                or row.token.kind is not TokenKind.ACCESS
                or not secret_matches(parsed.secret, row.secret_hash)
                or row.token.user_id is None
            ):
                raise _not_signed_in()
            if row.token.expires <= self._clock.wall_ms():
                raise Unauthenticated(
                    f"the sign-in ended at {format_utc(row.token.expires)}",
                    code="problem.token.expired",
                    fix="sign in again: 'virtha login URL'",
                )
            user = await find_user(tx, row.token.user_id)
            if user is None or not user.user.enabled:
                raise _not_signed_in()
            ends = await end_of(tx, row.token)
            if ends <= self._clock.wall_ms():
                raise Unauthenticated(
                    f"its user's provider has not vouched for them since, so the token ended at {format_utc(ends)}",
                    code="problem.token.expired",
                    fix="sign in by the provider, and it is good again: 'virtha login URL --provider'",
                )
            signed_in = msgspec.structs.replace(row.token, expires=ends)
            return await caller_of(tx, user.user, row.token), signed_in

    async def sign_out(self, token: str) -> None:
        await self.authenticate(token)
        parsed = parse_access(token)
        assert parsed is not None, "it has just been authenticated"
        async with self._store.write() as tx:
            await drop_token(tx, parsed.token_id)

    # users

    async def list(self, query: SearchQuery) -> Page[User]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            if query.search is not None:
                now = self._store.clock.wall_ms()
                ids, after = await page_of_search(tx, USERS, query.search, query, now=now)
                rows = await users_with_ids(tx, ids)
            else:
                rows, more = page_of(await users_after(tx, query.after or "", limit + 1), limit)
                after = rows[-1].name if more else None
            return Page(items=rows, revision=await tx.revision_now(), next=after)

    async def own(self, user_id: UserId) -> User:
        """The caller themselves, whatever else they may see. Raises NotFound: removed meanwhile."""
        with seeing(None):
            return await self.get(user_id)

    async def get(self, ref: str) -> User:
        async with self._store.read() as tx:
            return (await the_user(tx, ref)).user

    async def create(self, caller: Caller, request: UserCreate) -> User:
        check_user_name(request.name)
        if request.email is not None:
            check_address(request.email, field="email")
        password_hash = await self._passwords.hash(check_password(request.password))
        async with self._store.write() as tx:
            if await find_user(tx, request.name) is not None:
                raise taken("user", request.name)
            return await insert_user(
                tx, request.name, request.role, password_hash, by=caller.name, email=request.email
            )

    async def change(
        self, caller: Caller, ref: str, request: UserChange, if_match: Revision | None = None
    ) -> User:
        """A new password, and being disabled, sign the user out everywhere."""
        password_hash = None
        if request.email is not UNSET and request.email is not None:
            check_address(request.email, field="email")
        if request.password is not UNSET:
            password_hash = await self._passwords.hash(check_password(request.password))
        async with self._store.write() as tx:
            user = (await the_user(tx, ref)).user
            check_revision(if_match, user.revision)
            await check_its_own(tx, user, request)
            changed = msgspec.structs.replace(
                user,
                role=request.role if request.role is not UNSET else user.role,
                enabled=request.enabled if request.enabled is not UNSET else user.enabled,
                email=request.email if request.email is not UNSET else user.email,
            )
            if not _administers(changed):
                await _check_not_last(tx, user)
            saved = await save_user(tx, changed, password_hash)
            if password_hash is not None or not saved.enabled:
                await drop_tokens_of(tx, saved.id)
            told = changes_between(user, saved)
            if password_hash is not None:
                told |= {"password": "changed"}
            await record(
                tx,
                "user.changed",
                by=caller.name,
                user=saved.name,
                role=saved.role.value,
                enabled=saved.enabled,
                **told,
            )
            return saved

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        async with self._store.write() as tx:
            user = (await the_user(tx, ref)).user
            check_revision(if_match, user.revision)
            await _check_not_last(tx, user)
            await end_subscriptions_of(tx, user, by=caller.name)
            await drop_user(tx, user.id)
            told = changes_between(user, None)
            await record(tx, "user.deleted", by=caller.name, user=user.name, **told)


async def _open_session(tx: WriteTransaction, user: User, address: str) -> SessionView:
    """``user`` as ``tx`` finds them."""
    secret = make_secret()
    now = tx.clock.wall_ms()
    lifetime_ms = (await setting_values(tx)).get(SESSION_LIFETIME)
    await drop_expired_access_tokens(tx, now - EXPIRED_KEPT_MS)
    token = Token(
        id=TokenId(str(uuid4())),
        kind=TokenKind.ACCESS,
        user_id=user.id,
        created=now,
        expires=UtcMillis(now + lifetime_ms),
        uses_max=None,
        address=address,
    )
    await add_token(tx, token, hash_secret(secret))
    await record(tx, "user.signed_in", by=user.name, user=user.name, address=address)
    return SessionView(
        token=access_text(token.id, secret), expires=token.expires, user=user.name, role=user.role
    )


def check_user_name(name: str) -> str:
    if check_name(name) in RESERVED:
        raise Conflict(
            f"'{name}' is reserved",
            code="problem.name_taken",
            field="name",
            fix="choose another name",
        )
    return name


async def insert_user(
    tx: WriteTransaction,
    name: str,
    role: Role,
    password_hash: str,
    *,
    by: str,
    email: str | None = None,
) -> User:
    user = User(id=UserId(str(uuid4())), name=name, role=role, email=email)
    saved = await add_user(tx, user, password_hash)
    told = changes_between(None, saved)
    await record(tx, "user.created", by=by, user=name, role=role.value, **told)
    return saved


def _administers(user: User) -> bool:
    return user.enabled and user.role is Role.ADMINISTRATOR


async def _check_not_last(tx: Transaction, user: User) -> None:
    if _administers(user) and await enabled_administrators(tx, but=user.id) == 0:
        raise Refused(
            f"{user.name} is the last administrator",
            code="problem.administrator.last",
            fix="make another one first",
        )
