"""Users, passwords, sign-ins."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.passwords import KEYS_KEPT_MAX, Passwords, SignInBrake
from virtha.control.requests import SearchQuery, SessionCreate, UserChange, UserCreate
from virtha.control.views import Caller
from virtha.model.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Refused,
    Unauthenticated,
    VirthaError,
)
from virtha.model.time import Millis
from virtha.model.user import Role
from virtha.store.users import find_token, find_user

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
PASSWORD = "correct horse battery"
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


def test_the_brake_forgets_the_oldest() -> None:
    brake = SignInBrake()
    for number in range(KEYS_KEPT_MAX + 10):
        brake.failed(f"user{number}", "a", Millis(0))
    assert len(brake._failures) == KEYS_KEPT_MAX


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
