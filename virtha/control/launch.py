"""The one way in which a VM gets started by order: placement, incarnation, holder, grant."""

import msgspec

from virtha.control.copies import ordered, unknown_hosts
from virtha.control.effects import Effects, fresh_beat, grant_duration_ms, quoting
from virtha.control.engine_nouns import engine_vm
from virtha.control.known_settings import setting_values
from virtha.control.placement import (
    Beating,
    Candidate,
    Placement,
    choose_host,
    no_host_fits,
    reasons_against,
)
from virtha.control.plan import Launch
from virtha.control.torn import check_not_torn
from virtha.engine.events import CopyGranted
from virtha.model.codes import render
from virtha.model.errors import Refused
from virtha.model.facts import StorageReport
from virtha.model.host import HostState
from virtha.model.ids import (
    BootId,
    ClusterId,
    HostId,
    Incarnation,
    OperationId,
    StorageDomainId,
)
from virtha.model.orders import Grant, Order, StartVm
from virtha.model.time import Millis
from virtha.model.vm import Vm, VmState
from virtha.ports.hosts import HostLinks
from virtha.store.clusters import reports_of, storage_of_cluster
from virtha.store.engine import add_grant, find_vm_record, hosts_in_maintenance
from virtha.store.hosts import HostRow, hosts_of_cluster
from virtha.store.installations import the_installation
from virtha.store.store import Transaction, WriteTransaction
from virtha.store.vms import (
    HeldByHost,
    VmRow,
    add_definition,
    definitions,
    find_vm,
    held_in_cluster,
    save_vm_status,
)

_STOPPED = (VmState.DOWN, VmState.CRASHED, VmState.UNKNOWN)
"""UNKNOWN is judged by its holders, further down."""


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What placement looks at, of one cluster and one snapshot."""

    hosts: tuple[HostRow, ...]
    held: HeldByHost
    storage_names: dict[StorageDomainId, str]
    usable: dict[tuple[HostId, StorageDomainId], bool]
    reports: dict[tuple[HostId, StorageDomainId], StorageReport]
    in_maintenance: frozenset[HostId] = frozenset()

    def memory_used_bytes(self, host_id: HostId, *, without: Vm | None = None) -> int:
        held = self.held.get(host_id, {})
        return sum(
            one.memory_bytes
            for vm_id, one in held.items()
            if without is None or vm_id != without.id
        )


async def read_surroundings(tx: Transaction, cluster_id: ClusterId) -> Surroundings:
    domains = await storage_of_cluster(tx, cluster_id)
    reports = await reports_of(tx, tuple(domain.id for domain in domains))
    return Surroundings(
        hosts=await hosts_of_cluster(tx, cluster_id),
        held=await held_in_cluster(tx, cluster_id),
        storage_names={domain.id: domain.name for domain in domains},
        usable={key: report.usable for key, report in reports.items()},
        reports=reports,
        in_maintenance=await hosts_in_maintenance(tx, cluster_id),
    )


async def only_where_defined(tx: Transaction, vm: Vm, surroundings: Surroundings) -> Surroundings:
    """An adopted VM is more than we understand of it: its XML lies on the host that it came with."""
    if not vm.adopted:
        return surroundings
    known = await definitions(tx, vm.id)
    hosts = tuple(row for row in surroundings.hosts if row.host.id in known)
    return msgspec.structs.replace(surroundings, hosts=hosts)


def candidate_of(
    row: HostRow, surroundings: Surroundings, links: HostLinks, vm: Vm | None, now: Millis
) -> Candidate:
    beats = fresh_beat(links, row, now) is not None
    return Candidate(
        host=row.host,
        connected=row.status.state is HostState.UP and links.agent_connected(row.host.id),
        beating=Beating.YES if beats else Beating.NO,
        capabilities=row.status.capabilities,
        in_maintenance=row.host.id in surroundings.in_maintenance,
        memory_used_bytes=surroundings.memory_used_bytes(row.host.id, without=vm),
        storage_usable={
            domain_id: surroundings.usable.get((row.host.id, domain_id), False)
            for domain_id in surroundings.storage_names
        },
    )


def place(
    vm: Vm,
    surroundings: Surroundings,
    links: HostLinks,
    now: Millis,
    *,
    only: HostId | None = None,
) -> Placement:
    """``now``: this server's monotonic clock; beats are judged by it."""
    candidates = [candidate_of(row, surroundings, links, vm, now) for row in surroundings.hosts]
    return choose_host(vm, candidates, surroundings.storage_names, only=only)


def fits_elsewhere(row: VmRow, surroundings: Surroundings, links: HostLinks, now: Millis) -> bool:
    """Whether a host other than the one that it is on, or was on last, could take it now."""
    return any(
        not reasons_against(
            row.vm,
            candidate_of(other, surroundings, links, row.vm, now),
            surroundings.storage_names,
        )
        for other in surroundings.hosts
        if other.host.id != row.status.host_id
    )


