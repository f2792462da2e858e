"""The leader's lease desk among the simulator's hosts and among the server's: one suite for both places."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from lease_desk_bench import LEASE, DeskBench, server_desk, sim_desk

PLACES = {"simulator": sim_desk, "server": server_desk}
Story = Callable[[DeskBench], Awaitable[None]]


@pytest.fixture(params=PLACES)
def tell(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Story], None]:
    place = PLACES[request.param]

    def run(story: Story) -> None:
        async def main() -> None:
            async with place(tmp_path) as bench:
                await story(bench)

        asyncio.run(main())

    return run


@pytest.mark.req("F2")
def test_two_read_and_the_third_takes_the_place_of_one_that_goes(
    tell: Callable[[Story], None],
) -> None:
    async def story(bench: DeskBench) -> None:
        before = bench.readers()
        assert len(before) == 2
        assert not any(before.values())
        gone = min(before)
        await bench.lose_guardian(gone)
        await bench.advance(2_500)
        after = bench.readers()
        assert set(after) == {"h1", "h2", "h3"} - {gone}

    tell(story)


@pytest.mark.req("F1", "F2", "F3")
def test_a_silent_host_is_poisoned_by_the_others_and_its_lease_runs_out(
    tell: Callable[[Story], None],
) -> None:
    async def story(bench: DeskBench) -> None:
        await bench.lose("h1")
        waited_ms = 0
        while not all(bench.readers().values()) or not bench.readers():
            assert waited_ms < 60_000, "nobody poisons it"
            await bench.advance(1_000)
            waited_ms += 1_000
        await bench.advance(1_000)
        assert bench.readers() == {"h2": {"h1"}, "h3": {"h1"}}
        await bench.advance(LEASE.expiry_ms - 3_000)
        assert bench.runs_on() in (None, "h1"), "started before the lease was proof"
        await bench.advance(12_000)
        assert bench.runs_on() in ("h2", "h3")

    tell(story)


@pytest.mark.req("F2")
def test_an_outage_for_all_is_waived_until_the_storage_is_back(
    tell: Callable[[Story], None],
) -> None:
    async def story(bench: DeskBench) -> None:
        await bench.lose_storage("h1", "h2", "h3")
        await bench.advance(LEASE.self_fence_after_ms // 3 - 1_500)
        assert not bench.waived()
        await bench.advance(4_000)
        assert bench.waived() == {"h1"}
        await bench.storage_back("h1", "h2", "h3")
        await bench.advance(3_000)
        assert not bench.waived()

    tell(story)
