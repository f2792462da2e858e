"""The storage fence through the engine, the leader, its orders and what agents answer (P3, ADR 20)."""

import asyncio
from pathlib import Path

import pytest
from led_world import LedWorld, PlayedHost, led_world, two_hosts_and_a_vm
from msgspec import UNSET
from msgspec.structs import replace

from virtha.engine.events import DeathConfirmed, ProofFound
from virtha.engine.records import HostRecord
from virtha.model.ceph import CephEpoch, CephSight
from virtha.model.facts import Result, StorageReport
from virtha.model.host import CephPool
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.orders import LetInHost, Order, ShutOutHost
from virtha.model.proof import Proof, ProofKind
from virtha.store.clusters import find_storage, save_storage

pytestmark = [pytest.mark.req("F9"), pytest.mark.req("F3")]

FSID = "fsid-1"


async def on_ceph(world: LedWorld) -> StorageDomainId:
    """h1 runs web1 on a pool of a cluster, h2 could; both have said how it sees them."""
    await two_hosts_and_a_vm(world)
    domain_id = world.storage_domain_id
    assert domain_id is not None
    async with world.store.write() as tx:
        domain = await find_storage(tx, domain_id)
        assert domain is not None
        pool = CephPool(monitors=("10.0.0.9",), pool="vms")
        await save_storage(tx, replace(domain, ceph=pool))
    for number, host in enumerate(world.hosts.values(), start=1):
        await says(world, host, f"10.0.0.{number}")
    await world.settle()
    return domain_id


async def says(world: LedWorld, host: PlayedHost, address: str) -> None:
    assert world.storage_domain_id is not None
    await host.tell(
        StorageReport(
            storage_domain_id=world.storage_domain_id,
            usable=True,
            ceph=CephSight(boot=host.boot, fsid=FSID, addresses=(address,)),
        )
    )


def asked(host: PlayedHost, kind: type[ShutOutHost | LetInHost]) -> list[Order]:
    return [order for order in host.orders if isinstance(order.body, kind)]


def record(world: LedWorld, host: PlayedHost) -> HostRecord:
    found = world.leader.engine.host_record(host.id)
    assert found is not None
    return found


async def confirmed_dead(world: LedWorld) -> None:
    """h1, by an operator."""
    h1 = world.hosts["h1"]
    h1.vanish()
    await world.pass_time(8_000, beating=("h2",))
    incident = record(world, h1).incident
    assert incident is not None
    word = DeathConfirmed(
        host_id=h1.id, boot=h1.boot, incident=incident.number, by="admin", force_reason="seen"
    )
    world.feed.offer(word)
    await world.settle()


async def shut_out(world: LedWorld, domain_id: StorageDomainId) -> None:
    """h1 falls silent, and Ceph's map of epoch 12 is the proof."""
    h1 = world.hosts["h1"]
    h1.vanish()
    await world.pass_time(8_000, beating=("h2",))
    proof = Proof(
        kind=ProofKind.STORAGE_FENCE,
        host_id=HostId(h1.id),
        boot=h1.boot,
        at_ms=1 << 60,
        domain_ids=(domain_id,),
        epochs=(CephEpoch(fsid=FSID, epoch=12),),
    )
    world.feed.offer(ProofFound(proof=proof))
    await world.settle()


def test_a_helper_is_asked_its_answer_is_read_and_the_host_is_let_in_when_it_is_back(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            domain_id = await on_ceph(world)
            h1, h2 = world.hosts["h1"], world.hosts["h2"]
            assert [one.addresses for one in record(world, h1).ceph] == [("10.0.0.1",)]
            await confirmed_dead(world)
            (order,) = asked(h2, ShutOutHost)
            assert order.host_boot == h2.boot
            assert order.body == ShutOutHost(
                host_id=h1.id,
                boot=h1.boot,
                domain_id=domain_id,
                fsid=FSID,
                addresses=("10.0.0.1",),
                by="engine",
            )
            fields = {"fsid": FSID, "addresses": "10.0.0.1", "epoch": 12, "until_s": 2_000_000_000}
            await h2.answer(order, fields=fields)
            await world.settle()
            (cut,) = record(world, h1).cuts
            assert (cut.epoch, cut.until_s, cut.asked) == (12, 2_000_000_000, ())
            assert len(await world.events("fence.storage.done")) == 1
            former = h1.boot
            await h1.hello("h1-next")
            await h1.tell_all()
            await world.pass_time(2_000, beating=("h1", "h2"))
            (lift,) = asked(h2, LetInHost)
            assert isinstance(lift.body, LetInHost)
            assert (lift.body.boot, lift.body.runs) == (former, BootId("h1-next"))
            assert lift.body.until_s == 2_000_000_000
            await h2.answer(lift, fields={"left": ""})
            await world.settle()
            assert record(world, h1).cuts == ()
            assert len(await world.events("fence.storage.lifted")) == 1

    asyncio.run(story())


@pytest.mark.parametrize("fields", [{}, {"fsid": FSID, "addresses": "10.0.0.1"}, {"epoch": "x"}])
def test_an_answer_that_does_not_say_what_was_read_back_is_none(
    tmp_path: Path, fields: dict[str, str]
) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            await on_ceph(world)
            h1, h2 = world.hosts["h1"], world.hosts["h2"]
            await confirmed_dead(world)
            (order,) = asked(h2, ShutOutHost)
            await h2.answer(order, Result.OK, fields=fields)
            await world.settle()
            (cut,) = record(world, h1).cuts
            assert cut.epoch == 0 and cut.touched and cut.asked != ()
            assert len(await world.events("fence.storage.failed")) == 1

    asyncio.run(story())


def test_the_start_names_the_map_that_it_has_to_wait_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            domain_id = await on_ceph(world)
            h1, h2 = world.hosts["h1"], world.hosts["h2"]
            await shut_out(world, domain_id)
            start = h2.starts()[-1].body
            assert start.ceph_epochs == {FSID: 12}
            assert h1.starts()[0].body.ceph_epochs is UNSET

    asyncio.run(story())


def test_a_host_whose_agent_says_nothing_of_ceph_gets_no_such_start(tmp_path: Path) -> None:
    """An agent of an earlier version would start it without waiting for the map."""

    async def story() -> None:
        async with led_world(tmp_path) as world:
            domain_id = await on_ceph(world)
            h2 = world.hosts["h2"]
            await h2.hello("h2-earlier")
            await h2.tell_all()
            await world.tell_storage("h2", usable=True)
            await world.settle()
            await shut_out(world, domain_id)
            assert [one for one in h2.starts() if one.body.grant.incarnation > 1] == []

    asyncio.run(story())
