"""Problem details (RFC 9457): the one shape of every error that the API answers."""

from http import HTTPStatus

import msgspec

from virtha.model.codes import PROBLEMS
from virtha.model.errors import (
    Conflict,
    Failed,
    Forbidden,
    Gone,
    InvalidInput,
    NotFound,
    Refused,
    Stale,
    Unauthenticated,
    Unavailable,
    VirthaError,
)
from virtha.model.value import Value

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "https://virtha.dev/problems/"
RETRY_AFTER_S = 1
"""What a 503 asks for: locked databases and broken links are back within moments or not at all."""


class Problem(Value, frozen=True, kw_only=True):
    """``code`` is stable and of the registry; ``title`` and ``detail`` are prose for people.

    ``field`` names what is wrong with the request, ``allowed`` what would be right there and ``fix``
    what to do about it.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    field: str | None = None
    allowed: tuple[str, ...] = ()
    fix: str = ""


class TooLarge(InvalidInput):
    default_code = "problem.too_large"
    http_status = 413


class MethodNotAllowed(InvalidInput):
    default_code = "problem.method"
    http_status = 405


class UnsupportedMediaType(InvalidInput):
    http_status = 415


ERRORS: tuple[type[VirthaError], ...] = (
    InvalidInput,
    NotFound,
    MethodNotAllowed,
    Conflict,
    Stale,
    Gone,
    TooLarge,
    UnsupportedMediaType,
    Refused,
    Unauthenticated,
    Forbidden,
    Unavailable,
    Failed,
)
BY_STATUS: dict[int, type[VirthaError]] = {error.http_status: error for error in ERRORS}
_TITLES = {code.name: code.template for code in PROBLEMS}


def problem_of(error: VirthaError) -> Problem:
    status = error.http_status
    title = _TITLES.get(error.code) or _TITLES.get(error.default_code)
    return Problem(
        type=TYPE_BASE + error.code,
        title=title or HTTPStatus(status).phrase,
        status=status,
        code=error.code,
        detail=error.message,
        field=error.field,
        allowed=tuple(str(item) for item in error.allowed),
        fix=error.fix,
    )


def headers_of(error: VirthaError) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'Bearer realm="virtha"'}
    if isinstance(error, Unavailable):
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {}


def encode_problem(problem: Problem) -> bytes:
    return msgspec.json.encode(problem)
