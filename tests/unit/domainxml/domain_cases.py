"""One VM and host per golden file; also defined in a real libvirtd by tests/contract."""

from pathlib import Path
from typing import Any

from virtha.domainxml.host_defaults import Cpu, CpuMode, HostDefaults, Rng, RngBackend
from virtha.model.host import CephPool
from virtha.model.ids import ClusterId, DiskId, NicId, StorageDomainId, VmId
from virtha.model.machine import MachineType
from virtha.model.vm import Disk, DiskFormat, Nic, Vm
from virtha.model.watchdog import parse_watchdog

GOLDEN = Path(__file__).parent / "golden"

STORE = StorageDomainId("5d0e0000-0000-4000-8000-000000000001")
CEPH = StorageDomainId("5d0e0000-0000-4000-8000-000000000003")
OPEN_CEPH = StorageDomainId("5d0e0000-0000-4000-8000-000000000004")
POOLS = {
    CEPH: CephPool(
        monitors=("10.0.0.11", "10.0.0.12:3300", "[fd00::13]:6789"),
        pool="vms",
        user="virtha",
    ),
    OPEN_CEPH: CephPool(monitors=("ceph.example.org",), pool="vms"),
}
"""With keys and without."""
SCRATCH = StorageDomainId("5d0e0000-0000-4000-8000-000000000002")


def disk(number: int, **changes: Any) -> Disk:
    fields: dict[str, Any] = {
        "id": DiskId(f"d15c0000-0000-4000-8000-{number:012d}"),
        "name": f"disk{number}",
        "storage_domain_id": STORE,
        "path": f"vms/web1/disk{number}.qcow2",
        "size_bytes": 1 << 30,
    }
    return Disk(**(fields | changes))


def nic(number: int, **changes: Any) -> Nic:
    fields: dict[str, Any] = {
        "id": NicId(f"41c00000-0000-4000-8000-{number:012d}"),
        "bridge": "br-test",
        "mac": f"52:54:00:00:00:{number:02x}",
    }
    return Nic(**(fields | changes))


def vm(**changes: Any) -> Vm:
    fields: dict[str, Any] = {
        "id": VmId("6f1c2b52-8f43-4a8c-9a5e-000000000001"),
        "name": "web1",
        "cluster_id": ClusterId("c1"),
        "memory_bytes": 128 << 20,
    }
    return Vm(**(fields | changes))


def host(**changes: Any) -> HostDefaults:
    fields: dict[str, Any] = {
        "domain_type": "qemu",
        "serial_directory": "/var/lib/virtha/agent/serial",
        "storage_paths": {STORE: "/srv/store/", SCRATCH: "/srv/store/scratch"},
    }
    return HostDefaults(**(fields | changes))


CASES: dict[str, tuple[Vm, HostDefaults]] = {
    "minimal": (vm(), host()),
    "q35-ha": (
        vm(
            description='The shop\'s <front> end & "more"',
            vcpus=2,
            ha=True,
            watchdog=parse_watchdog("i6300esb:reset"),
            disks=(disk(1), disk(2, format=DiskFormat.RAW, readonly=True)),
            nics=(nic(1), nic(2, model="e1000e")),
        ),
        host(rng=Rng()),
    ),
    "pc-all-buses": (
        vm(
            machine=MachineType.PC,
            watchdog=parse_watchdog("ib700:inject-nmi"),
            memory_bytes=(64 << 20) + 1,
            disks=(
                disk(1, bus="ide"),
                disk(2, bus="sata"),
                disk(3, bus="scsi"),
                disk(4),
                disk(5, bus="scsi", storage_domain_id=SCRATCH, path="x.qcow2"),
            ),
        ),
        host(rng=Rng(backend=RngBackend.EGD, path="/run/egd.sock", rate_bytes=64)),
    ),
    "host-defaults": (
        vm(disks=(disk(1),)),
        host(
            watchdog=parse_watchdog("i6300esb:pause"),
            cpu=Cpu(features=("aes", "-svm")),
            buffered_storage=(STORE,),
        ),
    ),
    "custom-cpu": (
        vm(),
        host(cpu=Cpu(mode=CpuMode.CUSTOM, model="Nehalem", features=("-vmx",))),
    ),
    "kvm": (vm(), host(domain_type="kvm", cpu=Cpu(mode=CpuMode.HOST_PASSTHROUGH))),
    "ceph": (
        vm(
            disks=(
                disk(1, storage_domain_id=CEPH, path="web1-root", format=DiskFormat.RAW),
                disk(2, storage_domain_id=OPEN_CEPH, path="web1.data", format=DiskFormat.RAW),
            )
        ),
        host(ceph_pools=POOLS),
    ),
    "s390-diag288": (
        vm(
            architecture="s390x",
            machine=MachineType.S390_CCW,
            watchdog=parse_watchdog("diag288:dump"),
            disks=(disk(1),),
            nics=(nic(1),),
        ),
        # Its default card fits no s390 machine and is left out where the VM says nothing.
        host(watchdog=parse_watchdog("ib700:reset"), rng=Rng()),
    ),
}
