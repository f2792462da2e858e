"""Users, passwords, sign-ins."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from argon2 import PasswordHasher

from virtha.control.access_views import AccessTokenCreate
from virtha.control.passwords import Passwords
from virtha.control.requests import (
    PageQuery,
    SearchQuery,
    SessionCreate,
    TokenCreate,
    UserChange,
    UserCreate,
)
from virtha.control.sign_in_brake import FAILURES_OF_NAME_MAX
from virtha.control.users import Users
from virtha.control.views import Caller
from virtha.model.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Refused,
    Unauthenticated,
    Unavailable,
    VirthaError,
)
from virtha.model.user import Role
from virtha.store.users import access_tokens, find_token, find_user

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
PASSWORD = "correct horse battery"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
Tell = Callable[[Any], None]


def test_a_sign_in_gives_a_token_that_works_until_it_ends(tell: Tell) -> None:
    async def story(world: Any) -> None:
        users = world.control.users
        session = await users.sign_in(SessionCreate(user="admin", password=PASSWORD), address="a")
        caller = await users.authenticate(session.token)
        assert (caller.name, caller.role) == ("admin", Role.ADMINISTRATOR)
        async with world.store.read() as tx:
            stored = await find_token(tx, session.token.split(".")[1])
            assert stored is not None and session.token.split(".")[2] not in str(stored)
        for wrong in ("", "virtha-access.x.y", session.token[:-1] + "!", session.token + "x"):
            with pytest.raises(Unauthenticated):
                await users.authenticate(wrong)
        world.clock.advance(12 * 3_600_000)
        with pytest.raises(Unauthenticated):
            await users.authenticate(session.token)
        again = await users.sign_in(SessionCreate(user="admin", password=PASSWORD), address="a")
        await users.sign_out(again.token)
        with pytest.raises(Unauthenticated):
            await users.authenticate(again.token)

    tell(story)


@pytest.mark.bad_input("wrong password")
def test_failures_say_the_same_whatever_was_wrong(tell: Tell) -> None:
    async def story(world: Any) -> None:
        users = world.control.users
        await users.create(ADMIN, UserCreate(name="eve", password=PASSWORD, role=Role.VIEWER))
        await users.change(ADMIN, "eve", UserChange(enabled=False))
        told = set()
        for user, password in (("admin", "wrong"), ("nobody", PASSWORD), ("eve", PASSWORD)):
            with pytest.raises(Unauthenticated) as wrong:
                await users.sign_in(SessionCreate(user=user, password=password), address="a")
            told.add((str(wrong.value), wrong.value.code))
        assert len(told) == 1 and told.pop()[1] == "problem.password.wrong"
        assert len(await world.events("user.sign_in_failed")) == 3

    tell(story)


def test_guessing_is_braked_per_name_and_address(tell: Tell) -> None:
    async def story(world: Any) -> None:
        users = world.control.users
        wrong = SessionCreate(user="admin", password="wrong")
        right = SessionCreate(user="admin", password=PASSWORD)
        for _ in range(5):
            with pytest.raises(Unauthenticated):
                await users.sign_in(wrong, address="10.0.0.1")
        with pytest.raises(Unauthenticated) as limited:
            await users.sign_in(right, address="10.0.0.1")
        assert limited.value.code == "problem.sign_in.limited"
        assert await users.sign_in(right, address="10.0.0.2")
        world.clock.advance(60_000)
        assert await users.sign_in(right, address="10.0.0.1")

    tell(story)


def test_guesses_at_once_get_no_more_tries_than_one_after_another(tell: Tell) -> None:
    """Also where the hashes take so long that none has failed before the last one came."""

    class SlowPasswords(Passwords):
        looked_at = 0

        async def matches(self, password: str, password_hash: str | None) -> bool:
            self.looked_at += 1
            for _ in range(50):
                await asyncio.sleep(0)
            return password == PASSWORD and password_hash is not None

    async def story(world: Any) -> None:
        passwords = SlowPasswords(CHEAP)
        users = Users(world.store, world.clock, passwords)

        async def code_of(password: str, address: str) -> str:
            try:
                wanted = SessionCreate(user="admin", password=password)
                await users.sign_in(wanted, address=address)
            except Unauthenticated as refused:
                return refused.code
            return "signed in"

        told = await asyncio.gather(*(code_of(f"wrong {n}", "10.0.0.1") for n in range(40)))
        assert Counter(told) == {"problem.password.wrong": 5, "problem.sign_in.limited": 35}
        assert passwords.looked_at == 5
        assert len(await world.events("user.locked_out")) == 1
        # Who has many addresses is as bound, a little later.
        told = await asyncio.gather(*(code_of("wrong", f"10.1.0.{n}") for n in range(60)))
        assert passwords.looked_at == FAILURES_OF_NAME_MAX
        assert await code_of(PASSWORD, "10.0.0.3") == "problem.sign_in.limited"
        assert len(await world.events("user.locked_out")) == 2
        # An administrator ends it.
        await users.unlock(ADMIN, "admin")
        assert (await world.events("user.unlocked"))[0].user == "admin"
        # Who knows the password may come many times at once.
        told = await asyncio.gather(*(code_of(PASSWORD, "10.0.0.3") for _ in range(20)))
        assert set(told) == {"signed in"}

    tell(story)


def test_a_restored_database_signs_everybody_out(tell: Tell) -> None:
    """A token that was ended since the backup would be good again."""

    async def story(world: Any) -> None:
        users = world.control.users
        wanted = SessionCreate(user="admin", password=PASSWORD)
        session = await users.sign_in(wanted, address="a")
        asked = AccessTokenCreate(description="backup")
        caller = await users.authenticate(session.token)
        made = await world.control.sessions.create_token(caller, asked, address="a")
        join = TokenCreate(cluster="default", description="of the backup")
        await world.control.tokens.create(ADMIN, join)
        await world.control.installation.restored(path="/tmp/b.tar", by="root")
        for token in (session.token, made.token):
            with pytest.raises(Unauthenticated):
                await users.authenticate(token)
        assert await users.sign_in(wanted, address="a")
        assert len((await world.control.tokens.list(PageQuery())).items) == 1

    tell(story)


@pytest.mark.parametrize("how", ["another-password", "disabled", "deleted"])
def test_nobody_comes_in_who_was_shut_out_while_the_password_was_looked_at(
    tell: Tell, how: str
) -> None:
    class SlowPasswords(Passwords):
        async def matches(self, password: str, password_hash: str | None) -> bool:
            right = await super().matches(password, password_hash)
            await meanwhile()
            return right

    async def story(world: Any) -> None:
        nonlocal meanwhile
        users = world.control.users
        await users.create(ADMIN, UserCreate(name="eve", password=PASSWORD, role=Role.VIEWER))

        async def shut_out() -> None:
            if how == "deleted":
                await users.delete(ADMIN, "eve")
            elif how == "disabled":
                await users.change(ADMIN, "eve", UserChange(enabled=False))
            else:
                await users.change(ADMIN, "eve", UserChange(password="quite another one"))

        meanwhile = shut_out
        slow = Users(world.store, world.clock, SlowPasswords(CHEAP))
        with pytest.raises(Unauthenticated) as refused:
            await slow.sign_in(SessionCreate(user="eve", password=PASSWORD), address="a")
        assert refused.value.code == "problem.password.wrong"
        async with world.store.read() as tx:
            assert await access_tokens(tx, None, 10) == ()
        assert await world.events("user.signed_in") == []

    async def nothing() -> None:
        raise NotImplementedError

    meanwhile: Callable[[], Awaitable[None]] = nothing
    tell(story)


def test_a_lock_out_is_told_once_and_ends_by_time(tell: Tell) -> None:
    async def story(world: Any) -> None:
        users = world.control.users
        for round_ in (1, 2):
            for _ in range(9):
                with pytest.raises(Unauthenticated):
                    await users.sign_in(
                        SessionCreate(user="admin", password="wrong"), address="10.0.0.1"
                    )
            told = await world.events("user.locked_out")
            assert len(told) == round_
            assert told[-1].fields == {"user": "admin", "address": "10.0.0.1"}
            world.clock.advance(60_000)
        right = SessionCreate(user="admin", password=PASSWORD)
        assert await users.sign_in(right, address="10.0.0.1")
        with pytest.raises(NotFound):
            await users.unlock(ADMIN, "nobody")

    tell(story)


def test_a_try_that_no_password_was_looked_at_for_does_not_count(tell: Tell) -> None:
    class BusyPasswords(Passwords):
        async def matches(self, password: str, password_hash: str | None) -> bool:
            raise Unavailable("too many sign-ins at once")

    async def story(world: Any) -> None:
        users = Users(world.store, world.clock, BusyPasswords(CHEAP))
        for _ in range(20):
            with pytest.raises(Unavailable):
                await users.sign_in(
                    SessionCreate(user="admin", password=PASSWORD), address="10.0.0.1"
                )

    tell(story)


def test_the_last_administrator_stays(tell: Tell) -> None:
    async def story(world: Any) -> None:
        users = world.control.users
        for change in (UserChange(role=Role.VIEWER), UserChange(enabled=False)):
            with pytest.raises(Refused) as refused:
                await users.change(ADMIN, "admin", change)
            assert refused.value.code == "problem.administrator.last"
        with pytest.raises(Refused):
            await users.delete(ADMIN, "admin")
        await users.create(
            ADMIN, UserCreate(name="second", password=PASSWORD, role=Role.ADMINISTRATOR)
        )
        await users.delete(ADMIN, "admin")
        with pytest.raises(Refused):
            await users.delete(ADMIN, "second")

    tell(story)


def test_a_new_password_signs_out_everywhere(tell: Tell) -> None:
    async def story(world: Any) -> None:
        users = world.control.users
        session = await users.sign_in(SessionCreate(user="admin", password=PASSWORD), address="a")
        await users.change(ADMIN, "admin", UserChange(password="another long one"))
        with pytest.raises(Unauthenticated):
            await users.authenticate(session.token)
        with pytest.raises(Unauthenticated):
            await users.sign_in(SessionCreate(user="admin", password=PASSWORD), address="a")

    tell(story)


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        (UserCreate(name="admin", password=PASSWORD), Conflict, "name"),
        (UserCreate(name="root", password=PASSWORD), Conflict, "name"),
        (UserCreate(name="a b", password=PASSWORD), InvalidInput, "name"),
        (UserCreate(name="eve", password="short"), InvalidInput, "password"),
        (UserCreate(name="eve", password="x" * 2_000), InvalidInput, "password"),
    ],
)
def test_bad_users(tell: Tell, request_: UserCreate, error: type[VirthaError], field: str) -> None:
    async def story(world: Any) -> None:
        with pytest.raises(error) as bad:
            await world.control.users.create(ADMIN, request_)
        assert bad.value.field == field
        assert len((await world.control.users.list(SearchQuery())).items) == 1
        with pytest.raises(NotFound) as near:
            await world.control.users.get("admn")
        assert "did you mean admin" in str(near.value)

    tell(story)


def test_passwords_are_argon2id(tell: Tell) -> None:
    async def story(world: Any) -> None:
        passwords = Passwords()
        made = await passwords.hash(PASSWORD)
        assert made.startswith("$argon2id$") and PASSWORD not in made
        assert await passwords.matches(PASSWORD, made)
        assert not await passwords.matches("wrong", made)
        assert not await passwords.matches("nobody has this password", None)
        async with world.store.read() as tx:
            stored = await find_user(tx, "admin")
            assert stored is not None and stored.password_hash.startswith("$argon2id$")

    tell(story)


def test_many_sign_ins_at_once_all_end(tell: Tell) -> None:
    async def story(world: Any) -> None:
        right = SessionCreate(user="admin", password=PASSWORD)
        sessions = await asyncio.gather(
            *(world.control.users.sign_in(right, address=str(number)) for number in range(10))
        )
        assert len({session.token for session in sessions}) == 10

    tell(story)
