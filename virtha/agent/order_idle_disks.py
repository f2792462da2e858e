"""Orders that change the disks of a VM that is down: snapshots inside them, their size (ADR 0013)."""

from functools import partial
from pathlib import Path

from virtha.agent.answers import OK, Answer, of_error, refused
from virtha.agent.commands import is_gone
from virtha.agent.host_context import HostContext
from virtha.agent.images import (
    ToolHangs,
    change_snapshot,
    image_info,
    resize,
    snapshot_tool_runs,
    snapshots_in,
)
from virtha.agent.order_power import PowerOrders
from virtha.agent.storage import ORDER_DEADLINE_MS, ClaimRefused, inside
from virtha.model.codes import render
from virtha.model.errors import Failed, InvalidInput, Refused, VirthaError
from virtha.model.facts import Result
from virtha.model.orders import ChangeSnapshots, GrowDisk, GrowLiveDisk, Order, SnapshotAction
from virtha.model.size import format_size
from virtha.model.vm import Disk

DONE = "its disks were changed"


class IdleDiskOrders:
    def __init__(self, host: HostContext, power: PowerOrders) -> None:
        self._host = host
        self._power = power

    async def change(self, order: Order, body: ChangeSnapshots | GrowDisk) -> Answer:
        vm_id, host = body.vm.id, self._host
        async with host.locks.of(vm_id):
            host.locks.begin_start(vm_id)
            try:
                return await self._change(order, body)
            finally:
                host.locks.end_start(vm_id)

    async def _change(self, order: Order, body: ChangeSnapshots | GrowDisk) -> Answer:
        """The VM's lock is held. What writes has ended before the incarnation is given back."""
        refusal = await self._power.refusal(body.grant)
        if refusal is not None:
            if refusal.code == "host.unfit.libvirt":
                await self._power.decline(body, render(refusal.code, refusal.fields))
            return refused(refusal.code, render(refusal.code, refusal.fields), **refusal.fields)
        try:
            if isinstance(body, GrowDisk):
                grown_disk(body)
            paths = await self._paths(body)
            if await snapshot_tool_runs(paths):
                # Of an agent before us that was killed. It may write yet: nothing is given back.
                return Answer(
                    result=Result.UNKNOWN,
                    code="order.unknown.interrupted",
                    message="an earlier qemu-img still works on these disks",
                )
            objection = await self._objection(body)
            answer = objection or await self._write(order, body, paths)
        except ToolHangs as error:
            return Answer(
                result=Result.UNKNOWN, code="order.unknown.interrupted", message=str(error)
            )
        except (VirthaError, OSError) as error:
            answer = of_error(error)
        if answer.code != "order.refused.running":
            await self._power.decline(body, answer.message or DONE)
        return answer

    async def _objection(self, body: ChangeSnapshots | GrowDisk) -> Answer | None:
        """As before a start: the grant, no copy here, and the claim on the storage (G2, G4)."""
        power, vm = self._power, body.vm
        objection = power.grant_objection(body.grant)
        if objection is not None:
            return objection
        present = await power.present(vm.id)
        if present is not None and not is_gone(present):
            return refused("order.refused.running", f"{vm.name} is {present.state} here already")
        try:
            await power.claim(vm, body.grant.incarnation)
        except ClaimRefused as error:
            return refused(
                "order.refused.incarnation",
                str(error),
                incarnation=error.present.incarnation,
                current=error.present.incarnation,
                holder_host=error.present.host_id,
            )
        return power.grant_objection(body.grant)

    async def _write(
        self, order: Order, body: ChangeSnapshots | GrowDisk, paths: tuple[Path, ...]
    ) -> Answer:
        await self._host.disk(self._host.outcomes.begin, order.operation_id, order.step)
        if isinstance(body, GrowDisk):
            return await self._grow(body, paths[0])
        return await self._change_snapshots(body, paths)

    async def _grow(self, body: GrowDisk, path: Path) -> Answer:
        """That large already is done; an order that comes again finds it so."""
        disk = grown_disk(body)
        has_bytes = (await image_info(path, disk.format.value)).virtual_size
        check_not_smaller(disk, has_bytes, body.size_bytes)
        if has_bytes == body.size_bytes:
            return OK
        await resize(path, disk.format.value, body.size_bytes)
        return OK

    async def _change_snapshots(self, body: ChangeSnapshots, paths: tuple[Path, ...]) -> Answer:
        """All disks or, of a new snapshot, none. Each can be repeated: the VM has not run in between."""
        tag = body.snapshot_id
        have = [tag in await snapshots_in(path) for path in paths]
        if body.action is SnapshotAction.REVERT and not all(have):
            raise Refused(
                f"not every disk of {body.vm.name} has that snapshot", fix="choose another one"
            )
        try:
            for path, has in zip(paths, have, strict=True):
                if body.action is SnapshotAction.REVERT or has is (
                    body.action is SnapshotAction.DELETE
                ):
                    await change_snapshot(path, body.action.value, tag)
        except Failed:
            if body.action is SnapshotAction.CREATE:
                for path in paths:
                    if tag in await snapshots_in(path):
                        await change_snapshot(path, SnapshotAction.DELETE.value, tag)
            raise
        return OK

    async def _paths(self, body: ChangeSnapshots | GrowDisk) -> tuple[Path, ...]:
        paths = []
        growing = body.disk_id if isinstance(body, GrowDisk) else None
        for disk in body.vm.disks:
            if disk.readonly or growing not in (None, disk.id):
                continue
            domain = self._host.storage_domain(disk.storage_domain_id)
            inner = partial(inside, domain, disk.path)
            paths.append(
                await self._host.workers.call(domain, inner, deadline_ms=ORDER_DEADLINE_MS)
            )
        return tuple(paths)


def grown_disk(body: GrowDisk | GrowLiveDisk) -> Disk:
    found = next((disk for disk in body.vm.disks if disk.id == body.disk_id), None)
    if found is None or found.readonly:
        raise InvalidInput("names no disk that can grow", field="disk_id")
    return found


def check_not_smaller(disk: Disk, has_bytes: int, wanted_bytes: int) -> None:
    if has_bytes > wanted_bytes:
        raise Refused(
            f"{disk.name} has {format_size(has_bytes)}, and a disk can't be made smaller",
            code="problem.disk.shrink",
            field="size_bytes",
            fix=f"make it at least {format_size(has_bytes)}",
        )
