"""Changes that wait for the next start: shown beside what runs, and dropped again."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from virtha.control.requests import NicCreate, VmChange, VmStart, WatchdogRequest
from virtha.control.views import Caller
from virtha.model.errors import Conflict, Stale
from virtha.model.facts import RunsWith
from virtha.model.ids import Incarnation, Revision
from virtha.model.orders import DefineVm, StartVm
from virtha.model.user import Role
from virtha.model.vm import Hardware, Vm
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel

GIB = 1 << 30
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]


def hardware(vm: Vm, **changes: Any) -> Hardware:
    values = {
        "memory_bytes": vm.memory_bytes,
        "vcpus": vm.vcpus,
        "machine": vm.machine,
        "watchdog": vm.watchdog,
        "disks": vm.disks,
        "nics": vm.nics,
    }
    return Hardware(**{**values, **changes})


async def running(world: Any, **changes: Any) -> Any:
    """web1 runs on h1, which told what with."""
    await world.join("h1")
    await world.add_storage()
    await world.add_vm()
    _, host = await world.run_vm()
    await tell_hardware(world, host, **changes)
    return host


async def tell_hardware(world: Any, host: Any, incarnation: int = 1, **changes: Any) -> None:
    vm = (await world.control.vms.get("web1")).vm
    fact = RunsWith(
        vm_id=vm.id, incarnation=Incarnation(incarnation), hardware=hardware(vm, **changes)
    )
    await host.tell(fact)


async def pending(world: Any) -> dict[str, tuple[Any, Any]]:
    view = await world.control.vms.get("web1")
    return {one.field: (one.running, one.wanted) for one in view.pending}


def test_what_differs_from_the_running_copy_is_shown_until_it_starts_with_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await running(world)
        before = (await world.control.vms.get("web1")).vm
        assert await pending(world) == {}
        await world.control.vms.change(
            ADMIN,
            "web1",
            VmChange(
                description="the shop",
                ha=False,
                memory_bytes=2 * GIB,
                vcpus=2,
                watchdog=WatchdogRequest(model="i6300esb", action="poweroff"),
                nics=(NicCreate(bridge="br0", mac="52:54:00:00:00:77"),),
            ),
        )
        has = await pending(world)
        assert has.pop("memory_bytes") == (before.memory_bytes, 2 * GIB)
        assert has.pop("vcpus") == (before.vcpus, 2)
        assert has.pop("watchdog")[1] == "i6300esb:poweroff"
        assert has == {"nics.52:54:00:00:00:77": (None, "virtio on br0")}
        await host.stopped(before.id, 1)
        assert await pending(world) == {}, "what is down has nothing to wait for"
        await world.control.vms.start(ADMIN, "web1", VmStart())
        assert isinstance(host.orders[-1].body, StartVm)
        assert host.orders[-1].body.vm.vcpus == 2
        await host.started()
        await tell_hardware(world, host, incarnation=2)
        assert await pending(world) == {}

    tell(story)


def test_pending_changes_can_be_dropped(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await running(world)
        before = (await world.control.vms.get("web1")).vm
        changed = await world.control.vms.change(
            ADMIN, "web1", VmChange(memory_bytes=2 * GIB, vcpus=2, description="the shop")
        )
        with pytest.raises(Stale):
            await world.control.vms.drop_pending(ADMIN, "web1", Revision(changed.vm.revision - 1))
        await host.answer()
        dropped = await world.control.vms.drop_pending(ADMIN, "web1", changed.vm.revision)
        assert dropped.pending == ()
        kept = msgspec.structs.replace(before, description="the shop", revision=dropped.vm.revision)
        assert dropped.vm == kept, "what applied at once stays"
        define = host.orders[-1].body
        assert isinstance(define, DefineVm)
        assert define.vm == dropped.vm
        again = await world.control.vms.drop_pending(ADMIN, "web1")
        assert again.vm.revision == dropped.vm.revision

    tell(story)


def test_a_card_keeps_its_name_when_what_waited_is_dropped(tell: Tell) -> None:
    """No XML has it."""

    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm(nics=(NicCreate(bridge="br0", mac="52:54:00:00:00:77", name="front"),))
        _, host = await world.run_vm()
        (card,) = (await world.control.vms.get("web1")).vm.nics
        nameless = msgspec.structs.replace(card, name=UNSET)
        await tell_hardware(world, host, nics=(nameless,))
        assert await pending(world) == {}
        await world.control.vms.change(ADMIN, "web1", VmChange(vcpus=2))
        await host.answer()
        dropped = await world.control.vms.drop_pending(ADMIN, "web1")
        assert dropped.vm.nics == (card,)

    tell(story)


def test_a_dropped_card_does_not_take_an_address_that_another_vm_has_by_now(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await running(world)
        mac = "52:54:00:00:00:77"
        await world.control.vms.change(
            ADMIN, "web1", VmChange(nics=(NicCreate(bridge="br0", mac=mac),))
        )
        (host,) = world.hosts.values()
        await tell_hardware(world, host)
        await world.control.vms.change(ADMIN, "web1", VmChange(nics=()))
        assert await pending(world) == {f"nics.{mac}": ("virtio on br0", None)}
        await world.add_vm("web2", nics=(NicCreate(bridge="br0", mac=mac),))
        with pytest.raises(Conflict) as raised:
            await world.control.vms.drop_pending(ADMIN, "web1")
        assert raised.value.code == "problem.mac.in_use"

    tell(story)


def test_the_hosts_default_card_and_libvirts_rounding_are_no_changes(tell: Tell) -> None:
    card = Watchdog(model=WatchdogModel.IB700, action=WatchdogAction.RESET)

    async def story(world: Any) -> None:
        host = await running(world)
        await world.control.vms.change(ADMIN, "web1", VmChange(watchdog=None))
        vm = (await world.control.vms.get("web1")).vm
        odd = vm.memory_bytes // 2**20 * 2**20
        await tell_hardware(world, host, watchdog=card, default_watchdog=card, memory_bytes=odd)
        assert await pending(world) == {}
        built_in = Watchdog(model=WatchdogModel.ITCO, action=WatchdogAction.RESET)
        await tell_hardware(world, host, watchdog=built_in)
        assert await pending(world) == {}

    tell(story)


def test_what_another_start_had_is_not_compared(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await running(world)
        await host.stopped((await world.control.vms.get("web1")).vm.id, 1)
        await world.control.vms.start(ADMIN, "web1", VmStart())
        await host.started()
        await tell_hardware(world, host, incarnation=1, vcpus=7)
        assert await pending(world) == {}
        await tell_hardware(world, host, incarnation=2, vcpus=7)
        assert await pending(world) == {"vcpus": (7, 1)}

    tell(story)
