"""What a server's answer or a broken connection means, as errors of `virtha.model.errors`."""

import ssl

import httpx
import msgspec

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

_BY_STATUS: dict[int, type[VirthaError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: InvalidInput,
    409: Conflict,
    410: Gone,
    412: Stale,
    413: InvalidInput,
    422: Refused,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
_OUT_OF_TIME = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED."""
_FIX = {
    401: "sign in: virtha login URL (or set VIRTHA_URL and VIRTHA_TOKEN)",
    412: "look at its present state, then repeat the command",
}


class ProblemBody(msgspec.Struct, kw_only=True):
    """`application/problem+json` (RFC 9457) with our extensions; all of it optional when reading."""

    title: str = ""
    detail: str = ""
    code: str | None = None
    field: str | None = None
    allowed: list[str] | None = None
    fix: str | None = None


def error_from_answer(status: int, content: bytes) -> VirthaError:
    """The error that an answer of status 400 or more stands for, whatever its body is."""
    kind = _BY_STATUS.get(status, Failed)
    try:
        body = msgspec.json.decode(content, type=ProblemBody, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError):
        # Something between us and the server (or another server) answered: show the start of it.
        text = " ".join(content[:300].decode(errors="replace").split())
        body = ProblemBody(detail=f"the server answered {status}" + (f": {text}" if text else ""))
    return kind(
        body.detail or body.title or f"the server answered {status}",
        code=body.code,
        field=body.field or None,
        allowed=tuple(body.allowed or ()),
        fix=body.fix or _FIX.get(status, ""),
    )


def error_from_transport(error: Exception, *, where: str, changes: bool) -> VirthaError:
    """A request that got no answer. ``changes``: it may have been carried out all the same."""
    cause = _root_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _OUT_OF_TIME:
        return Refused(
            f"the certificate of {where} is not valid now: {cause.verify_message}",
            code="problem.authority.wrong",
            fix="is this machine's clock right, and the server's? If both are: virtha server "
            "renew-certificate, there",
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Refused(
            f"the certificate of {where} is not accepted: {cause.verify_message}",
            code="problem.authority.wrong",
            fix="if the server was set up anew, sign in again: virtha login URL; "
            "if only the name differs, add it to `names` in server.toml",
        )
    if isinstance(cause, PermissionError):
        return Forbidden(
            f"this user may not use {where}", fix="run it as root, or sign in: virtha login URL"
        )
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        doubt = "; it may have been carried out all the same" if changes else ""
        return Unavailable(
            f"{where} did not answer in time{doubt}",
            fix="see what happened: virtha operation list" if changes else "try again",
        )
    detail = str(cause) or type(error).__name__
    return Unavailable(
        f"can't reach {where}: {detail}", fix="check that the server runs and that the URL is right"
    )


def _root_cause(error: BaseException) -> BaseException:
    seen = 0
    while (inner := error.__cause__ or error.__context__) is not None and seen < 10:
        error, seen = inner, seen + 1
    return error
