"""Sign-ins by a provider: what control decides by itself. The provider is played; a real one is in tests/api/test_oidc_story.py."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from virtha.control.access_views import DAY_MS, AccessTokenCreate
from virtha.control.provider_sign_in import (
    BEGUN_MS_MAX,
    CODE_LENGTH_MAX,
    ProviderSignIns,
    check_provider,
    check_redirect,
)
from virtha.control.provider_users import role_of
from virtha.control.refusals_told import KEPT_MAX, TOLD_EVERY_MS, RefusalsTold
from virtha.control.requests import (
    EventQuery,
    ReceiverCreate,
    SessionCreate,
    SettingPut,
    SignInBegin,
    SignInFinish,
    SignInProviderPut,
    SubscriptionCreate,
    UserChange,
)
from virtha.control.secret_box import KEY_BYTES, KeyBox
from virtha.control.subscriber_reach import reaches_of
from virtha.control.views import Caller, SessionView
from virtha.model.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    Refused,
    Unauthenticated,
    Unavailable,
)
from virtha.model.notification import MailSettings
from virtha.model.sign_in import BegunSignIn, Identity, SignInProvider
from virtha.model.time import Millis
from virtha.model.user import Role
from virtha.store.notifications import live_subscriptions

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
PASSWORD = "correct horse battery"
ISSUER = "https://op.example"
ROLES = {"admins": Role.ADMINISTRATOR, "operators": Role.OPERATOR}
Tell = Callable[[Any], None]


@dataclass
class PlayedProvider:
    """Implements ``IdentityProvider``: every code is ``person``'s."""

    person: str = "diana"
    groups: Any = ("admins",)
    begun: list[BegunSignIn] = field(default_factory=list)
    secrets: list[str | None] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[None]] | None = None
    """What happens while it is asked."""
    away: bool = False

    async def address(self, provider: SignInProvider, begun: BegunSignIn) -> str:
        self.begun.append(begun)
        return f"{provider.issuer}/authorize?{urlencode({'state': begun.state})}"

    async def redeem(
        self, provider: SignInProvider, secret: str | None, begun: BegunSignIn, code: str
    ) -> Identity:
        assert begun in self.begun, "what was sealed comes back whole"
        self.secrets.append(secret)
        if self.away:
            raise Unavailable("away", code="problem.sign_in.provider")
        if self.meanwhile is not None:
            await self.meanwhile()
        claims = {"preferred_username": self.person, "groups": list(self.groups)}
        return Identity(issuer=provider.issuer, subject=f"id of {self.person}", claims=claims)


class SignIns:
    def __init__(self, world: Any, key: bytes = bytes(KEY_BYTES)) -> None:
        self.provider = PlayedProvider()
        box = KeyBox(key, where="secrets.key")
        users = world.control.users
        self.control = ProviderSignIns(world.store, world.clock, box, users, self.provider)

    async def set_up(self, **more: Any) -> None:
        wanted = {"issuer": ISSUER, "client_id": "virtha", "client_secret": "s3", "roles": ROLES}
        await self.control.put(ADMIN, SignInProviderPut(**{**wanted, **more}))

    async def begin(self) -> str:
        uri = "http://127.0.0.1:1/back"
        return (await self.control.begin(SignInBegin(redirect_uri=uri))).sign_in

    async def finish(
        self, sealed: str, state: str | None = None, *, address: str = "a"
    ) -> SessionView:
        told = state if state is not None else self.provider.begun[-1].state
        return await self.control.finish(
            SignInFinish(sign_in=sealed, code="code", state=told), address=address
        )

    async def whole(self, *, address: str = "a") -> SessionView:
        return await self.finish(await self.begin(), address=address)


def test_what_is_begun_is_sealed_and_good_for_ten_minutes(tell: Tell) -> None:
    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        sealed = await signing.begin()
        begun = signing.provider.begun[-1]
        for secret in (begun.state, begun.nonce, begun.verifier):
            assert secret not in sealed and len(secret) == 43
        world.clock.advance(BEGUN_MS_MAX - 1)
        assert (await signing.finish(sealed)).user == "diana"
        assert signing.provider.secrets == ["s3"]
        late = await signing.begin()
        world.clock.advance(BEGUN_MS_MAX)
        with pytest.raises(Unauthenticated, match="too long"):
            await signing.finish(late)

    tell(story)


@pytest.mark.bad_input("sign-in with another's state")
def test_a_code_of_another_browser_is_not_even_shown_to_the_provider(tell: Tell) -> None:
    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        mine = await signing.begin()
        await signing.begin()
        with pytest.raises(Unauthenticated, match="state"):
            await signing.finish(mine)
        assert signing.provider.secrets == []
        await signing.set_up(client_id="other")
        with pytest.raises(Unauthenticated, match="changed meanwhile"):
            await signing.finish(mine, signing.provider.begun[0].state)

    tell(story)


