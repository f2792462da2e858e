"""A cluster of so many VMs that no frame takes what its hosts are told of them (some 27,000)."""

import asyncio
import uuid
from pathlib import Path

import pytest
from led_world import led_world
from msgspec.structs import replace
from test_led_superseded import proven_dead

from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId, VmId
from virtha.model.orders import HostSettings
from virtha.wire.codec import encode_message
from virtha.wire.messages import Settings


@pytest.mark.req("F9")
def test_its_vms_are_recovered_all_the_same(tmp_path: Path) -> None:
    """It ended the leader, and the server with it, between the record of a start and its order."""
    others = tuple(VmId(str(uuid.uuid4())) for _ in range(28_000))
    refused: list[HostId] = []

    async def story() -> None:
        async with led_world(tmp_path) as world:

            def configure(host_id: HostId, settings: HostSettings) -> None:
                try:
                    encode_message(Settings(settings=replace(settings, foreign_vms=others)))
                except InvalidInput:
                    refused.append(host_id)
                    raise

            world.gateway.configure = configure  # type: ignore[method-assign]  # whose settings fit no frame
            await proven_dead(world)
            h2 = world.hosts["h2"]
            assert h2.id in refused
            await h2.started(h2.starts()[-1])
            await world.settle()
            assert (await world.vm()).status.holders == (h2.id,)

    asyncio.run(story())
