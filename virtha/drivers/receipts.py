"""How an attempt ended, told without any secret; and what an error of a connection means."""

from collections.abc import Mapping

from virtha.drivers.blots import DETAIL_CHARACTERS, Blots
from virtha.drivers.connection_errors import Trouble, trouble_of
from virtha.ports.receivers import Outcome, Receipt

__all__ = ["DETAIL_CHARACTERS", "Receipts"]

_CODES = {
    Trouble.CERTIFICATE: "notify.certificate",
    Trouble.UNRESOLVED: "notify.unresolved",
    Trouble.TLS_FAILED: "notify.tls_failed",
    Trouble.CONNECTION_LOST: "notify.connection_lost",
    Trouble.UNREACHABLE: "notify.unreachable",
    Trouble.NOT_ITS_PROTOCOL: "notify.not_its_protocol",
}


class Receipts:
    """Makes the receipts of one receiver. What the other side says may hold what we sent it."""

    def __init__(self, secrets: Mapping[str, str], user: str | None = None) -> None:
        self._blots = Blots(secrets.values(), user)

    def make(self, outcome: Outcome, code: str, detail: str = "") -> Receipt:
        return Receipt(outcome=outcome, code=code, detail=self._blots.line(detail))

    def of_error(self, error: BaseException) -> Receipt:
        """Of an error on the way to the receiver; all mean that it as a whole can't be used now."""
        trouble, words = trouble_of(error)
        return self.make(Outcome.AWAY, _CODES[trouble], words)
