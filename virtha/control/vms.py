"""VMs: create, look at, change, give up. Their power is in ``vm_power.py``."""

import builtins
from uuid import uuid4

import msgspec
from msgspec import UNSET

from virtha.control.devices import Devices
from virtha.control.effects import Dispatcher, Effects
from virtha.control.history import changes_between, record
from virtha.control.launch import Surroundings, check_inventories, read_surroundings
from virtha.control.maker import choose_maker
from virtha.control.names import (
    check_limit,
    check_name,
    check_revision,
    check_text,
    page_of,
    taken,
    the_cluster,
    the_host,
    the_vm,
)
from virtha.control.operations import check_nothing_open
from virtha.control.pending import without_pending
from virtha.control.plan import DropRecord, Give, Launch, Plan, Step
from virtha.control.requests import VmChange, VmCreate, VmQuery, VmStart, WatchdogRequest
from virtha.control.runner import Runner
from virtha.control.searching import page_of_search
from virtha.control.views import Caller, Page, VmView
from virtha.control.vm_checks import (
    IMAGES,
    PlannedDisk,
    capabilities_of,
    check_first_watchdog,
    check_mac_free,
    check_machine,
    check_sizes,
    check_watchdog,
    checked_priority,
    limit_of,
    plan_disks,
    plan_nics,
)
from virtha.control.vm_power import VmPower
from virtha.control.vm_views import VmViews
from virtha.model.errors import NotFound, Refused
from virtha.model.host import Host
from virtha.model.ids import Incarnation, Revision, VmId
from virtha.model.operation import Operation
from virtha.model.orders import CreateDisk, DefineVm, ForgetVm, ReleaseVm
from virtha.model.template import DIRECTORY
from virtha.model.vm import Vm, VmStatus
from virtha.ports.hosts import HostLinks
from virtha.ports.leaders import Leaders
from virtha.store.engine import find_vm_record
from virtha.store.events import EventFilter, events_before
from virtha.store.search_fields import VMS
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import (
    VmFilter,
    VmRow,
    definitions,
    find_vm,
    save_vm,
    save_vm_status,
    vm_conditions,
    vm_of_disk,
    vms_after,
    vms_with_ids,
)

LAST_EVENTS = 10


def _new_id() -> str:
    return str(uuid4())


_CHANGED_AS_THEY_ARE = (
    "name",
    "description",
    "memory_bytes",
    "vcpus",
    "machine",
    "ha",
    "on_io_error",
)


