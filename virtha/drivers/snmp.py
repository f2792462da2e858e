"""One attempt to tell an SNMP manager: a trap, or an inform that it acknowledges. Versions 2c and 3, over UDP."""

import asyncio
import hashlib
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from virtha.alerts.traps import Trap, trap
from virtha.drivers.receipts import Receipts
from virtha.model.notification import (
    Message,
    SnmpAuthentication,
    SnmpPrivacy,
    SnmpSettings,
    SnmpVersion,
)
from virtha.ports.receivers import Outcome, Receipt

_RETRY_S = 1.0
"""An inform lost on the way is sent again so soon, within the one attempt."""
_FLUSH_S = 0.1
PASSPHRASE_CHARACTERS = 8
"""RFC 3414, section 11.2: the least."""
_NET_SNMP_ENTERPRISE = 8072

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) into addresses, at least one. Raises OSError."""


class _Engine(Protocol):
    """Of ``snmp_engine``, which only a thread imports."""

    async def notify(
        self, trap: Trap, address: str, *, up_ms: int, retry_s: float, retries: int
    ) -> tuple[Exception | None, str]: ...

    def close(self) -> None: ...


class SnmpMessenger:
    """Implements ``Messenger``. ``started_s``: when this process began, in seconds since 1970; the same for all
    messengers of a process (see ``snmp_engine``)."""

    def __init__(
        self,
        settings: SnmpSettings,
        secrets: Mapping[str, str],
        *,
        deadline_ms: int,
        started_s: int,
        resolve: Resolve | None = None,
    ) -> None:
        self._settings = settings
        self._secrets = dict(secrets)
        self._receipts = Receipts(secrets, settings.user)
        self._deadline_s = deadline_ms / 1_000
        self._started_s = started_s
        self._resolve = resolve or _resolve
        self._engine: _Engine | None = None
        self._last: str | None = None

    async def send(self, message: Message) -> Receipt:
        try:
            async with asyncio.timeout(self._deadline_s):
                receipt = await self._attempt(message)
        except TimeoutError:
            receipt = self._no_answer()
        except BaseException:
            self._drop()
            raise
        if receipt.outcome is not Outcome.ACCEPTED:
            # A new engine asks the manager anew who it is and what time it has.
            self._drop()
        return receipt

    async def close(self) -> None:
        if self._engine is not None:
            # pysnmp hands a trap to the socket in a later turn of the loop.
            await asyncio.sleep(_FLUSH_S)
        self._drop()
        await asyncio.sleep(0)  # asyncio closes the socket itself in the next turn

    async def _attempt(self, message: Message) -> Receipt:
        unusable = _unusable(self._settings, self._secrets)
        if unusable:
            return self._receipts.make(Outcome.AWAY, "notify.unusable_settings", unusable)
        try:
            addresses = await self._resolve(self._settings.host, self._settings.port)
        except (OSError, UnicodeError) as error:
            return self._receipts.of_error(error)
        if not self._settings.inform:
            addresses = addresses[
                :1
            ]  # nobody learns whether a trap came: the first is the system's choice
        return await self._try_each(message, addresses)

    async def _try_each(self, message: Message, addresses: list[str]) -> Receipt:
        """Until one answers; the one that did is asked first next time."""
        share_s = self._deadline_s / len(addresses)
        receipt = self._no_answer()
        for address in sorted(addresses, key=lambda one: one != self._last):
            try:
                async with asyncio.timeout(share_s):
                    if self._engine is None:
                        self._engine = await asyncio.to_thread(self._build, message.installation_id)
                    receipt = await self._notify(self._engine, trap(message), address)
            except TimeoutError:
                receipt = self._no_answer()
            if receipt.code != "notify.no_answer":
                self._last = address
                break
            self._drop()
        return receipt

    def _no_answer(self) -> Receipt:
        return self._receipts.make(
            Outcome.AWAY, "notify.no_answer", f"no answer within {self._deadline_s:g} s"
        )

    async def _notify(self, engine: _Engine, told: Trap, address: str) -> Receipt:
        from pysnmp.error import PySnmpError

        from virtha.drivers.snmp_engine import reason_of

        try:
            indication, complaint = await engine.notify(
                told,
                address,
                up_ms=int((time.time() - self._started_s) * 1_000),
                retry_s=_RETRY_S,
                retries=max(1, int(self._deadline_s / _RETRY_S)),
            )
        except (PySnmpError, OSError) as error:
            return self._receipts.of_error(error)
        if indication is not None:
            return self._receipts.make(Outcome.AWAY, reason_of(indication), str(indication))
        if complaint:
            return self._receipts.make(Outcome.LATER, "notify.snmp.refused", complaint)
        code = "notify.accepted" if self._settings.inform else "notify.sent"
        return self._receipts.make(Outcome.ACCEPTED, code)

    def _build(self, installation_id: str) -> _Engine:
        from virtha.drivers.snmp_engine import Engine

        given = self._settings.engine_id
        return Engine(
            self._settings,
            self._secrets,
            engine_id=bytes.fromhex(given) if given else engine_id_of(installation_id),
            started_s=self._started_s,
        )

    def _drop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def _unusable(settings: SnmpSettings, secrets: Mapping[str, str]) -> str:
    """What pysnmp would fail at, or quietly do otherwise: without a password it sends unauthenticated."""
    if settings.version is SnmpVersion.V2C:
        return "" if secrets.get("community") else "community: is missing"
    if not settings.user:
        return "user: SNMP v3 needs one"
    for name, used in (
        ("authentication_password", settings.authentication is not SnmpAuthentication.NONE),
        ("privacy_password", settings.privacy is not SnmpPrivacy.NONE),
    ):
        if used and len(secrets.get(name, "")) < PASSPHRASE_CHARACTERS:
            return f"{name}: is missing or shorter than {PASSPHRASE_CHARACTERS} characters"
    if (
        settings.privacy is not SnmpPrivacy.NONE
        and settings.authentication is SnmpAuthentication.NONE
    ):
        return "authentication: SNMP v3 has no privacy without it"
    return ""


def engine_id_of(installation_id: str) -> bytes:
    """17 bytes (RFC 3411, section 5): the enterprise with the highest bit set, 5 for "octets", and 12 that are this
    installation's."""
    enterprise = (_NET_SNMP_ENTERPRISE | 1 << 31).to_bytes(4, "big")
    return enterprise + b"\x05" + hashlib.sha256(installation_id.encode()).digest()[:12]


async def _resolve(host: str, port: int) -> list[str]:
    """Anew for each message: a manager may have moved. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))
