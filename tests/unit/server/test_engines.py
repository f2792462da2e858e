"""The engines as the server runs them: their tasks, terms that are raised or lost, and what breaks them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from led_world import ADMIN, LedWorld, led_world, two_hosts_and_a_vm

from virtha.control.requests import ClusterCreate
from virtha.engine import turn
from virtha.engine.events import BrakeLifted
from virtha.model.errors import Failed
from virtha.model.ids import Term
from virtha.store.installations import set_term

WAIT_S = 60.0


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[LedWorld, "asyncio.Task[None]"]]:
    async with led_world(directory) as world:
        world.leads_itself = True
        stopping = asyncio.Event()
        task = asyncio.create_task(world.engines.run(stopping))
        try:
            yield world, task
        finally:
            stopping.set()
            await asyncio.wait({task}, timeout=WAIT_S)
            assert task.done()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def tell(
    directory: Path, story: Callable[[LedWorld, "asyncio.Task[None]"], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with running(directory) as (world, task):
            await story(world, task)

    asyncio.run(main())


@pytest.mark.req("F3")
def test_by_themselves_they_bring_a_vm_back(tmp_path: Path) -> None:
    async def story(world: LedWorld, task: "asyncio.Task[None]") -> None:
        vm_id = await two_hosts_and_a_vm(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await until(lambda: world.gateway.acknowledged.get(h1.id) == h1.sequence)
        h1.vanish()
        await h1.hello("h1-boot2")
        await until(lambda: len(world.all_starts()) == 2)
        target = h2 if h2.starts() else h1
        await target.started(target.starts()[-1])
        await until(lambda: world.engines.explain_vm(vm_id) == ())
        await until(lambda: world.gateway.acknowledged.get(target.id) == target.sequence)
        assert (await world.vm()).status.holders == (target.id,)
        assert world.engines.verdict(h2.id) == "alive"

    tell(tmp_path, story)


def test_a_host_that_followed_a_later_term_makes_all_begin_anew(tmp_path: Path) -> None:
    """M1: its records are of a restored database. As after a restart: sessions end, and everything is told again."""

    async def story(world: LedWorld, task: "asyncio.Task[None]") -> None:
        vm_id = await two_hosts_and_a_vm(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await h1.hello("h1-boot2", term_seen=40)
        await until(lambda: world.gateway.instances)
        await until(lambda: world.engines.feeds and world.feed.leader is not None)
        assert world.leader.term == 41
        assert [copy.host_id for copy in (await world.record(vm_id)).copies] == [h1.id]
        for host in (h1, h2):
            await host.hello()
            await host.tell_all()
        await until(lambda: len(world.all_starts()) == 2)
        ordered = [order for _, order in world.all_starts()][-1:]
        assert all(order.term == 41 for order in ordered) and not task.done()

    tell(tmp_path, story)


def test_another_server_that_takes_over_ends_this_one(tmp_path: Path) -> None:
    async def story(world: LedWorld, task: "asyncio.Task[None]") -> None:
        await two_hosts_and_a_vm(world)
        async with world.store.write() as tx:
            await set_term(tx, Term(world.term + 1))
        await world.hosts["h1"].hello("h1-boot2")
        with pytest.raises(Failed, match="another server has taken"):
            await task
        assert len(world.all_starts()) == 1, "nothing more is sent"

    tell(tmp_path, story)


def test_a_leader_that_cannot_keep_up_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than decide on half of what happened."""
    monkeypatch.setattr(turn, "INBOX_MAX", 3)

    async def story(world: LedWorld, task: "asyncio.Task[None]") -> None:
        await asyncio.sleep(0)
        for number in range(5):
            world.engines.offer(world.feed.cluster_id, BrakeLifted(by=f"{number}"))
        with pytest.raises(Failed, match="can't keep up"):
            await task

    tell(tmp_path, story)


def test_clusters_come_and_go(tmp_path: Path) -> None:
    async def story(world: LedWorld, task: "asyncio.Task[None]") -> None:
        first = world.feed.cluster_id
        for number in range(3):
            name = f"other{number}"
            made = await world.control.clusters.create(ADMIN, ClusterCreate(name=name))
            await until(lambda made=made: made.id in world.engines.feeds)
            await world.control.clusters.delete(ADMIN, name)
            await until(lambda made=made: made.id not in world.engines.feeds)
        assert list(world.engines.feeds) == [first] and not task.done()

    tell(tmp_path, story)


def test_a_host_that_joins_and_connects_at_once_is_known_with_its_sessions(tmp_path: Path) -> None:
    async def story(world: LedWorld, task: "asyncio.Task[None]") -> None:
        host = await world.join("h1")
        await until(lambda: world.engines.verdict(host.id) == "alive")
        await until(lambda: world.gateway.acknowledged.get(host.id) == host.sequence)

    tell(tmp_path, story)
