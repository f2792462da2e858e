"""What an error on the way to another machine means, whatever library raised it."""

import socket
import ssl
from enum import StrEnum


class Trouble(StrEnum):
    CERTIFICATE = "certificate"
    UNRESOLVED = "unresolved"
    TLS_FAILED = "tls_failed"
    CONNECTION_LOST = "connection_lost"
    UNREACHABLE = "unreachable"
    NOT_ITS_PROTOCOL = "not_its_protocol"


def trouble_of(error: BaseException) -> tuple[Trouble, str]:
    """And the error's own words, which may hold what was sent."""
    for one in _chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return Trouble.CERTIFICATE, one.verify_message
        if isinstance(one, socket.gaierror | UnicodeError):
            return Trouble.UNRESOLVED, str(one)
    for one in _chain(error):
        if isinstance(one, ssl.SSLError):
            return Trouble.TLS_FAILED, one.reason or str(one)
    for one in _chain(error):
        if isinstance(one, ConnectionResetError | BrokenPipeError):
            return Trouble.CONNECTION_LOST, str(one)
        if isinstance(one, OSError) and one.errno is not None:
            return Trouble.UNREACHABLE, one.strerror or str(one)
    if isinstance(error, OSError):
        return Trouble.UNREACHABLE, str(error)
    return Trouble.NOT_ITS_PROTOCOL, str(error)


def certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Where the other's certificate is not accepted."""
    found = (one for one in _chain(error) if isinstance(one, ssl.SSLCertVerificationError))
    return next(found, None)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found
