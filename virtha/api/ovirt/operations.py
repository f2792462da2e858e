"""What is under way, as oVirt shows it: statuses of what it is about, and the answer of an action."""

from collections import defaultdict

from virtha.api.ovirt.listing import gather
from virtha.api.ovirt.route import Call, Reply, ref
from virtha.api.ovirt.shape import Node
from virtha.control.requests import OperationQuery
from virtha.model.errors import Refused
from virtha.model.operation import Operation, OperationState

ANSWER_WAIT_MS = 3_000
"""How long an answer waits for the end of what it began: so that what fails at once is told at once."""
Underway = dict[str, set[str]]
"""Kinds of open operations, by the id of what they are about."""


async def underway(call: Call, subject: str | None = None) -> Underway:
    found: Underway = defaultdict(set)
    for one in await gather(
        lambda limit, after: call.control.operations.list(
            OperationQuery(open=True, subject=subject, limit=limit, after=after)
        )
    ):
        found[one.subject].add(one.kind)
    return found


async def waited(call: Call, operation: Operation, wait_ms: int = ANSWER_WAIT_MS) -> Operation:
    """As it is when it ends, or after ``wait_ms``; with ``async`` at once. Raises Refused: it failed, with its code."""
    if _asked_async(call):
        return operation
    work = call.control.operations.wait(operation.id, wait_ms)
    seen = await call.services.unless_stopping(work)
    if seen.state in (OperationState.FAILED, OperationState.CANCELLED):
        raise Refused(seen.message or f"{seen.kind} {seen.state.value}", code=seen.code)
    return seen


async def action_reply(
    call: Call, operation: Operation, wait_ms: int = ANSWER_WAIT_MS, **more: object
) -> Reply:
    """``complete`` once it is over; ``pending`` when it goes on beyond the answer, or was asked for with ``async``."""
    seen = await waited(call, operation, wait_ms)
    return done("complete" if seen.is_over else "pending", job=ref("jobs", seen.id), **more)


def _asked_async(call: Call) -> bool:
    return bool(call.body.get("async", not call.parameters.wait))


def done(status: str = "complete", **more: object) -> Reply:
    body: Node = {"status": status, **more}
    return Reply(shape="action", body=body)
