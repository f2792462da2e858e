"""What a server asks of a host's agent about another host's power device (F5, ADR 18).

    server -> agent   AttemptPower, EndPowerAttempt
    agent -> server   PowerAttempted

One attempt, with all that it takes. A server sends it only to an agent whose hello has the feature of its driver.
It is never sent again, and an answer that does not come says nothing.
"""

from enum import StrEnum

from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Term
from virtha.model.power_settings import MachineIdentity, PowerDriver, PowerSettings
from virtha.model.value import Value


class PowerAsk(StrEnum):
    STATUS = "status"
    TEST = "test"
    OFF = "off"
    ON = "on"
    BLINK = "blink"

    @property
    def is_order(self) -> bool:
        return self not in (PowerAsk.STATUS, PowerAsk.TEST)


class AttemptPower(Value, frozen=True, kw_only=True, tag="attempt_power"):
    """It may begin until ``valid_ms`` after ``beat_ms``, the sending of a beat of that host, by its own clock: however long
    this message was under way. ``deadline_ms``: of the attempt, once it began. ``subject``: whose device it is.
    ``secrets``: in memory only, until its end."""

    attempt: str
    term: Term
    boot: BootId
    """Of the beat; another boot refuses."""
    beat_ms: int
    valid_ms: int
    deadline_ms: int
    subject: HostId
    device: str
    ask: PowerAsk
    settings: PowerSettings
    secrets: dict[str, str] = {}

    def __repr__(self) -> str:
        """Without what is not for showing, wherever somebody prints it."""
        return f"AttemptPower({self.attempt}, {self.ask} of {self.device} of {self.subject})"


class EndPowerAttempt(Value, frozen=True, kw_only=True, tag="end_power_attempt"):
    """End it now; it is answered as it ended."""

    attempt: str


class PowerAttempted(Value, frozen=True, kw_only=True, tag="power_attempted"):
    """Nothing of it goes on. ``state``, ``identity``: of a reading. ``result``: how an order ended; of a reading ``OK``
    where the device was asked, ``REFUSED`` where not. Who says nothing of it has proven nothing: it is unknown.
    ``detail``: without any secret."""

    attempt: str
    state: PowerState = PowerState.UNKNOWN
    identity: MachineIdentity = MachineIdentity()
    result: Result = Result.UNKNOWN
    code: str | None = None
    detail: str = ""


PowerWord = AttemptPower | EndPowerAttempt


def power_feature(driver: PowerDriver) -> str:
    """In a host's hello: its agent makes attempts with that driver."""
    return f"power/{driver}"