@pytest.mark.bad_input("person of a provider without a role here")
def test_refusals_are_braked_per_address_and_people_without_a_role_are_not(tell: Tell) -> None:
    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        signing.provider.groups = ("staff",)
        for _ in range(7):
            with pytest.raises(Forbidden):
                await signing.whole()
        sealed = await signing.begin()
        codes = []
        for _ in range(7):
            with pytest.raises(Unauthenticated) as told:
                await signing.finish(sealed, "wrong")
            codes.append(told.value.code)
        assert codes == ["problem.sign_in.refused"] * 5 + ["problem.sign_in.limited"] * 2
        # It is about no name that an administrator could unlock.
        assert told.value.fix == "try again in 1m"

    tell(story)


def test_of_refusals_the_first_is_told_and_how_many_came_between(tell: Tell) -> None:
    """And none of what no provider was asked about: that is anybody's word, as often as they like."""

    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        sealed = await signing.begin()

        async def told() -> list[tuple[str, str]]:
            found = await world.control.events.list(EventQuery(code="sign_in_provider.refused"))
            return [(one.fields["address"], one.fields["why"]) for one in found.items]

        with pytest.raises(Unauthenticated, match="state"):
            await signing.finish(sealed, "wrong", address="10.0.0.9")
        assert await told() == []
        signing.provider.groups = ("staff",)
        for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1"):
            with pytest.raises(Forbidden) as refused:
                await signing.whole(address=address)
        first = [("10.0.0.1", refused.value.message), ("10.0.0.2", refused.value.message)]
        assert sorted(await told()) == first
        world.clock.advance(TOLD_EVERY_MS)
        with pytest.raises(Forbidden):
            await signing.whole(address="10.0.0.1")
        last = ("10.0.0.1", f"{refused.value.message} (2 more since the last)")
        assert sorted(await told()) == sorted([*first, last])
        # Another kind from there is told at once.
        signing.provider.person, signing.provider.groups = "admin", ("admins",)
        with pytest.raises(Conflict):
            await signing.whole(address="10.0.0.1")
        assert len(await told()) == 4

    tell(story)


def test_what_is_kept_of_refusals_is_bounded() -> None:
    kept = RefusalsTold()
    for number in range(KEPT_MAX + 10):
        assert kept.count("problem.sign_in.refused", f"place{number}", Millis(0)) == 0
    assert len(kept._told) == KEPT_MAX


def test_a_provider_that_fails_is_not_asked_as_often_as_anybody_likes(tell: Tell) -> None:
    """Without an account, and with codes that are none, nobody makes us ask without end."""

    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        signing.provider.away = True
        sealed = await signing.begin()
        codes = []
        for _ in range(7):
            with pytest.raises((Unauthenticated, Unavailable)) as told:
                await signing.finish(sealed)
            codes.append(told.value.code)
        assert codes == ["problem.sign_in.provider"] * 5 + ["problem.sign_in.limited"] * 2
        assert len(signing.provider.secrets) == 5
        state = signing.provider.begun[-1].state
        for code in ("", "x" * (CODE_LENGTH_MAX + 1)):
            with pytest.raises(InvalidInput) as wrong:
                finish = SignInFinish(sign_in=sealed, code=code, state=state)
                await signing.control.finish(finish, address="b")
            assert wrong.value.field == "code"

    tell(story)


@pytest.mark.bad_input("person of a provider with a local user's name")
def test_who_is_called_as_a_local_user_is_told_to_administrators(tell: Tell) -> None:
    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        signing.provider.person = "admin"
        with pytest.raises(Conflict):
            await signing.whole()
        found = await world.control.events.list(EventQuery(code="sign_in_provider.refused"))
        assert ["'admin'" in event.message for event in found.items] == [True]

    tell(story)


@pytest.mark.parametrize("how", ["forgotten", "another"])
def test_whom_a_provider_vouched_for_is_signed_out_with_it(tell: Tell, how: str) -> None:
    async def story(world: Any) -> None:
        signing, users = SignIns(world), world.control.users
        await signing.set_up()
        session = await signing.whole()

        async def change() -> None:
            if how == "forgotten":
                await signing.control.delete(ADMIN)
            else:
                await signing.set_up(issuer="https://other.example")

        await signing.set_up(roles={"admins": Role.OPERATOR})
        assert (await users.authenticate(session.token)).name == "diana"
        await change()
        with pytest.raises(Unauthenticated):
            await users.authenticate(session.token)
        # And nobody comes in who was on the way.
        await signing.set_up()
        signing.provider.meanwhile = change
        with pytest.raises(Unauthenticated, match="changed meanwhile"):
            await signing.whole()

    tell(story)