def check_can_start(
    row: VmRow, holder_names: tuple[str, ...], only: HostId | None
) -> HostId | None:
    """The only host that may start it, None: any. Raises Refused.

    While somebody may hold a copy (G1), only that very host may start it: it can't run it twice.
    """
    status = row.status
    if status.state not in _STOPPED:
        raise Refused(
            f"{row.vm.name} is {status.state.value} already",
            code="problem.vm.state",
            fix="look at it with 'virtha vm show'",
        )
    strangers = unknown_hosts(status)
    if strangers:
        # Its records are gone with a restore, or it was removed: nobody can ask it (G4).
        name = f"a host that this installation does not know ({strangers[0].host_id})"
        raise Refused(
            f"{row.vm.name}: {render('host.unfit.holder', {'holder': name})}; it started incarnation "
            f"{strangers[0].incarnation}, which is later than what is recorded here",
            code="host.unfit.holder",
            fix="make sure that the VM runs nowhere; then delete it without its data, and create it anew "
            "with the same disks",
        )
    if not status.holders:
        return only
    holder = status.holders[0]
    if len(status.holders) > 1 or (only is not None and only != holder):
        holders = ", ".join(holder_names)
        raise Refused(
            f"{row.vm.name}: {render('host.unfit.holder', {'holder': holders})}",
            code="host.unfit.holder",
            allowed=holder_names if len(holder_names) == 1 else (),
            fix="bring that host back, or power the VM off there; it may start elsewhere only once "
            "no host can hold a copy",
        )
    return holder


async def check_inventories(tx: Transaction, surroundings: Surroundings) -> None:
    """After a restore nothing starts before every host has said what runs there, and was then heard for as long as a start that
    the lost records knew of may take (M2): the same barrier as the engine's."""
    timeline = (await the_installation(tx)).timeline
    silent = [row.host.name for row in surroundings.hosts if row.settled_timeline != timeline]
    if silent:
        raise Refused(
            render("start.blocked.inventory", {"host": ", ".join(silent)}),
            code="start.blocked.inventory",
            fix="wait a minute for those that are connected; bring the others back, or restart their agents (which touches "
            "no VM); a host that is powered off for good can be removed, with powered_off=true",
        )


class Launcher:
    def __init__(self, links: HostLinks) -> None:
        self._links = links

    async def launch(
        self,
        tx: WriteTransaction,
        effects: Effects,
        step: Launch,
        *,
        operation_id: OperationId,
        index: int,
        by: str,
    ) -> tuple[Launch, HostId, Order]:
        """Raises Refused, with what stands against it per host."""
        row = await find_vm(tx, step.vm_id)
        if row is None:
            raise Refused("the VM was deleted in the meantime", code="problem.vm.state")
        await check_not_torn(tx, row.vm)
        surroundings = await read_surroundings(tx, row.vm.cluster_id)
        await check_inventories(tx, surroundings)
        surroundings = await only_where_defined(tx, row.vm, surroundings)
        names = tuple(
            one.host.name for one in surroundings.hosts if one.host.id in row.status.holders
        )
        only = check_can_start(row, names, step.host_id)
        now = tx.clock.monotonic_ms()
        placement = place(row.vm, surroundings, self._links, now, only=only)
        if placement.chosen is None:
            raise no_host_fits(row.vm, placement)
        host_id = placement.chosen.id
        host = next(one for one in surroundings.hosts if one.host.id == host_id)
        assert host.status.boot is not None, "it is connected"
        # The engine may have counted on: of a start that came to nothing, or one that is being written.
        recorded = await find_vm_record(tx, row.vm.id)
        newest = max(row.status.incarnation, recorded.incarnation if recorded is not None else 0)
        incarnation = Incarnation(newest + 1)
        blank = Grant(
            vm_id=row.vm.id,
            incarnation=incarnation,
            boot=BootId(host.status.boot),
            beat_monotonic_ms=0,
            duration_ms=grant_duration_ms(host, await setting_values(tx)),
        )
        grant = quoting(self._links, host, blank, now)
        if grant is None:
            raise no_host_fits(row.vm, placement)
        status = await save_vm_status(
            tx,
            msgspec.structs.replace(
                # Before the order goes out: from now on that host may hold a copy (G1).
                ordered(row.status, host_id, grant),
                state=VmState.STARTING,
                reasons=(),
                host_id=host_id,
                incarnation=incarnation,
                wanted_up=True,
                guest_agent=None,
                since=tx.clock.wall_ms(),
                restart_count=0,
            ),
        )
        await add_definition(tx, row.vm.id, host_id)
        granted = CopyGranted(
            host_id=host_id, boot=grant.boot, vm_id=row.vm.id, incarnation=incarnation
        )
        await add_grant(tx, granted)
        effects.grant(row.vm.cluster_id, engine_vm(row.vm, status), granted)
        effects.configure(row.vm.cluster_id)
        order = Order(
            operation_id=operation_id,
            step=index,
            term=(await the_installation(tx)).term,
            host_boot=host.status.boot,
            body=StartVm(vm=row.vm, grant=grant, by=by),
        )
        return msgspec.structs.replace(step, incarnation=incarnation), host_id, order
