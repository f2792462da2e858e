"""Roles, grants, sessions, tokens that are for less."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from virtha.control.access_views import (
    AccessTokenCreate,
    GrantCreate,
    RoleChange,
    RoleCreate,
)
from virtha.control.hold_reasons import OF_HOLD, as_seen
from virtha.control.requests import (
    ClusterChange,
    ClusterCreate,
    SessionCreate,
    SettingPut,
    UserChange,
    UserCreate,
    VmChange,
)
from virtha.control.views import Caller
from virtha.model.access import (
    FIXED,
    RESERVED_PERMISSIONS,
    Permission,
    Rights,
    Scope,
    is_of_clusters,
)
from virtha.model.codes import REGISTRY
from virtha.model.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Refused,
    Unauthenticated,
    VirthaError,
)
from virtha.model.ids import ClusterId
from virtha.model.user import Role, SettingScope
from virtha.model.vm import Reason
from virtha.store.reach import HIDDEN, HOLD_REASON, RULES, seeing, view_statements
from virtha.store.schema import metadata

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
ROOT = Caller(name="root", role=Role.ADMINISTRATOR)
PASSWORD = "correct horse battery"
Tell = Callable[[Any], None]
VIEW, VMS = Permission.VIEW, Permission.VMS


async def _user(world: Any, name: str = "eve", role: Role = Role.NONE) -> None:
    await world.control.users.create(ADMIN, UserCreate(name=name, password=PASSWORD, role=role))


async def _signed_in(world: Any, name: str = "eve") -> tuple[Caller, str]:
    wanted = SessionCreate(user=name, password=PASSWORD)
    session = await world.control.users.sign_in(wanted, address="10.0.0.1")
    return await world.control.users.authenticate(session.token), session.token


def test_every_table_is_known_to_the_filter_below_all_queries() -> None:
    """One that is not is hidden, which is safe, and surely not meant."""
    assert set(metadata.tables) == set(RULES)


def test_a_part_of_the_records_takes_no_writes_and_makes_no_decisions(tell: Tell) -> None:
    async def story(world: Any) -> None:
        with seeing(frozenset()):
            async with world.store.read() as tx:
                assert await tx.revision_now() > 0
                for table in sorted(set(RULES) - {"installation", "setting"}):
                    found = await tx.connection.exec_driver_sql(f"SELECT count(*) FROM {table}")
                    assert found.scalar() == 0, table
                with pytest.raises(Exception, match="is a view"):
                    await tx.connection.exec_driver_sql("UPDATE cluster SET name = 'mine'")
            with pytest.raises(AssertionError):
                async with world.store.write():
                    raise NotImplementedError
        async with world.store.read() as tx:
            found = await tx.connection.exec_driver_sql("SELECT count(*) FROM cluster")
            assert found.scalar() == 1
        assert all("main." in one or "reach" in one for one in view_statements())
        assert HIDDEN == "0"

    tell(story)


def test_the_engines_word_of_a_hold_gives_its_reason_to_who_sees_all_clusters() -> None:
    assert {code for code, one in REGISTRY.items() if "on hold: {why}" in one.template} == OF_HOLD
    for code in OF_HOLD:
        said = (Reason(code=code, fields={"why": "of all"}), Reason(code="ready.no_room"))
        assert as_seen(said) == said
        with seeing(frozenset({EAST})):
            covered, other = as_seen(said)
        assert (covered.fields, other) == ({"why": HOLD_REASON}, said[1])


def test_what_the_fixed_roles_may_is_what_they_always_might() -> None:
    assert FIXED[Role.NONE] == frozenset()
    assert FIXED[Role.VIEWER] == {VIEW}
    assert FIXED[Role.VIEWER] < FIXED[Role.OPERATOR] < FIXED[Role.ADMINISTRATOR]
    assert FIXED[Role.ADMINISTRATOR] == frozenset(Permission)
    assert all(one.value.endswith(".operate") for one in FIXED[Role.OPERATOR] - {VIEW})
    assert not any(is_of_clusters(one) for one in RESERVED_PERMISSIONS)
    assert Scope.OWN.value == "own"


EAST, WEST = ClusterId("east"), ClusterId("west")


@pytest.mark.parametrize(
    ("rights", "permissions", "cluster", "east", "west", "reach"),
    [
        (Rights(everywhere=FIXED[Role.OPERATOR]), FIXED[Role.VIEWER], None, {VIEW}, {VIEW}, None),
        (
            Rights(everywhere=FIXED[Role.ADMINISTRATOR]),
            frozenset({VIEW, VMS}),
            EAST,
            {VIEW, VMS},
            set(),
            {EAST},
        ),
        (
            Rights(within={EAST: frozenset({VIEW})}),
            FIXED[Role.ADMINISTRATOR],
            None,
            {VIEW},
            set(),
            {EAST},
        ),
        (Rights(within={EAST: frozenset({VIEW})}), None, WEST, set(), set(), set()),
        (Rights(everywhere=FIXED[Role.OPERATOR]), frozenset(), None, set(), set(), set()),
    ],
    ids=["fewer-permissions", "one-cluster", "never-more", "not-theirs", "role-is-gone"],
)
def test_a_token_gives_no_more_than_its_user_and_no_more_than_itself(
    rights: Rights,
    permissions: frozenset[Permission] | None,
    cluster: ClusterId | None,
    east: set[Permission],
    west: set[Permission],
    reach: set[ClusterId] | None,
) -> None:
    left = rights.narrowed(permissions, cluster)
    assert (left.in_cluster(EAST), left.in_cluster(WEST)) == (east, west)
    assert left.reach == reach


def test_grants_hold_from_the_next_request_and_are_told_with_who_and_what(tell: Tell) -> None:
    async def story(world: Any) -> None:
        roles = world.control.roles
        await _user(world)
        first, token = await _signed_in(world)
        assert (first.role, first.rights.reach) == (Role.NONE, frozenset())
        made = await roles.create(ADMIN, RoleCreate(name="starter", permissions=(VMS, VMS, VIEW)))
        assert made.permissions == (VMS,)
        given = await roles.grant(ADMIN, "eve", GrantCreate(role="starter", cluster="default"))
        cluster_id = given.grant.cluster_id
        now = await world.control.users.authenticate(token)
        assert now.rights.within == {cluster_id: {VIEW, VMS}}
        await roles.change(ADMIN, "starter", RoleChange(permissions=(Permission.CONSOLES,)))
        now = await world.control.users.authenticate(token)
        assert now.rights.within == {cluster_id: {VIEW, Permission.CONSOLES}}
        with pytest.raises(Refused) as used:
            await roles.delete(ADMIN, "starter")
        assert used.value.code == "problem.role.in_use" and "eve" in str(used.value)
        await roles.revoke(ADMIN, "eve", given.grant.id)
        assert (await world.control.users.authenticate(token)).rights.reach == frozenset()
        await roles.delete(ADMIN, "starter")
        told = {event.code: event for event in await world.events("role.*")}
        assert msgspec.json.decode(told["role.created"].fields["after"])["permissions"] == [VMS]
        assert told["role.changed"].fields["before"] == '{"permissions":["vms.operate"]}'
        assert told["role.changed"].fields["after"] == '{"permissions":["consoles.operate"]}'
        assert {event.user for event in told.values()} == {"admin"}
        (event,) = await world.events("user.granted")
        assert event.fields == {"user": "eve", "role": "starter", "where": "default"}
        assert len(await world.events("user.revoked")) == 1

    tell(story)


def test_a_cluster_that_is_deleted_takes_its_grants_along(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _user(world)
        await world.control.clusters.create(ADMIN, ClusterCreate(name="east"))
        wanted = GrantCreate(role="viewer", cluster="east")
        await world.control.roles.grant(ADMIN, "eve", wanted)
        await world.control.clusters.delete(ADMIN, "east")
        assert (await world.control.roles.of_user("eve")).items == ()
        caller, _ = await _signed_in(world)
        assert caller.rights.reach == frozenset()

    tell(story)


@pytest.mark.bad_input("unknown role")
@pytest.mark.parametrize(
    ("wanted", "error", "field"),
    [
        (GrantCreate(role="king", cluster="default"), InvalidInput, "role"),
        (GrantCreate(role="none", cluster="default"), InvalidInput, "role"),
        (GrantCreate(role="viewer", cluster="nowhere"), NotFound, "cluster"),
        (GrantCreate(role="viewer"), InvalidInput, "cluster"),
        (GrantCreate(role="operator", cluster="default"), Conflict, "role"),
    ],
)
def test_bad_grants(tell: Tell, wanted: GrantCreate, error: type[VirthaError], field: str) -> None:
    async def story(world: Any) -> None:
        roles = world.control.roles
        await _user(world)
        await roles.grant(ADMIN, "eve", GrantCreate(role="operator", cluster="default"))
        with pytest.raises(error) as bad:
            await roles.grant(ADMIN, "eve", wanted)
        assert bad.value.field == field and (bad.value.fix or field == "role")
        assert len((await roles.of_user("eve")).items) == 1
        for missing in (("nobody", "x"), ("eve", "x")):
            with pytest.raises(NotFound):
                await roles.revoke(ADMIN, *missing)

    tell(story)


def test_bad_roles(tell: Tell) -> None:
    async def story(world: Any) -> None:
        roles = world.control.roles
        for name in ("viewer", "none", "administrator"):
            with pytest.raises(Conflict):
                await roles.create(ADMIN, RoleCreate(name=name, permissions=()))
            with pytest.raises(Refused) as fixed:
                await roles.change(ADMIN, name, RoleChange(permissions=()))
            assert fixed.value.code == "problem.role.fixed"
        with pytest.raises(InvalidInput) as reserved:
            await roles.create(ADMIN, RoleCreate(name="sly", permissions=(Permission.USERS,)))
        assert reserved.value.field == "permissions" and reserved.value.allowed
        await roles.create(ADMIN, RoleCreate(name="starter", permissions=()))
        with pytest.raises(NotFound) as near:
            await roles.get("startr")
        assert "did you mean starter" in str(near.value)
        assert [one.name for one in (await roles.list()).items][-1] == "starter"

    tell(story)


def test_an_access_token_may_less_ends_by_itself_or_by_its_user(tell: Tell) -> None:
    async def story(world: Any) -> None:
        users, sessions = world.control.users, world.control.sessions
        await _user(world, role=Role.OPERATOR)
        eve, sign_in = await _signed_in(world)
        wanted = AccessTokenCreate(description="backup", role="viewer", expires_ms=3_600_000)
        made = await sessions.create_token(eve, wanted, address="10.0.0.1")
        program = await users.authenticate(made.token)
        assert (program.role, program.rights.everywhere) == (Role.VIEWER, {VIEW})
        # It ends nobody's sign-in.
        own = await sessions.list(eve, None)
        assert [one.description for one in own.items] == ["backup", ""]
        with pytest.raises(NotFound):
            await sessions.end(program, own.items[1].id)
        # Its user may less now, and so it.
        await users.change(ADMIN, "eve", UserChange(role=Role.NONE))
        assert (await users.authenticate(made.token)).rights.reach == frozenset()
        await sessions.end(eve, own.items[0].id)
        with pytest.raises(Unauthenticated):
            await users.authenticate(made.token)
        assert (await world.events("session.ended"))[0].fields["description"] == "backup"
        # An administrator sees and ends others'.
        seen = await sessions.list(ADMIN, "eve")
        await sessions.end(ADMIN, seen.items[0].id)
        with pytest.raises(Unauthenticated):
            await users.authenticate(sign_in)

    tell(story)


def test_a_role_stays_as_long_as_a_token_is_for_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        roles, sessions = world.control.roles, world.control.sessions
        await _user(world, role=Role.OPERATOR)
        await roles.create(ADMIN, RoleCreate(name="starter", permissions=(VMS,)))
        await roles.create(ADMIN, RoleCreate(name="other", permissions=(VMS,)))
        eve, _ = await _signed_in(world)
        wanted = AccessTokenCreate(description="night", role="starter", expires_ms=60_000)
        await sessions.create_token(eve, wanted, address="")
        with pytest.raises(Refused) as used:
            await roles.delete(ADMIN, "starter")
        assert used.value.code == "problem.role.in_use"
        assert "access tokens" in str(used.value) and "eve" in str(used.value)
        await roles.delete(ADMIN, "other")
        world.clock.advance(60_000)
        await roles.delete(ADMIN, "starter")

    tell(story)


def test_only_a_sign_in_makes_tokens(tell: Tell) -> None:
    """One for less would make itself more, and any would outlive what it came from."""

    async def story(world: Any) -> None:
        users, sessions = world.control.users, world.control.sessions
        await _user(world, role=Role.OPERATOR)
        eve, _ = await _signed_in(world)
        for wanted in (
            AccessTokenCreate(description="whole"),
            AccessTokenCreate(description="less", role="viewer"),
            AccessTokenCreate(description="there", cluster="default"),
        ):
            made = await sessions.create_token(eve, wanted, address="10.0.0.1")
            program = await users.authenticate(made.token)
            with pytest.raises(Forbidden) as refused:
                await sessions.create_token(program, AccessTokenCreate(description="x"), address="")
            assert refused.value.code == "problem.token.narrow"
        assert len((await sessions.list(eve, None)).items) == 4

    tell(story)


@pytest.mark.parametrize("how", ["another-password", "disabled", "signed-out"])
def test_no_token_is_made_by_a_sign_in_that_ended_meanwhile(tell: Tell, how: str) -> None:
    """It would be what was left of it, for a year."""

    async def story(world: Any) -> None:
        users, sessions = world.control.users, world.control.sessions
        await _user(world, role=Role.OPERATOR)
        eve, sign_in = await _signed_in(world)
        if how == "signed-out":
            await users.sign_out(sign_in)
        elif how == "disabled":
            await users.change(ADMIN, "eve", UserChange(enabled=False))
        else:
            await users.change(ADMIN, "eve", UserChange(password="quite another one"))
        with pytest.raises(Unauthenticated, match="ended meanwhile"):
            await sessions.create_token(eve, AccessTokenCreate(description="x"), address="")
        assert (await sessions.list(ADMIN, "eve")).items == ()

    tell(story)


@pytest.mark.bad_input("expired access token")
def test_an_access_token_that_has_expired_says_so_to_who_knows_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _user(world, role=Role.VIEWER)
        eve, _ = await _signed_in(world)
        wanted = AccessTokenCreate(description="short", expires_ms=60_000)
        made = await world.control.sessions.create_token(eve, wanted, address="")
        world.clock.advance(60_000)
        with pytest.raises(Unauthenticated) as expired:
            await world.control.users.authenticate(made.token)
        assert expired.value.code == "problem.token.expired"
        assert len((await world.control.sessions.list(eve, None)).items) == 1

    tell(story)


def test_bad_access_tokens(tell: Tell) -> None:
    async def story(world: Any) -> None:
        sessions = world.control.sessions
        await _user(world)
        await world.control.clusters.create(ADMIN, ClusterCreate(name="east"))
        await world.control.roles.grant(ADMIN, "eve", GrantCreate(role="viewer", cluster="default"))
        eve, _ = await _signed_in(world)
        for wrong, error, field in (
            (AccessTokenCreate(description=" "), InvalidInput, "description"),
            (AccessTokenCreate(description="x", expires_ms=1), InvalidInput, "expires_ms"),
            (AccessTokenCreate(description="x", expires_ms=1 << 50), InvalidInput, "expires_ms"),
            (AccessTokenCreate(description="x", role="king"), InvalidInput, "role"),
            (AccessTokenCreate(description="x", cluster="nope"), NotFound, "cluster"),
            (AccessTokenCreate(description="x", cluster="east"), NotFound, "cluster"),
        ):
            with pytest.raises(error) as bad:
                await sessions.create_token(eve, wrong, address="")
            assert bad.value.field == field
        with pytest.raises(InvalidInput):
            await sessions.create_token(ROOT, AccessTokenCreate(description="x"), address="")
        with pytest.raises(Forbidden):
            await sessions.list(eve, "admin")

    tell(story)


def test_what_a_user_was_and_is_is_told_without_the_password(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _user(world)
        wanted = UserChange(role=Role.VIEWER, password="another long one")
        await world.control.users.change(ADMIN, "eve", wanted)
        (event,) = await world.events("user.changed")
        assert event.fields["before"] == '{"role":"none"}'
        assert event.fields["after"] == '{"role":"viewer"}'
        assert event.fields["password"] == "changed" and "another" not in str(event)

    tell(story)


def test_changes_are_told_with_what_was_and_what_is(tell: Tell) -> None:
    async def story(world: Any) -> None:
        control = world.control
        await control.clusters.change(ADMIN, "default", ClusterChange(description="the first"))
        (event,) = await world.events("cluster.changed")
        assert (event.user, event.fields["before"]) == ("admin", '{"description":""}')
        assert event.fields["after"] == '{"description":"the first"}'
        cluster = await control.clusters.get("default")
        restart = msgspec.structs.replace(cluster.policy.restart, restarts_max=7)
        policy = msgspec.structs.replace(cluster.policy, restart=restart)
        await control.clusters.put_policy(ADMIN, "default", policy)
        (event,) = await world.events("policy.changed")
        was, now = (msgspec.json.decode(event.fields[key]) for key in ("before", "after"))
        assert set(was) == set(now) == {"restart"} and now["restart"]["restarts_max"] == 7
        for value, before in (("1h", "default"), ("2h", "1h")):
            await control.settings.put(
                ADMIN,
                "session.lifetime",
                SettingPut(value=value),
                scope=SettingScope.GLOBAL,
                subject=None,
            )
            assert (await world.events("setting.changed"))[-1].fields["before"] == before
        await world.join("h1")
        await world.add_storage()
        await world.add_vm("web1")
        await control.vms.change(ADMIN, "web1", VmChange(ha=False, description="shop"), None)
        event = (await world.events("vm.changed"))[-1]
        was, now = (msgspec.json.decode(event.fields[key]) for key in ("before", "after"))
        assert now == {"ha": False, "description": "shop"}
        assert was == {"ha": True, "description": ""}

    tell(story)
