"""Mail to users tells what they may look at when it goes out, and nothing else."""

from collections.abc import Callable
from itertools import combinations, product

import pytest
from notified_world import ADMIN, NotifiedWorld
from routed_world import Story
from sqlalchemy import update

from virtha.control.access_views import GrantCreate, RoleCreate
from virtha.control.callers import caller_of
from virtha.control.history import record
from virtha.control.requests import ClusterCreate, UserCreate
from virtha.model.access import Grant
from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import ClusterId, GrantId, HostId, Revision, UserId
from virtha.model.routing import GroupBy
from virtha.model.user import Role, User
from virtha.store.access import add_grant_of_user, reaches_of_users
from virtha.store.clusters import cluster_names
from virtha.store.events import add_event
from virtha.store.schema import access_role, user_account
from virtha.store.users import add_user


async def two_clusters(world: NotifiedWorld) -> None:
    """And eve, who sees norden by a grant."""
    for name in ("norden", "sueden"):
        await world.control.clusters.create(ADMIN, ClusterCreate(name=name))
    eve = UserCreate(
        name="eve", password="correct horse battery", role=Role.NONE, email="eve@example.org"
    )
    await world.control.users.create(ADMIN, eve)
    wanted = GrantCreate(role="viewer", cluster="norden")
    await world.control.roles.grant(ADMIN, "eve", wanted)
    await world.add_mail()


async def ids(world: NotifiedWorld) -> dict[str, ClusterId]:
    async with world.store.read() as tx:
        return {name: cluster_id for cluster_id, name in (await cluster_names(tx)).items()}


async def happens(world: NotifiedWorld, cluster: str | None) -> Revision:
    clusters = await ids(world)
    async with world.store.write() as tx:
        where = clusters[cluster] if cluster is not None else None
        event = await record(tx, "hold.set", cluster_id=where, reason=str(cluster))
    return event.revision


@pytest.mark.req("L6", "F4")
def test_a_user_is_told_what_they_see(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await two_clusters(world)
        await world.subscribe(user="eve", address=None)
        await world.subscribe(address="all@example.org", name="all")
        revisions = [await happens(world, one) for one in ("norden", "sueden", None)]
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 4)
        told = [(one.address, one.event.fields["reason"]) for one in world.messengers.sent]
        assert sorted(told) == [
            ("all@example.org", "None"),
            ("all@example.org", "norden"),
            ("all@example.org", "sueden"),
            ("eve@example.org", "norden"),
        ]
        fates = await world.control.events.fates(revisions[1])
        whys = {one.subscription: one.code for one in fates.routes}
        assert whys == {"all": "notify.why.told", "mail1-1": "notify.why.unseen"}

    tell(story)


