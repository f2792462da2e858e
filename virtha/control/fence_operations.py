"""The engine's fencing of a host, shown as an operation that follows its record: written with it, so that whoever leads next
goes on in the same one, and no server's end leaves it open."""

from collections.abc import Iterable
from uuid import NAMESPACE_OID, uuid5

from msgspec.structs import replace

from virtha.control.plan import Plan, encode_plan
from virtha.engine.events import DropHost, Intent, SaveHost
from virtha.engine.records import FeedProgress, Fence, FenceStep, HostRecord, Incident
from virtha.model.codes import render
from virtha.model.ids import HostId, OperationId
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.power import PowerAction, device_name
from virtha.model.time import UtcMillis
from virtha.store.engine import find_host_records
from virtha.store.operations import find_operation, save_operation
from virtha.store.store import WriteTransaction

FENCE = "host.fence"
STEPS_MAX = 24
"""The last ones are kept: a host whose devices fail is tried again without end."""
GIVEN_UP = "fence.failed_host_lives"
_ENDS = {
    FenceStep.ON_FAILED: "fence.blocked.on_failed",
    FenceStep.NOT_BACK: "fence.blocked.not_back",
}


async def follow_fences(tx: WriteTransaction, intents: Iterable[Intent]) -> None:
    """To be called before ``intents`` are written: it looks at what they change."""
    changed: list[tuple[HostId, HostRecord | None]] = []
    for intent in intents:
        if isinstance(intent, SaveHost):
            changed.append((intent.record.host_id, intent.record))
        elif isinstance(intent, DropHost):
            changed.append((intent.host_id, None))
    if not changed:
        return
    records = await find_host_records(tx, {host_id for host_id, _ in changed})
    for host_id, after in changed:
        before = records.get(host_id)
        if _fence_of(before) != _fence_of(after) or _is_proven(before) != _is_proven(after):
            await _follow(tx, host_id, before, after)


def operation_of(host_id: HostId, incident: Incident) -> OperationId:
    """Of one failure of one boot: the same, whoever leads."""
    name = f"fence {host_id} {incident.number} {incident.boot}"
    return OperationId(str(uuid5(NAMESPACE_OID, name)))


def _incident_of(record: HostRecord | None) -> Incident | None:
    return record.incident if record is not None else None


def _fence_of(record: HostRecord | None) -> Fence | None:
    incident = _incident_of(record)
    return incident.fence if incident is not None else None


def _is_proven(record: HostRecord | None) -> bool:
    incident = _incident_of(record)
    return incident is not None and incident.proof is not None


async def _follow(
    tx: WriteTransaction, host_id: HostId, before: HostRecord | None, after: HostRecord | None
) -> None:
    was, now = _incident_of(before), _incident_of(after)
    if was is not None and was.fence is not None:
        same = now is not None and operation_of(host_id, now) == operation_of(host_id, was)
        if not same or now is None or now.fence is None:
            await _end_given_up(tx, host_id, was, was.fence)
    if now is None or now.fence is None:
        return
    operation_id = operation_of(host_id, now)
    row = await find_operation(tx, operation_id)
    at = tx.clock.wall_ms()
    operation = (
        row.operation
        if row is not None
        else Operation(id=operation_id, kind=FENCE, subject=host_id, asked_by="virtha", created=at)
    )
    changed = _moved_on(operation, now, now.fence, at)
    if changed != operation:
        await _save(tx, changed)


async def _end_given_up(
    tx: WriteTransaction, host_id: HostId, incident: Incident, fence: Fence
) -> None:
    """Its host is back, or was never dead, or is not configured any more."""
    row = await find_operation(tx, operation_of(host_id, incident))
    if row is None or row.operation.is_over:
        return
    at = tx.clock.wall_ms()
    if incident.proof is not None:
        await _save(tx, _ended(row.operation, OperationState.DONE, at, "it is back", None))
        return
    text = "it was given up: the host lives, or another proof made it needless"
    await _save(tx, _ended(row.operation, OperationState.CANCELLED, at, text, GIVEN_UP))


