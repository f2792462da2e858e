"""Templates: made from VMs that are down, looked at, deleted. VMs from them: ``vm_from_template.py``."""

from collections.abc import Collection, Mapping
from uuid import uuid4

import msgspec
from msgspec import UNSET

from virtha.control.effects import Dispatcher, Effects
from virtha.control.history import changes_between, record
from virtha.control.launch import Surroundings, read_surroundings
from virtha.control.maker import choose_maker
from virtha.control.names import (
    check_limit,
    check_name,
    check_revision,
    check_text,
    page_of,
    taken,
    the_template,
    the_vm,
)
from virtha.control.operations import check_nothing_open
from virtha.control.plan import DropTemplate, Give, Plan, ReadyTemplate, Step
from virtha.control.requests import SearchQuery, TemplateCreate, VmFromTemplate, WatchdogRequest
from virtha.control.runner import Runner
from virtha.control.searching import page_of_search
from virtha.control.torn import check_not_torn
from virtha.control.views import Caller, Page, TemplateView
from virtha.control.vm_checks import capabilities_of, check_first_watchdog, check_watchdog
from virtha.control.vm_from_template import plan_vm
from virtha.model.errors import Conflict, NotFound, Refused
from virtha.model.ids import DiskId, Revision, TemplateId, VmId
from virtha.model.operation import Operation
from virtha.model.orders import CopyDisk, DeleteTemplate
from virtha.model.template import DIRECTORY, Template, TemplateNic, TemplateState
from virtha.model.time import UtcMillis
from virtha.model.vm import Disk, Vm, VmState
from virtha.model.watchdog import Watchdog
from virtha.ports.hosts import HostLinks
from virtha.store.body import bodies_with_ids
from virtha.store.clusters import find_cluster
from virtha.store.operations import open_operations_of
from virtha.store.schema import template as template_table
from virtha.store.search_fields import TEMPLATES
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.templates import (
    find_template,
    save_template,
    template_users,
    templates_after,
    templates_of_vms,
)
from virtha.store.vms import VmRow

USERS_NAMED_MAX = 10
VMS_NAMED_MAX = 500
"""Asked for one by one; of more, all are read at once."""


def _new_id() -> str:
    return str(uuid4())


