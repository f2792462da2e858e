"""``/jobs``: operations, newest first. Those that are over too."""

from virtha.api.ovirt.listing import gather
from virtha.api.ovirt.route import Call, Reply, Route, get, listed_and_one, ref
from virtha.api.ovirt.shape import Node
from virtha.control.requests import OperationQuery
from virtha.model.operation import Operation, OperationState, OperationStep

JOBS_DEFAULT = 1_000
_STATES = {
    OperationState.PENDING: "started",
    OperationState.RUNNING: "started",
    OperationState.DONE: "finished",
    OperationState.FAILED: "failed",
    OperationState.CANCELLED: "aborted",
}


def job_node(operation: Operation) -> Node:
    words = f"{operation.kind} {operation.subject}"
    return {
        **ref("jobs", operation.id),
        "link": [("steps", f"/jobs/{operation.id}/steps")],
        "name": operation.kind,
        "description": f"{words}: {operation.message}" if operation.message else words,
        "auto_cleared": False,
        "external": False,
        "start_time": operation.created,
        "end_time": operation.ended,
        "last_updated": operation.ended or operation.created,
        "status": _STATES[operation.state],
    }


def _step_node(operation: Operation, number: int, step: OperationStep) -> Node:
    return {
        **ref(f"jobs/{operation.id}/steps", number),
        "description": f"{step.name}: {step.detail}" if step.detail else step.name,
        "external": False,
        "number": number,
        "start_time": step.started,
        "end_time": step.ended,
        "status": _STATES[step.state],
        "type": "executing",
        "job": ref("jobs", operation.id),
    }


async def list_jobs(call: Call) -> Reply:
    wanted = JOBS_DEFAULT if call.parameters.max is None else call.parameters.max
    found = await gather(
        lambda limit, after: call.control.operations.list(OperationQuery(limit=limit, after=after)),
        min(wanted, JOBS_DEFAULT),
    )
    return Reply(shape="job", body=[job_node(one) for one in found])


async def get_job(call: Call) -> Reply:
    operation = await call.control.operations.get(call.path["job"])
    return Reply(shape="job", body=job_node(operation))


async def list_steps(call: Call) -> Reply:
    operation = await call.control.operations.get(call.path["job"])
    steps = [_step_node(operation, number, it) for number, it in enumerate(operation.steps)]
    return Reply(shape="step", body=steps)


ROUTES: tuple[Route, ...] = (
    get("/jobs", list_jobs),
    get("/jobs/{job}", get_job),
    *listed_and_one("/jobs/{job}/steps", list_steps),
)