async def _save(tx: WriteTransaction, operation: Operation) -> None:
    await save_operation(tx, operation, encode_plan(Plan(steps=(), by=operation.asked_by)))


def _moved_on(operation: Operation, incident: Incident, fence: Fence, at: UtcMillis) -> Operation:
    if operation.is_over:
        # Tried anew after all: the same failure goes on.
        operation = replace(operation, ended=None, code=None, message="")
    steps = _steps(operation.steps, fence, at)
    running = replace(
        operation,
        state=OperationState.RUNNING,
        steps=steps[-STEPS_MAX:],
        progress=_progress(incident, fence),
        fields={"incident": incident.number, "rounds": fence.rounds},
    )
    proof = incident.proof
    if fence.step in _ENDS:
        code = _ENDS[fence.step]
        return _ended(running, OperationState.FAILED, at, render(code, {}), code)
    if proof is not None and not fence.on_after:
        text = f"proven dead by {proof.kind.value}"
        return _ended(running, OperationState.DONE, at, text, None)
    if fence.step is FenceStep.RETRYING and fence.rounds and fence.failed:
        return replace(
            running, message=f"all levels failed {fence.rounds} times, it is tried again"
        )
    return replace(running, message="")


def _steps(
    steps: tuple[OperationStep, ...], fence: Fence, at: UtcMillis
) -> tuple[OperationStep, ...]:
    """``fence.order_id`` ends a step's name: it tells one attempt from the next."""
    name = _name(fence)
    kept = list(steps)
    if kept and not kept[-1].name.endswith(f"({fence.order_id})"):
        kept[-1] = _over(kept[-1], fence, at)
    if fence.step is FenceStep.RETRYING:
        if kept:
            kept[-1] = _over(kept[-1], fence, at)
        return tuple(kept)
    present = kept[-1] if kept and kept[-1].name == name else None
    if present is None:
        present = OperationStep(name=name, state=OperationState.RUNNING, started=at)
        kept.append(present)
    detail = ", ".join(_feed(feed) for feed in fence.feeds)
    if fence.action is PowerAction.ON:
        detail = fence.step.value.replace("_", " ")
    kept[-1] = replace(present, detail=detail)
    return tuple(kept)


def _name(fence: Fence) -> str:
    what = "switch on" if fence.action is PowerAction.ON else "off"
    return f"{what} at level {fence.level + 1}, attempt {fence.attempt} ({fence.order_id})"


def _over(step: OperationStep, fence: Fence, at: UtcMillis) -> OperationStep:
    """Of an attempt that another one follows: an *off* before its *on* was read as off."""
    if step.state is not OperationState.RUNNING:
        return step
    if fence.action is PowerAction.ON:
        return replace(step, state=OperationState.DONE, ended=at)
    why = fence.failed or "power.too_late"
    detail = f"{step.detail}; {why}" if step.detail else why
    return replace(step, state=OperationState.FAILED, ended=at, detail=detail)


def _feed(feed: FeedProgress) -> str:
    if feed.confirmed:
        word = "read off twice"
    elif feed.off_since_ms is not None:
        word = "read off once"
    elif feed.accepted:
        word = "took the order"
    else:
        word = "too late to be sent" if feed.too_late else "ordered"
    return f"{device_name(feed.device)}: {word}"


def _progress(incident: Incident, fence: Fence) -> int:
    if incident.proof is not None:
        return 80 if fence.on_after else 100
    if fence.step is FenceStep.READING:
        return 60 if all(feed.off_since_ms is not None for feed in fence.feeds) else 40
    return 20 if fence.step is FenceStep.OFF_ORDERED else 10


def _ended(
    operation: Operation, state: OperationState, at: UtcMillis, message: str, code: str | None
) -> Operation:
    steps = tuple(
        replace(step, state=state, ended=at) if step.state is OperationState.RUNNING else step
        for step in operation.steps
    )
    progress = 100 if state is OperationState.DONE else operation.progress
    return replace(
        operation,
        state=state,
        steps=steps,
        ended=at,
        message=message,
        code=code,
        progress=progress,
    )
