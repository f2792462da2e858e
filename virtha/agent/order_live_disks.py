"""Orders that change the disks of a running VM by its own QEMU: their size, snapshots inside them (ADR 0013)."""

from functools import partial

import msgspec

from virtha.agent.answers import OK, Answer, of_error, refused
from virtha.agent.freezer import GuestFreezer
from virtha.agent.host_context import HostContext
from virtha.agent.order_devices import DeviceOrders
from virtha.agent.order_idle_disks import check_not_smaller, grown_disk
from virtha.domainxml.build import disk_path
from virtha.model.codes import render
from virtha.model.errors import Refused
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import ChangeLiveSnapshots, GrowLiveDisk, Order, SnapshotAction
from virtha.ports.hypervisor import HypervisorError, HypervisorFailed, LiveDisk


class LiveDiskOrders:
    def __init__(self, host: HostContext, devices: DeviceOrders, freezer: GuestFreezer) -> None:
        self._host = host
        self._devices = devices
        self._freezer = freezer

    async def grow(self, body: GrowLiveDisk) -> Answer:
        host, vm = self._host, body.vm
        disk = grown_disk(body)
        async with host.locks.of(vm.id):
            objection = await self._devices.objection(vm.id, body.incarnation)
            if objection is not None:
                return objection
            path = disk_path(disk, host.host_defaults())
            live = (await self._live_disks(body)).get(path)
            if live is None:
                return _not_plugged(disk.name)
            check_not_smaller(disk, live.size_bytes, body.size_bytes)
            if live.size_bytes < body.size_bytes:
                await host.disks.grow_disk(vm.id, path, body.size_bytes)
        return OK

    async def change(self, order: Order, body: ChangeLiveSnapshots) -> Answer:
        """The guest is frozen and thawed outside the VM's lock: a power off does not wait for a guest that is silent."""
        vm = body.vm
        if body.action is SnapshotAction.REVERT:
            return refused("problem.vm.state", f"{vm.name} runs: its disks can't be put back")
        objection = await self._devices.objection(vm.id, body.incarnation)
        if objection is not None:
            return objection
        if body.action is SnapshotAction.DELETE:
            return await self._delete(body)
        if not body.freeze:
            return _made(await self._make(order, body), frozen=False)
        check = partial(self._check, vm.id, body.incarnation)
        async with self._freezer.frozen(vm.id, check) as file_systems:
            answer = await self._make(order, body)
            # Nothing was mounted: then there is nothing that could have been let go.
            if answer.result is not Result.OK or not file_systems:
                return _made(answer, frozen=True)
            if await self._freezer.still(vm.id):
                return _made(answer, frozen=True)
            await self._delete(body)
        code = "order.failed.not_frozen"
        return Answer(result=Result.FAILED, code=code, message=render(code, {}))

    async def _check(self, vm_id: VmId, incarnation: Incarnation) -> None:
        objection = await self._devices.objection(vm_id, incarnation)
        if objection is not None:
            raise Refused(objection.message, code=objection.code)

    async def _make(self, order: Order, body: ChangeLiveSnapshots) -> Answer:
        host, vm_id, tag = self._host, body.vm.id, body.snapshot_id
        async with host.locks.of(vm_id):
            objection = await self._devices.objection(vm_id, body.incarnation)
            if objection is not None:
                return objection
            live, paths = await self._live_disks(body), self._paths(body)
            for name, path in paths.items():
                if path not in live:
                    return _not_plugged(name)
            for path in paths.values():
                if tag in live[path].snapshots:
                    # Of a try whose end nobody saw: whether its guest was frozen nobody knows.
                    await host.disks.delete_snapshot(vm_id, path, tag)
            await host.disk(host.outcomes.begin, order.operation_id, order.step)
            try:
                await host.disks.make_snapshot(vm_id, tuple(paths.values()), tag)
            except HypervisorFailed as error:
                return await self._not_made(body, tuple(paths.values()), error)
        return OK

    async def _not_made(
        self, body: ChangeLiveSnapshots, paths: tuple[str, ...], error: HypervisorFailed
    ) -> Answer:
        """QEMU said no, or it ended in the midst and another one runs by now: nothing of it is left, or nobody knows."""
        vm_id, tag = body.vm.id, body.snapshot_id
        try:
            live = await self._live_disks(body)
            for path in paths:
                if tag in live[path].snapshots:
                    await self._host.disks.delete_snapshot(vm_id, path, tag)
        except (HypervisorError, KeyError) as further:
            return Answer(
                result=Result.UNKNOWN,
                code=error.code,
                message=f"{error}; and its disks can't be looked at: {further}",
            )
        return of_error(error)

    async def _delete(self, body: ChangeLiveSnapshots) -> Answer:
        """Absent is done already."""
        host, vm_id, tag = self._host, body.vm.id, body.snapshot_id
        async with host.locks.of(vm_id):
            objection = await self._devices.objection(vm_id, body.incarnation)
            if objection is not None:
                return objection
            live, paths = await self._live_disks(body), self._paths(body)
            for name, path in paths.items():
                if path not in live:
                    return _not_plugged(name)
                if tag in live[path].snapshots:
                    await host.disks.delete_snapshot(vm_id, path, tag)
        return OK

    def _paths(self, body: ChangeLiveSnapshots) -> dict[str, str]:
        """By the disks' names."""
        defaults = self._host.host_defaults()
        return {disk.name: disk_path(disk, defaults) for disk in body.vm.disks if not disk.readonly}

    async def _live_disks(self, body: GrowLiveDisk | ChangeLiveSnapshots) -> dict[str, LiveDisk]:
        return {disk.path: disk for disk in await self._host.disks.live_disks(body.vm.id)}


def _made(answer: Answer, *, frozen: bool) -> Answer:
    if answer.result is not Result.OK:
        return answer
    return msgspec.structs.replace(answer, fields={**answer.fields, "frozen": frozen})


def _not_plugged(name: str) -> Answer:
    message = f"the running VM does not have {name}: it has it from its next start on"
    return refused("order.refused.not_plugged", message, device=name)
