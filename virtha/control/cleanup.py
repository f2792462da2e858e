"""Which operations can be taken back; what one that ends early leaves behind, and what of it is taken away. Pure."""

import msgspec

from virtha.control.plan import Give, Plan, Step
from virtha.model.errors import Refused
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.orders import CopyDisk, CreateDisk, ForgetVm
from virtha.model.vm import Disk

CANCELLED = "order.failed.cancelled"
ADD = "vm.add"
"""Nothing cleans up after it: what was made before its host heard of a cancel is added all the same."""
_INSTEAD = {
    "vm.start": "'virtha vm power-off' ends it",
    "vm.recover": "'virtha vm power-off' ends it",
    "vm.shutdown": "its guest was asked already; 'virtha vm start' when it is down",
    "vm.power_off": "'virtha vm start' when it is down",
    "vm.delete": "what is deleted is gone; wait for its end",
    "vm.migrate": "'virtha vm cancel-migration' calls it off",
    "host.fence": "'virtha hold REASON' lets no further order out; an off that is out can't be called back",
    ADD: "wait for its end, then 'virtha vm disk remove'",
}
"""What can be done about an operation that can't be taken back."""


def check_can_cancel(operation: Operation, plan: Plan) -> tuple[int, ...]:
    """Indices of the steps that are to be stopped: until a new VM or template is whole, nobody relies on it. Raises
    Refused: a host may have done already what the operation is about."""
    if operation.is_over:
        raise _cannot(operation, f"is {operation.state.value} already", "there is nothing to do")
    if plan.cancelled_by is not None:
        raise _cannot(
            operation,
            f"is being taken back already, for {plan.cancelled_by}",
            f"wait for its end: 'virtha operation wait {operation.id}'",
        )
    if not plan.steps:
        # What the engine does is only shown here.
        fix = _INSTEAD.get(operation.kind, "wait for its end, then undo it")
        raise _cannot(operation, "is the engine's: its order may be out already", fix)
    running = [
        index for index, step in enumerate(operation.steps) if step.state is OperationState.RUNNING
    ]
    copies = running_copies(operation, plan)
    can_end = bool(plan.on_failure) or operation.kind == ADD
    if plan.failed or not can_end or not running or tuple(running) != copies:
        shown = operation.steps[running[0]].name if running else "what is under way"
        fix = _INSTEAD.get(operation.kind, "wait for its end, then undo it")
        raise _cannot(operation, f"can't be taken back while it does this: {shown}", fix)
    return copies


def _cannot(operation: Operation, why: str, fix: str) -> Refused:
    return Refused(f"{operation.kind} {why}", code="problem.operation.cancel", fix=fix)


def running_copies(operation: Operation, plan: Plan) -> tuple[int, ...]:
    """Indices of the steps that make a disk at present."""
    return tuple(
        index
        for index, (step, shown) in enumerate(zip(plan.steps, operation.steps, strict=True))
        if shown.state is OperationState.RUNNING
        and isinstance(step, Give)
        and made_by(step) is not None
    )


def called_off(operation: Operation, plan: Plan) -> tuple[Step, ...]:
    """The steps that were to follow what was taken back."""
    return tuple(
        step
        for step, shown in zip(plan.steps, operation.steps, strict=True)
        if shown.state is OperationState.CANCELLED
    )


def made_by(step: Give) -> Disk | None:
    match step.order:
        case CreateDisk(disk=disk) | CopyDisk(target=disk):
            return disk
        case _:
            return None


def only_created(
    plan: Plan, shown_steps: tuple[OperationStep, ...], cleanup: tuple[Step, ...]
) -> tuple[Step, ...]:
    """Without the disks that this operation has not made: a disk that was there already, and for
    which ``CreateDisk`` was refused, is somebody's data."""
    created = {
        disk.id
        for step, shown in zip(plan.steps, shown_steps, strict=True)
        if shown.state is OperationState.DONE
        and isinstance(step, Give)
        and (disk := made_by(step)) is not None
    }
    return tuple(
        msgspec.structs.replace(
            step,
            order=msgspec.structs.replace(
                step.order, disks=tuple(disk for disk in step.order.disks if disk.id in created)
            ),
        )
        if isinstance(step, Give) and isinstance(step.order, ForgetVm)
        else step
        for step in cleanup
    )
