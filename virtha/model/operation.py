"""Operations: anything longer than a request, with steps, progress and a coded outcome."""

from enum import StrEnum

from virtha.model.ids import OperationId, Revision
from virtha.model.time import UtcMillis
from virtha.model.value import Fields, Value


class OperationState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OperationStep(Value, frozen=True, kw_only=True):
    """One step: ``name`` is shown to people (`create disk`, `start on h1`)."""

    name: str
    state: OperationState = OperationState.PENDING
    started: UtcMillis | None = None
    ended: UtcMillis | None = None
    detail: str = ""


class Operation(Value, frozen=True, kw_only=True):
    """``kind`` is dotted (`vm.start`); ``subject`` is the id of what it is about."""

    id: OperationId
    kind: str
    subject: str
    state: OperationState = OperationState.PENDING
    steps: tuple[OperationStep, ...] = ()
    progress: int = 0
    """0 to 100."""
    code: str | None = None
    """The coded reason of a failure or refusal; None when done."""
    message: str = ""
    fields: Fields = {}
    asked_by: str = ""
    created: UtcMillis = UtcMillis(0)
    ended: UtcMillis | None = None
    revision: Revision = Revision(0)

    @property
    def is_over(self) -> bool:
        return self.state in (OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED)
