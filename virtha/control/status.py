"""`virtha status`: am I protected?"""

from virtha.control.protection import is_protected, texts
from virtha.control.views import (
    StatusHost,
    StatusTotals,
    StatusView,
    StatusVm,
    VmView,
)
from virtha.control.vm_views import VmViews
from virtha.model.host import HostState
from virtha.model.value import Fields
from virtha.model.vm import Reason, VmState
from virtha.ports.hosts import HostLinks
from virtha.ports.leaders import Leaders
from virtha.store.clusters import cluster_names
from virtha.store.hosts import HostRow, all_hosts
from virtha.store.installations import the_installation
from virtha.store.store import Store
from virtha.store.vms import VmRow, all_vms


class Status:
    def __init__(self, store: Store, links: HostLinks, leaders: Leaders) -> None:
        self._store = store
        self._views = VmViews(store, links, leaders)

    async def get(self) -> StatusView:
        async with self._store.read() as tx:
            row = await the_installation(tx)
            clusters = await cluster_names(tx)
            host_rows = await all_hosts(tx)
            vm_rows = await all_vms(tx)
            views = await self._views.make(tx, vm_rows)
        hosts = tuple(
            _host(one, clusters[one.host.cluster_id], vm_rows)
            for one in sorted(host_rows, key=lambda row: row.host.name)
        )
        vms = tuple(_vm(view) for view in views)
        hold = row.installation.hold
        verdict, text = _verdict(hosts, vms, views, hold)
        return StatusView(
            installation_name=row.installation.name,
            hold=hold,
            verdict=verdict,
            verdict_text=text,
            totals=_totals(hosts, vms),
            hosts=hosts,
            vms=vms,
            revision=row.revision,
        )


def _host(row: HostRow, cluster_name: str, vm_rows: tuple[VmRow, ...]) -> StatusHost:
    held = [one.vm for one in vm_rows if row.host.id in one.status.holders]
    able = row.status.capabilities
    reasons = host_reasons(row)
    return StatusHost(
        id=row.host.id,
        name=row.host.name,
        cluster_name=cluster_name,
        state=row.status.state,
        gate_in_force=able.gate_in_force,
        libvirt_connected=able.libvirt_connected,
        vms=len(held),
        memory_bytes=able.memory_bytes,
        free_memory_bytes=max(able.memory_bytes - sum(vm.memory_bytes for vm in held), 0),
        reasons=reasons,
        reason_text=texts(reasons),
    )


def host_reasons(row: HostRow) -> tuple[Reason, ...]:
    fields: Fields = {"host": row.host.name}
    able = row.status.capabilities
    match row.status.state:
        case HostState.UNREACHABLE | HostState.NEVER_SEEN:
            return (Reason(code="protection.host_unreachable", fields=fields),)
        case HostState.AGENT_DOWN:
            return (Reason(code="protection.agent_down", fields=fields),)
        case HostState.UP:
            found = []
            if not able.libvirt_connected:
                found.append(Reason(code="protection.libvirt", fields=fields))
            if not able.gate_in_force:
                found.append(Reason(code="protection.gate", fields=fields))
            return tuple(found)


def _vm(view: VmView) -> StatusVm:
    return StatusVm(
        id=view.vm.id,
        name=view.vm.name,
        host_name=view.host_name,
        state=view.status.state,
        ha=view.vm.ha,
        protected=is_protected(view.protection),
        protection=view.protection,
        protection_text=view.protection_text,
    )


def _totals(hosts: tuple[StatusHost, ...], vms: tuple[StatusVm, ...]) -> StatusTotals:
    return StatusTotals(
        hosts=len(hosts),
        hosts_up=sum(host.state is HostState.UP for host in hosts),
        vms=len(vms),
        vms_running=sum(vm.state is VmState.RUNNING for vm in vms),
        vms_ha=sum(vm.ha for vm in vms),
        vms_protected=sum(vm.protected for vm in vms),
    )


def _verdict(
    hosts: tuple[StatusHost, ...],
    vms: tuple[StatusVm, ...],
    views: tuple[VmView, ...],
    hold: str | None,
) -> tuple[str, str]:
    wanted = [vm for vm, view in zip(vms, views, strict=True) if vm.ha and view.status.wanted_up]
    if hold is not None:
        return "unprotected", f"automatic action is on hold: {hold}"
    bare = [vm.name for vm in wanted if not vm.protected]
    if bare:
        return "unprotected", f"not protected: {_some(bare)}"
    ailing = [host.name for host in hosts if host.reasons]
    if ailing:
        return "degraded", f"hosts need a look: {_some(ailing)}"
    if not wanted:
        return "empty", "no VM that should run is marked as highly available"
    weak = [vm.name for vm in wanted if any(one.code != "protection.ok" for one in vm.protection)]
    if weak:
        return "degraded", f"protected, but not against everything: {_some(weak)}"
    return "protected", f"all {len(wanted)} highly available VMs are protected"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