class Templates:
    def __init__(
        self, store: Store, links: HostLinks, runner: Runner, dispatcher: Dispatcher
    ) -> None:
        self._store = store
        self._links = links
        self._runner = runner
        self._dispatcher = dispatcher

    async def list(self, query: SearchQuery) -> Page[TemplateView]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            if query.search is not None:
                now = self._store.clock.wall_ms()
                ids, after = await page_of_search(tx, TEMPLATES, query.search, query, now=now)
                rows = await bodies_with_ids(tx, template_table, Template, ids)
            else:
                found = await templates_after(tx, query.after or "", limit + 1)
                rows, more = page_of(found, limit)
                after = rows[-1].name if more else None
            return Page(
                items=tuple([await _view(tx, row) for row in rows]),
                revision=await tx.revision_now(),
                next=after,
            )

    async def get(self, ref: str) -> TemplateView:
        async with self._store.read() as tx:
            return await _view(tx, await the_template(tx, ref))

    async def of_vms(self, ids: Collection[VmId]) -> Mapping[VmId, TemplateId]:
        """Which of them need a template for as long as they have their disks: thin ones."""
        async with self._store.read() as tx:
            return await templates_of_vms(tx, ids if len(ids) <= VMS_NAMED_MAX else None)

    async def create(self, caller: Caller, request: TemplateCreate) -> Operation:
        """Copy the disks of a VM that is down, in full; until that is done nothing else is done with it.

        The operation's subject is the VM. Raises Refused (`problem.vm.state`) where it runs or may start.
        """
        effects = Effects()
        async with self._store.write() as tx:
            check_name(request.name)
            if await find_template(tx, request.name) is not None:
                raise taken("template", request.name)
            check_text(request.description, field="description")
            row = await the_vm(tx, request.vm, field="vm")
            vm = row.vm
            await check_nothing_open(tx, vm.id, f"making a template of {vm.name}", starts=True)
            check_is_down(row)
            await check_not_torn(tx, vm)
            template = _template_of(vm, request, created=tx.clock.wall_ms())
            surroundings = await read_surroundings(tx, vm.cluster_id)
            if request.watchdog is not UNSET:
                card = _checked_card(template, request.watchdog, surroundings)
                template = msgspec.structs.replace(template, watchdog=card)
            maker = choose_maker(vm, surroundings, self._links, tx.clock.monotonic_ms())
            await save_template(tx, template)
            copies: list[Step] = [
                Give(
                    name=f"copy {disk.name}",
                    host_id=maker.id,
                    order=CopyDisk(
                        source=disk,
                        target=sealed,
                        sealed=True,
                        vm_id=vm.id,
                        incarnation=row.status.incarnation,
                    ),
                )
                for disk, sealed in zip(vm.disks, template.disks, strict=True)
            ]
            ready = ReadyTemplate(name="make it ready", template_id=template.id)
            removal = DeleteTemplate(template_id=template.id, disks=template.disks)
            operation = await self._runner.begin(
                tx,
                effects,
                kind="template.create",
                subject=vm.id,
                by=caller.name,
                plan=Plan(
                    steps=(*copies, ready),
                    on_failure=(
                        Give(
                            name="remove what was made",
                            host_id=maker.id,
                            order=removal,
                            optional=True,
                        ),
                        DropTemplate(name="forget it", template_id=template.id),
                    ),
                ),
            )
        await self._dispatcher.carry_out(effects)
        return operation

    async def create_vm(self, caller: Caller, ref: str, request: VmFromTemplate) -> Operation:
        """The operation's subject is the new VM's id."""
        effects = Effects()
        async with self._store.write() as tx:
            template = await the_template(tx, ref)
            _check_ready(template)
            vm, plan = await plan_vm(tx, template, request, self._links, make_id=_new_id)
            effects.configure(vm.cluster_id)
            operation = await self._runner.begin(
                tx, effects, kind="vm.create", subject=vm.id, by=caller.name, plan=plan
            )
            told = changes_between(None, vm)
            await record(tx, "vm.created", vm=vm, operation_id=operation.id, by=caller.name, **told)
        await self._dispatcher.carry_out(effects)
        return operation

    # watchdog: what VMs that are made from now on get; those that were made already keep theirs

    async def with_watchdog(self, ref: str) -> Template:
        """Raises NotFound: it has none."""
        async with self._store.read() as tx:
            template = await the_template(tx, ref)
        if template.watchdog is None:
            raise _has_no_watchdog(template)
        return template

    async def add_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None = None
    ) -> TemplateView:
        """Raises Conflict (`problem.watchdog.second`): it has one."""
        return await self._set_watchdog(caller, ref, request, if_match, first=True)

    async def put_watchdog(
        self, caller: Caller, ref: str, request: WatchdogRequest, if_match: Revision | None = None
    ) -> TemplateView:
        return await self._set_watchdog(caller, ref, request, if_match)

    async def remove_watchdog(
        self, caller: Caller, ref: str, if_match: Revision | None = None
    ) -> TemplateView:
        return await self._set_watchdog(caller, ref, None, if_match)

    async def _set_watchdog(
        self,
        caller: Caller,
        ref: str,
        request: WatchdogRequest | None,
        if_match: Revision | None,
        *,
        first: bool = False,
    ) -> TemplateView:
        """Raises NotFound: there is none to be removed; Conflict: the template is not ready."""
        async with self._store.write() as tx:
            template = await the_template(tx, ref)
            check_revision(if_match, template.revision)
            _check_ready(template)
            if request is None and template.watchdog is None:
                raise _has_no_watchdog(template)
            if first:
                check_first_watchdog(template.watchdog, owner=f"template {template.name}")
            surroundings = await read_surroundings(tx, template.cluster_id)
            card = _checked_card(template, request, surroundings)
            if card != template.watchdog:
                present = template
                template = await save_template(tx, msgspec.structs.replace(template, watchdog=card))
                await record(
                    tx,
                    "template.changed",
                    cluster_id=template.cluster_id,
                    by=caller.name,
                    name=template.name,
                    **changes_between(present, template),
                )
            return await _view(tx, template)

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> Operation:
        """Raises Refused (`problem.template.in_use`), which names who needs it."""
        effects = Effects()
        async with self._store.write() as tx:
            template = await the_template(tx, ref)
            check_revision(if_match, template.revision)
            await _check_unused(tx, template)
            operation = await self._delete(tx, effects, caller, template)
        await self._dispatcher.carry_out(effects)
        return operation

    async def _delete(
        self, tx: WriteTransaction, effects: Effects, caller: Caller, template: Template
    ) -> Operation:
        steps: tuple[Step, ...] = (
            DropTemplate(name="forget it", template_id=template.id, code="template.deleted"),
        )
        if template.disks:
            surroundings = await read_surroundings(tx, template.cluster_id)
            maker = choose_maker(
                _as_vm(template), surroundings, self._links, tx.clock.monotonic_ms()
            )
            order = DeleteTemplate(template_id=template.id, disks=template.disks)
            give = Give(name="delete its disks", host_id=maker.id, order=order)
            steps = (give, *steps)
        # Before the order goes out: one that comes late finds no VM that was made from it meanwhile.
        await save_template(tx, msgspec.structs.replace(template, state=TemplateState.DELETING))
        return await self._runner.begin(
            tx,
            effects,
            kind="template.delete",
            subject=template.id,
            by=caller.name,
            plan=Plan(steps=steps),
        )


