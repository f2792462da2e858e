"""Hosts and VMs as the engine takes them (``engine/events.py``). Pure."""

from collections.abc import Collection

from virtha.control.own_machine import OwnMachine
from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.configured import EngineHost, EngineVm
from virtha.model.evidence import ProbeAddress, WatchedDisk
from virtha.model.host import HostStatus
from virtha.model.ids import VmId
from virtha.model.power import PowerLevel
from virtha.model.vm import OnIoError, Vm, VmStatus
from virtha.store.hosts import HostRow


def engine_host(
    row: HostRow,
    *,
    timeline: str,
    defined: Collection[VmId],
    power: tuple[PowerLevel, ...] = (),
    own: OwnMachine = OwnMachine(),
) -> EngineHost:
    """``timeline``: the database's present one. ``defined``: adopted VMs whose domain it has. ``own``: the machine
    that this server runs on."""
    able = row.status.capabilities
    features = {Feature(FeatureKind.ARCHITECTURE, able.architecture)}
    features |= {Feature(FeatureKind.WATCHDOG, model.value) for model in able.watchdog_models}
    features |= {Feature(FeatureKind.BRIDGE, bridge) for bridge in able.bridges}
    features |= {_definition(vm_id) for vm_id in defined}
    return EngineHost(
        host_id=row.host.id,
        name=row.host.name,
        number=row.host.number,
        memory_bytes=able.memory_bytes,
        cpus=able.cpus,
        features=frozenset(features),
        power=power,
        carries_server=own.carries_us(row.status),
        untold=row.timeline != timeline,
        timeline=timeline,
    )


def engine_vm(vm: Vm, status: VmStatus) -> EngineVm:
    features = {Feature(FeatureKind.STORAGE, disk.storage_domain_id) for disk in vm.disks}
    features |= {Feature(FeatureKind.BRIDGE, nic.bridge) for nic in vm.nics}
    features.add(Feature(FeatureKind.ARCHITECTURE, vm.architecture))
    if vm.watchdog is not None:
        features.add(Feature(FeatureKind.WATCHDOG, vm.watchdog.model.value))
    if vm.adopted:
        # It is more than we understand of it: its XML lies on the host that it came with.
        features.add(_definition(vm.id))
    return EngineVm(
        vm_id=vm.id,
        name=vm.name,
        memory_bytes=vm.memory_bytes,
        vcpus=vm.vcpus,
        ha=vm.ha,
        wanted_up=status.wanted_up,
        priority=vm.start_priority,
        kill_on_io_error=vm.on_io_error is OnIoError.KILL,
        grade=vm.grade_max,
        features=frozenset(features),
    )


def written_disks(vm: Vm) -> tuple[WatchedDisk, ...]:
    return tuple(
        WatchedDisk(domain_id=disk.storage_domain_id, path=disk.path)
        for disk in vm.disks
        if not disk.readonly
    )


def probed_at(status: HostStatus) -> tuple[ProbeAddress, ...]:
    told = status.capabilities.probed_at
    return told if isinstance(told, tuple) else ()


def _definition(vm_id: VmId) -> Feature:
    return Feature(FeatureKind.TAG, f"has the domain {vm_id}")
