"""Disks of a running domain: they grow, and snapshots inside them are of all disks or of none, by real libvirt and QEMU."""

import asyncio
import subprocess
from pathlib import Path

import msgspec
import pytest
from own_libvirtd import OwnLibvirtd
from test_domainxml_accepted import connected
from test_hypervisor_contract import VM

from virtha.domainxml.build import build_domain, disk_path
from virtha.domainxml.host_defaults import HostDefaults
from virtha.domainxml.plugging import plug_xml
from virtha.model.ids import DiskId, StorageDomainId
from virtha.model.machine import MachineType
from virtha.model.vm import Disk
from virtha.ports.hypervisor import HypervisorFailed

STORAGE = StorageDomainId("s")
MIB = 1 << 20


def _disk(name: str) -> Disk:
    return Disk(
        id=DiskId(name),
        name=name,
        storage_domain_id=STORAGE,
        path=f"{name}.qcow2",
        size_bytes=4 * MIB,
    )


@pytest.mark.lab
@pytest.mark.req("G1")
@pytest.mark.parametrize("buffered", [True, False])
def test_disks_grow_and_get_snapshots_while_they_run(
    own_libvirtd: OwnLibvirtd, tmp_path: Path, buffered: bool
) -> None:
    disks = (_disk("one"), _disk("two"))
    vm = msgspec.structs.replace(VM, machine=MachineType.Q35, disks=disks)
    defaults = HostDefaults(
        domain_type="qemu",
        serial_directory=str(tmp_path),
        storage_paths={STORAGE: str(tmp_path)},
        buffered_storage=(STORAGE,) if buffered else (),
    )
    plugged = _disk("plugged")
    base = str(tmp_path / "base.qcow2")
    for command in (
        ["-f", "qcow2", base, "4M"],
        ["-f", "qcow2", disk_path(disks[0], defaults), "4M"],
        # A thin disk: it keeps what differs from another.
        ["-f", "qcow2", "-F", "qcow2", "-b", base, disk_path(disks[1], defaults)],
        ["-f", "qcow2", disk_path(plugged, defaults), "4M"],
    ):
        subprocess.run(["qemu-img", "create", "-q", *command], check=True)
    one, two, three = (disk_path(disk, defaults) for disk in (*disks, plugged))

    async def run() -> None:
        host = await connected(own_libvirtd)
        try:
            await host.define(build_domain(vm, defaults))
            with pytest.raises(HypervisorFailed):
                await host.live_disks(vm.id)
            await host.start_paused(vm.id)
            live = await host.xml(vm.id, inactive=False)
            await host.attach(vm.id, plug_xml(live, vm, plugged, defaults))
            found = {disk.path: disk for disk in await host.live_disks(vm.id)}
            assert set(found) == {one, two, three}
            assert {disk.size_bytes for disk in found.values()} == {4 * MIB}

            await host.make_snapshot(vm.id, (one, two, three), "first")
            with pytest.raises(HypervisorFailed, match="first"):
                # QEMU takes two of that name on none: all or none.
                await host.make_snapshot(vm.id, (one, two), "first")
            await host.delete_snapshot(vm.id, one, "first")
            with pytest.raises(HypervisorFailed, match="first"):
                await host.make_snapshot(vm.id, (one, two), "first")
            found = {disk.path: disk for disk in await host.live_disks(vm.id)}
            assert found[one].snapshots == frozenset(), "the first of them did not get it either"
            for path in (one, two, three):
                await host.delete_snapshot(vm.id, path, "first")  # absent is done already
            assert not any(disk.snapshots for disk in await host.live_disks(vm.id))

            await host.grow_disk(vm.id, one, 8 * MIB)
            await host.grow_disk(vm.id, two, 8 * MIB)
            await host.grow_disk(vm.id, three, 8 * MIB)
            sizes = {disk.path: disk.size_bytes for disk in await host.live_disks(vm.id)}
            assert sizes == dict.fromkeys((one, two, three), 8 * MIB)
            with pytest.raises(HypervisorFailed, match=r"other\.qcow2"):
                await host.make_snapshot(vm.id, (str(tmp_path / "other.qcow2"),), "second")
        finally:
            await host.destroy(vm.id)
            await host.undefine(vm.id)
            await host.close()

    asyncio.run(asyncio.wait_for(run(), 120))
