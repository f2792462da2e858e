"""A VM's priority: which of those that a dead host leaves behind is started first."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from virtha.control.engine_nouns import engine_vm
from virtha.control.requests import VmChange, VmCreate
from virtha.control.views import Caller
from virtha.model.errors import InvalidInput
from virtha.model.user import Role

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
MIB = 1 << 20
Tell = Callable[[Any], None]


def test_a_vms_priority_is_kept_and_told_to_the_engine(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm(priority=100)
        await world.add_vm("web2")
        assert await _engines_priority(world, "web1") == 100
        assert await _engines_priority(world, "web2") == 0
        plain = (await world.control.vms.get("web2")).vm
        assert b"priority" not in msgspec.msgpack.encode(plain), (
            "agents of old have not heard of it"
        )
        for wanted in (50, 1, 0):
            changed = await world.control.vms.change(ADMIN, "web1", VmChange(priority=wanted))
            assert changed.vm.start_priority == wanted
            assert await _engines_priority(world, "web1") == wanted
        await world.control.vms.change(ADMIN, "web2", VmChange(priority=7))
        renamed = await world.control.vms.change(ADMIN, "web2", VmChange(name="www"))
        assert renamed.vm.start_priority == 7

    tell(story)


async def _engines_priority(world: Any, name: str) -> int:
    view = await world.control.vms.get(name)
    return engine_vm(view.vm, view.status).priority


@pytest.mark.parametrize("priority", [-1, 101, 1 << 62])
def test_a_priority_out_of_range_is_refused(tell: Tell, priority: int) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        before = (await world.control.vms.get("web1")).vm
        for asked in (
            world.control.vms.change(ADMIN, "web1", VmChange(priority=priority)),
            world.control.vms.create(
                ADMIN, VmCreate(name="web2", memory_bytes=64 * MIB, priority=priority)
            ),
        ):
            with pytest.raises(InvalidInput) as caught:
                await asked
            assert (caught.value.field, caught.value.allowed) == ("priority", ("0 to 100",))
        assert (await world.control.vms.get("web1")).vm == before

    tell(story)
