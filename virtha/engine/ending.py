"""Orders that end a copy where it is, as the engine gives them."""

from virtha.engine.records import OrderId
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.proof import Proof
from virtha.model.value import Value

END_EVERY_MS = 5_000
"""An order that is not answered is sent again: the host's agent may have been restarting."""


class EndCopy(Value, frozen=True, kw_only=True, tag="end_copy"):
    """End a copy in a boot that was proven dead and lives: ``newer`` was ordered elsewhere by that proof (G4). May be sent
    again; the host confirms with a release."""

    order_id: OrderId
    vm_id: VmId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation
    newer: Incarnation
    proof: Proof


class EndPaused(Value, frozen=True, kw_only=True, tag="end_paused"):
    """End the QEMU of a VM that an I/O error paused: its record says so already. May be sent again. Outcome:
    ``KillEnded``, and a release when it has ended."""

    order_id: OrderId
    vm_id: VmId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation
