"""Whether a power device belongs to the machine that it is configured for (P1)."""

import re

from virtha.model.evidence import IdentityMatch
from virtha.model.power_settings import MachineIdentity

_NOT_HEXADECIMAL = re.compile(r"[^0-9a-f]")
_UUID_DIGITS = 32
# What boards say whose maker never set it; two such boards would "match".
_UNSET_UUIDS = frozenset(
    {
        "0" * _UUID_DIGITS,
        "f" * _UUID_DIGITS,
        "03000200040005000006000700080009",
        "00020003000400050006000700080009",
        "12345678123412341234123456789012",
        "0123456789abcdef0123456789abcdef",
    }
)
_UNSET_SERIALS = frozenset(
    {
        "",
        "0",
        "none",
        "default string",
        "not specified",
        "not available",
        "system serial number",
        "to be filled by o.e.m.",
        "0123456789",
        "123456789",
    }
)


def compare(device: MachineIdentity, host: MachineIdentity) -> IdentityMatch:
    """Of what both say: UUIDs first. UNKNOWN where there is nothing that both say."""
    ours, theirs = uuid_digits(host.uuid), uuid_digits(device.uuid)
    if ours and theirs:
        return IdentityMatch.MATCH if theirs in spellings(ours) else IdentityMatch.MISMATCH
    our_serial, their_serial = _serial(host.serial), _serial(device.serial)
    if our_serial and their_serial:
        return IdentityMatch.MATCH if our_serial == their_serial else IdentityMatch.MISMATCH
    return IdentityMatch.UNKNOWN


def uuid_digits(text: str) -> str:
    """32 digits, or '' for what is no UUID or one that says nothing."""
    digits = _NOT_HEXADECIMAL.sub("", text.lower())
    if len(digits) != _UUID_DIGITS:
        return ""
    return "" if _UNSET_UUIDS & spellings(digits) or len(set(digits)) == 1 else digits


def spellings(digits: str) -> frozenset[str]:
    """One UUID in the orders of bytes that are in use: as written, SMBIOS's (the first three fields little-endian) and
    IPMI's (all of it little-endian; IPMI 2.0, section 20.8), and SMBIOS's of that."""
    reversed_ = _swapped(digits)
    return frozenset({digits, _smbios(digits), reversed_, _smbios(reversed_)})


def _smbios(digits: str) -> str:
    return _swapped(digits[:8]) + _swapped(digits[8:12]) + _swapped(digits[12:16]) + digits[16:]


def _swapped(digits: str) -> str:
    return "".join(digits[at : at + 2] for at in range(len(digits) - 2, -2, -2))


def _serial(text: str) -> str:
    known = " ".join(text.lower().split())
    return "" if known in _UNSET_SERIALS else known
