"""Readings and outcomes of power devices, told without their secrets; and what the end of a program means."""

from collections.abc import Mapping

from virtha.drivers.blots import Blots
from virtha.drivers.bounded_program import NOT_RUN, Ended
from virtha.drivers.connection_errors import Trouble, trouble_of
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import TOO_LATE
from virtha.model.power_settings import MachineIdentity
from virtha.ports.power import PowerOutcome, PowerReading

NO_ANSWER = "power.no_answer"
_CODES = {
    Trouble.CERTIFICATE: "power.certificate",
    Trouble.UNRESOLVED: "power.unresolved",
    Trouble.TLS_FAILED: "power.tls_failed",
    Trouble.CONNECTION_LOST: "power.connection_lost",
    Trouble.UNREACHABLE: "power.unreachable",
    Trouble.NOT_ITS_PROTOCOL: "power.not_its_protocol",
}
_NEVER_BEGAN = frozenset(
    {
        "power.certificate",
        "power.unresolved",
        "power.tls_failed",
        "power.unreachable",
        "power.sign_in_refused",
        "power.not_permitted",
        "power.not_its_protocol",
        "power.cipher_refused",
        "power.program_missing",
        "power.unusable_settings",
        "power.unsupported",
    }
)
"""With these the device surely did nothing."""
_OF_THE_WAY = frozenset({*_CODES.values(), NO_ANSWER})
"""Once an order has gone out, these tell of its answer only."""


class PowerWords:
    """Of one device."""

    def __init__(self, secrets: Mapping[str, str], user: str | None = None) -> None:
        self._blots = Blots(secrets.values(), user)

    def read(
        self,
        state: PowerState,
        identity: MachineIdentity = MachineIdentity(),
        detail: str = "",
    ) -> PowerReading:
        assert state is not PowerState.UNKNOWN, "an unknown state has a code"
        return PowerReading(state=state, identity=identity, detail=self._blots.line(detail))

    def unread(
        self,
        code: str,
        detail: str = "",
        identity: MachineIdentity = MachineIdentity(),
    ) -> PowerReading:
        return PowerReading(
            state=PowerState.UNKNOWN, identity=identity, code=code, detail=self._blots.line(detail)
        )

    def accepted(self, detail: str = "") -> PowerOutcome:
        return PowerOutcome(result=Result.OK, detail=self._blots.line(detail))

    def too_late(self) -> PowerOutcome:
        return PowerOutcome(result=Result.REFUSED, code=TOO_LATE)

    def failed(self, code: str, detail: str = "", *, sent: bool = False) -> PowerOutcome:
        """What the code leaves open, whether the device did it, is unknown. ``sent``: the order had gone out."""
        if code in (NO_ANSWER, "power.connection_lost") or (sent and code in _OF_THE_WAY):
            result = Result.UNKNOWN
        elif code in _NEVER_BEGAN:
            result = Result.REFUSED
        else:
            result = Result.FAILED
        return PowerOutcome(result=result, code=code, detail=self._blots.line(detail))


def code_of_error(error: BaseException) -> tuple[str, str]:
    """Of a connection to a device, and its words."""
    trouble, words = trouble_of(error)
    return _CODES[trouble], words


def said(ended: Ended) -> str:
    """Its complaints, or else what it printed."""
    return ended.errors.strip() or ended.output.strip()


def code_of_program(ended: Ended) -> tuple[str, str] | None:
    """Why nothing can be said of the device, for any program alike; None: it ran to its end."""
    if not ended.began:
        return "power.program_missing", ended.problem
    if ended.problem:
        return NO_ANSWER, f"its program was ended: {ended.problem}"
    if ended.status is None:
        return NO_ANSWER, f"its program was ended at the deadline; {said(ended)}"
    if ended.status in (126, 127) and ended.errors.startswith(NOT_RUN):
        return "power.program_missing", said(ended)
    if ended.status < 0:
        return NO_ANSWER, f"signal {-ended.status} ended its program; {said(ended)}"
    return None