class Vms:
    def __init__(
        self,
        store: Store,
        links: HostLinks,
        runner: Runner,
        dispatcher: Dispatcher,
        leaders: Leaders,
    ) -> None:
        self._store = store
        self._links = links
        self._runner = runner
        self._dispatcher = dispatcher
        self._views = VmViews(store, links, leaders)
        self._power = VmPower(store, runner, dispatcher)
        self.devices = Devices(store, runner, dispatcher, self._maker)

    async def list(self, query: VmQuery) -> Page[VmView]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            wanted = VmFilter(
                cluster_id=(await the_cluster(tx, query.cluster, field="cluster")).id
                if query.cluster is not None
                else None,
                host_id=(await the_host(tx, query.host, field="host")).host.id
                if query.host is not None
                else None,
                state=query.state,
                ha=query.ha,
            )
            if query.search is not None:
                rows, after = await self._search(tx, query.search, query, wanted)
            else:
                found = await vms_after(tx, wanted, query.after or "", limit + 1)
                rows, more = page_of(found, limit)
                after = rows[-1].vm.name if more else None
            return Page(
                items=await self._views.make(tx, rows),
                revision=await tx.revision_now(),
                next=after,
            )

    async def _search(
        self, tx: Transaction, text: str, query: VmQuery, wanted: VmFilter
    ) -> tuple[tuple[VmRow, ...], str | None]:
        """The rows of one page, and its cursor."""
        keys = await page_of_search(
            tx,
            VMS,
            text,
            query,
            now=self._store.clock.wall_ms(),
            besides=lambda rows: vm_conditions(wanted, rows["vm"], rows["vm_status"]),
        )
        by_id = {row.vm.id: row for row in await vms_with_ids(tx, tuple(map(VmId, keys.ids)))}
        return tuple(by_id[VmId(one)] for one in keys.ids), keys.next

    async def get(self, ref: str) -> VmView:
        async with self._store.read() as tx:
            return await self._view(tx, await the_vm(tx, ref))

    async def with_disk(self, disk_id: str) -> VmView | None:
        """The VM that a disk belongs to; None: it is no VM's."""
        async with self._store.read() as tx:
            vm_id = await vm_of_disk(tx, disk_id)
            return await self._view(tx, await the_vm(tx, vm_id)) if vm_id is not None else None

    async def _view(self, tx: Transaction, row: VmRow) -> VmView:
        events = await events_before(tx, EventFilter(vm_id=row.vm.id), None, LAST_EVENTS)
        return await self._views.make_one(tx, row, tuple(events))

    # create

    async def create(self, caller: Caller, request: VmCreate) -> Operation:
        """Make its disks on a host, let libvirt check its domain there, start it if that is wanted."""
        effects = Effects()
        async with self._store.write() as tx:
            cluster = await the_cluster(tx, request.cluster, field="cluster")
            surroundings = await read_surroundings(tx, cluster.id)
            vm_id = VmId(_new_id())
            await self._check_new(tx, request, surroundings)
            disks = await plan_disks(
                tx, request, vm_id=vm_id, cluster_id=cluster.id, make_id=_new_id
            )
            vm = Vm(
                id=vm_id,
                name=request.name,
                cluster_id=cluster.id,
                description=request.description,
                memory_bytes=request.memory_bytes,
                vcpus=request.vcpus,
                architecture=request.architecture,
                machine=request.machine,
                watchdog=check_watchdog(
                    request.watchdog,
                    request.architecture,
                    request.machine,
                    capabilities_of(surroundings),
                )
                if request.watchdog is not None
                else None,
                ha=request.ha,
                priority=checked_priority(request.priority),
                grade=limit_of(request.grade),
                on_io_error=request.on_io_error,
                disks=tuple(planned.disk for planned in disks),
                nics=await plan_nics(tx, request.nics, make_id=_new_id),
            )
            maker = self._maker(vm, surroundings)
            await save_vm(tx, vm)
            await save_vm_status(
                tx, VmStatus(vm_id=vm.id, host_id=maker.id, since=tx.clock.wall_ms())
            )
            effects.configure(cluster.id)
            operation = await self._runner.begin(
                tx,
                effects,
                kind="vm.create",
                subject=vm.id,
                by=caller.name,
                plan=_creation(vm, disks, maker, start=request.start),
            )
            told = changes_between(None, vm)
            await record(tx, "vm.created", vm=vm, operation_id=operation.id, by=caller.name, **told)
        await self._dispatcher.carry_out(effects)
        return operation

    async def _check_new(
        self, tx: Transaction, request: VmCreate, surroundings: Surroundings
    ) -> None:
        check_name(request.name)
        if await find_vm(tx, request.name) is not None:
            raise taken("VM", request.name)
        check_text(request.description, field="description")
        check_machine(request.architecture, request.machine)
        check_sizes(request.memory_bytes, request.vcpus, capabilities_of(surroundings))

    def _maker(self, vm: Vm, surroundings: Surroundings) -> Host:
        return choose_maker(vm, surroundings, self._links, self._store.clock.monotonic_ms())

    # change

    async def change(
        self, caller: Caller, ref: str, request: VmChange, if_match: Revision | None = None
    ) -> VmView:
        """Applies to a running VM at its next start, but for name, description, ha, priority, grade and on_io_error."""
        return await self._change(caller, ref, request, if_match)

    async def _change(
        self,
        caller: Caller,
        ref: str,
        request: VmChange,
        if_match: Revision | None,
        *,
        first_watchdog: bool = False,
    ) -> VmView:
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_vm(tx, ref)
            check_revision(if_match, row.vm.revision)
            await check_nothing_open(tx, row.vm.id, "a change")
            if first_watchdog:
                check_first_watchdog(row.vm.watchdog, owner=row.vm.name)
            changed = await self._changed(tx, row.vm, request)
            if changed != row.vm:
                saved = await save_vm(tx, changed)
                told = changes_between(row.vm, saved)
                await record(tx, "vm.changed", vm=saved, by=caller.name, **told)
                effects.configure(saved.cluster_id)
                await self._define(tx, effects, caller, row, saved)
            row = await the_vm(tx, row.vm.id)
        await self._dispatcher.carry_out(effects)
        async with self._store.read() as reading:
            return await self._view(reading, row)

    async def drop_pending(
        self, caller: Caller, ref: str, if_match: Revision | None = None
    ) -> VmView:
        """The record is again what runs, but for disks; nothing of the running VM changes."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_vm(tx, ref)
            check_revision(if_match, row.vm.revision)
            await check_nothing_open(tx, row.vm.id, "a change")
            kept = without_pending(row)
            for nic in kept.nics:
                await check_mac_free(tx, nic, row.vm)
            if kept != row.vm:
                saved = await save_vm(tx, kept)
                told = changes_between(row.vm, saved)
                await record(tx, "vm.pending_dropped", vm=saved, by=caller.name, **told)
                effects.configure(saved.cluster_id)
                await self._define(tx, effects, caller, row, saved)
            row = await the_vm(tx, row.vm.id)
        await self._dispatcher.carry_out(effects)
        async with self._store.read() as reading:
            return await self._view(reading, row)

    async def _changed(self, tx: Transaction, vm: Vm, request: VmChange) -> Vm:
        wanted = {
            name: value
            for name in _CHANGED_AS_THEY_ARE
            if (value := getattr(request, name)) is not UNSET
        }
        changed = msgspec.structs.replace(vm, **wanted)
        if changed.name != vm.name:
            check_name(changed.name)
            if await find_vm(tx, changed.name) is not None:
                raise taken("VM", changed.name)
        check_text(changed.description, field="description")
        if request.priority is not UNSET:
            priority = checked_priority(request.priority)
            changed = msgspec.structs.replace(changed, priority=priority)
        if request.grade is not UNSET:
            changed = msgspec.structs.replace(changed, grade=limit_of(request.grade))
        able = capabilities_of(await read_surroundings(tx, vm.cluster_id))
        if (changed.memory_bytes, changed.vcpus) != (vm.memory_bytes, vm.vcpus):
            check_sizes(changed.memory_bytes, changed.vcpus, able)
        if request.nics is not UNSET:
            nics = await plan_nics(tx, request.nics, make_id=_new_id, present=vm.nics)
            changed = msgspec.structs.replace(changed, nics=nics)
        watchdog = request.watchdog
        if watchdog is UNSET and changed.machine is not vm.machine and vm.watchdog is not None:
            # The card stays: it must fit the new machine, too.
            watchdog = WatchdogRequest(model=vm.watchdog.model, action=vm.watchdog.action)
        check_machine(changed.architecture, changed.machine)
        if watchdog is None:
            return msgspec.structs.replace(changed, watchdog=None)
        if watchdog is not UNSET:
            card = check_watchdog(watchdog, changed.architecture, changed.machine, able)
            return msgspec.structs.replace(changed, watchdog=card)
        return changed

    async def _define(
        self, tx: WriteTransaction, effects: Effects, caller: Caller, before: VmRow, vm: Vm
    ) -> None:
        """Where it is held, a local restart (A8) must find the new configuration."""
        steps = tuple(
            Give(name="define the changed domain", host_id=host_id, order=DefineVm(vm=vm))
            for host_id in before.status.holders
        )
        if steps:
            await self._runner.begin(
                tx,
                effects,
                kind="vm.define",
                subject=vm.id,
                by=caller.name,
                plan=Plan(steps=steps),
            )

    # watchdog

    async def with_watchdog(self, ref: str) -> Vm:
        """Raises NotFound: it has none."""
        async with self._store.read() as tx:
            vm = (await the_vm(tx, ref)).vm
        if vm.watchdog is None:
            raise NotFound(
                f"{vm.name} has no watchdog of its own", fix="its host's default applies, if any"
            )
        return vm

    async def add_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None = None
    ) -> VmView:
        """Raises Conflict (`problem.watchdog.second`)."""
        change = VmChange(watchdog=request)
        return await self._change(caller, ref, change, if_match, first_watchdog=True)

    async def put_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None = None
    ) -> VmView:
        return await self._change(caller, ref, VmChange(watchdog=request), if_match)

    async def remove_watchdog(
        self, caller: Caller, ref: str, if_match: Revision | None = None
    ) -> VmView:
        await self.with_watchdog(ref)
        return await self._change(caller, ref, VmChange(watchdog=None), if_match)

    # delete and release

    async def delete(
        self,
        caller: Caller,
        ref: str,
        *,
        delete_data: bool = False,
        if_match: Revision | None = None,
    ) -> Operation:
        """Its disks' files stay, unless ``delete_data``: then all that it writes to goes, read-only disks stay.

        Ended half way, by a host's or the server's end, it goes on by itself; failed, it is asked for again.
        """
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_vm(tx, ref)
            check_revision(if_match, row.vm.revision)
            await check_nothing_open(tx, row.vm.id, f"deleting {row.vm.name}", starts=True)
            if row.status.holders:
                raise Refused(
                    f"{row.vm.name} is {row.shown.value}, or a host may still hold it",
                    code="problem.vm.state",
                    fix=f"power it off first: 'virtha vm power-off {row.vm.name}'",
                )
            if delete_data:
                await _check_data(tx, row)
            steps = await self._deletion(tx, row, delete_data=delete_data)
            operation = await self._runner.begin(
                tx,
                effects,
                kind="vm.delete",
                subject=row.vm.id,
                by=caller.name,
                plan=Plan(steps=steps),
            )
        await self._dispatcher.carry_out(effects)
        return operation

    async def _deletion(
        self, tx: Transaction, row: VmRow, *, delete_data: bool
    ) -> tuple[Step, ...]:
        """Forget the domain on each host that has it and answers; one of them deletes the disks.

        On a host that does not answer a definition is left behind, which its gate never lets start.
        """
        surroundings = await read_surroundings(tx, row.vm.cluster_id)
        disks = tuple(disk for disk in row.vm.disks if delete_data and not disk.readonly)
        eraser = self._maker(row.vm, surroundings).id if disks else None
        known = await definitions(tx, row.vm.id)
        hosts = [
            host_id
            for host_id in known
            if self._links.agent_connected(host_id) and host_id != eraser
        ]
        steps: builtins.list[Step] = [
            Give(
                name="remove its domain",
                host_id=host_id,
                order=ForgetVm(vm_id=row.vm.id),
                optional=True,
            )
            for host_id in hosts
        ]
        if eraser is not None:
            recorded = await find_vm_record(tx, row.vm.id)
            newest = max(
                row.status.incarnation, recorded.incarnation if recorded is not None else 0
            )
            order = ForgetVm(vm_id=row.vm.id, disks=disks, incarnation=Incarnation(newest))
            steps.append(Give(name="delete its disks", host_id=eraser, order=order))
        steps.append(DropRecord(name="forget it", vm_id=row.vm.id, code="vm.deleted"))
        return tuple(steps)

    async def release(self, caller: Caller, ref: str) -> Operation:
        """Give an adopted VM back to its host's administrator: nothing stops."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_vm(tx, ref)
            await check_nothing_open(tx, row.vm.id, f"releasing {row.vm.name}", starts=True)
            host_id = row.status.holders[0] if row.status.holders else row.status.host_id
            if not row.vm.adopted or host_id is None:
                raise Refused(
                    f"{row.vm.name} was created by virtha, not adopted",
                    code="problem.vm.state",
                    fix="delete it; its disks stay unless delete_data is said",
                )
            if len(row.status.holders) > 1:
                raise Refused(
                    f"several hosts may hold {row.vm.name}",
                    code="problem.vm.state",
                    fix="power it off first",
                )
            operation = await self._runner.begin(
                tx,
                effects,
                kind="vm.release",
                subject=row.vm.id,
                by=caller.name,
                plan=Plan(
                    steps=(
                        Give(
                            name="give its domain back",
                            host_id=host_id,
                            order=ReleaseVm(vm_id=row.vm.id),
                        ),
                        DropRecord(
                            name="forget it",
                            vm_id=row.vm.id,
                            code="vm.released",
                            host_id=host_id,
                        ),
                    )
                ),
            )
        await self._dispatcher.carry_out(effects)
        return operation

    # power

    async def start(self, caller: Caller, ref: str, request: VmStart) -> Operation:
        return await self._power.start(caller, ref, request)

    async def shutdown(self, caller: Caller, ref: str) -> Operation:
        return await self._power.shutdown(caller, ref)

    async def power_off(self, caller: Caller, ref: str) -> Operation:
        return await self._power.power_off(caller, ref)

    async def reboot(self, caller: Caller, ref: str) -> Operation:
        return await self._power.reboot(caller, ref)

    async def reset(self, caller: Caller, ref: str) -> Operation:
        return await self._power.reset(caller, ref)

    async def pause(self, caller: Caller, ref: str) -> Operation:
        return await self._power.pause(caller, ref)

    async def resume(self, caller: Caller, ref: str) -> Operation:
        return await self._power.resume(caller, ref)


