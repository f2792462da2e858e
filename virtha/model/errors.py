"""The one tree of errors that a user may meet.

    VirthaError
    ├── InvalidInput       the request itself is wrong; names the field           HTTP 400  exit 2
    ├── NotFound           no such thing                                          HTTP 404  exit 3
    ├── Conflict           true but clashes with what is there (name taken)       HTTP 409  exit 1
    ├── Stale              If-Match does not match, a revision moved on           HTTP 412  exit 1
    ├── Gone               that revision is too old to be followed                HTTP 410  exit 1
    ├── Refused            policy or safety says no; has a coded reason           HTTP 422  exit 4
    ├── Unauthenticated    who are you                                            HTTP 401  exit 6
    ├── Forbidden          your role may not                                      HTTP 403  exit 6
    ├── Unavailable        can't reach it now; try again                          HTTP 503  exit 5
    └── Failed             it was tried and did not work                          HTTP 500  exit 1

``code`` is a dotted code of the registry (``model/codes``); prose never is an interface.
"""

from typing import ClassVar, Self


class VirthaError(Exception):
    """An error that reaches a user: what is wrong, where, what is allowed and what to do."""

    default_code: ClassVar[str] = "problem.failed"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        allowed: tuple[str, ...] = (),
        fix: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.field = field
        self.allowed = allowed
        self.fix = fix

    def reworded(self, message: str, *, allowed: tuple[str, ...], fix: str) -> Self:
        """The same error in other words, whatever else its kind carries."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.args = (message,)
        other.message, other.allowed, other.fix = message, allowed, fix
        return other

    def __str__(self) -> str:
        parts = [f"{self.field}: {self.message}" if self.field else self.message]
        if self.allowed:
            parts.append(f"allowed: {', '.join(self.allowed)}")
        if self.fix:
            parts.append(self.fix)
        return "; ".join(parts)


class InvalidInput(VirthaError):
    default_code = "problem.invalid"
    http_status = 400
    exit_code = 2


class NotFound(VirthaError):
    default_code = "problem.not_found"
    http_status = 404
    exit_code = 3


class Conflict(VirthaError):
    default_code = "problem.conflict"
    http_status = 409


class Stale(VirthaError):
    default_code = "problem.stale"
    http_status = 412


class Gone(VirthaError):
    default_code = "problem.gone"
    http_status = 410


class Refused(VirthaError):
    default_code = "problem.refused"
    http_status = 422
    exit_code = 4


class Unauthenticated(VirthaError):
    default_code = "problem.unauthenticated"
    http_status = 401
    exit_code = 6


class Forbidden(VirthaError):
    default_code = "problem.forbidden"
    http_status = 403
    exit_code = 6


class Unavailable(VirthaError):
    default_code = "problem.unavailable"
    http_status = 503
    exit_code = 5


class Failed(VirthaError):
    default_code = "problem.failed"
