"""Orders about devices of a running VM: plug one, unplug one."""

import asyncio

from virtha.agent.answers import OK, Answer, refused
from virtha.agent.ceph_images import take_along
from virtha.agent.commands import is_gone
from virtha.agent.host_context import HostContext
from virtha.agent.order_power import PowerOrders
from virtha.domainxml.plugging import find_device, plug_xml, without_device
from virtha.model.errors import InvalidInput
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import Order, PlugDevice, UnplugDevice
from virtha.model.vm import Disk, Nic
from virtha.ports.hypervisor import DomainMissing, HypervisorFailed

GONE_POLL_S = 0.25


class DeviceOrders:
    def __init__(self, host: HostContext, power: PowerOrders) -> None:
        self._host = host
        self._power = power

    async def plug(self, order: PlugDevice) -> Answer:
        host, vm = self._host, order.vm
        async with host.locks.of(vm.id):
            objection = await self.objection(vm.id, order.incarnation)
            if objection is not None:
                return objection
            live = await host.catalog.xml(vm.id, inactive=False)
            if find_device(live, _device(order), host.host_defaults()) is None:
                if order.disk is not None:
                    # Whoever starts the VM elsewhere must meet this copy also on that disk's storage.
                    await self._power.claim(vm, order.incarnation)
                    await take_along(host, vm, order.disk)
                xml = plug_xml(live, vm, _device(order), host.host_defaults())
                await host.devices.attach(vm.id, xml)
        host.on_plugged(vm.id)
        return OK

    async def unplug(self, order: Order, body: UnplugDevice) -> Answer:
        host, vm_id, device = self._host, body.vm_id, _device(body)
        deadline = host.clock.monotonic_ms() + body.deadline_ms
        asked = host.outcomes.begun(order.operation_id, order.step)
        while True:
            # Before the look, and only of one that follows the asking: what is gone by then was given up.
            late = asked and host.clock.monotonic_ms() >= deadline
            async with host.locks.of(vm_id):
                objection = await self.objection(vm_id, body.incarnation)
                if objection is not None:
                    return objection
                live = await host.catalog.xml(vm_id, inactive=False)
                present = find_device(live, device, host.host_defaults())
                if present is None and isinstance(device, Disk) and not asked:
                    # Perhaps libvirt still hangs in plugging it: then its file must not become another VM's.
                    return refused(
                        "order.refused.not_plugged",
                        f"the running VM does not have {device.name}",
                        device=device.name,
                    )
                if present is None:
                    await self._undefine(vm_id, device)
                    host.on_plugged(vm_id)
                    return OK
                if not asked:
                    await host.disk(host.outcomes.begin, order.operation_id, order.step)
                    asked = True
                    try:
                        await host.devices.detach(vm_id, present)
                    except HypervisorFailed as error:
                        return _kept(body, str(error))
            if late:
                return _kept(body, "")
            # Not under the lock: a power off must not wait for a guest that ignores us.
            await asyncio.sleep(GONE_POLL_S)

    async def _undefine(self, vm_id: VmId, device: Disk | Nic) -> None:
        """Before it is said to be gone: a restart by the sentinel would open again what is another VM's by then."""
        host = self._host
        xml = without_device(await host.catalog.xml(vm_id), device, host.host_defaults())
        if xml is not None:
            await host.catalog.define(xml)

    async def objection(self, vm_id: VmId, incarnation: Incarnation) -> Answer | None:
        """Only the very copy that an order is about is touched."""
        record = self._host.loop.record(vm_id)
        try:
            present = await self._host.catalog.domain(vm_id)
        except DomainMissing:
            present = None
        if record is None or present is None:
            return refused("order.refused.not_here", "this host does not have that VM")
        if record.incarnation != incarnation:
            return refused(
                "order.refused.incarnation",
                f"incarnation {incarnation} was meant, {record.incarnation} is here",
                incarnation=incarnation,
                current=record.incarnation,
            )
        if record.migrating:
            return refused("problem.vm.state", f"{present.name} is being moved")
        if is_gone(present):
            return refused("problem.vm.state", f"{present.name} is {present.state}")
        return None


def _device(order: PlugDevice | UnplugDevice) -> Disk | Nic:
    device = order.disk or order.nic
    if device is None:
        raise InvalidInput("names no device", field="order")
    return device


def _kept(order: UnplugDevice, detail: str) -> Answer:
    device = order.disk.name if order.disk is not None else order.nic.mac if order.nic else ""
    told = f"its guest did not give {device} up within {order.deadline_ms} ms; it keeps it"
    return Answer(
        result=Result.FAILED,
        code="order.failed.unplug_refused",
        message=f"{told}: {detail}" if detail else told,
        fields={"device": device, "deadline_ms": order.deadline_ms},
    )
