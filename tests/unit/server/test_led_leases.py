"""What the server's lease desk has to see to that the simulator's need not: sessions, silence, and what hosts say."""

import asyncio
from pathlib import Path

import pytest
from lease_desk_bench import PlayedSlots, server_desk
from msgspec.structs import replace

from virtha.model.ids import HostId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.server.lease_desk import SILENT_MS
from virtha.wire.lease_messages import ReadSlots, SlotsRead


@pytest.mark.req("F2")
def test_duties_are_said_once_in_each_session_and_go_on_to_those_who_answer(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with server_desk(tmp_path) as bench:
            world = bench.world
            asked = [order for _, order in world.gateway.lease_orders]
            assert len([one for one in asked if isinstance(one, ReadSlots)]) <= 2 * 3
            said = len(asked)
            await bench.advance(5_000)
            assert len(world.gateway.lease_orders) == said, "said again, though nothing changed"
            reader = min(bench.readers())
            host = world.hosts[reader]
            await host.hello()
            again = [order for one, order in world.gateway.lease_orders[said:] if one == host.id]
            assert [type(order) for order in again] == [ReadSlots]
            # It is asked, and nothing comes.
            bench.without_storage.add(reader)
            await bench.advance(SILENT_MS + 4_000)
            assert reader not in bench.readers()
            assert len(bench.readers()) == 2

    asyncio.run(story())


@pytest.mark.bad_input
def test_a_round_about_what_is_none_of_its_cluster_is_left_out(tmp_path: Path) -> None:
    async def story() -> None:
        async with server_desk(tmp_path) as bench:
            world = bench.world
            h2, watcher, leases = world.hosts["h2"], world.gateway.watcher, world.feed.leases
            assert watcher is not None and leases is not None
            stranger = HostId("stranger")
            slot = replace(bench.blocks.slots[h2.id], host_id=stranger)
            for counter in range(1, 4):
                moved = replace(slot, counter=counter)
                for domain_id in (bench.domain_id, StorageDomainId("another")):
                    own = bench.blocks.slots[h2.id]
                    watcher.lease(
                        h2.id,
                        SlotsRead(
                            boot=h2.boot,
                            domain_id=domain_id,
                            began_ms=counter,
                            ended_ms=counter,
                            own_counter=own.counter,
                            direct_io=True,
                            slots={stranger: moved, h2.id: own},
                        ),
                    )
            await world.settle()
            assert leases.reasons(stranger) == ()
            assert world.leader.engine.verdict(stranger) is None

    asyncio.run(story())


def test_nobody_reads_while_leases_are_not_in_use(tmp_path: Path) -> None:
    async def story() -> None:
        async with server_desk(tmp_path) as bench:
            policy = replace(bench.world.feed.policy_now, lease=LeasePolicy(enabled=False))
            bench.world.feed.policy(policy)
            await bench.advance(2_000)
            assert bench.readers() == {}

    asyncio.run(story())


@pytest.mark.req("F2")
@pytest.mark.bad_input
def test_a_third_host_that_has_another_storage_mounted_is_found_out_in_its_turn(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with server_desk(tmp_path) as bench:
            world = bench.world
            (apart,) = {"h1", "h2", "h3"} - set(bench.readers())
            bench.mounted_elsewhere[world.hosts[apart].id] = PlayedSlots()
            for _ in range(12):
                await bench.advance(5_000)
                found = await world.events("storage.not_shared")
                if found:
                    break
            (event,) = found
            assert apart in {event.fields["reader"], event.fields["writer"]}
            assert world.feed.explain_host(world.hosts[apart].id)[-1].code.startswith(
                "host.storage"
            )
            assert not world.feed.is_shared(bench.domain_id)
            ready = await world.control.readiness.of_host(apart)
            assert ready.verdict == "not_ready"
            assert "host.storage.not_shared" in {one.code for one in ready.findings}
            again = world.hosts[apart].id
            bench.blocks.slots[again] = bench.mounted_elsewhere.pop(again).slots[again]
            await bench.advance(10_000)
            assert len(await world.events("storage.shared_again")) == 1
            assert world.feed.is_shared(bench.domain_id)

    asyncio.run(story())


@pytest.mark.req("X5")
def test_a_lease_that_would_prove_nothing_is_told_before_its_host_dies(tmp_path: Path) -> None:
    async def story() -> None:
        async with server_desk(tmp_path) as bench:
            world = bench.world

            async def told() -> dict[str, str]:
                """By host."""
                view = await world.control.readiness.all()
                leases = [one for one in view.findings if one.code.startswith("ready.lease")]
                assert all(one.fix and "ds1" in one.text for one in leases)
                assert any("watchdog" in one for one in view.not_looked_at) is not looked_at
                return {
                    one.about.removeprefix("host/"): f"{one.code}: {one.text}" for one in leases
                }

            looked_at = True
            assert await told() == {}
            bench.declared = replace(bench.declared, armed=False)
            await bench.advance(5_000)
            found = await told()
            assert set(found) == {"h1", "h2", "h3"}
            assert all(
                "ready.lease.no_proof" in one and "watchdog" in one for one in found.values()
            )
            bench.declared = replace(bench.declared, armed=True)
            await bench.advance(5_000)
            assert await told() == {}
            # It renews no more, and nobody has told that it can't use the storage.
            (apart,) = set(world.hosts) - set(bench.readers())
            blocks = PlayedSlots()
            bench.mounted_elsewhere[world.hosts[apart].id] = blocks
            del bench.blocks.slots[world.hosts[apart].id]
            await bench.advance(5_000)
            assert "ready.lease.unread" in (await told())[apart]
            looked_at = False
            policy = replace(world.feed.policy_now, lease=LeasePolicy(enabled=False))
            world.feed.policy(policy)
            assert await told() == {}

    asyncio.run(story())
