"""What is under way, as oVirt shows it: statuses of what it is about, and the answer of an action."""

from collections import defaultdict
from collections.abc import Mapping

from virtha.api.ovirt.listing import gather
from virtha.api.ovirt.route import Call, Reply, ref
from virtha.api.ovirt.shape import Node
from virtha.control.requests import OperationQuery
from virtha.model.errors import Refused
from virtha.model.ids import VmId
from virtha.model.operation import Operation, OperationState
from virtha.model.vm import Disk, Nic

ANSWER_WAIT_MS = 3_000
"""How long an answer waits for the end of what it began: so that what fails at once is told at once."""


async def underway(call: Call, subject: str | None = None) -> Mapping[str, set[str]]:
    """``subject``: of this one at least."""
    if call.known.underway is not None:
        return call.known.underway
    found: dict[str, set[str]] = defaultdict(set)
    for one in await gather(
        lambda limit, after: call.control.operations.list(
            OperationQuery(open=True, subject=subject, limit=limit, after=after)
        )
    ):
        found[one.subject].add(one.kind)
    if subject is None:
        call.known.underway = found
    return found


async def being_added(call: Call, vm_id: VmId) -> tuple[Disk | Nic, ...]:
    """What is on its way into that VM, under the id that it will have."""
    return (await all_being_added(call)).get(vm_id, ())


async def all_being_added(call: Call) -> Mapping[VmId, tuple[Disk | Nic, ...]]:
    if call.known.being_added is None:
        call.known.being_added = await call.control.vms.devices.being_added()
    return call.known.being_added


async def waited(call: Call, operation: Operation, wait_ms: int | None = None) -> Operation:
    """As it is when it ends, or after ``wait_ms`` (None: ``ANSWER_WAIT_MS``); with ``async`` at once. Raises Refused: it failed, with its code."""
    if _asked_async(call):
        return operation
    work = call.control.operations.wait(
        operation.id, ANSWER_WAIT_MS if wait_ms is None else wait_ms
    )
    seen = await call.services.unless_stopping(work)
    if seen.state in (OperationState.FAILED, OperationState.CANCELLED):
        raise Refused(seen.message or f"{seen.kind} {seen.state.value}", code=seen.code)
    return seen


def status_of_addition(seen: Operation) -> int:
    """As oVirt: accepted, where it goes on beyond the answer."""
    return 201 if seen.is_over else 202


async def action_reply(
    call: Call, operation: Operation, wait_ms: int | None = None, **more: object
) -> Reply:
    """``complete`` once it is over; ``pending`` when it goes on beyond the answer, or was asked for with ``async``."""
    seen = await waited(call, operation, wait_ms)
    return done("complete" if seen.is_over else "pending", job=ref("jobs", seen.id), **more)


def _asked_async(call: Call) -> bool:
    return bool(call.body.get("async", not call.parameters.wait))


def done(status: str = "complete", **more: object) -> Reply:
    body: Node = {"status": status, **more}
    return Reply(shape="action", body=body)
