"""Webhooks against real HTTPS servers: the signed body, each answer's meaning, and where they never go."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from own_web_server import FINE, Answer, WebServer, status
from receiver_certificates import authority, context_of
from told_messages import EVENT, INSTALLATION_ID, message
from waiting import until

from virtha.drivers.webhook import WebhookMessenger
from virtha.model.codes import REGISTRY, Severity
from virtha.model.notification import WebhookSettings
from virtha.ports.receivers import Outcome, Receipt

OURS = authority()
SECRET = {"secret": "a webhook's secret"}


def messenger(
    url: str,
    secrets: Mapping[str, str] = SECRET,
    *,
    private: bool = True,
    deadline_ms: int = 20_000,
    idle_ms: int = 60_000,
    resolve: Callable[[str, int], Awaitable[list[str]]] | None = None,
    pem: str | None = OURS.certificate_pem(),
) -> WebhookMessenger:
    settings = WebhookSettings(url=url, authority_pem=pem, private_addresses=private)
    return WebhookMessenger(
        settings, secrets, deadline_ms=deadline_ms, idle_ms=idle_ms, resolve=resolve
    )


async def sent(told: WebhookMessenger, **changes: object) -> Receipt:
    try:
        return await told.send(message(1, **changes))
    finally:
        await told.close()


@pytest.mark.req("W7")
def test_the_body_is_signed_and_says_all() -> None:
    async def story() -> None:
        server = WebServer()
        async with server.running(context_of(OURS)) as port:
            receipt = await sent(messenger(f"https://127.0.0.1:{port}/hook?key=1"))
        assert (receipt.outcome, receipt.code) == (Outcome.ACCEPTED, "notify.accepted"), receipt
        (request,) = server.requests
        assert request.line == "POST /hook?key=1 HTTP/1.1"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["host"] == f"127.0.0.1:{port}"
        stamp = request.headers["x-virtha-timestamp"]
        assert abs(int(stamp) - time.time()) < 60
        signed = hmac.new(SECRET["secret"].encode(), digestmod=hashlib.sha256)
        signed.update(stamp.encode() + b"." + request.body)
        assert request.headers["x-virtha-signature"] == "v1=" + signed.hexdigest()
        assert json.loads(request.body) == {
            "schema": "virtha.event/1",
            "id": "d1",
            "kind": "problem",
            "test": False,
            "installation": {"id": INSTALLATION_ID, "name": "Lab Zürich"},
            "cluster": {"id": "c1", "name": "main"},
            "host": {"id": "h1", "name": "node-1"},
            "vm": {"id": "v1", "name": "wéb-№1"},
            "event": {
                "number": 4711,
                "code": "vm.crashed",
                "code_number": 2202,
                "severity": "error",
                "message": "QEMU of wéb-№1 died: signal 9",
                "help": REGISTRY["vm.crashed"].help,
                "solves": [],
                "fields": {"vm": "wéb-№1", "cause": "signal 9"},
                "at": "2026-01-31T12:00:00.250Z",
                "host_at": None,
                "operation_id": None,
                "user": None,
            },
            "group": None,
        }

    asyncio.run(story())


def test_the_body_is_the_same_again_and_a_connection_serves_many() -> None:
    async def story() -> None:
        server = WebServer(status(503))
        async with server.running(context_of(OURS)) as port:
            told = messenger(f"https://127.0.0.1:{port}/", idle_ms=300)
            assert (await told.send(message(1))).outcome is Outcome.AWAY
            server.answer = FINE
            for number in (1, 2, 3):
                assert (await told.send(message(number))).outcome is Outcome.ACCEPTED
            assert server.connections == 1
            assert server.requests[0].body == server.requests[1].body
            await until(lambda: server.ended == 1)
            assert (await told.send(message(4))).outcome is Outcome.ACCEPTED
            assert server.connections == 2
            await told.close()
            await told.close()

    asyncio.run(story())


def test_kinds_and_what_they_solve() -> None:
    async def story() -> None:
        server = WebServer()
        async with server.running() as port:
            told = messenger(f"http://127.0.0.1:{port}/", {})
            event = msgspec.structs.replace(EVENT, code="host.reachable", severity=Severity.INFO)
            await told.send(message(1, event=event))
            await told.send(message(2, test=True))
            await told.close()
        first, second = (json.loads(one.body) for one in server.requests)
        assert (first["kind"], first["event"]["solves"]) == ("solved", ["host.unreachable"])
        assert (second["kind"], second["test"]) == ("test", True)
        assert "x-virtha-signature" not in server.requests[0].headers

    asyncio.run(story())


ANSWERS = [
    (201, Outcome.ACCEPTED, "notify.accepted"),
    (204, Outcome.ACCEPTED, "notify.accepted"),
    (400, Outcome.NEVER, "notify.webhook.refused"),
    (401, Outcome.NEVER, "notify.webhook.refused"),
    (404, Outcome.NEVER, "notify.webhook.refused"),
    (410, Outcome.NEVER, "notify.webhook.refused"),
    (408, Outcome.LATER, "notify.webhook.later"),
    (425, Outcome.LATER, "notify.webhook.later"),
    (429, Outcome.AWAY, "notify.busy"),
    (500, Outcome.LATER, "notify.webhook.later"),
    (502, Outcome.AWAY, "notify.busy"),
    (503, Outcome.AWAY, "notify.busy"),
    (504, Outcome.AWAY, "notify.busy"),
]


@pytest.mark.parametrize(("code", "outcome", "reason"), ANSWERS)
def test_what_an_answer_means(code: int, outcome: Outcome, reason: str) -> None:
    async def story() -> None:
        server = WebServer(status(code, "Retry-After: 120\r\n", "" if code == 204 else "words"))
        async with server.running() as port:
            receipt = await sent(messenger(f"http://127.0.0.1:{port}/"))
        assert (receipt.outcome, receipt.code) == (outcome, reason), receipt
        assert receipt.detail.startswith(f"{code} Because (Retry-After: 120)")
        assert code == 204 or receipt.detail.endswith("words")

    asyncio.run(story())


@pytest.mark.bad_input("webhook into our own network", story=True)
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "where", ["loopback", "http://169.254.169.254/latest/meta-data/", "/other"]
)
def test_redirects_are_not_followed(code: int, where: str) -> None:
    async def story() -> None:
        other = WebServer()
        async with other.running() as there:
            to = f"http://127.0.0.1:{there}/" if where == "loopback" else where
            server = WebServer(status(code, f"Location: {to}\r\n"))
            async with server.running() as port:
                receipt = await sent(messenger(f"http://127.0.0.1:{port}/"))
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.webhook.redirected")
        assert to in receipt.detail
        assert len(server.requests) == 1
        assert other.connections == 0

    asyncio.run(story())


FORBIDDEN = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fd00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
]


@pytest.mark.bad_input("webhook into our own network")
@pytest.mark.parametrize("address", FORBIDDEN)
def test_forbidden_addresses_are_not_connected_to(address: str) -> None:
    async def story() -> None:
        async def resolve(host: str, port: int) -> list[str]:
            return ["93.184.216.34", address]

        told = messenger("https://hooks.example.org/", private=False, resolve=resolve)
        receipt = await sent(told)
        assert (receipt.outcome, receipt.code) == (
            Outcome.AWAY,
            "notify.webhook.address_forbidden",
        )
        assert address in receipt.detail

    asyncio.run(story())


def test_names_of_loopback_are_seen_through() -> None:
    async def story() -> None:
        server = WebServer()
        async with server.running() as port:
            for url in (f"http://localhost:{port}/", f"http://127.0.0.1:{port}/"):
                receipt = await sent(messenger(url, private=False))
                assert receipt.outcome is Outcome.AWAY
            # The resolver's own ways of writing 127.0.0.1.
            for host in ("2130706433", "127.1", "0x7f000001"):
                receipt = await sent(messenger(f"http://{host}:{port}/", private=False))
                assert receipt.outcome is Outcome.AWAY, (host, receipt)
        assert server.connections == 0

    asyncio.run(story())


def test_the_address_that_was_checked_is_the_one_that_is_called() -> None:
    """The name resolves once, for the check; it means nothing to this machine's own resolver."""

    async def story() -> None:
        asked: list[tuple[str, int]] = []

        async def resolve(host: str, port: int) -> list[str]:
            asked.append((host, port))
            return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.99"]

        server = WebServer()
        async with server.running(context_of(OURS, "hooks.test")) as port:
            told = messenger(f"https://hooks.test:{port}/", resolve=resolve)
            receipt = await told.send(message())
            assert receipt.code == "notify.accepted", receipt
            assert asked == [("hooks.test", port)]
            assert server.requests[0].headers["host"] == f"hooks.test:{port}"
            assert server.server_names == ["hooks.test"]
            # Asked anew, it is elsewhere: the kept connection is not used for it.
            assert (await told.send(message())).code == "notify.unreachable"
            await told.close()
        assert len(server.requests) == 1

    asyncio.run(story())


