"""The brake on guessing: what counts as one place, and what is told of whom."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.requests import SessionCreate
from virtha.control.sign_in_brake import (
    FAILURE_WINDOW_MS,
    FAILURES_MAX,
    FAILURES_OF_PLACE_MAX,
    KEYS_KEPT_MAX,
    SignInBrake,
    place_of,
)
from virtha.model.errors import Unauthenticated
from virtha.store.users import find_user

PASSWORD = "correct horse battery"
Tell = Callable[[Any], None]


async def code_of(world: Any, user: str, password: str, address: str) -> str:
    try:
        await world.control.users.sign_in(
            SessionCreate(user=user, password=password), address=address
        )
    except Unauthenticated as refused:
        return refused.code
    return "signed in"


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0db8:0001:0002::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix socket", "unix socket"),
        ("", ""),
    ],
)
def test_a_place_is_an_address_of_ipv4_and_a_network_of_ipv6(address: str, place: str) -> None:
    assert place_of(address) == place


def test_who_has_a_whole_network_gets_no_more_guesses_by_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        for number in range(FAILURES_MAX):
            told = await code_of(world, "admin", "wrong", f"2001:db8::{number:x}")
            assert told == "problem.password.wrong"
        assert await code_of(world, "admin", PASSWORD, "2001:db8::ffff") == (
            "problem.sign_in.limited"
        )
        assert await code_of(world, "admin", PASSWORD, "2001:db8:0:1::1") == "signed in"
        (told,) = await world.events("user.locked_out")
        # Of those that were seen, one; not the network, which nobody would find in their logs.
        assert told.fields == {"user": "admin", "address": f"2001:db8::{FAILURES_MAX - 1:x}"}

    tell(story)


def test_one_password_for_many_names_is_braked_and_told_once(tell: Tell) -> None:
    async def story(world: Any) -> None:
        for number in range(FAILURES_OF_PLACE_MAX):
            told = await code_of(world, f"name{number}", "Summer2026", "10.0.0.1")
            assert told == "problem.password.wrong"
        with pytest.raises(Unauthenticated) as limited:
            wanted = SessionCreate(user="admin", password=PASSWORD)
            await world.control.users.sign_in(wanted, address="10.0.0.1")
        assert limited.value.code == "problem.sign_in.limited"
        # Nobody can lift it: it is nobody's.
        assert "10.0.0.1" in str(limited.value) and "unlock" not in limited.value.fix
        (told,) = await world.events("sign_in.address_limited")
        assert told.fields == {"address": "10.0.0.1"}
        assert await code_of(world, "admin", PASSWORD, "10.0.0.2") == "signed in"
        world.clock.advance(FAILURE_WINDOW_MS)
        assert await code_of(world, "admin", PASSWORD, "10.0.0.1") == "signed in"

    tell(story)


def test_who_signs_in_between_gets_no_more_guesses_of_others(tell: Tell) -> None:
    async def story(world: Any) -> None:
        for number in range(FAILURES_OF_PLACE_MAX):
            assert await code_of(world, "admin", PASSWORD, "10.0.0.1") == "signed in"
            await code_of(world, f"name{number}", "wrong", "10.0.0.1")
        assert await code_of(world, "admin", PASSWORD, "10.0.0.1") == "problem.sign_in.limited"

    tell(story)


def test_a_name_that_nobody_has_locks_nobody_out(tell: Tell) -> None:
    async def story(world: Any) -> None:
        for _ in range(FAILURES_MAX):
            await code_of(world, "ghost", "wrong", "10.0.0.1")
        # The same answer as for a name that there is: nobody learns names from it.
        assert await code_of(world, "ghost", "wrong", "10.0.0.1") == "problem.sign_in.limited"
        assert await world.events("user.locked_out") == []
        async with world.store.read() as tx:
            ident = (await find_user(tx, "admin")).user.id
        for _ in range(FAILURES_MAX):
            await code_of(world, ident, PASSWORD, "10.0.0.1")
        assert await world.events("user.locked_out") == []

    tell(story)


def test_the_brake_forgets_the_oldest(tell: Tell) -> None:
    async def story(world: Any) -> None:
        brake = SignInBrake()
        for number in range(KEYS_KEPT_MAX + 10):
            async with brake.turn(f"user{number}", f"place{number}", world.clock):
                """It fails."""
        assert len(brake._tries) == KEYS_KEPT_MAX and not brake._under_way

    tell(story)
