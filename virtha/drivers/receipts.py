"""How an attempt ended, told without any secret; and what an error of a connection means."""

import base64
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import quote

from virtha.alerts.notice import one_line
from virtha.ports.receivers import Outcome, Receipt

DETAIL_CHARACTERS = 500


class Receipts:
    """Makes the receipts of one receiver. What the other side says may hold what we sent it: a password, plain or
    in the coding of a protocol, is blotted out."""

    def __init__(self, secrets: Mapping[str, str], user: str | None = None) -> None:
        forms: set[str] = set()
        for secret in secrets.values():
            if secret:
                forms |= {secret, _base64(secret), quote(secret, safe="")}
                forms.add(_base64(f"\0{user or ''}\0{secret}"))
        self._forms = sorted(forms, key=len, reverse=True)

    def make(self, outcome: Outcome, code: str, detail: str = "") -> Receipt:
        for form in self._forms:
            detail = detail.replace(form, "***")
        return Receipt(outcome=outcome, code=code, detail=one_line(detail, DETAIL_CHARACTERS))

    def of_error(self, error: BaseException) -> Receipt:
        """Of an error on the way to the receiver; all mean that it as a whole can't be used now."""
        for one in _chain(error):
            if isinstance(one, ssl.SSLCertVerificationError):
                return self.make(Outcome.AWAY, "notify.certificate", one.verify_message)
            if isinstance(one, socket.gaierror | UnicodeError):
                return self.make(Outcome.AWAY, "notify.unresolved", str(one))
        for one in _chain(error):
            if isinstance(one, ssl.SSLError):
                return self.make(Outcome.AWAY, "notify.tls_failed", one.reason or str(one))
        for one in _chain(error):
            if isinstance(one, ConnectionResetError | BrokenPipeError):
                return self.make(Outcome.AWAY, "notify.connection_lost", str(one))
            if isinstance(one, OSError) and one.errno is not None:
                return self.make(Outcome.AWAY, "notify.unreachable", one.strerror or str(one))
        if isinstance(error, OSError):
            return self.make(Outcome.AWAY, "notify.unreachable", str(error))
        return self.make(Outcome.AWAY, "notify.not_its_protocol", str(error))


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