def test_the_next_address_is_tried_when_one_is_dead() -> None:
    async def story() -> None:
        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.99", "127.0.0.1"]

        server = WebServer()
        async with server.running() as port:
            assert (await sent(messenger(f"http://hooks.test:{port}/", resolve=resolve))).code == (
                "notify.accepted"
            )

    asyncio.run(story())


@pytest.mark.bad_input("receiver with a wrong certificate")
@pytest.mark.parametrize("fault", ["other authority", "other name", "expired", "system"])
def test_a_wrong_certificate_is_told_and_nothing_is_sent(fault: str) -> None:
    async def story() -> None:
        signer = authority(years_ago=fault == "expired")
        context = context_of(signer, "hooks.test" if fault == "other name" else "127.0.0.1")
        pem = OURS.certificate_pem() if fault == "other authority" else signer.certificate_pem()
        server = WebServer()
        async with server.running(context) as port:
            told = messenger(f"https://127.0.0.1:{port}/", pem=None if fault == "system" else pem)
            receipt = await sent(told)
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.certificate"), receipt
        assert server.requests == []

    asyncio.run(story())


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _drip_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3_600)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _mail_server(writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.test ESMTP\r\n500 what?\r\n\r\n")
    await writer.drain()


async def _megabyte(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 No\r\nContent-Length: 1048576\r\n\r\n" + b"x" * 1_048_576)
    await writer.drain()


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b"y" * 1_024 + b"\r\n")
        await writer.drain()


ODD: list[tuple[str, Answer, str]] = [
    ("drips", _drip, "notify.no_answer"),
    ("drips headers", _drip_headers, "notify.no_answer"),
    ("silent", _silent, "notify.no_answer"),
    ("hangs up", _hang_up, "notify.connection_lost"),
    ("resets", _reset, "notify.connection_lost"),
    ("a megabyte", _megabyte, "notify.webhook.refused"),
    ("no end", _endless, "notify.webhook.later"),
    ("no HTTP", _mail_server, "notify.not_its_protocol"),
    ("line breaks", status(400, body="a\r\nb\x00\u202e"), "notify.webhook.refused"),
]


@pytest.mark.parametrize(("answer", "code"), [one[1:] for one in ODD], ids=[one[0] for one in ODD])
def test_odd_answers_end_in_time_and_in_one_line(answer: Answer, code: str) -> None:
    async def story() -> None:
        server = WebServer(answer)
        async with server.running() as port:
            # On a machine with much to do a deadline may come before the answer.
            for deadline_ms in (2_000, 30_000):
                url = f"http://127.0.0.1:{port}/"
                async with asyncio.timeout(60):
                    receipt = await sent(messenger(url, deadline_ms=deadline_ms))
                if receipt.code == code:
                    break
        assert receipt.code == code, receipt
        assert len(receipt.detail) <= 500
        assert receipt.detail.isprintable()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://name.invalid/", "notify.unresolved"),
        ("http://127.0.0.1:9/", "notify.unreachable"),
        ("ftp://example.org/", "notify.unusable_settings"),
        ("https://user:hunter2@example.org/", "notify.unusable_settings"),
    ],
)
def test_urls_that_lead_nowhere(url: str, code: str) -> None:
    async def story() -> None:
        receipt = await sent(messenger(url))
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, code), receipt
        assert "hunter2" not in receipt.detail

    asyncio.run(story())


