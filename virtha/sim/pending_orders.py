"""Orders to hosts that have not been answered, as the simulated server's database has them."""

from virtha.model.ids import OperationId, VmId
from virtha.model.orders import (
    AdoptVm,
    OrderBody,
    PauseVm,
    RebootVm,
    ResumeVm,
    StartVm,
    StopVm,
)
from virtha.model.value import Value


class PendingOrder(Value, frozen=True, kw_only=True):
    """``step`` is always 0 here. ``by_person``: an operation of its own, whose failure is an event (`control/runner.py`)."""

    operation_id: OperationId
    host: str
    body: OrderBody
    created_ms: int
    by_person: bool = False


def subject_of(body: OrderBody) -> VmId | None:
    match body:
        case StartVm(vm=vm) | AdoptVm(vm=vm):
            return vm.id
        case StopVm(vm_id=vm_id) | RebootVm(vm_id=vm_id) | PauseVm(vm_id=vm_id):
            return vm_id
        case ResumeVm(vm_id=vm_id):
            return vm_id
        case _:
            return None