def check_is_down(row: VmRow) -> None:
    """Raises Refused unless nothing writes to its disks, and nothing by itself will."""
    vm, status = row.vm, row.status
    if vm.adopted:
        raise Refused(
            f"{vm.name} was adopted: its domain is more than a template can hold",
            code="problem.vm.state",
            field="vm",
            fix="create a VM with copies of its disks, and make the template from that",
        )
    if status.holders or status.copies or status.state is not VmState.DOWN:
        raise Refused(
            f"{vm.name} is {row.shown.value}, or a host may still hold it: its disks must stand still for this",
            code="problem.vm.state",
            field="vm",
            fix=f"shut it down first: 'virtha vm shutdown {vm.name}'",
        )
    if status.wanted_up:
        raise Refused(
            f"{vm.name} is down but wanted up: it may be started at any moment",
            code="problem.vm.state",
            field="vm",
            fix=f"say that it is to stay down: 'virtha vm power-off {vm.name}'",
        )


def _template_of(vm: Vm, request: TemplateCreate, *, created: UtcMillis) -> Template:
    template_id = TemplateId(_new_id())
    return Template(
        id=template_id,
        name=request.name,
        cluster_id=vm.cluster_id,
        description=request.description,
        source_vm=vm.name,
        memory_bytes=vm.memory_bytes,
        vcpus=vm.vcpus,
        architecture=vm.architecture,
        machine=vm.machine,
        watchdog=vm.watchdog,
        ha=vm.ha,
        priority=vm.start_priority,
        on_io_error=vm.on_io_error,
        disks=tuple(_sealed(disk, template_id) for disk in vm.disks),
        nics=tuple(
            TemplateNic(bridge=nic.bridge, model=nic.model, name=nic.name) for nic in vm.nics
        ),
        created=created,
    )


def _sealed(disk: Disk, template_id: TemplateId) -> Disk:
    return msgspec.structs.replace(
        disk,
        id=DiskId(_new_id()),
        path=f"{DIRECTORY}/{template_id}/{disk.name}.{disk.format.value}",
    )


def _check_ready(template: Template) -> None:
    if template.state is TemplateState.READY:
        return
    raise Conflict(
        f"template {template.name} is not ready: it is {template.state.value}",
        code="problem.template.state",
        field="template",
        fix="wait until it is ready"
        if template.state is TemplateState.CREATING
        else "choose another one",
    )


async def _check_unused(tx: Transaction, template: Template) -> None:
    if template.state is TemplateState.CREATING or await open_operations_of(tx, template.id):
        raise Conflict(
            f"template {template.name} is {template.state.value}",
            code="problem.operation.open",
            fix="wait for it: 'virtha operation list'",
        )
    users = await template_users(tx, template.id)
    if users:
        named = ", ".join(users[:USERS_NAMED_MAX])
        more = len(users) - USERS_NAMED_MAX
        raise Refused(
            f"template {template.name} is needed by {named}" + (f" and {more} more" * (more > 0)),
            code="problem.template.in_use",
            fix="delete these VMs first, with their disks",
        )


def _has_no_watchdog(template: Template) -> NotFound:
    return NotFound(
        f"template {template.name} has no watchdog",
        fix="VMs that are made from it have none of their own either, unless it is said for them",
    )


def _checked_card(
    template: Template, request: WatchdogRequest | None, surroundings: Surroundings
) -> Watchdog | None:
    """Raises InvalidInput: VMs that are made from it could not have it."""
    if request is None:
        return None
    able = capabilities_of(surroundings)
    return check_watchdog(request, template.architecture, template.machine, able)


def _as_vm(template: Template) -> Vm:
    """For the choice of a host that sees its storage."""
    return Vm(
        id=VmId(template.id),
        name=template.name,
        cluster_id=template.cluster_id,
        memory_bytes=template.memory_bytes,
        vcpus=template.vcpus,
        architecture=template.architecture,
        machine=template.machine,
        disks=template.disks,
    )


async def _view(tx: Transaction, template: Template) -> TemplateView:
    cluster = await find_cluster(tx, template.cluster_id)
    assert cluster is not None, "a foreign key holds it"
    return TemplateView(
        template=template,
        cluster_name=cluster.name,
        used_by=await template_users(tx, template.id),
    )
