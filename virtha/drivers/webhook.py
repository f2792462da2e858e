"""One attempt to call a webhook or another HTTP API: a POST over a connection that is kept for the next.

The server calls what a user typed, so it must not become a way into its own machine or network. The name is resolved
once, the addresses are checked, and the connection goes to the address that was checked, under the name's own certificate
and Host: a name that resolves to another address a moment later changes nothing. Redirects are not followed.
"""

import asyncio
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

import httpx
from msgspec.structs import replace

from virtha import __version__
from virtha.alerts.addresses import forbidden_address
from virtha.alerts.alertmanager_body import alertmanager_body
from virtha.alerts.webhook_body import webhook_body, webhook_headers
from virtha.drivers.receipts import Receipts
from virtha.model.notification import AlertmanagerSettings, Message, WebhookSettings
from virtha.model.time import UtcMillis
from virtha.ports.receivers import Outcome, Receipt

ANSWER_BYTES = 16_384
"""More of an answer is not read; 500 characters of it are kept."""
_AWAY = {429, 502, 503, 504}
"""Said of the receiver as a whole. Other 5xx may be about this one message: others shall pass it."""
_LATER = {408, 425}

ALERTS_PATH = "/api/v2/alerts"
HttpSettings = WebhookSettings | AlertmanagerSettings
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) into addresses. Raises OSError."""


class Posted(NamedTuple):
    """``headers``: all but Host."""

    body: bytes
    headers: dict[str, str]


class HttpMessenger:
    """Implements ``Messenger``; ``compose`` makes the body. A connection is closed by the first message after ``idle_ms``, or
    by ``close``."""

    def __init__(
        self,
        settings: HttpSettings,
        secrets: Mapping[str, str],
        compose: Callable[[Message], Posted],
        *,
        user: str | None = None,
        deadline_ms: int,
        idle_ms: int,
        resolve: Resolve | None = None,
    ) -> None:
        self._settings = settings
        self._compose = compose
        self._receipts = Receipts(secrets, user)
        self._deadline_s = deadline_ms / 1_000
        self._idle_s = idle_ms / 1_000
        self._client: httpx.AsyncClient | None = None
        self._idle: asyncio.Task[None] | None = None
        self._last: str | None = None
        self._resolve = resolve or _resolve

    async def send(self, message: Message) -> Receipt:
        await self._end_idle()
        try:
            async with asyncio.timeout(self._deadline_s):
                receipt = await self._attempt(message)
        except TimeoutError:
            receipt = self._receipts.make(
                Outcome.AWAY, "notify.no_answer", f"no answer within {self._deadline_s:g} s"
            )
        if self._client is not None:
            self._idle = asyncio.create_task(self._close_when_idle())
        return receipt

    async def close(self) -> None:
        await self._end_idle()
        await self._drop()

    async def _attempt(self, message: Message) -> Receipt:
        try:
            url = _url(self._settings.url)
            if self._client is None:
                self._client = await self._make_client()
        except (ValueError, httpx.InvalidURL, ssl.SSLError) as error:
            return self._receipts.make(Outcome.AWAY, "notify.unusable_settings", str(error))
        try:
            addresses = await self._resolve(url.raw_host.decode("ascii"), _port(url))
        except (OSError, UnicodeError) as error:
            return self._receipts.of_error(error)
        if not self._settings.private_addresses:
            refused = [one for one in addresses if forbidden_address(ip_address(one))]
            if refused:
                # One forbidden among several is enough: a name of the receiver's own would not have it.
                return self._receipts.make(
                    Outcome.AWAY, "notify.webhook.address_forbidden", f"{url.host}: {refused[0]}"
                )
        return await self._call(message, url, addresses)

    async def _call(self, message: Message, url: httpx.URL, addresses: list[str]) -> Receipt:
        """Each address once, that of the kept connection first, until one can be connected to."""
        failure: Exception = OSError("the name has no address")
        for address in sorted(addresses, key=lambda one: one != self._last):
            try:
                receipt = await self._post(message, url, address)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
                continue
            except httpx.ProtocolError as error:
                return self._lost(error)
            except httpx.HTTPError as error:
                return self._receipts.of_error(error)
            self._last = address
            return receipt
        return self._receipts.of_error(failure)

    def _lost(self, error: httpx.ProtocolError) -> Receipt:
        code = "notify.not_its_protocol"
        if "disconnected" in str(error) or "closed" in str(error):
            code = "notify.connection_lost"
        return self._receipts.make(Outcome.AWAY, code, str(error))

    async def _post(self, message: Message, url: httpx.URL, address: str) -> Receipt:
        assert self._client is not None
        posted = self._compose(message)
        headers = {**posted.headers, "Host": url.netloc.decode("ascii")}
        request = self._client.build_request(
            "POST",
            url.copy_with(host=address),
            content=posted.body,
            headers=headers,
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        answer = await self._client.send(request, stream=True)
        try:
            words = await _beginning(answer)
        finally:
            await answer.aclose()
        return self._judge(answer, words)

    def _judge(self, answer: httpx.Response, words: str) -> Receipt:
        status = answer.status_code
        detail = f"{status} {answer.reason_phrase}"
        if "retry-after" in answer.headers:
            detail += f" (Retry-After: {answer.headers['retry-after'][:40]})"
        if words:
            detail += f": {words}"
        if 200 <= status < 300:
            return self._receipts.make(Outcome.ACCEPTED, "notify.accepted", detail)
        if 300 <= status < 400:
            where = answer.headers.get("location", "")[:200]
            return self._receipts.make(
                Outcome.AWAY, "notify.webhook.redirected", f"{status} to {where}"
            )
        if status in _AWAY:
            return self._receipts.make(Outcome.AWAY, "notify.busy", detail)
        if status in _LATER or status >= 500:
            return self._receipts.make(Outcome.LATER, "notify.webhook.later", detail)
        return self._receipts.make(Outcome.NEVER, "notify.webhook.refused", detail)

    async def _make_client(self) -> httpx.AsyncClient:
        trust = await asyncio.to_thread(
            ssl.create_default_context, cadata=self._settings.authority_pem
        )
        return httpx.AsyncClient(
            verify=trust,
            follow_redirects=False,
            trust_env=False,  # a proxy from the environment would resolve the name by itself
            timeout=httpx.Timeout(None),  # the deadline of the whole attempt bounds it
            limits=httpx.Limits(max_connections=2, keepalive_expiry=self._idle_s),
            headers={"User-Agent": f"virtha/{__version__}", "Accept": "*/*"},
        )

    async def _close_when_idle(self) -> None:
        await asyncio.sleep(self._idle_s)
        await self._drop()

    async def _end_idle(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.cancel()
            await asyncio.wait({idle})  # awaiting it would mix up its cancellation and ours

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class WebhookMessenger(HttpMessenger):
    def __init__(
        self,
        settings: WebhookSettings,
        secrets: Mapping[str, str],
        *,
        deadline_ms: int,
        idle_ms: int,
        resolve: Resolve | None = None,
    ) -> None:
        secret = secrets.get("secret")

        def compose(message: Message) -> Posted:
            body = webhook_body(message)
            headers = webhook_headers(message, body, secret=secret, at_s=int(time.time()))
            return Posted(body, headers)

        super().__init__(
            settings, secrets, compose, deadline_ms=deadline_ms, idle_ms=idle_ms, resolve=resolve
        )


class AlertmanagerMessenger(HttpMessenger):
    """``now_s``: the wall clock."""

    def __init__(
        self,
        settings: AlertmanagerSettings,
        secrets: Mapping[str, str],
        *,
        deadline_ms: int,
        idle_ms: int,
        resolve: Resolve | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        headers = {"Content-Type": "application/json"}
        if "token" in secrets:
            headers["Authorization"] = f"Bearer {secrets['token']}"
        elif settings.user is not None:
            pair = f"{settings.user}:{secrets.get('password', '')}".encode()
            headers["Authorization"] = f"Basic {b64encode(pair).decode()}"

        def compose(message: Message) -> Posted:
            return Posted(
                alertmanager_body(message, settings, UtcMillis(int(now_s() * 1_000))), headers
            )

        target = replace(settings, url=settings.url.rstrip("/") + ALERTS_PATH)
        super().__init__(
            target,
            secrets,
            compose,
            user=settings.user,
            deadline_ms=deadline_ms,
            idle_ms=idle_ms,
            resolve=resolve,
        )


def _url(text: str) -> httpx.URL:
    """Raises ValueError or httpx.InvalidURL."""
    url = httpx.URL(text)
    if url.scheme not in ("https", "http") or not url.host:
        raise ValueError("url: it must begin with https:// or http:// and a host")
    if url.userinfo:
        raise ValueError("url: it must hold no user and no password")
    return url


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]).partition("%")[0] for one in found))


async def _beginning(answer: httpx.Response) -> str:
    """As it came, undone from no compression: a small answer may unpack to gigabytes."""
    read = bytearray()
    async for piece in answer.aiter_raw():
        read += piece
        if len(read) >= ANSWER_BYTES:
            break
    return bytes(read[:ANSWER_BYTES]).decode("utf-8", errors="replace")
