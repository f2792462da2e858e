"""Errors as oVirt's faults: a reason, which is a headline, and a detail, which says what is wrong and what to do."""

from http import HTTPStatus

from virtha.api.ovirt.shape import Node
from virtha.api.problems import headers_of
from virtha.model.errors import (
    Conflict,
    Failed,
    Forbidden,
    InvalidInput,
    NotFound,
    Refused,
    Stale,
    Unauthenticated,
    Unavailable,
    VirthaError,
)

REALM = 'Basic realm="virtha"'


class IncompleteParameters(InvalidInput):
    """What an addition needs and does not have; oVirt's words for it."""


class Unexpected(Failed):
    """A fault of ours: the only one that is told as the server's."""


class NotAcceptable(InvalidInput):
    http_status = 406


_STATUS: tuple[tuple[type[VirthaError], int], ...] = (
    (Unexpected, HTTPStatus.INTERNAL_SERVER_ERROR),
    (Stale, HTTPStatus.CONFLICT),
    (Refused, HTTPStatus.CONFLICT),
    # It was tried and did not work: oVirt's word for that is a fault of the request, and none of the server.
    (Failed, HTTPStatus.BAD_REQUEST),
)
_REASONS: tuple[tuple[type[VirthaError], str], ...] = (
    (IncompleteParameters, "Incomplete parameters"),
    (InvalidInput, "Operation Failed"),
    (NotFound, "Operation Failed"),
    (Unauthenticated, "Unauthorized"),
    (Forbidden, "Forbidden"),
    (Unavailable, "Service Unavailable"),
    (Conflict, "Operation Failed"),
)


def status_of(error: VirthaError) -> int:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), error.http_status)


def fault_of(error: VirthaError) -> Node:
    reason = next((text for kind, text in _REASONS if isinstance(error, kind)), "Operation Failed")
    if isinstance(error, IncompleteParameters):
        return {"reason": reason, "detail": error.message}
    return {"reason": reason, "detail": f"[{error} (code: {error.code})]"}


def fault_headers(error: VirthaError) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": REALM}
    return headers_of(error)


def incomplete(shape: str, fields: list[str], verb: str = "add") -> IncompleteParameters:
    noun = shape.replace("_", " ").title().replace(" ", "")
    return IncompleteParameters(f"{noun} [{', '.join(fields)}] required for {verb}")


def require(shape: str, body: Node, *fields: str) -> None:
    """Raises IncompleteParameters, which names all that is missing. ``cluster.id|name``: one of these in it."""
    missing = [field for field in fields if not _has(body, field)]
    if missing:
        raise incomplete(shape, missing)


def _has(body: Node, field: str) -> bool:
    name, _, inner = field.partition(".")
    value = body.get(name)
    if not inner:
        return value is not None and value != ""
    return isinstance(value, dict) and any(value.get(one) for one in inner.split("|"))


def not_here(what: str, instead: str = "") -> Refused:
    """Something of oVirt's that this server does not have."""
    return Refused(f"{what} is not offered by this server", fix=instead)