@pytest.mark.req("L6", "F4")
@pytest.mark.parametrize("what_is_left", ["another-cluster", "nothing"])
def test_what_waits_is_told_by_what_its_user_sees_when_it_goes_out(
    tell: Callable[[Story], None], what_is_left: str
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await two_clusters(world)
        await world.subscribe(user="eve", address=None)
        await happens(world, "norden")
        await world.route_all()
        (grant,) = (await world.control.roles.of_user("eve")).items
        await world.control.roles.revoke(ADMIN, "eve", grant.grant.id)
        if what_is_left == "another-cluster":
            await world.control.roles.grant(
                ADMIN, "eve", GrantCreate(role="viewer", cluster="sueden")
            )
            await happens(world, "sueden")
        async with world.notifying():
            await world.until(lambda: _is_over(world))
        assert (await world.deliveries())[0].delivery.code == "notify.queue.dropped"
        told = [one.event.fields["reason"] for one in world.messengers.sent]
        assert told == (["sueden"] if what_is_left == "another-cluster" else [])

    tell(story)


async def _is_over(world: NotifiedWorld) -> bool:
    states = await world.states()
    return bool(states) and "pending" not in states


@pytest.mark.req("L6", "F4")
def test_a_message_of_two_clusters_loses_the_part_that_is_no_longer_seen(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await two_clusters(world)
        wanted = GrantCreate(role="viewer", cluster="sueden")
        given = await world.control.roles.grant(ADMIN, "eve", wanted)
        await world.subscribe(
            user="eve",
            address=None,
            codes=(),
            severity=Severity.WARNING,
            group_by=GroupBy.HOST,
            group_wait_ms=60_000,
        )
        clusters = await ids(world)
        # As the group of all that has no room in one of its own.
        for cluster in ("sueden", "norden"):
            event = Event(
                code="host.unreachable",
                severity=Severity.WARNING,
                message=cluster,
                fields={"reason": cluster},
                cluster_id=clusters[cluster],
                host_id=HostId("one"),
            )
            async with world.store.write() as tx:
                await add_event(tx, event)
        await world.route_all()
        world.clock.wall += 600_000
        await world.route_all()
        waiting = [one.delivery for one in await world.deliveries()]
        assert [len(one.about.revisions) for one in waiting if one.about] == [2]
        await world.control.roles.revoke(ADMIN, "eve", given.grant.id)
        async with world.notifying():
            await world.until(lambda: _is_over(world))
        told = str(world.messengers.sent)
        assert "norden" in told and "sueden" not in told

    tell(story)


@pytest.mark.req("L6")
def test_what_is_asked_by_columns_is_what_they_may(tell: Callable[[Story], None]) -> None:
    """As requests are judged, whatever the roles and grants."""

    async def story(world: NotifiedWorld) -> None:
        await two_clusters(world)
        control, clusters = world.control, await ids(world)
        await control.roles.create(ADMIN, RoleCreate(name="starter", permissions=()))
        grants: list[tuple[str, str | None]] = [
            *(("viewer", one) for one in ("norden", "sueden")),
            *(("starter", one) for one in ("norden", None)),
            ("operator", None),
        ]
        chosen = [(), *((one,) for one in grants), *combinations(grants, 2), tuple(grants)]
        users = []
        for number, (role, given) in enumerate(product(Role, chosen)):
            name = f"user{number}"
            # Their passwords are not looked at, and each takes a while to be hashed.
            user = User(id=UserId(name), name=name, role=role)
            async with world.store.write() as tx:
                users.append(await add_user(tx, user, ""))
                for index, (granted, cluster) in enumerate(given):
                    where = clusters[cluster] if cluster is not None else None
                    ident = GrantId(f"{name}-{index}")
                    await add_grant_of_user(
                        tx, Grant(id=ident, user_id=user.id, role=granted, cluster_id=where)
                    )
        # A role that is gone gives nothing, in both.
        async with world.store.write() as tx:
            gone = Grant(id=GrantId("gone"), user_id=users[0].id, role="gone", cluster_id=None)
            await add_grant_of_user(tx, gone)
        async with world.store.read() as tx:
            wanted = {one.id: (await caller_of(tx, one)).rights.reach for one in users}
            assert len({*wanted.values()}) == 5
            found = await reaches_of_users(tx, [*wanted, UserId("nobody")])
        assert found == wanted
        # One of a later version is told, as with each role that there is, rather than that nobody is.
        async with world.store.write() as tx:
            await tx.connection.execute(update(user_account).values(role="auditor"))
        async with world.store.read() as tx:
            assert await reaches_of_users(tx, [users[0].id]) == {users[0].id: None}

    tell(story)


@pytest.mark.req("L6", "F4")
def test_a_role_that_can_not_be_read_keeps_nobody_from_being_told(
    tell: Callable[[Story], None],
) -> None:
    """A later version's permission in it, say. Whoever has that role sees its clusters all the same."""

    async def story(world: NotifiedWorld) -> None:
        await two_clusters(world)
        await world.control.roles.create(ADMIN, RoleCreate(name="starter", permissions=()))
        wanted = GrantCreate(role="starter", cluster="sueden")
        await world.control.roles.grant(ADMIN, "eve", wanted)
        await world.subscribe(user="eve", address=None)
        await world.subscribe(address="all@example.org", name="all")
        async with world.store.write() as tx:
            await tx.connection.execute(update(access_role).values(body='{"permissions":["new"]}'))
        await happens(world, "sueden")
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 2)
        told = {one.address for one in world.messengers.sent}
        assert told == {"all@example.org", "eve@example.org"}

    tell(story)
