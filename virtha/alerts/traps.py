"""What an SNMP notification carries; its names are in VIRTHA-MIB.txt beside this file."""

from datetime import UTC, datetime
from enum import StrEnum

from virtha.alerts.notice import NoticeKind, cut_utf8, headline, help_of, kind_of, number_of
from virtha.model.codes import Severity
from virtha.model.notification import Message
from virtha.model.time import UtcMillis
from virtha.model.value import Value

Oid = tuple[int, ...]

ROOT: Oid = (1, 3, 6, 1, 4, 1, 8072, 9999, 9999, 8250)
"""virtha has no enterprise number of its own yet. This is a branch of net-snmp's playpen, which NET-SNMP-MIB sets
aside for what is not registered; 8250 is the port of our gateway. With a number of our own only this and the
MIB's last line of the module identity change."""

NOTIFICATIONS: Oid = (*ROOT, 0)
OBJECTS: Oid = (*ROOT, 1)

_KIND_NUMBERS = {
    NoticeKind.PROBLEM: 1,
    NoticeKind.SOLVED: 2,
    NoticeKind.NOTICE: 3,
    NoticeKind.TEST: 4,
}
_SEVERITY_NUMBERS = {
    Severity.INFO: 1,
    Severity.WARNING: 2,
    Severity.ERROR: 3,
    Severity.ALERT: 4,
}
MESSAGE_BYTES = 480
HELP_BYTES = 320
NAME_BYTES = 128
"""All together stay below the 1,472 bytes that fit into one Ethernet frame, but for the longest names."""

_YEAR_MAX = 9_999


class Syntax(StrEnum):
    OCTETS = "octets"
    INTEGER = "integer"
    UNSIGNED = "unsigned"


class Varbind(Value, frozen=True, kw_only=True):
    oid: Oid
    syntax: Syntax
    value: bytes | int


class Trap(Value, frozen=True, kw_only=True):
    """``oid``: the notification's; the driver puts sysUpTime and snmpTrapOID before the varbinds."""

    oid: Oid
    varbinds: tuple[Varbind, ...]


def trap(message: Message) -> Trap:
    """All objects, in the MIB's order, also those that are empty: managers address them by place."""
    event = message.event
    kind = _KIND_NUMBERS[kind_of(message)]
    return Trap(
        oid=(*NOTIFICATIONS, kind),
        varbinds=(
            _octets(1, message.delivery_id, NAME_BYTES),
            _octets(2, event.code, NAME_BYTES),
            Varbind(oid=_object(3), syntax=Syntax.UNSIGNED, value=number_of(message)),
            Varbind(oid=_object(4), syntax=Syntax.INTEGER, value=_SEVERITY_NUMBERS[event.severity]),
            Varbind(oid=_object(5), syntax=Syntax.INTEGER, value=kind),
            _octets(6, headline(message), MESSAGE_BYTES),
            _octets(7, help_of(message), HELP_BYTES),
            Varbind(oid=_object(8), syntax=Syntax.OCTETS, value=date_and_time(event.at)),
            _octets(9, message.cluster or event.cluster_id, NAME_BYTES),
            _octets(10, message.host or event.host_id, NAME_BYTES),
            _octets(11, message.vm or event.vm_id, NAME_BYTES),
            _octets(12, message.installation, NAME_BYTES),
            _octets(13, message.installation_id, NAME_BYTES),
        ),
    )


def date_and_time(at: UtcMillis) -> bytes:
    """DateAndTime of RFC 2579, in UTC: 11 octets, to a tenth of a second. What no calendar has is shown as 1970."""
    try:
        moment = datetime.fromtimestamp(int(at) / 1_000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(0, tz=UTC)
    year = min(moment.year, _YEAR_MAX)
    rest = (moment.month, moment.day, moment.hour, moment.minute, moment.second)
    return year.to_bytes(2, "big") + bytes((*rest, moment.microsecond // 100_000)) + b"+\x00\x00"


def _object(number: int) -> Oid:
    return (*OBJECTS, number, 0)


def _octets(number: int, text: str | None, limit_bytes: int) -> Varbind:
    return Varbind(
        oid=_object(number), syntax=Syntax.OCTETS, value=cut_utf8(text or "", limit_bytes)
    )
