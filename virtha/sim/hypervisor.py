"""The simulated libvirt behind the hypervisor ports, for the contract suite and for agents in tests."""

from collections.abc import Callable

from virtha.model.domain import DomainEvent, DomainReport
from virtha.model.ids import VmId
from virtha.ports.hypervisor import HypervisorUnavailable
from virtha.sim.libvirt import Gate, SimLibvirt


class SimHypervisor:
    """DomainControl, DomainCatalog and DomainWatch over one ``SimLibvirt``.

    ``gate`` refuses a start by returning why; ``clock`` counts milliseconds. Faults are made
    through ``libvirt`` (`kill_qemu`, `panic`, `fire_watchdog` …), ``lose`` and ``heal``.
    """

    def __init__(self, *, gate: Gate | None = None, clock: Callable[[], int] | None = None) -> None:
        self._connected = True
        self._subscribers: list[tuple[Callable[[DomainEvent], None], Callable[[bool], None]]] = []
        self.libvirt = SimLibvirt(
            clock=clock or (lambda: 0), emit=self._publish, gate=gate or (lambda _vm_id: None)
        )

    def lose(self) -> None:
        """libvirtd is gone: calls fail, events are lost, QEMUs run on."""
        self._connected = False
        for _, on_connection in self._subscribers:
            on_connection(False)

    def heal(self) -> None:
        self._connected = True
        for _, on_connection in self._subscribers:
            on_connection(True)

    # DomainControl

    async def start_paused(self, vm_id: VmId) -> None:
        self._reachable().start_paused(vm_id)

    async def run(self, vm_id: VmId) -> None:
        self._reachable().run(vm_id)

    async def pause(self, vm_id: VmId) -> None:
        self._reachable().pause(vm_id)

    async def shutdown(self, vm_id: VmId) -> None:
        self._reachable().shutdown(vm_id)

    async def reboot(self, vm_id: VmId) -> None:
        self._reachable().guest_reboot(vm_id)

    async def reset(self, vm_id: VmId) -> None:
        self._reachable().reset(vm_id)

    async def destroy(self, vm_id: VmId) -> None:
        self._reachable().destroy(vm_id)

    # DomainDevices

    async def attach(self, vm_id: VmId, device_xml: str) -> None:
        self._reachable().attach(vm_id, device_xml)

    async def detach(self, vm_id: VmId, device_xml: str) -> None:
        self._reachable().detach(vm_id, device_xml)

    # DomainCatalog

    async def domains(self) -> tuple[DomainReport, ...]:
        return tuple(domain.report() for domain in self._reachable())

    async def domain(self, vm_id: VmId) -> DomainReport:
        return self._reachable().domain(vm_id).report()

    async def xml(self, vm_id: VmId, *, inactive: bool = True) -> str:
        domain = self._reachable().domain(vm_id)
        return domain.xml if inactive or domain.qemu is None else domain.live_xml

    async def define(self, xml: str) -> None:
        self._reachable().define(xml)

    async def undefine(self, vm_id: VmId) -> None:
        self._reachable().undefine(vm_id)

    async def set_autostart(self, vm_id: VmId, on: bool) -> None:
        self._reachable().domain(vm_id).autostart = on

    # DomainWatch

    def subscribe(
        self,
        on_event: Callable[[DomainEvent], None],
        on_connection: Callable[[bool], None],
    ) -> None:
        self._subscribers.append((on_event, on_connection))

    async def start(self) -> None:
        for _, on_connection in self._subscribers:
            on_connection(self._connected)

    async def close(self) -> None:
        self._subscribers.clear()

    # Inside

    def _reachable(self) -> SimLibvirt:
        if not self._connected:
            raise HypervisorUnavailable("libvirt does not answer")
        return self.libvirt

    def _publish(self, event: DomainEvent) -> None:
        if self._connected:
            for on_event, _ in self._subscribers:
                on_event(event)
