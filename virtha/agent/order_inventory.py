"""Orders about definitions: define, forget, scan, adopt, release."""

import glob
from functools import partial
from pathlib import Path

import msgspec
from msgspec import UNSET

from virtha.agent.answers import OK, Answer, of_error, refused
from virtha.agent.ceph_images import image_bytes, remove_image
from virtha.agent.commands import is_gone
from virtha.agent.files import Files, read_bounded
from virtha.agent.gate import PROOF_VM_ID
from virtha.agent.host_context import HostContext
from virtha.agent.images import image_info
from virtha.agent.new_disk import part_name
from virtha.agent.order_power import PowerOrders
from virtha.agent.records import safe_name
from virtha.agent.serial_log import remove_log
from virtha.agent.storage import (
    ORDER_DEADLINE_MS,
    check_header,
    forget_vm,
    inside,
    read_vm_header,
)
from virtha.domainxml.adopt import managed_vm_id, patch_domain, read_domain, unpatch_domain
from virtha.model.domain import DomainReport
from virtha.model.errors import Failed, Refused, VirthaError
from virtha.model.facts import ForeignDomain, Result
from virtha.model.host import StorageDomain
from virtha.model.ids import Incarnation, InstallationId, VmId
from virtha.model.orders import AdoptVm, DefineVm, ForgetVm, ReleaseVm
from virtha.model.template import DIRECTORY
from virtha.model.value import Value
from virtha.model.vm import Disk, Vm
from virtha.ports.hypervisor import DomainMissing
from virtha.sentinel.events import Adopted, Forgotten

XML_BYTES_MAX = 8 << 20
FOREIGN_MAX = 1_000
AUTOSTART_OFF = "autostart turned off: virtha starts it"


class AdoptedState(Value, frozen=True, kw_only=True):
    """What giving a VM back must restore besides its XML."""

    autostart: bool


