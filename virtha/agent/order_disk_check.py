"""The disk activity check in front of an ordered start (A5): run it, or say why not, and what came of it.

It guards starts that carry no proof of the previous copy's death, so it runs unless the order says that
there is one. Every outcome is an event of the VM; a start that it stops is refused.
"""

from functools import partial
from pathlib import Path

from virtha.agent.disk_activity import (
    Fingerprint,
    StillActive,
    fingerprint,
    judged,
    wait_until_quiet,
)
from virtha.agent.host_context import HostContext
from virtha.agent.storage import ORDER_DEADLINE_MS
from virtha.model.codes import REGISTRY, render
from virtha.model.errors import Refused, VirthaError
from virtha.model.facts import Happened
from virtha.model.host import StorageDomain
from virtha.model.orders import DiskCheck, StartVm
from virtha.model.value import Fields, Scalar
from virtha.model.vm import DiskFormat, Vm

READ_MS_MIN = 1_000
"""A last look, when the time is nearly up, must still have a chance to be answered."""


class DiskGuard:
    def __init__(self, host: HostContext) -> None:
        self._host = host

    async def check(self, order: StartVm) -> None:
        """Returns when nothing stands against the start. Raises Refused, or what reading the disks raised."""
        properties, vm = self._host.properties, order.vm
        if not properties.diskactivity_check:
            return
        if order.disk_check is not DiskCheck.RUN:
            await self._host.facts.emit([judged(vm, "disk_check.skipped.proven")])
            return
        disks = self._disks(vm)
        if not disks:
            await self._host.facts.emit([judged(vm, "disk_check.skipped.no_qcow2")])
            return
        left_ms = order.grant.ends_at_ms - self._host.clock.monotonic_ms()
        quiet_ms = properties.diskactivity_quiet_ms
        if left_ms < quiet_ms:
            # Watching all the same could only end in a grant that has run out.
            code = "disk_check.failed.grant"
            text = await self._tell_failed(vm, code, left_ms=left_ms, quiet_ms=quiet_ms)
            raise Refused(text, code="order.refused.grant_expired", fix=REGISTRY[code].help)
        try:
            quiet_for_ms = await self._watch(disks, ends_at_ms=order.grant.ends_at_ms)
        except StillActive as active:
            path, changed_ms = str(active.path), active.changed_ms
            await self._tell_failed(
                vm, "disk_check.failed.active", path=path, changed_ms=changed_ms
            )
            raise
        except (VirthaError, OSError) as error:
            await self._tell_failed(vm, "disk_check.failed.unreadable", detail=str(error))
            raise
        await self._host.facts.emit([judged(vm, "disk_check.passed", quiet_ms=quiet_for_ms)])

    def _disks(self, vm: Vm) -> dict[Path, StorageDomain]:
        """Its qcow2 disks that a copy elsewhere could write. Raises Failed for an unknown domain."""
        found: dict[Path, StorageDomain] = {}
        for disk in vm.disks:
            if disk.format is DiskFormat.QCOW2 and not disk.readonly:
                domain = self._host.storage_domain(disk.storage_domain_id)
                found[Path(domain.path, disk.path)] = domain
        return found

    async def _watch(self, disks: dict[Path, StorageDomain], *, ends_at_ms: int) -> int:
        """How long all of them have been quiet. Raises StillActive, or what reading them raises."""
        host, properties = self._host, self._host.properties
        now_ms = host.clock.monotonic_ms()
        timeout_ms = min(properties.diskactivity_timeout_s * 1_000, ends_at_ms - now_ms)

        async def read(path: Path) -> Fingerprint:
            left_ms = now_ms + timeout_ms - host.clock.monotonic_ms()
            deadline_ms = max(min(ORDER_DEADLINE_MS, left_ms), READ_MS_MIN)
            call = partial(fingerprint, path)
            return await host.workers.call(disks[path], call, deadline_ms=deadline_ms)

        return await wait_until_quiet(
            tuple(disks),
            read,
            clock=host.clock,
            quiet_ms=properties.diskactivity_quiet_ms,
            timeout_ms=timeout_ms,
        )

    async def _tell_failed(self, vm: Vm, code: str, **fields: Scalar) -> str:
        """As the VM's event; returns the reason in words."""
        text = render(code, fields)
        told: Fields = {"vm": vm.name, "host": self._host.host_name, "code": code, "result": text}
        await self._host.facts.emit(
            [Happened(code="vm.disk_check.failed", vm_id=vm.id, fields=told)]
        )
        return text
