"""Those who are told: one attempt each, by mail, SNMP or HTTP. Retries, order and expiry are not theirs."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from virtha.model.notification import Message, Receiver
from virtha.model.value import Value


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    """By the receiver, or sent where nobody acknowledges (a trap)."""
    LATER = "later"
    """This message not now (greylisted, mailbox full): others may go."""
    AWAY = "away"
    """The receiver as a whole can't be used now (no answer, wrong certificate, sign-in refused): all wait."""
    NEVER = "never"
    """This message will never be accepted (no such address, a 4xx)."""


class Receipt(Value, frozen=True, kw_only=True):
    """``code``: a reason of the registry (``notify.…``); ``detail``: the other side's own words, at most 500
    characters, one line, without any secret."""

    outcome: Outcome
    code: str
    detail: str = ""


class Messenger(Protocol):
    """A connection to one receiver, kept between messages where the protocol allows it. Not for two tasks at once."""

    async def send(self, message: Message) -> Receipt:
        """One attempt, within the deadline that the messenger was made with. Raises nothing but CancelledError: what
        goes wrong is in the receipt."""
        ...

    async def close(self) -> None:
        """Ends the connection; safe to call twice."""
        ...


class Messengers(Protocol):
    deadline_ms: int
    """Of one attempt. May be changed; holds for messengers that are made from then on."""

    def messenger(self, receiver: Receiver, secrets: Mapping[str, str]) -> Messenger:
        """Nothing is connected yet. ``secrets``: by the names in ``receiver.secrets``."""
        ...
