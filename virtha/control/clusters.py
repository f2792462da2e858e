"""Clusters and their policy."""

from uuid import uuid4

import msgspec
from msgspec import UNSET

from virtha.control.effects import Dispatcher, Effects
from virtha.control.history import changes_between, record
from virtha.control.names import (
    check_limit,
    check_name,
    check_revision,
    check_text,
    page_of,
    taken,
    the_cluster,
)
from virtha.control.requests import ClusterChange, ClusterCreate, SearchQuery
from virtha.control.searching import page_of_search
from virtha.control.views import Caller, Page
from virtha.model.errors import Refused
from virtha.model.host import Cluster
from virtha.model.ids import ClusterId, Revision
from virtha.model.policy import Policy
from virtha.store.body import bodies_with_ids
from virtha.store.clusters import (
    cluster_members,
    clusters_after,
    drop_cluster,
    find_cluster,
    save_cluster,
)
from virtha.store.schema import cluster as cluster_table
from virtha.store.search_fields import CLUSTERS
from virtha.store.store import Store


class Clusters:
    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher

    async def list(self, query: SearchQuery) -> Page[Cluster]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            if query.search is not None:
                now = self._store.clock.wall_ms()
                keys = await page_of_search(tx, CLUSTERS, query.search, query, now=now)
                return Page(
                    items=await bodies_with_ids(tx, cluster_table, Cluster, keys.ids),
                    revision=await tx.revision_now(),
                    next=keys.next,
                )
            rows, more = page_of(await clusters_after(tx, query.after or "", limit + 1), limit)
            return Page(
                items=rows,
                revision=await tx.revision_now(),
                next=rows[-1].name if more else None,
            )

    async def get(self, ref: str) -> Cluster:
        async with self._store.read() as tx:
            return await the_cluster(tx, ref)

    async def create(self, caller: Caller, request: ClusterCreate) -> Cluster:
        check_name(request.name)
        check_text(request.description, field="description")
        async with self._store.write() as tx:
            if await find_cluster(tx, request.name) is not None:
                raise taken("cluster", request.name)
            made = Cluster(
                id=ClusterId(str(uuid4())), name=request.name, description=request.description
            )
            saved = await save_cluster(tx, made)
            told = changes_between(None, saved)
            await record(
                tx, "cluster.created", cluster_id=saved.id, by=caller.name, name=saved.name, **told
            )
            return saved

    async def change(
        self, caller: Caller, ref: str, request: ClusterChange, if_match: Revision | None = None
    ) -> Cluster:
        async with self._store.write() as tx:
            cluster = present = await the_cluster(tx, ref)
            check_revision(if_match, cluster.revision)
            if request.name is not UNSET and request.name != cluster.name:
                check_name(request.name)
                if await find_cluster(tx, request.name) is not None:
                    raise taken("cluster", request.name)
                cluster = msgspec.structs.replace(cluster, name=request.name)
            if request.description is not UNSET:
                check_text(request.description, field="description")
                cluster = msgspec.structs.replace(cluster, description=request.description)
            saved = await save_cluster(tx, cluster)
            told = changes_between(present, saved)
            await record(
                tx, "cluster.changed", cluster_id=saved.id, by=caller.name, name=saved.name, **told
            )
            return saved

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        async with self._store.write() as tx:
            cluster = await the_cluster(tx, ref)
            check_revision(if_match, cluster.revision)
            members = await cluster_members(tx, cluster.id)
            held = [f"{count} {name}" for name, count in members.items() if count]
            if held:
                raise Refused(
                    f"cluster {cluster.name} still has {', '.join(held)}",
                    fix="remove these first",
                )
            await drop_cluster(tx, cluster.id)
            told = changes_between(cluster, None)
            await record(
                tx,
                "cluster.deleted",
                cluster_id=cluster.id,
                by=caller.name,
                name=cluster.name,
                **told,
            )

    async def put_policy(
        self, caller: Caller, ref: str, policy: Policy, if_match: Revision | None = None
    ) -> Cluster:
        """Goes to every host of the cluster at once; one that is away gets it at its next hello."""
        effects = Effects()
        async with self._store.write() as tx:
            cluster = await the_cluster(tx, ref)
            check_revision(if_match, cluster.revision)
            saved = await save_cluster(tx, msgspec.structs.replace(cluster, policy=policy))
            told = changes_between(cluster.policy, policy)
            await record(
                tx,
                "policy.changed",
                cluster_id=saved.id,
                by=caller.name,
                cluster=saved.name,
                **told,
            )
            effects.configure(saved.id)
        await self._dispatcher.carry_out(effects)
        return saved
