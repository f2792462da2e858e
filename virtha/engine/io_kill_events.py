"""What goes out of the engine and comes back about VMs that an I/O error paused and that are ended; see ``io_kill``."""

from virtha.engine.records import OrderId
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.value import Value


class EndPaused(Value, frozen=True, kw_only=True, tag="end_paused"):
    """End the QEMU of a VM that an I/O error paused: its record says so already. May be sent again. Outcome:
    ``KillEnded``, and a release when it has ended."""

    order_id: OrderId
    vm_id: VmId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation


class KillEnded(Value, frozen=True, kw_only=True, tag="kill_ended"):
    """How an order to end a paused VM was answered. ``OK``: it has ended, which its release says, too. ``REFUSED``: nothing
    was done to it. ``FAILED``, ``UNKNOWN``: its QEMU may live."""

    order_id: OrderId
    host_id: HostId
    vm_id: VmId
    result: Result
    code: str | None = None