async def _check_data(tx: Transaction, row: VmRow) -> None:
    """Raises Refused: a copy that nobody here knows may still write, or the data is not the VM's alone (M2, G1)."""
    await check_inventories(tx, await read_surroundings(tx, row.vm.cluster_id))
    if row.status.copies:
        raise Refused(
            f"a host that this installation does not know may still hold {row.vm.name}",
            code="problem.vm.state",
            fix="make sure that it runs nowhere; delete the VM without its data, and its files by hand",
        )
    for disk in row.vm.disks:
        if disk.path.split("/")[0] in (DIRECTORY, IMAGES):
            raise Refused(
                f"{disk.path} is a template's or an image: others need it",
                code="problem.disk.outside",
                fix="delete the VM without its data",
            )


def _creation(vm: Vm, disks: tuple[PlannedDisk, ...], maker: Host, *, start: bool) -> Plan:
    steps: builtins.list[Step] = [
        Give(
            name=f"create {planned.disk.name}",
            host_id=maker.id,
            order=CreateDisk(disk=planned.disk, image=planned.image),
        )
        for planned in disks
        if planned.create
    ]
    steps.append(Give(name=f"define on {maker.name}", host_id=maker.id, order=DefineVm(vm=vm)))
    if start:
        steps.append(Launch(name="start", vm_id=vm.id))
    made = tuple(planned.disk for planned in disks if planned.create)
    return Plan(
        steps=tuple(steps),
        on_failure=(
            Give(
                name="remove what was made",
                host_id=maker.id,
                order=ForgetVm(vm_id=vm.id, disks=made),
                optional=True,
            ),
            DropRecord(name="forget it", vm_id=vm.id, code="vm.deleted"),
        ),
    )
