"""The default machine type has room for what is plugged while it runs."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from own_libvirtd import OwnLibvirtd
from test_domainxml_accepted import connected
from test_hypervisor_contract import VM

from virtha.domainxml.build import SPARE_PORTS, build_domain
from virtha.domainxml.host_defaults import HostDefaults
from virtha.domainxml.plugging import find_device, plug_xml
from virtha.model.ids import DiskId, StorageDomainId
from virtha.model.machine import MachineType
from virtha.model.vm import Disk, DiskFormat

STORAGE = StorageDomainId("s")


@pytest.mark.lab
@pytest.mark.req("A8")
def test_q35_takes_several_disks_while_it_runs(own_libvirtd: OwnLibvirtd, tmp_path: Path) -> None:
    vm = msgspec.structs.replace(VM, machine=MachineType.Q35)
    defaults = HostDefaults(
        domain_type="qemu",
        serial_directory=str(tmp_path),
        storage_paths={STORAGE: str(tmp_path)},
        buffered_storage=(STORAGE,),
    )
    disks = [
        Disk(
            id=DiskId(f"d{index}"),
            name=f"d{index}",
            storage_domain_id=STORAGE,
            path=f"d{index}.raw",
            format=DiskFormat.RAW,
            size_bytes=1 << 20,
        )
        for index in range(SPARE_PORTS)
    ]
    for disk in disks:
        with (tmp_path / disk.path).open("wb") as file:
            file.truncate(disk.size_bytes)

    async def run() -> None:
        host = await connected(own_libvirtd)
        try:
            await host.define(build_domain(vm, defaults))
            await host.start_paused(vm.id)
            for disk in disks:
                live = await host.xml(vm.id, inactive=False)
                await host.attach(vm.id, plug_xml(live, vm, disk, defaults))
            live = await host.xml(vm.id, inactive=False)
            assert all(find_device(live, disk, defaults) for disk in disks)
        finally:
            await host.destroy(vm.id)
            await host.undefine(vm.id)
            await host.close()

    asyncio.run(asyncio.wait_for(run(), 200))
