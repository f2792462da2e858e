"""Which host takes a VM's ordered start; and for each that can't, why not."""

from collections.abc import Mapping, Sequence
from enum import Enum

from virtha.model.codes import render
from virtha.model.errors import Refused
from virtha.model.host import Host, HostCapabilities
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.size import format_size
from virtha.model.value import Value
from virtha.model.vm import Reason, Vm


class Beating(Enum):
    """What stands behind a grant: without a beat of this boot there is none to quote."""

    YES = "yes"
    NO = "no"


class Candidate(Value, frozen=True, kw_only=True):
    host: Host
    connected: bool
    beating: Beating
    capabilities: HostCapabilities
    in_maintenance: bool = False
    memory_used_bytes: int
    """Of all VMs that it may hold, but the one to be placed."""
    storage_usable: Mapping[StorageDomainId, bool]

    @property
    def memory_free_bytes(self) -> int:
        return self.capabilities.memory_bytes - self.memory_used_bytes


class Unfit(Value, frozen=True, kw_only=True):
    host: Host
    reasons: tuple[Reason, ...]


class Placement(Value, frozen=True, kw_only=True):
    chosen: Host | None
    unfit: tuple[Unfit, ...]


def reasons_against(
    vm: Vm, candidate: Candidate, storage_names: Mapping[StorageDomainId, str]
) -> tuple[Reason, ...]:
    """Why this host can't start this VM now; empty: it can. All reasons, not just the first."""
    able = candidate.capabilities
    if not candidate.connected or candidate.beating is Beating.NO:
        # Whatever else is known of it is old.
        return (Reason(code="host.unfit.disconnected"),)
    found: list[Reason] = []
    if candidate.in_maintenance:
        found.append(Reason(code="host.unfit.maintenance"))
    if not able.libvirt_connected:
        found.append(Reason(code="host.unfit.libvirt"))
    if not able.gate_in_force:
        found.append(Reason(code="host.unfit.gate"))
    if able.architecture != vm.architecture:
        found.append(Reason(code="host.unfit.arch", fields={"arch": able.architecture}))
    if candidate.memory_free_bytes < vm.memory_bytes:
        fields: dict[str, str | int | bool | None] = {
            "need": format_size(vm.memory_bytes),
            "free": format_size(max(candidate.memory_free_bytes, 0)),
        }
        found.append(Reason(code="host.unfit.memory", fields=fields))
    if vm.watchdog is not None and vm.watchdog.model not in able.watchdog_models:
        found.append(Reason(code="host.unfit.watchdog", fields={"model": vm.watchdog.model.value}))
    found += [
        Reason(code="host.unfit.storage", fields={"name": storage_names.get(domain_id, domain_id)})
        for domain_id in sorted({disk.storage_domain_id for disk in vm.disks})
        if not candidate.storage_usable.get(domain_id, False)
    ]
    found += [
        Reason(code="host.unfit.bridge", fields={"bridge": bridge})
        for bridge in sorted({nic.bridge for nic in vm.nics} - set(able.bridges))
    ]
    return tuple(found)


def choose_host(
    vm: Vm,
    candidates: Sequence[Candidate],
    storage_names: Mapping[StorageDomainId, str],
    *,
    only: HostId | None = None,
) -> Placement:
    """The fitting host with the most free memory; the lowest number where that is equal."""
    unfit: list[Unfit] = []
    fitting: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: one.host.number):
        if only is not None and candidate.host.id != only:
            continue
        against = reasons_against(vm, candidate, storage_names)
        if against:
            unfit.append(Unfit(host=candidate.host, reasons=against))
        else:
            fitting.append(candidate)
    best = max(fitting, key=lambda one: (one.memory_free_bytes, -one.host.number), default=None)
    return Placement(chosen=best.host if best else None, unfit=tuple(unfit))


def no_host_fits(vm: Vm, placement: Placement) -> Refused:
    """Per host why not."""
    told = [
        f"{one.host.name}: {', '.join(render(reason.code, reason.fields) for reason in one.reasons)}"
        for one in placement.unfit
    ]
    return Refused(
        f"no host can take {vm.name} ({'; '.join(told) if told else 'the cluster has no host'})",
        code="problem.no_host_fits",
        fix="remove one of these obstacles, then start it again",
    )
