"""Which VMs a host is told of as its own, and which as others', in a cluster where many are both (G1, G3)."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from virtha.control.host_settings import settings_for
from virtha.store.hosts import hosts_of_cluster
from virtha.store.vms import find_vm, save_vm_status

pytestmark = pytest.mark.req("G3")
World = Any


def test_each_vm_is_either_a_hosts_own_or_another_ones(
    tell: Callable[[Callable[[World], Any]], None],
) -> None:
    """At the beginning, in the middle and at the end of all, held by nobody, by one and by two."""
    held_by = (("h1",), (), ("h2",), ("h1", "h2"), ("h3",), ("h1",))

    async def story(world: World) -> None:
        for name in ("h1", "h2", "h3", "h4"):
            await world.join(name)
        await world.add_storage()
        names = [f"vm{number}" for number in range(len(held_by))]
        for name, hosts in zip(names, held_by, strict=True):
            await world.add_vm(name)
            holders = tuple(sorted(world.hosts[one].id for one in hosts))
            async with world.store.write() as tx:
                row = await find_vm(tx, name)
                assert row is not None
                await save_vm_status(tx, replace(row.status, holders=holders))
        async with world.store.read() as tx:
            first = await find_vm(tx, "vm0")
            assert first is not None
            rows = await hosts_of_cluster(tx, first.vm.cluster_id)
            ids = {name: (await find_vm(tx, name)).vm.id for name in names}  # type: ignore[union-attr]  # each was just made
            made = await settings_for(tx, first.vm.cluster_id, rows)
        assert len(made) == 4
        for name, host in world.hosts.items():
            own = [one for one, hosts in zip(names, held_by, strict=True) if name in hosts]
            settings = made[host.id]
            assert [one.vm.name for one in settings.vms] == own
            assert sorted(settings.foreign_vms) == sorted(
                ids[one] for one in names if one not in own
            )

    tell(story)
