"""What hosts tell, as events of the engine. Pure, and the same for the server and the simulated world."""

from collections.abc import Collection

from msgspec import ValidationError, convert

from virtha.engine.cutting import StorageFenced, StorageLetIn, StorageOpened
from virtha.engine.ending import EndPaused
from virtha.engine.events import (
    CopyReleased,
    EngineEvent,
    KillEnded,
    MigrateCommand,
    MigrationEnded,
    StartCommand,
    StartEnded,
    StorageFence,
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
from virtha.model.orders import ShutOut
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


Answered = StartCommand | EndPaused | StorageFence | StorageLetIn
"""Commands that become an order each, whose outcome the engine is told."""


def ended(
    command: Answered, outcome: Outcome
) -> StartEnded | KillEnded | StorageFenced | StorageOpened:
    """How the order ended that ``command`` became."""
    match command:
        case StartCommand():
            return _start_ended(command, outcome)
        case StorageFence():
            return _fenced(command, outcome)
        case StorageLetIn():
            return _opened(command, outcome)
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


def _fenced(command: StorageFence, outcome: Outcome) -> StorageFenced:
    result, error = outcome.result, outcome.message or outcome.code or ""
    told: ShutOut | None = None
    if result is Result.OK:
        try:
            told = convert(outcome.fields, ShutOut)
        except ValidationError:
            # It says that it is done, and not what was read back.
            result, error = Result.UNKNOWN, "its answer can't be understood"
    return StorageFenced(
        order_id=command.order_id,
        host_id=command.host_id,
        helper=command.helper,
        result=result,
        fsid=told.fsid if told else "",
        addresses=_listed(told.addresses) if told else (),
        epoch=told.epoch if told else 0,
        until_s=told.until_s if told else 0,
        error="" if told else error,
    )


def _opened(command: StorageLetIn, outcome: Outcome) -> StorageOpened:
    ok = outcome.result is Result.OK
    return StorageOpened(
        order_id=command.order_id,
        host_id=command.host_id,
        helper=command.helper,
        result=outcome.result,
        left=_listed(str(outcome.fields.get("left", ""))) if ok else (),
        error="" if ok else outcome.message or outcome.code or "",
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(sorted(one for one in text.split(",") if one))