class InventoryOrders:
    def __init__(self, host: HostContext, power: PowerOrders) -> None:
        self._host = host
        self._power = power

    async def define(self, order: DefineVm) -> Answer:
        async with self._host.locks.of(order.vm.id):
            await self._power.define(order.vm)
        return OK

    # Forget

    async def forget(self, order: ForgetVm) -> Answer:
        host, vm_id = self._host, order.vm_id
        async with host.locks.of(vm_id):
            try:
                present = await host.catalog.domain(vm_id)
            except DomainMissing:
                present = None
            if present is not None and not is_gone(present):
                return refused("order.refused.running", f"{present.name} is {present.state}")
            if order.incarnation is not None:
                await self._check_not_superseded(order, order.incarnation)
            # First the definition: a crash in between leaves disks without a VM, never the reverse.
            await host.catalog.undefine(vm_id)
            host.gate.revoke(vm_id)
            for disk in order.disks:
                await self._delete(disk)
            for domain_id in sorted({disk.storage_domain_id for disk in order.disks}):
                domain = host.storage_domain(domain_id)
                await host.workers.call(
                    domain,
                    partial(forget_vm, domain, vm_id, host.files),
                    deadline_ms=ORDER_DEADLINE_MS,
                )
            await host.loop.told(Forgotten(vm_id=vm_id))
        await host.disk(self._remove_traces, vm_id)
        return OK

    async def _check_not_superseded(self, order: ForgetVm, incarnation: Incarnation) -> None:
        """Raises Refused: its storage knows of a start that the server did not when it asked (M2, G4)."""
        host, vm_id = self._host, order.vm_id
        for domain_id in sorted({disk.storage_domain_id for disk in order.disks}):
            domain = host.storage_domain(domain_id)
            read = partial(read_vm_header, domain, vm_id)
            header = await host.workers.call(domain, read, deadline_ms=ORDER_DEADLINE_MS)
            if header is not None and header.incarnation > incarnation:
                raise Refused(
                    f"host {header.host_id} started the VM with incarnation {header.incarnation}, which is later than "
                    f"the server knew ({incarnation}): it may run there",
                    code="order.refused.incarnation",
                    fix="wait until that host has told what it holds",
                )

    async def _delete(self, disk: Disk) -> None:
        host = self._host
        domain = host.storage_domain(disk.storage_domain_id)
        await host.workers.call(
            domain,
            partial(_delete_disk, domain, disk, host.installation_id, host.files),
            deadline_ms=ORDER_DEADLINE_MS,
        )

    def _remove_traces(self, vm_id: VmId) -> None:
        paths = self._host.paths
        for suffix in ("xml", "json"):
            (paths.adopted / f"{safe_name(vm_id)}.{suffix}").unlink(missing_ok=True)
        remove_log(paths.serial_log(vm_id))
        self._host.evidence.forget(vm_id)

    # Scan

    async def scan(self) -> Answer:
        host = self._host
        known = {record.vm.id for record in host.loop.records()}
        found = []
        for report in (await host.catalog.domains())[:FOREIGN_MAX]:
            if report.vm_id in known or report.vm_id == PROOF_VM_ID:
                continue
            try:
                found.append(await self._foreign(report))
            except DomainMissing:
                continue  # undefined while we looked
        return Answer(result=OK.result, foreign=tuple(found))

    async def _foreign(self, report: DomainReport) -> ForeignDomain:
        host = self._host
        xml = await host.catalog.xml(report.vm_id)
        reading = read_domain(xml, host.host_defaults())
        obstacles = list(reading.obstacles)
        if reading.vm is not None and managed_vm_id(xml) is not None:
            obstacles.append("it is marked as managed, but this host was not given it")
        if not report.persistent:
            obstacles.append("it is transient: libvirt forgets it when it stops")
        vm = reading.vm
        changes: tuple[str, ...] = ()
        if vm is not None:
            vm = await self._with_sizes(vm)
            changes = self._changes(xml, vm, report)
        return ForeignDomain(
            vm=None if obstacles else vm,
            name=report.name,
            state=report.state,
            obstacles=(*obstacles, *reading.warnings),
            changes=changes,
        )

    async def _with_sizes(self, vm: Vm) -> Vm:
        disks = []
        for disk in vm.disks:
            domain = self._host.storage_domain(disk.storage_domain_id)
            try:
                size_bytes = await self._size_of(domain, disk)
            except (OSError, VirthaError):
                size_bytes = disk.size_bytes  # unknown stays 0; the VM can be adopted all the same
            disks.append(msgspec.structs.replace(disk, size_bytes=size_bytes))
        return msgspec.structs.replace(vm, disks=tuple(disks))

    async def _size_of(self, domain: StorageDomain, disk: Disk) -> int:
        if domain.ceph is UNSET:
            return (await image_info(Path(domain.path, disk.path))).virtual_size
        size = partial(image_bytes, domain, disk.path)
        return await self._host.workers.call(domain, size, deadline_ms=ORDER_DEADLINE_MS)

    def _changes(self, xml: str, vm: Vm, report: DomainReport) -> tuple[str, ...]:
        changes = patch_domain(xml, vm, self._host.host_defaults()).changes
        return (*changes, AUTOSTART_OFF) if report.autostart else changes

    # Adopt and release

    async def adopt(self, order: AdoptVm) -> Answer:
        host = self._host
        vm = msgspec.structs.replace(order.vm, adopted=True)
        host.locks.begin_start(vm.id)
        try:
            return await self._adopt(order, vm)
        finally:
            host.locks.end_start(vm.id)

    async def _adopt(self, order: AdoptVm, vm: Vm) -> Answer:
        host = self._host
        async with host.locks.of(vm.id):
            try:
                report = await host.catalog.domain(vm.id)
            except DomainMissing:
                return refused("order.refused.not_here", f"this host has no domain {vm.name}")
            if not report.persistent:
                return refused(
                    "problem.vm.state", f"{vm.name} is transient: libvirt forgets it when it stops"
                )
            xml = await host.catalog.xml(vm.id)
            patched = patch_domain(xml, vm, host.host_defaults())
            changes = (*patched.changes, AUTOSTART_OFF) if report.autostart else patched.changes
            if order.dry_run:
                return Answer(result=OK.result, changes=changes)
            await host.disk(self._keep_original, vm.id, xml, report)
            # Before it counts as managed: a managed QEMU without a grant is the guardian's prey.
            if not is_gone(report):
                host.gate.hold(vm.id, order.incarnation)
            known = host.loop.record(vm.id) is not None
            try:
                if patched.xml != xml:
                    await host.catalog.define(patched.xml)
                if report.autostart:
                    await host.catalog.set_autostart(vm.id, False)
                durable = await host.loop.told(
                    Adopted(vm=vm, incarnation=order.incarnation, domain=report)
                )
                if not durable:
                    raise Failed("no space left for the agent's records", code="problem.disk.full")
            except (VirthaError, OSError) as error:
                return await self._undo(vm.id, error, known=known)
        return Answer(result=OK.result, changes=changes)

    async def _undo(self, vm_id: VmId, error: VirthaError | OSError, *, known: bool) -> Answer:
        """An adoption that failed leaves the domain as it was, or says that it does not know.

        The server forgets the VM only on a certain failure: else `vm release` must still find it. The
        grant stays; it starts nothing. ``known``: it was ours before this order, which came again.
        """
        answer = of_error(error)
        path = self._host.paths.adopted / f"{safe_name(vm_id)}.xml"
        if answer.result is Result.UNKNOWN or known:
            # What libvirt did not answer it may do later, over whatever is put back now.
            return msgspec.structs.replace(answer, result=Result.UNKNOWN)
        try:
            await self._give_back(vm_id, path)
            await self._host.loop.told(Forgotten(vm_id=vm_id))
            await self._host.disk(_remove_both, path)
        except (VirthaError, OSError) as left:
            message = f"{answer.message}; and it could not be undone: {left}"
            return msgspec.structs.replace(answer, result=Result.UNKNOWN, message=message)
        return answer

    def _keep_original(self, vm_id: VmId, xml: str, report: DomainReport) -> None:
        """Once: an order that comes again must not take the patched XML for the original."""
        path = self._host.paths.adopted / f"{safe_name(vm_id)}.xml"
        if path.exists():
            return
        state = AdoptedState(autostart=report.autostart)
        self._host.files.write_atomic(path.with_suffix(".json"), msgspec.json.encode(state))
        self._host.files.write_atomic(path, xml.encode())

    async def release(self, order: ReleaseVm) -> Answer:
        host, vm_id = self._host, order.vm_id
        path = host.paths.adopted / f"{safe_name(vm_id)}.xml"
        async with host.locks.of(vm_id):
            changes: tuple[str, ...] = ()
            try:
                report = await host.catalog.domain(vm_id)
            except DomainMissing:
                report = None
            if report is not None:
                changes = await self._give_back(vm_id, path)
            # First out of the gate's records: the guardian kills a managed QEMU without a grant.
            await host.on_given_back(vm_id)
            await host.loop.told(Forgotten(vm_id=vm_id))
            if report is None or is_gone(report):
                # While it runs the grant stays: settings that were sent before this order came may
                # yet call it managed, and a managed QEMU without one is killed. It starts nothing.
                host.gate.revoke(vm_id)
            await host.disk(_remove_both, path)
        return Answer(result=OK.result, changes=changes)

    async def _give_back(self, vm_id: VmId, path: Path) -> tuple[str, ...]:
        host = self._host
        xml = await host.catalog.xml(vm_id)
        try:
            original = read_bounded(path, XML_BYTES_MAX).decode()
        except (OSError, ValueError):
            if managed_vm_id(xml) is None:
                return ()  # given back before
            raise Failed(
                f"the original definition in {path} is gone",
                fix="edit the domain with 'virsh edit' and remove virtha's metadata",
            ) from None
        patched = unpatch_domain(xml, original)
        await host.catalog.define(patched.xml)
        changes = patched.changes
        try:
            state = msgspec.json.decode(
                read_bounded(path.with_suffix(".json"), XML_BYTES_MAX), type=AdoptedState
            )
        except (OSError, ValueError, msgspec.MsgspecError):
            return (*changes, "whether it had autostart is no longer known: it stays off")
        if state.autostart:
            await host.catalog.set_autostart(vm_id, True)
            changes = (*changes, "autostart turned on again")
        return changes


def _remove_both(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def _delete_disk(
    domain: StorageDomain, disk: Disk, installation_id: InstallationId, files: Files
) -> None:
    """Only below a domain that is ours, with what is left of half copies of it. Absent is done already."""
    if domain.ceph is not UNSET:
        return remove_image(domain, disk.path, installation_id)
    check_header(domain, installation_id)
    path = inside(domain, disk.path)
    if disk.path.split("/")[0] in ("images", DIRECTORY):
        raise VirthaError(
            f"{disk.path} is an image or a template's, not a disk", code="problem.disk.outside"
        )
    files.remove(path)
    if not path.parent.is_dir():
        return
    for half in path.parent.glob(part_name(glob.escape(path.name), "*")):
        files.remove(half)
    if path.parent.parent == Path(domain.path, "vms"):
        try:
            path.parent.rmdir()
        except OSError:
            return  # other disks are there yet, or somebody's files
