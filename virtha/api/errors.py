"""Errors of any kind as ours: what Litestar raises, and faults of our own, of which the user gets a number and the log all."""

import uuid
from http import HTTPStatus
from typing import Any

import structlog
from litestar import Request
from litestar.exceptions import HTTPException

from virtha.api.decode import BODY_BYTES_MAX
from virtha.api.problems import BY_STATUS, TooLarge
from virtha.model.errors import Failed, VirthaError

log = structlog.get_logger("virtha.api")


def as_ours(
    request: Request[Any, Any, Any], error: Exception, unexpected: type[Failed] = Failed
) -> VirthaError:
    """``unexpected``: what a fault of ours is told as."""
    match error:
        case VirthaError():
            return error
        case HTTPException() if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return TooLarge(
                "the body is too large", field="body", allowed=(f"up to {BODY_BYTES_MAX} bytes",)
            )
        case HTTPException() if error.status_code in BY_STATUS:
            return BY_STATUS[error.status_code](error.detail)
        case _:
            return _unexpected(request, error, unexpected)


def _unexpected(
    request: Request[Any, Any, Any], error: Exception, unexpected: type[Failed]
) -> Failed:
    incident = uuid.uuid4().hex[:12]
    log.error(
        "request failed unexpectedly",
        incident=incident,
        method=request.method,
        path=request.url.path,
        exc_info=error,
    )
    return unexpected(
        f"an error inside the server (incident {incident})",
        fix=f"the server's log has the details: look for {incident}",
    )
