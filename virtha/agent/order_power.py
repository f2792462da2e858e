"""Orders about a VM's power: start, stop, reboot, pause, resume."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog
from msgspec import UNSET

from virtha.agent.answers import OK, Answer, of_error, refused
from virtha.agent.ceph_images import await_maps, await_unopened, take_over
from virtha.agent.commands import is_gone
from virtha.agent.files import Files
from virtha.agent.host_context import HostContext
from virtha.agent.lease_files import LEASE_LOST, REFUSED
from virtha.agent.order_disk_check import DiskGuard
from virtha.agent.storage import (
    ORDER_DEADLINE_MS,
    ClaimRefused,
    VmHeader,
    claim_incarnation,
    inside,
)
from virtha.domainxml.adopt import patch_domain
from virtha.domainxml.build import build_domain
from virtha.model.codes import render
from virtha.model.domain import DomainReport, DomainState
from virtha.model.errors import Unavailable, VirthaError
from virtha.model.facts import Result
from virtha.model.host import StorageDomain
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import (
    Grant,
    GrantedBody,
    PauseVm,
    RebootMode,
    RebootVm,
    ResumeVm,
    StartVm,
    StopMode,
    StopVm,
)
from virtha.model.vm import Reason, Vm, VmState
from virtha.ports.hypervisor import DomainMissing
from virtha.sentinel.events import (
    ArrivalCalledOff,
    PauseAccepted,
    RebootAccepted,
    ReportAgain,
    ResumeAccepted,
    StartAccepted,
    StartEnded,
    StartRefused,
    StopAccepted,
    VmRecord,
)
from virtha.sentinel.moves import awaited, leaves, never_came
from virtha.sentinel.stops import end_refusal, is_unfinished

_log = structlog.get_logger(__name__)

FIRST_LIST_MS = 10_000
FIRST_LIST_POLL_S = 0.05
CAPABILITIES_S = 20.0
"""The first probe of a host starts a QEMU to see whether KVM is of use; later ones are cached."""
LEASE_MS = 5_000
"""How long a start waits for the guardian to hold the lease on its disks' storage."""
LEASE_POLL_S = 0.1
GONE_POLL_MS = 2_000
TOLD_S = 5.0
TOLD_POLL_S = 0.02
"""libvirt's event wakes the wait; this is for an event that was lost with its connection."""


