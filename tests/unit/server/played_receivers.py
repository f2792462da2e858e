"""Receivers as tests play them: they remember what they were sent, and answer as they are told."""

import asyncio
from collections.abc import Callable, Mapping

from virtha.model.notification import Message, Receiver
from virtha.ports.receivers import Messenger, Outcome, Receipt

ACCEPTED = Receipt(outcome=Outcome.ACCEPTED, code="notify.accepted")
AWAY = Receipt(outcome=Outcome.AWAY, code="notify.unreachable", detail="connection refused")
LATER = Receipt(outcome=Outcome.LATER, code="notify.mail.recipient_later", detail="451 greylisted")
NEVER = Receipt(
    outcome=Outcome.NEVER, code="notify.mail.recipient_refused", detail="550 nobody here"
)

Answer = Receipt | asyncio.Event | Exception
"""An event: no answer before it is set, accepted then. An exception: the messenger's own fault."""


class PlayedMessengers:
    """Implements ``Messengers``. ``answer`` decides; the default accepts all."""

    def __init__(self) -> None:
        self.deadline_ms = 0
        self.sent: list[Message] = []
        """What was accepted, in order."""
        self.tried: list[Message] = []
        self.secrets: list[dict[str, str]] = []
        """What each messenger was made with."""
        self.open = 0
        self.answer: Callable[[Message], Answer] = lambda _message: ACCEPTED

    def messenger(self, receiver: Receiver, secrets: Mapping[str, str]) -> Messenger:
        self.secrets.append(dict(secrets))
        self.open += 1
        return PlayedMessenger(self)


class PlayedMessenger:
    def __init__(self, world: PlayedMessengers) -> None:
        self._world = world
        self._closed = False

    async def send(self, message: Message) -> Receipt:
        assert not self._closed, "a closed messenger is not used again"
        self._world.tried.append(message)
        answer = self._world.answer(message)
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = ACCEPTED
        if isinstance(answer, Exception):
            raise answer
        if answer.outcome is Outcome.ACCEPTED:
            self._world.sent.append(message)
        await asyncio.sleep(0)
        return answer

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._world.open -= 1