@pytest.mark.parametrize("how", ["forgotten", "another", "no-role"])
def test_whom_the_provider_no_longer_vouches_for_is_told_nothing_more(tell: Tell, how: str) -> None:
    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        await signing.whole()
        email = UserChange(email="diana@example.org")
        await world.control.users.change(ADMIN, "diana", email)
        settings = MailSettings(host="mail.example.org", sender="virtha@example.org")
        await world.control.receivers.create(ADMIN, ReceiverCreate(name="m", settings=settings))
        wanted = SubscriptionCreate(receiver="m", name="of-diana", user="diana")
        await world.control.subscriptions.create(ADMIN, wanted)
        assert await _reaches(world) == [None]
        if how == "forgotten":
            await signing.control.delete(ADMIN)
        elif how == "another":
            await signing.set_up(issuer="https://other.example")
        else:
            # It stays for the day when the provider gives one again, and tells nothing meanwhile.
            signing.provider.groups = ("staff",)
            with pytest.raises(Forbidden):
                await signing.whole()
            assert await _reaches(world) == [frozenset()]
            told = (await world.events("user.changed"))[-1].fields
            assert (told["before"], told["after"]) == (
                '{"role":"administrator"}',
                '{"role":"none"}',
            )
            signing.provider.groups = ("operators",)
            await signing.whole()
            assert await _reaches(world) == [None]
            return
        assert await _reaches(world) == []
        assert len(await world.events("notify.subscription.removed")) == 1

    tell(story)


async def _reaches(world: Any) -> list[frozenset[str] | None]:
    """Of each subscription there is; None: it tells of everything."""
    async with world.store.read() as tx:
        live = (await live_subscriptions(tx)).readable
        seen = await reaches_of(tx, live)
    return [seen.get(one.id) for one in live]


def test_a_provider_that_is_forgotten_right_behind_a_sign_in_takes_it_along(tell: Tell) -> None:
    async def story(world: Any) -> None:
        signing, users = SignIns(world), world.control.users
        await signing.set_up()
        sealed, write, forgotten = await signing.begin(), world.store.write, []

        @asynccontextmanager
        async def then_forgotten() -> AsyncIterator[Any]:
            async with write() as tx:
                yield tx
            if not forgotten:
                forgotten.append(True)
                await signing.control.delete(ADMIN)

        world.store.write = then_forgotten
        session = await signing.finish(sealed)
        assert forgotten
        with pytest.raises(Unauthenticated):
            await users.authenticate(session.token)

    tell(story)


def test_what_a_person_of_the_provider_made_is_good_as_long_as_its_word(tell: Tell) -> None:
    """Who has left there is let in by nothing that they made before; with the next sign-in it is good again."""

    async def story(world: Any) -> None:
        signing, users, sessions = SignIns(world), world.control.users, world.control.sessions
        await signing.set_up()
        diana = await users.authenticate((await signing.whole()).token)
        began = world.clock.wall_ms()
        made = await sessions.create_token(
            diana, AccessTokenCreate(description="backup", expires_ms=300 * DAY_MS), address="a"
        )
        word_ms = 12 * 3_600_000
        assert made.session.expires == began + word_ms
        world.clock.advance(word_ms - 1)
        assert (await users.current(made.token)).expires == began + word_ms
        world.clock.advance(1)
        with pytest.raises(Unauthenticated, match="vouched") as ended:
            await users.authenticate(made.token)
        assert ended.value.code == "problem.token.expired"
        await signing.whole()
        assert (await users.authenticate(made.token)).name == "diana"
        longer = SettingPut(value="30d")
        key = "token.vouched.lifetime"
        await world.control.settings.put(ADMIN, key, longer)
        world.clock.advance(30 * DAY_MS - 1)
        assert (await users.authenticate(made.token)).name == "diana"
        world.clock.advance(1)
        with pytest.raises(Unauthenticated):
            await users.authenticate(made.token)
        # A local user's token has its own end.
        wanted = SessionCreate(user="admin", password=PASSWORD)
        local = await users.authenticate((await users.sign_in(wanted, address="a")).token)
        of_local = await sessions.create_token(
            local, AccessTokenCreate(description="x", expires_ms=90 * DAY_MS), address="a"
        )
        world.clock.advance(90 * DAY_MS - 1)
        assert (await users.authenticate(of_local.token)).name == "admin"

    tell(story)


