"""Whether each host's VMs would fit elsewhere if it died now: the engine's own placement, asked beforehand (X5). Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec.structs import replace

from virtha.control.engine_nouns import engine_host, engine_vm
from virtha.control.launch import Surroundings
from virtha.engine.capacity import Capacity, Feature, FeatureKind, HeldVm, TargetHost, Unfit
from virtha.engine.placement import VmToPlace, plan_placements
from virtha.model.host import HostState
from virtha.model.ids import HostId, VmId
from virtha.model.policy import RecoveryPolicy
from virtha.model.time import Millis
from virtha.model.vm import Reason
from virtha.store.hosts import HostRow
from virtha.store.vms import VmRow


def without_room(
    surroundings: Surroundings,
    vms: Sequence[VmRow],
    defined: Mapping[HostId, Collection[VmId]],
    policy: RecoveryPolicy,
    host_ids: Iterable[HostId],
) -> dict[HostId, dict[VmId, tuple[Reason, ...]]]:
    """Of each of ``host_ids``, the highly available VMs that only it may hold and that no other host could take, all of its
    VMs being placed at once; with what each lacks, the nearest to fitting first. ``vms``: all of the cluster; ``defined``: by host, adopted VMs."""
    capacity = Capacity(overcommit_percent=policy.memory_overcommit_percent)
    targets = {
        row.host.id: _target(row, surroundings, defined.get(row.host.id, ()))
        for row in surroundings.hosts
    }
    for target in targets.values():
        capacity.host_changed(target)
    on: dict[HostId, list[VmRow]] = {host_id: [] for host_id in targets}
    for row in vms:
        for host_id in row.status.holders:
            capacity.vm_started(host_id, _held(row))
        if row.vm.ha and row.status.wanted_up and len(row.status.holders) == 1:
            on.setdefault(row.status.holders[0], []).append(row)
    # Starts wait for a slot: that is no want of room.
    patient = replace(policy, reserve_hosts=0)
    found: dict[HostId, dict[VmId, tuple[Reason, ...]]] = {}
    for host_id in host_ids:
        if not on.get(host_id):
            continue
        capacity.host_changed(replace(targets[host_id], unfit=Unfit.DOWN))
        for row in on[host_id]:
            capacity.vm_ended(host_id, row.vm.id)
        plan = plan_placements(
            capacity,
            [_to_place(row) for row in on[host_id]],
            policy=patient,
            now=Millis(0),
            progress={},
            storage_names=surroundings.storage_names,
        )
        if plan.blocked:
            found[host_id] = {one.vm_id: one.reasons for one in plan.blocked}
        for row in on[host_id]:
            capacity.vm_started(host_id, _held(row))
        capacity.host_changed(targets[host_id])
    return found


def _target(row: HostRow, surroundings: Surroundings, defined: Collection[VmId]) -> TargetHost:
    host = engine_host(row, timeline=row.timeline, defined=defined)
    storage = {
        Feature(FeatureKind.STORAGE, domain_id)
        for domain_id in surroundings.storage_names
        if surroundings.usable.get((row.host.id, domain_id), False)
    }
    return TargetHost(
        id=host.host_id,
        name=host.name,
        number=host.number,
        memory_bytes=host.memory_bytes,
        reserved_bytes=host.reserved_bytes,
        cpus=host.cpus,
        features=host.features | storage,
        unfit=_unfit(row, surroundings),
    )


def _unfit(row: HostRow, surroundings: Surroundings) -> Unfit | None:
    able = row.status.capabilities
    if row.status.state is HostState.AGENT_DOWN:
        return Unfit.DISCONNECTED
    if row.status.state is not HostState.UP:
        return Unfit.DOWN
    if row.host.id in surroundings.in_maintenance:
        return Unfit.MAINTENANCE
    if not able.gate_in_force:
        return Unfit.GATE
    return None if able.libvirt_connected else Unfit.LIBVIRT


def _held(row: VmRow) -> HeldVm:
    return HeldVm(id=row.vm.id, memory_bytes=row.vm.memory_bytes)


def _to_place(row: VmRow) -> VmToPlace:
    vm = engine_vm(row.vm, row.status)
    return VmToPlace(
        id=vm.vm_id,
        name=vm.name,
        memory_bytes=vm.memory_bytes,
        vcpus=vm.vcpus,
        priority=vm.priority,
        features=vm.features,
    )
