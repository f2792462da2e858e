"""pysnmp, put up for one receiver. Loading it takes a third of a second: import this in a thread.

Version 3 makes receivers refuse what they take for a replay: a message of the same engine id with a lower number of
boots, or with a time that went back. pysnmp keeps that number below the world-writable /tmp, and counts each engine
object as a boot. Here both come from the moment the process started: it grows with each start by itself, needs no file, and
all receivers' engines agree.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from pysnmp.carrier.asyncio.dispatch import AsyncioDispatcher
from pysnmp.entity.rfc3413.ntforg import NotificationOriginator
from pysnmp.hlapi.v3arch.asyncio import (
    CommunityData,
    SnmpEngine,
    Udp6TransportTarget,
    UdpTransportTarget,
    UsmUserData,
    usmAesBlumenthalCfb256Protocol,
    usmAesCfb128Protocol,
    usmHMAC192SHA256AuthProtocol,
    usmHMAC384SHA512AuthProtocol,
    usmHMACSHAAuthProtocol,
    usmNoAuthProtocol,
    usmNoPrivProtocol,
)
from pysnmp.hlapi.v3arch.asyncio.lcd import NotificationOriginatorLcdConfigurator
from pysnmp.proto.rfc1902 import Integer32, ObjectIdentifier, OctetString, TimeTicks, Unsigned32

from virtha.alerts.traps import Syntax, Trap
from virtha.model.notification import SnmpAuthentication, SnmpPrivacy, SnmpSettings, SnmpVersion

BOOTS_SINCE_S = 1_577_836_800
"""2020-01-01: seconds since then fit the 31 bits of snmpEngineBoots until 2088."""
_SYS_UP_TIME = (1, 3, 6, 1, 2, 1, 1, 3, 0)
_SNMP_TRAP_OID = (1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0)
_TICKS_MAX = 1 << 32
_AUTHENTICATION = {
    SnmpAuthentication.NONE: usmNoAuthProtocol,
    SnmpAuthentication.SHA1: usmHMACSHAAuthProtocol,
    SnmpAuthentication.SHA256: usmHMAC192SHA256AuthProtocol,
    SnmpAuthentication.SHA512: usmHMAC384SHA512AuthProtocol,
}
_PRIVACY = {
    SnmpPrivacy.NONE: usmNoPrivProtocol,
    SnmpPrivacy.AES128: usmAesCfb128Protocol,
    # Reeder's way of lengthening a short key differs; with SHA-256 and SHA-512 no key is short.
    SnmpPrivacy.AES256: usmAesBlumenthalCfb256Protocol,
}
_SYNTAX = {
    Syntax.OCTETS: OctetString,
    Syntax.INTEGER: Integer32,
    Syntax.UNSIGNED: Unsigned32,
}
_WRONG_KEYS = {
    "WrongDigest",
    "AuthenticationFailure",
    "AuthenticationError",
    "DecryptionError",
    "UnsupportedSecurityLevel",
}
_Answer = tuple[Exception | None, str]


def reason_of(indication: Exception) -> str:
    """The code for what pysnmp says instead of an answer."""
    name = type(indication).__name__
    if name == "RequestTimedOut":
        return "notify.no_answer"
    if name in ("UnknownUserName", "UnknownSecurityName"):
        return "notify.snmp.unknown_user"
    if name in _WRONG_KEYS:
        return "notify.snmp.wrong_keys"
    if name == "NotInTimeWindow":
        return "notify.snmp.clock"
    return "notify.not_its_protocol"


class Engine:
    """Made in a thread; used and closed in the loop."""

    def __init__(
        self,
        settings: SnmpSettings,
        secrets: Mapping[str, str],
        *,
        engine_id: bytes,
        started_s: int,
    ) -> None:
        self._settings = settings
        self._started_s = started_s
        self._snmp = SnmpEngine()
        framework = self._snmp.get_mib_builder().import_symbols(
            "__SNMP-FRAMEWORK-MIB", "snmpEngineID", "snmpEngineBoots", "snmpEngineTime"
        )
        own_id, boots, time = framework
        # Not by SnmpEngine's argument, which would go to /tmp (see above).
        own_id.syntax = own_id.syntax.clone(engine_id)
        self._snmp.snmpEngineID = own_id.syntax
        boots.syntax = boots.syntax.clone(max(1, started_s - BOOTS_SINCE_S))
        time.syntax = time.syntax.clone(started_s)
        self._credentials = _credentials(settings, secrets)
        self._configurator = NotificationOriginatorLcdConfigurator()
        self._originator = NotificationOriginator()
        self._targets: dict[str, Any] = {}

    async def notify(
        self, trap: Trap, address: str, *, up_ms: int, retry_s: float, retries: int
    ) -> _Answer:
        """(what came instead of an answer, what the answer complains of). A trap has no answer."""
        pairs = (
            (_SYS_UP_TIME, TimeTicks(up_ms // 10 % _TICKS_MAX)),
            (_SNMP_TRAP_OID, ObjectIdentifier(trap.oid)),
            *((one.oid, _SYNTAX[one.syntax](one.value)) for one in trap.varbinds),
        )
        # Not pysnmp's send_notification: it looks every name up in its MIBs first, a third of all its work.
        target = await self._target_at(address, retry_s, retries)
        kind = "inform" if self._settings.inform else "trap"
        name = self._configurator.configure(self._snmp, self._credentials, target, kind, b"")
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._originator.send_varbinds(self._snmp, name, None, b"", pairs, _answered, answer)
        return await answer if self._settings.inform else (None, "")

    async def _target_at(self, address: str, retry_s: float, retries: int) -> Any:
        if address not in self._targets:
            kind = Udp6TransportTarget if ":" in address else UdpTransportTarget
            self._targets[address] = await kind.create(
                (address, self._settings.port), timeout=retry_s, retries=retries
            )
        return self._targets[address]

    def close(self) -> None:
        if self._snmp.transport_dispatcher is not None:
            assert isinstance(self._snmp.transport_dispatcher, AsyncioDispatcher)
            self._snmp.close_dispatcher()


def _answered(
    engine: Any,
    handle: Any,
    indication: Exception | None,
    status: Any,
    index: Any,
    pairs: Any,
    answer: Any,
) -> None:
    if not answer.done():
        answer.set_result((indication, str(status.prettyPrint()) if status else ""))


def _credentials(settings: SnmpSettings, secrets: Mapping[str, str]) -> CommunityData | UsmUserData:
    if settings.version is SnmpVersion.V2C:
        return CommunityData("virtha", secrets.get("community", ""), mpModel=1)  # noqa: S508 - asked for by the settings
    return UsmUserData(
        settings.user or "",
        authKey=secrets.get("authentication_password"),
        privKey=secrets.get("privacy_password"),
        authProtocol=_AUTHENTICATION[settings.authentication],
        privProtocol=_PRIVACY[settings.privacy],
    )
