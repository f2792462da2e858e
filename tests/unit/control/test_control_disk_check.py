"""A host that watches disks before a start (A5) gets a grant that lasts as long as that may take."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import UNSET

from virtha.control.requests import VmStart
from virtha.control.views import Caller
from virtha.model.orders import StartVm
from virtha.model.user import Role

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)


@pytest.mark.req("A5")
@pytest.mark.parametrize(("check_ms", "duration_ms"), [(UNSET, 15_000), (120_000, 135_000)])
def test_the_grant_lasts_for_the_check_as_well(
    tell: Callable[[Any], None], check_ms: Any, duration_ms: int
) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1", disk_check_ms=check_ms)
        await world.add_storage()
        await world.add_vm()
        await world.control.vms.start(ADMIN, "web1", VmStart())
        order = host.orders[-1]
        assert isinstance(order.body, StartVm)
        assert order.body.grant.duration_ms == duration_ms

    tell(story)
