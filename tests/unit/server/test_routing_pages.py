"""What is asked of routes that are many: lists come in pages, and no answer costs a statement per route."""

from collections.abc import Callable

import pytest
from counted_statements import statements
from notified_world import ADMIN, NotifiedWorld
from routed_world import Story, happens

from virtha.control.requests import MatcherRequest, SilenceCreate, SilenceQuery
from virtha.model.errors import InvalidInput


def test_silences_come_in_pages(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        silences = world.control.silences
        for number in range(5):
            asked = SilenceCreate(
                reason=str(number),
                matcher=MatcherRequest(codes=("vm.*",)),
                duration_ms=60_000 * (1 + number // 2),
            )
            await silences.create(ADMIN, asked)
        found, after = [], None
        for _ in range(3):
            page = await silences.list(SilenceQuery(limit=2, after=after))
            found += [one.silence for one in page.items]
            after = page.next
        assert after is None and len({one.id for one in found}) == 5
        assert [one.ends for one in found] == sorted(one.ends for one in found)
        for wrong in ("x", "1", "x-1", "1" * 30 + "-a"):
            with pytest.raises(InvalidInput) as refused:
                await silences.list(SilenceQuery(after=wrong))
            assert refused.value.field == "after" and refused.value.fix

    tell(story)


@pytest.mark.req("X1")
def test_why_costs_no_more_statements_with_more_routes(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",))
        counted = []
        for number in range(2):
            for _ in range(number * 5):
                await world.subscribe(codes=("vm.crashed",))
                await world.subscribe(codes=("host.*",))
            crashed = await happens(world, "vm.crashed", "h1", "v1")
            await world.route_all()
            with statements(world.store) as made:
                fates = await world.control.events.fates(crashed)
            counted.append(len(made))
            assert len(fates.routes) == 1 + number * 10
            assert all(one.receiver == "mail1" for one in fates.routes)
        assert counted[0] == counted[1]

    tell(story)
