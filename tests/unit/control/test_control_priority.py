"""A VM's priority: which of those that a dead host leaves behind is started first. And its grade: how far automatic action may go with it."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from virtha.control.engine_nouns import engine_vm
from virtha.control.requests import VmChange, VmCreate
from virtha.control.views import Caller
from virtha.model.errors import InvalidInput
from virtha.model.policy import PermissionGrade
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


def test_a_vms_grade_is_kept_and_told_to_its_host_and_the_engine(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm(grade=PermissionGrade.OBSERVE)
        await world.add_vm("web2")
        view = await world.control.vms.get("web1")
        assert engine_vm(view.vm, view.status).grade is PermissionGrade.OBSERVE
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(view.vm))["grade"] == "observe"
        plain = await world.control.vms.get("web2")
        assert engine_vm(plain.vm, plain.status).grade is None
        assert b"grade" not in msgspec.msgpack.encode(plain.vm), "agents of old do not know it"
        for wanted in (PermissionGrade.MOVE, PermissionGrade.FENCE):
            changed = await world.control.vms.change(ADMIN, "web1", VmChange(grade=wanted))
            limit = None if wanted is PermissionGrade.FENCE else wanted
            assert changed.vm.grade_max is limit
        renamed = await world.control.vms.change(ADMIN, "web1", VmChange(name="www"))
        assert renamed.vm.grade_max is None

    tell(story)


@pytest.mark.parametrize(
    ("cluster", "limit", "lower"),
    [
        ("fence", None, "fence"),
        ("fence", "observe", "observe"),
        ("restart", "move", "restart"),
        ("observe", "fence", "observe"),
        ("move", "move", "move"),
    ],
)
def test_the_lower_grade_counts(cluster: str, limit: str | None, lower: str) -> None:
    grade = PermissionGrade(cluster).but_at_most(PermissionGrade(limit) if limit else None)
    assert grade is PermissionGrade(lower)
