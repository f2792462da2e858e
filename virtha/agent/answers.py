"""How an order ended, before it becomes an ``Outcome`` of the order's operation and step."""

import errno

from virtha.model.errors import InvalidInput, Refused, VirthaError
from virtha.model.facts import ForeignDomain, Outcome, Result
from virtha.model.orders import Order
from virtha.model.value import Fields, Scalar, Value
from virtha.ports.hypervisor import HypervisorTimeout, HypervisorUnavailable

MESSAGE_CHARACTERS_MAX = 2_000


class Answer(Value, frozen=True, kw_only=True):
    result: Result
    code: str | None = None
    message: str = ""
    fields: Fields = {}
    changes: tuple[str, ...] = ()
    foreign: tuple[ForeignDomain, ...] = ()


OK = Answer(result=Result.OK)


def refused(code: str, message: str, **fields: Scalar) -> Answer:
    return Answer(result=Result.REFUSED, code=code, message=message, fields=fields)


def of_error(error: VirthaError | OSError) -> Answer:
    """By rule: refused. No answer from libvirt in time: unknown. Else it failed."""
    if isinstance(error, OSError):
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = "problem.disk.full" if is_full else "problem.failed"
        return Answer(result=Result.FAILED, code=code, message=str(error))
    if isinstance(error, Refused | InvalidInput):
        result = Result.REFUSED
    elif isinstance(error, HypervisorTimeout | HypervisorUnavailable):
        result = Result.UNKNOWN
    else:
        result = Result.FAILED
    return Answer(result=result, code=error.code, message=str(error)[:MESSAGE_CHARACTERS_MAX])


def outcome_of(order: Order, answer: Answer) -> Outcome:
    return Outcome(
        operation_id=order.operation_id,
        step=order.step,
        result=answer.result,
        code=answer.code,
        message=answer.message,
        fields=answer.fields,
        changes=answer.changes,
        foreign=answer.foreign,
    )