class PowerOrders:
    def __init__(self, host: HostContext) -> None:
        self._host = host
        self._disk_guard = DiskGuard(host)

    # Start

    async def start(self, order: StartVm) -> Answer:
        vm_id = order.vm.id
        host = self._host
        async with host.locks.of(vm_id):
            host.locks.begin_start(vm_id)
            try:
                answer = await self._start(order)
            finally:
                host.locks.end_start(vm_id)
        return answer

    async def _start(self, order: StartVm) -> Answer:
        """The VM's lock is held. Nothing is made before ``_begin``."""
        grant = order.grant
        refusal = await self.refusal(grant)
        if refusal is not None:
            return await self._refused_by_sentinel(order, refusal)
        objection = self.grant_objection(grant)
        if objection is None:
            try:
                objection = await self._prepare_start(order)
            except (VirthaError, OSError) as error:
                answer = of_error(error)
                # Nothing of it was made, whatever went wrong: even a timeout of libvirt leaves no doubt.
                certain = Result.REFUSED if answer.result is Result.REFUSED else Result.FAILED
                objection = msgspec.structs.replace(answer, result=certain)
        if objection is not None:
            if objection.code != "order.refused.running":
                await self.decline(order, objection.message)
            return objection
        return await self._begin(order)

    async def refusal(self, grant: Grant) -> Reason | None:
        """The sentinel's. An agent that has just begun gives libvirt a moment for its first list."""
        host = self._host
        deadline = min(host.clock.monotonic_ms() + FIRST_LIST_MS, grant.ends_at_ms)
        refusal = host.loop.start_refusal(grant.vm_id, grant.incarnation)
        while (
            refusal is not None
            and refusal.code == "host.unfit.libvirt"
            and host.clock.monotonic_ms() < deadline
        ):
            await asyncio.sleep(FIRST_LIST_POLL_S)
            refusal = host.loop.start_refusal(grant.vm_id, grant.incarnation)
        return refusal

    async def _refused_by_sentinel(self, order: StartVm, refusal: Reason) -> Answer:
        vm_id, grant, host = order.vm.id, order.grant, self._host
        record = host.loop.record(vm_id)
        same = record is not None and record.incarnation == grant.incarnation
        if record is not None and same and refusal.code == "order.refused.running":
            if record.state is VmState.RUNNING:
                return OK  # the order came twice
            if record.state is VmState.PAUSED and is_unfinished(record):
                return await self._carry_on(order)
        if refusal.code == "host.unfit.libvirt":
            return await self._without_libvirt(order, refusal)
        fields = refusal.fields
        return refused(refusal.code, render(refusal.code, fields), **fields)

    async def _without_libvirt(self, order: StartVm, refusal: Reason) -> Answer:
        """Nothing is released before libvirt is back: a start that it never answered may run."""
        record = self._host.loop.record(order.vm.id)
        if record is not None and (record.state is not VmState.DOWN or record.attempt is not None):
            return self._runs_already(order, f"it was {record.state} when libvirt was last asked")
        await self.decline(order, render(refusal.code, refusal.fields))
        objection = self.grant_objection(order.grant)
        if objection is not None:
            return objection
        return refused(refusal.code, render(refusal.code, refusal.fields), **refusal.fields)

    def _runs_already(self, order: StartVm, message: str) -> Answer:
        """With the incarnation that runs, as far as it is known: the server counts back to it."""
        record = self._host.loop.record(order.vm.id)
        known = {} if record is None else {"current": record.incarnation}
        return refused("order.refused.running", message, **known)

    async def _carry_on(self, order: StartVm) -> Answer:
        """An agent before us made its QEMU and died before its processors ran."""
        grant, host = order.grant, self._host
        objection = self.grant_objection(grant) or self.lease_objection(grant.vm_id)
        if objection is not None:
            await self._end_unfinished(grant.vm_id)
            return objection
        await host.loop.told(ResumeAccepted(vm_id=grant.vm_id, by=order.by))
        host.gate.hold(grant.vm_id, grant.incarnation)
        await host.control.run(grant.vm_id)
        return OK

    async def _end_unfinished(self, vm_id: VmId) -> None:
        """Its QEMU never ran, and may not any more: kept, it would hold the VM for ever, for nobody else may start it (G1)."""
        present = await self.present(vm_id)
        if present is not None and present.state is DomainState.PAUSED:
            await self._host.control.destroy(vm_id)
            self._host.gate.revoke(vm_id)

    async def present(self, vm_id: VmId) -> DomainReport | None:
        try:
            return await self._host.catalog.domain(vm_id)
        except DomainMissing:
            return None

    def grant_objection(self, grant: Grant) -> Answer | None:
        host = self._host
        if host.shutting_down:
            return refused("restart.blocked.host_shutting_down", "this host is shutting down")
        if grant.boot != host.boot:
            return refused(
                "order.refused.boot",
                "the grant is for another boot of this host",
                boot=grant.boot,
                current=host.boot,
            )
        late_ms = host.clock.monotonic_ms() - grant.ends_at_ms
        if late_ms >= 0:
            return refused(
                "order.refused.grant_expired",
                f"the grant ran out {late_ms} ms ago",
                late_ms=late_ms,
            )
        return None

    def lease_objection(self, vm_id: VmId, *, coming: Vm | None = None) -> Answer | None:
        allowed = self._host.lease_allows(vm_id, coming=coming)
        return None if allowed else refused(REFUSED, LEASE_LOST)

    async def await_lease(self, vm: Vm, grant: Grant) -> Answer | None:
        """Of one that starts, asked again once its QEMU exists. A host that has just come, or a domain, has its lease in a
        moment."""
        deadline = min(self._host.clock.monotonic_ms() + LEASE_MS, grant.ends_at_ms)
        objection = self.lease_objection(vm.id, coming=vm)
        while objection is not None and self._host.clock.monotonic_ms() < deadline:
            await asyncio.sleep(LEASE_POLL_S)
            objection = self.lease_objection(vm.id, coming=vm)
        return objection

    async def _prepare_start(self, order: StartVm) -> Answer | None:
        """All that must be true before QEMU is made; raises or returns what objects."""
        vm = order.vm
        present = await self.present(vm.id)
        if present is not None and not is_gone(present):
            return self._runs_already(order, f"{vm.name} is {present.state} here already")
        objection = await self.await_lease(vm, order.grant)
        if objection is not None:
            return objection
        await await_maps(self._host, order)
        await self._disk_guard.check(order)
        await await_unopened(self._host, order)
        try:
            claim = await self.claim(vm, order.grant.incarnation)
            await take_over(self._host, order, claim)
        except ClaimRefused as error:
            # Of a start that the server may not remember (M2): it learns who made it.
            return refused(
                "order.refused.incarnation",
                str(error),
                incarnation=error.present.incarnation,
                current=error.present.incarnation,
                holder_host=error.present.host_id,
            )
        await self.define(vm)
        return self.grant_objection(order.grant)

    async def define(self, vm: Vm) -> None:
        """Define ``vm`` in libvirt: made anew, or patched when it is an adopted one."""
        host = self._host
        try:
            async with asyncio.timeout(CAPABILITIES_S):
                await host.capabilities_known.wait()
        except TimeoutError:
            raise Unavailable(
                "libvirt has not said yet what this host can do", code="host.unfit.libvirt"
            ) from None
        if vm.adopted:
            xml = await host.catalog.xml(vm.id)
            patched = patch_domain(xml, vm, host.host_defaults()).xml
            if patched != xml:
                await host.catalog.define(patched)
            return
        await host.catalog.define(build_domain(vm, host.host_defaults()))

    async def claim(self, vm: Vm, incarnation: Incarnation) -> VmHeader:
        """Record the incarnation on every storage domain of the VM (G4)."""
        host = self._host
        claim = VmHeader(
            installation_id=host.installation_id,
            vm_id=vm.id,
            incarnation=incarnation,
            host_id=host.host_id,
            boot=host.boot,
        )
        for domain_id in sorted({disk.storage_domain_id for disk in vm.disks}):
            domain = host.storage_domain(domain_id)

            paths = [d.path for d in vm.disks if d.storage_domain_id == domain_id]
            await host.workers.call(
                domain,
                partial(_claim_on, domain, paths, claim, host.files),
                deadline_ms=ORDER_DEADLINE_MS,
            )
        return claim

    async def _begin(self, order: StartVm) -> Answer:
        vm, grant = order.vm, order.grant
        host = self._host
        durable, refusal = await host.loop.told_start(
            StartAccepted(vm=vm, incarnation=grant.incarnation, by=order.by)
        )
        if refusal is not None:
            return await self._refused_by_sentinel(order, refusal)
        if durable:
            try:
                result, detail = await host.starter.start(
                    vm.id,
                    grant.incarnation,
                    until_ms=grant.ends_at_ms,
                    still_allowed=lambda: self._changed_mind(grant),
                )
            except (VirthaError, OSError) as error:
                # Whatever went wrong: the sentinel must not wait for an answer that never comes.
                result, detail = Result.UNKNOWN, str(error)
        else:
            # An agent that forgot this incarnation could not refuse a lower one later.
            result, detail = Result.FAILED, "no space left for the agent's records"
        await host.loop.told(
            StartEnded(vm_id=vm.id, incarnation=grant.incarnation, result=result, detail=detail)
        )
        if result is Result.OK:
            return OK
        code = REFUSED if detail == LEASE_LOST else "order.refused.grant_expired"
        return Answer(
            result=result, code=code if result is Result.REFUSED else None, message=detail
        )

    def _changed_mind(self, grant: Grant) -> str | None:
        objection = self.grant_objection(grant)
        record = self._host.loop.record(grant.vm_id)
        if objection is not None:
            return objection.message
        if record is None or record.incarnation != grant.incarnation or record.released:
            return "it was given back meanwhile"
        if record.stop is not None:
            return "it was stopped on purpose meanwhile"
        return None

    async def decline(self, order: GrantedBody, why: str) -> None:
        """Nothing of this incarnation was made here: the server may try elsewhere (P5).

        The sentinel records it before it says so, and says nothing where a copy may run.
        """
        await self._host.loop.told(
            StartRefused(vm=order.vm, incarnation=order.grant.incarnation, detail=why)
        )

    # Stop

    async def stop(self, order: StopVm) -> Answer:
        host, vm_id = self._host, order.vm_id
        objection = self._superseded(vm_id, order.incarnation)
        if objection is not None:
            return objection
        refusal = end_refusal(host.boot, order)
        if refusal is not None:
            return refused(refusal.code, "it is not to be ended by that", **refusal.fields)
        gone = host.stops.event(vm_id)
        off = order.mode is StopMode.POWER_OFF
        async with host.locks.of(vm_id):
            record = host.loop.record(vm_id)
            comes = record is not None and awaited(record)
            if comes and off:
                # First the right to come in, then what came: libvirt shows a domain as paused before it asks the gate, so
                # nothing comes in between (qemuProcessInit).
                host.gate.revoke(vm_id)
            present = await self.present(vm_id)
            if present is None and record is None:
                return refused("order.refused.not_here", "this host does not have that VM")
            await host.loop.told(
                StopAccepted(
                    vm_id=vm_id,
                    mode=order.mode,
                    by=order.by,
                    deadline_ms=order.deadline_ms,
                    superseded_by=order.superseded.incarnation if order.superseded else None,
                )
            )
            if present is None or is_gone(present):
                if not comes:
                    host.gate.revoke(vm_id)
                    return OK
                if not off:
                    return OK  # there is no guest here to be asked, and its move goes on
                await host.loop.told(ArrivalCalledOff(vm_id=vm_id))
            elif off or present.state is DomainState.CRASHED:
                await host.control.destroy(vm_id)
            elif not comes:
                await host.control.shutdown(vm_id)
            # One that comes is asked where it runs.
        # Not under the lock: a power off must be able to overtake a shutdown that the guest ignores.
        return await self._await_gone(order, gone)

    async def _await_gone(self, order: StopVm, gone: asyncio.Event) -> Answer:
        host = self._host
        deadline = host.clock.monotonic_ms() + order.deadline_ms
        while True:
            present = await self.present(order.vm_id)
            if present is None or is_gone(present):
                await self.until_told(order.vm_id)
                return OK
            left_ms = deadline - host.clock.monotonic_ms()
            if left_ms <= 0:
                return Answer(
                    result=Result.FAILED,
                    code="order.failed.shutdown_ignored",
                    message=f"its guest did not shut down within {order.deadline_ms} ms; it runs on",
                    fields={"deadline_ms": order.deadline_ms},
                )
            try:
                async with asyncio.timeout(min(left_ms, GONE_POLL_MS) / 1_000):
                    await gone.wait()
            except TimeoutError:
                continue
            gone = host.stops.event(order.vm_id)

    async def until_told(self, vm_id: VmId) -> None:
        """Until the end of the VM is in the outbox: told after the outcome, a delete right behind the
        power-off would be refused because the VM is 'stopping' still.

        Bounded: libvirt's event may be lost, and the next list tells it then.
        """
        loop = self._host.loop
        try:
            async with asyncio.timeout(TOLD_S):
                record = loop.record(vm_id)
                while record is not None and record.state is not VmState.DOWN:
                    await asyncio.sleep(TOLD_POLL_S)
                    record = loop.record(vm_id)
                if record is not None:
                    await loop.told(ReportAgain(vm_id=vm_id))
        except TimeoutError:
            _log.warning("stopped, and the sentinel has not noticed yet", vm=vm_id)

    def _superseded(self, vm_id: VmId, incarnation: Incarnation) -> Answer | None:
        record = self._host.loop.record(vm_id)
        if record is not None and record.incarnation > incarnation:
            return refused(
                "order.refused.incarnation",
                f"incarnation {incarnation} is not above {record.incarnation}",
                incarnation=incarnation,
                current=record.incarnation,
            )
        return None

    # Reboot, pause, resume

    async def reboot(self, order: RebootVm) -> Answer:
        accepted = RebootAccepted(vm_id=order.vm_id, mode=order.mode, by=order.by)
        return await self._on_running(
            order.vm_id,
            order.incarnation,
            accepted,
            self._host.control.reset
            if order.mode is RebootMode.RESET
            else self._host.control.reboot,
        )

    async def pause(self, order: PauseVm) -> Answer:
        accepted = PauseAccepted(vm_id=order.vm_id, by=order.by)
        return await self._on_running(
            order.vm_id, order.incarnation, accepted, self._host.control.pause
        )

    async def resume(self, order: ResumeVm) -> Answer:
        objection = self.lease_objection(order.vm_id)
        if objection is not None:
            return objection
        accepted = ResumeAccepted(vm_id=order.vm_id, by=order.by)
        return await self._on_running(
            order.vm_id, order.incarnation, accepted, self._host.control.run
        )

    async def _on_running(
        self,
        vm_id: VmId,
        incarnation: Incarnation,
        accepted: RebootAccepted | PauseAccepted | ResumeAccepted,
        act: Callable[[VmId], Awaitable[None]],
    ) -> Answer:
        host = self._host
        objection = self._superseded(vm_id, incarnation)
        if objection is not None:
            return objection
        async with host.locks.of(vm_id):
            present = await self.present(vm_id)
            if present is None:
                return refused("order.refused.not_here", "this host does not have that VM")
            if is_gone(present):
                return refused("problem.vm.state", f"{present.name} is {present.state}")
            record = host.loop.record(vm_id)
            if record is not None and _is_moved(record, accepted):
                return refused("problem.vm.state", f"{present.name} is being moved")
            await host.loop.told(accepted)
            await act(vm_id)
        return OK


def _is_moved(record: VmRecord, accepted: RebootAccepted | PauseAccepted | ResumeAccepted) -> bool:
    """Resume: the other side may run, so that only the server's word on the move lets this one run (G6). Pause (libvirt 9.0,
    seen): while it is copied it is shown as all sent, and its target runs; before, its target's copy comes paused, and is
    awaited for ever. A reset of what has left, or is to come, is none of the guest."""
    if isinstance(accepted, RebootAccepted):
        return never_came(record) or (leaves(record) and record.state is VmState.PAUSED)
    return never_came(record) or leaves(record)


def _claim_on(domain: StorageDomain, paths: list[str], claim: VmHeader, files: Files) -> None:
    for path in () if domain.ceph is not UNSET else paths:
        inside(domain, path)
    claim_incarnation(domain, claim, files)
