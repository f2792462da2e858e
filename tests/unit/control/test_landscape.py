"""What is kept of each cluster between two looks at lists."""

from collections.abc import Callable
from typing import Any

from virtha.control.requests import ClusterCreate
from virtha.control.views import Caller
from virtha.control.vm_views import CLUSTERS_KEPT_MAX, Landscape
from virtha.model.user import Role
from virtha.store.clusters import all_clusters
from virtha.store.reach import seeing

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]


def test_a_cluster_is_read_once_for_all_who_see_it_until_something_changes(tell: Tell) -> None:
    """However many people there are, each with clusters of their own."""

    async def story(world: Any) -> None:
        await world.control.clusters.create(ADMIN, ClusterCreate(name="other"))
        landscape = Landscape()
        async with world.store.read() as tx:
            here, other = (one.id for one in await all_clusters(tx))

        async def read(cluster_id: Any, reach: Any) -> Any:
            with seeing(reach):
                async with world.store.read() as tx:
                    return await landscape.of(tx, cluster_id, await tx.revision_now())

        first = await read(here, frozenset({here}))
        assert first.cluster.id == here and first.cluster.name == "default"
        assert (await read(other, frozenset({here, other}))).cluster.name == "other"
        for reach in (None, frozenset({here}), frozenset({here, other})):
            assert await read(here, reach) is first
        await world.control.clusters.create(ADMIN, ClusterCreate(name="third"))
        assert await read(here, None) is not first

    tell(story)


def test_what_is_kept_is_bounded(tell: Tell) -> None:
    async def story(world: Any) -> None:
        landscape = Landscape()
        for number in range(CLUSTERS_KEPT_MAX + 2):
            await world.control.clusters.create(ADMIN, ClusterCreate(name=f"c{number}"))
        async with world.store.read() as tx:
            for cluster in await all_clusters(tx):
                found = await landscape.of(tx, cluster.id, await tx.revision_now())
                assert found.cluster == cluster
        assert len(landscape._kept) == CLUSTERS_KEPT_MAX

    tell(story)
