"""What all messengers promise alike, each against a real receiver: one outcome per attempt, nothing raised, nothing
left open."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import pytest
from own_mail_server import Mailbox, mail_server
from own_trap_daemon import OwnTrapDaemon
from own_web_server import WebServer
from told_messages import message

from virtha.drivers.messengers import NetworkMessengers
from virtha.model.ids import ReceiverId
from virtha.model.notification import (
    AlertmanagerSettings,
    MailSecurity,
    MailSettings,
    Receiver,
    ReceiverSettings,
    SnmpSettings,
    SnmpVersion,
    WebhookSettings,
)
from virtha.ports.receivers import Messenger, Messengers, Outcome

COMMUNITY = {"community": "public"}


class Accepted(Protocol):
    """The ids of what came, in order."""

    def __call__(self) -> list[str]: ...


Place = AbstractAsyncContextManager[tuple[ReceiverSettings, Accepted]]


@asynccontextmanager
async def mail() -> AsyncIterator[tuple[ReceiverSettings, Accepted]]:
    box = Mailbox()
    async with mail_server(box) as port:
        settings = MailSettings(
            host="127.0.0.1", port=port, security=MailSecurity.NONE, sender="v@example.org"
        )
        yield settings, lambda: [mail["X-Virtha-Delivery"] for mail in box.mails]


@asynccontextmanager
async def snmp() -> AsyncIterator[tuple[ReceiverSettings, Accepted]]:
    with OwnTrapDaemon({}) as daemon:
        settings = SnmpSettings(host="127.0.0.1", port=daemon.port, version=SnmpVersion.V2C)
        yield settings, lambda: [one["virthaNoticeId"] for one in daemon.notices()]


@asynccontextmanager
async def webhook() -> AsyncIterator[tuple[ReceiverSettings, Accepted]]:
    server = WebServer()
    async with server.running() as port:
        settings = WebhookSettings(url=f"http://127.0.0.1:{port}/", private_addresses=True)
        yield settings, lambda: [one.headers["x-virtha-delivery"] for one in server.requests]


@asynccontextmanager
async def alertmanager() -> AsyncIterator[tuple[ReceiverSettings, Accepted]]:
    server = WebServer()
    async with server.running() as port:
        settings = AlertmanagerSettings(url=f"http://127.0.0.1:{port}", private_addresses=True)
        yield (
            settings,
            lambda: [
                alert["annotations"]["message_id"]
                for one in server.requests
                for alert in json.loads(one.body)
            ],
        )


PLACES = {"mail": mail, "snmp": snmp, "webhook": webhook, "alertmanager": alertmanager}


@asynccontextmanager
async def told(
    settings: ReceiverSettings, *, deadline_ms: int = 20_000
) -> AsyncIterator[Messenger]:
    messengers: Messengers = NetworkMessengers(deadline_ms=deadline_ms)
    secrets: Mapping[str, str] = COMMUNITY if isinstance(settings, SnmpSettings) else {}
    receiver = Receiver(id=ReceiverId("r1"), name="ops", settings=settings, secrets=tuple(secrets))
    found = messengers.messenger(receiver, secrets)
    try:
        yield found
    finally:
        await found.close()


@pytest.mark.req("W7")
@pytest.mark.parametrize("kind", PLACES)
def test_many_in_order_each_once(kind: str) -> None:
    async def story() -> None:
        async with PLACES[kind]() as (settings, accepted), told(settings) as messenger:
            for number in range(20):
                receipt = await messenger.send(message(number))
                assert (receipt.outcome, receipt.code) == (Outcome.ACCEPTED, "notify.accepted")
            async with asyncio.timeout(60):
                while len(accepted()) < 20:
                    await asyncio.sleep(0.02)
            assert accepted() == [f"d{number}" for number in range(20)]

    asyncio.run(story())


@pytest.mark.parametrize("kind", PLACES)
def test_a_receiver_that_ended_is_away_and_closing_is_always_possible(kind: str) -> None:
    async def story() -> None:
        async with PLACES[kind]() as (settings, _):
            pass
        async with told(settings, deadline_ms=1_500) as messenger:
            await messenger.close()
            receipt = await messenger.send(message())
            assert receipt.outcome is Outcome.AWAY
            assert receipt.code in ("notify.unreachable", "notify.no_answer")
            await messenger.close()
            await messenger.close()

    asyncio.run(story())


@pytest.mark.parametrize("kind", PLACES)
def test_a_messenger_goes_on_after_it_was_stopped_in_the_middle(kind: str) -> None:
    async def story() -> None:
        async with PLACES[kind]() as (settings, accepted), told(settings) as messenger:
            for delay_ms in (0, 1, 2, 5, 10, 50):
                sending = asyncio.create_task(messenger.send(message(1)))
                await asyncio.sleep(delay_ms / 1_000)  # wherever it is by then: that differs
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
            assert (await messenger.send(message(2))).outcome is Outcome.ACCEPTED
            assert accepted()[-1] == "d2" or kind == "snmp"

    asyncio.run(story())