def test_tls_where_there_is_none_and_the_reverse() -> None:
    async def story() -> None:
        async with WebServer().running() as port:
            receipt = await sent(messenger(f"https://127.0.0.1:{port}/"))
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.tls_failed"), receipt
        async with WebServer().running(context_of(OURS)) as port:
            receipt = await sent(messenger(f"http://127.0.0.1:{port}/"))
        assert receipt.outcome is Outcome.AWAY

    asyncio.run(story())


def test_no_secret_in_what_is_told_and_stopping_stops() -> None:
    async def story() -> None:
        server = WebServer(status(400, body=f"wrong: {SECRET['secret']}"))
        async with server.running() as port:
            told = messenger(f"http://127.0.0.1:{port}/")
            receipt = await told.send(message())
            assert receipt.detail.endswith("wrong: ***")
            assert SECRET["secret"] not in repr(told)
            server.answer = _silent
            sending = asyncio.create_task(told.send(message()))
            await until(lambda: len(server.requests) == 2)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await told.close()

    asyncio.run(story())


def test_the_guide_checks_a_signature_as_we_make_it() -> None:
    """The snippet that users copy, run as it stands in the guide."""
    guide = Path(__file__).resolve().parents[2] / "docs/guide/notifications-receivers.md"
    lines = guide.read_text().split("### Checking the signature")[1].splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in lines if line.startswith("    ")), names)
    check = names["is_from_virtha"]

    async def story() -> None:
        server = WebServer()
        async with server.running() as port:
            await sent(messenger(f"http://127.0.0.1:{port}/"))
        (request,) = server.requests
        headers = {
            "X-Virtha-Timestamp": request.headers["x-virtha-timestamp"],
            "X-Virtha-Signature": request.headers["x-virtha-signature"],
        }
        assert check(SECRET["secret"], headers, request.body)
        assert not check("another", headers, request.body)
        assert not check(SECRET["secret"], headers, request.body + b" ")
        old = {**headers, "X-Virtha-Timestamp": str(int(time.time()) - 3_600)}
        assert not check(SECRET["secret"], old, request.body)

    asyncio.run(story())
