"""What hosts tell, as events of the engine. Pure, and the same for the server and the simulated world."""

from collections.abc import Collection

from virtha.engine.ending import EndPaused
from virtha.engine.events import (
    CopyReleased,
    EngineEvent,
    KillEnded,
    MigrateCommand,
    MigrationEnded,
    StartCommand,
    StartEnded,
    VmSeen,
)
from virtha.engine.move_answer import MoveAnswered
from virtha.engine.records import OrderId
from virtha.model.domain import DomainState
from virtha.model.facts import (
    Awaited,
    Fact,
    Inventory,
    MigrationReport,
    Outcome,
    Released,
    Result,
    VmReport,
)
from virtha.model.ids import BootId, HostId, VmId
from virtha.model.vm import IO_PAUSES, NO_ROOM_PAUSE, VmState

UNSENT = "migration.ended.unsent"
"""Of a move whose order certainly goes to nobody."""
REFUSED_UNREAD = ("order.refused.term", "order.refused.boot")
"""How an agent's order desk refuses, before anybody there looks at the VM (agent/order_desk.py)."""


def event_of(host_id: HostId, fact: Fact, *, carried_by: BootId | None) -> EngineEvent | None:
    """None: it says nothing to the engine, or not by itself: an inventory and an outcome need what the server knows.
    ``carried_by``: the boot whose session brought it."""
    match fact.body:
        case VmReport(leaves=leaves) as report:
            return VmSeen(
                host_id=host_id,
                boot=fact.boot,
                carried_by=carried_by,
                vm_id=report.vm_id,
                incarnation=report.incarnation,
                state=report.state,
                guest_agent=report.guest_agent,
                io_error=any(why.code in IO_PAUSES for why in report.reasons),
                no_room=any(why.code == NO_ROOM_PAUSE for why in report.reasons),
                leaves_by=None if leaves is None else OrderId(leaves.migration_id),
                other=None if leaves is None else leaves.target,
            )
        case Awaited() as half:
            return VmSeen(
                host_id=host_id,
                boot=fact.boot,
                carried_by=carried_by,
                vm_id=half.vm_id,
                incarnation=half.incarnation,
                state=VmState.STARTING,
                awaited_by=OrderId(half.migration_id),
                other=half.source,
            )
        case Released(vm_id=vm_id, incarnation=incarnation, cause=cause):
            return CopyReleased(
                host_id=host_id, boot=fact.boot, vm_id=vm_id, incarnation=incarnation, cause=cause
            )
        case MigrationReport() as told:
            return MigrationEnded(
                order_id=OrderId(told.migration_id),
                host_id=host_id,
                vm_id=told.vm_id,
                result=told.result,
                code=told.code,
            )
        case _:
            return None


def active_vms(inventory: Inventory, managed: Collection[VmId]) -> frozenset[VmId]:
    """Managed VMs that have a QEMU there, in whatever state."""
    active = {one.vm_id for one in inventory.domains if one.state is not DomainState.SHUTOFF}
    return frozenset(active.intersection(managed))


def ended(command: StartCommand | EndPaused, outcome: Outcome) -> StartEnded | KillEnded:
    """How the order ended that ``command`` became."""
    if isinstance(command, StartCommand):
        return _start_ended(command, outcome)
    return KillEnded(
        order_id=command.order_id,
        host_id=command.host_id,
        vm_id=command.vm_id,
        result=outcome.result,
        code=outcome.code,
    )


def move_answer(
    command: MigrateCommand, host_id: HostId, outcome: Outcome
) -> MoveAnswered | MigrationEnded:
    """What ``host_id`` answered to its order that ``command`` became."""
    if outcome.result is Result.REFUSED and outcome.code in REFUSED_UNREAD:
        return move_refused(command, host_id, outcome.code)
    return MoveAnswered(
        order_id=command.order_id,
        host_id=host_id,
        vm_id=command.vm_id,
        result=outcome.result,
    )


def move_refused(command: MigrateCommand, host_id: HostId, code: str | None) -> MigrationEnded:
    """That side was never asked, or its agent refused the order without a look at the VM: nobody else will say so."""
    return MigrationEnded(
        order_id=command.order_id,
        host_id=host_id,
        vm_id=command.vm_id,
        result=Result.REFUSED,
        code=code,
    )


def _start_ended(start: StartCommand, outcome: Outcome) -> StartEnded:
    # "It runs here already" is no word about its end (G2).
    runs = outcome.code == "order.refused.running"
    return StartEnded(
        order_id=start.order_id,
        host_id=start.host_id,
        vm_id=start.vm_id,
        incarnation=start.incarnation,
        result=Result.UNKNOWN if runs else outcome.result,
        code=outcome.code,
    )