def test_what_roles_are_worth_when_a_sign_in_ends_counts(tell: Tell) -> None:
    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()

        async def less() -> None:
            await signing.set_up(roles={"admins": Role.VIEWER})

        signing.provider.meanwhile = less
        assert (await signing.whole()).role is Role.VIEWER

    tell(story)


def test_the_last_administrator_with_a_password_stays(tell: Tell) -> None:
    """The provider's can't come in while it is away."""

    async def story(world: Any) -> None:
        signing, users = SignIns(world), world.control.users
        await signing.set_up()
        assert (await signing.whole()).role is Role.ADMINISTRATOR
        for change in (UserChange(enabled=False), UserChange(role=Role.VIEWER), None):
            with pytest.raises(Refused) as told:
                if change is None:
                    await users.delete(ADMIN, "admin")
                else:
                    await users.change(ADMIN, "admin", change)
            assert told.value.code == "problem.administrator.last"
        await users.change(ADMIN, "diana", UserChange(enabled=False))
        await users.change(ADMIN, "diana", UserChange(enabled=True))
        await users.delete(ADMIN, "diana")

    tell(story)


def test_a_new_name_at_the_provider_is_the_same_person(tell: Tell) -> None:
    async def story(world: Any) -> None:
        signing = SignIns(world)
        await signing.set_up()
        await signing.whole()
        signing.provider.groups = ("operators",)
        session = await signing.whole()
        assert (session.user, session.role) == ("diana", Role.OPERATOR)
        assert (await world.control.users.get("diana")).role is Role.OPERATOR
        signing.provider.groups = ()
        with pytest.raises(Forbidden):
            await signing.whole()
        with pytest.raises(Unauthenticated):
            await world.control.users.authenticate(session.token)

    tell(story)


@pytest.mark.bad_input("redirect to elsewhere")
@pytest.mark.parametrize(
    ("uri", "right"),
    [
        ("https://ui.example/back", True),
        ("http://127.0.0.1:1/any", True),
        ("http://[::1]:65535/", True),
        ("https://ui.example/back/", False),
        ("https://ui.example/back?to=evil", False),
        ("https://ui.example", False),
        ("https://127.0.0.1:1/any", False),
        ("http://127.0.0.1\\.evil.example/", False),
        ("http://127.0.0.1:1\\@evil.example/", False),
        ("http://127.0.0.1:1@evil.example/", False),
        ("http://127.1/", False),
        ("http://127.0.0.1:1/\r\nSet-Cookie: x", False),
        ("//127.0.0.1:1/", False),
        ("virtha://127.0.0.1/", False),
    ],
)
def test_browsers_return_to_what_is_set_up_or_to_their_own_machine(uri: str, right: bool) -> None:
    known = ("https://ui.example/back",)
    provider = SignInProvider(issuer=ISSUER, client_id="virtha", roles=ROLES, redirect_uris=known)
    if right:
        return check_redirect(uri, provider)
    with pytest.raises(InvalidInput) as told:
        check_redirect(uri, provider)
    assert told.value.field == "redirect_uri"


@pytest.mark.bad_input("settings of a provider of sign-ins that are none")
@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"issuer": "http://localhost.example"}, "issuer"),
        ({"issuer": "https://user:word@op.example"}, "issuer"),
        ({"redirect_uris": ["https://ui.example", "javascript:alert(1)"]}, "redirect_uris[1]"),
        ({"scopes": ["openid", "x" * 501]}, "scopes[1]"),
        ({"roles": {f"g{number}": "viewer" for number in range(201)}}, "roles"),
    ],
)
def test_settings_that_can_not_be_name_their_field(more: dict[str, Any], field: str) -> None:
    wanted = {"issuer": ISSUER, "client_id": "virtha", "roles": {"a": "viewer"}, **more}
    with pytest.raises(InvalidInput) as told:
        check_provider(msgspec.convert(wanted, SignInProviderPut))
    assert told.value.field == field


@pytest.mark.parametrize(
    ("claim", "role"),
    [
        (["operators", "admins"], Role.ADMINISTRATOR),
        (["operators", 3, None, {}], Role.OPERATOR),
        ("operators", Role.OPERATOR),
        ([], None),
        (None, None),
        ({"admins": True}, None),
        (["Admins", "admins "], None),
        (True, None),
    ],
)
def test_the_highest_role_of_a_claim_counts(claim: Any, role: Role | None) -> None:
    provider = SignInProvider(issuer=ISSUER, client_id="virtha", roles=ROLES)
    found = role_of(provider, Identity(issuer=ISSUER, subject="1", claims={"groups": claim}))
    assert found is role
