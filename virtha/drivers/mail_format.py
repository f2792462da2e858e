"""A mail as it goes over the wire: MIME, in ASCII, with CR LF.

The library's ``EmailMessage`` writes the headers that need an encoding. Not the rest: half of what a message costs
was its general way of writing a dozen plain lines and two texts.
"""

import binascii
import hashlib
import re
from base64 import encodebytes
from datetime import UTC, datetime
from email.headerregistry import Address
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from functools import lru_cache
from typing import NamedTuple

from virtha.alerts.addresses import mail_address
from virtha.alerts.mail_text import MailText
from virtha.model.errors import InvalidInput
from virtha.model.notification import MailSettings

LINE_MAX = 78
"""RFC 5322, section 2.1.1."""
_PLAIN = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
"""Nothing to encode, and no way to begin a line."""
_POLICY = SMTP_POLICY.clone(cte_type="7bit")
"""Plain ASCII on the wire: a relay on the way need not know 8BITMIME."""
_UTF8_POLICY = _POLICY.clone(utf8=True)


class AssembledMail(NamedTuple):
    sender: str
    recipient: str
    content: bytes
    ascii: bool
    """False: an address needs SMTPUTF8."""


def assemble(said: MailText, settings: MailSettings, address: str | None) -> AssembledMail:
    """The same bytes at each attempt. Addresses are checked again though they were checked when they were stored:
    nothing but this stands between a line break in them and the mail server. Raises InvalidInput."""
    own, own_domain = mail_address(settings.sender)
    local, domain = mail_address(address or "")
    in_ascii = own.isascii() and local.isascii()
    try:
        headers = [
            _address("From", said.sender_name, own, own_domain, in_ascii),
            _address("To", "", local, domain, in_ascii),
            _header("Subject", said.subject, in_ascii),
            _header("Date", format_datetime(_moment(said.date)), in_ascii),
            *(_header(name, value, in_ascii) for name, value in said.headers),
            "MIME-Version: 1.0\r\n",
        ]
    except ValueError as error:
        raise InvalidInput(str(error), field="headers") from None
    return AssembledMail(
        sender=f"{own}@{own_domain}",
        recipient=f"{local}@{domain}",
        content="".join(headers).encode() + _body(said),
        ascii=in_ascii,
    )


@lru_cache(maxsize=256)
def _address(name: str, shown: str, local: str, domain: str, in_ascii: bool) -> str:
    return _folded(name, Address(shown, local, domain), in_ascii)


def _header(name: str, value: str, in_ascii: bool) -> str:
    """One header with its end of line. Raises ValueError where the value holds one."""
    if _PLAIN.fullmatch(value) and (len(name) + 2 + len(value) <= LINE_MAX or " " not in value):
        return f"{name}: {value}\r\n"
    return _folded(name, value, in_ascii)


def _folded(name: str, value: str | Address, in_ascii: bool) -> str:
    policy = _POLICY if in_ascii else _UTF8_POLICY
    return str(policy.fold(*policy.header_store_parse(name, value)))


def _body(said: MailText) -> bytes:
    text = _part("plain", said.text)
    if said.html is None:
        return text
    html = _part("html", said.html)
    # From the content: the same at each attempt, and nowhere in it.
    boundary = f"={hashlib.sha256(text + html).hexdigest()[:40]}=".encode()
    return b"".join(
        (
            *(b'Content-Type: multipart/alternative; boundary="', boundary, b'"\r\n\r\n'),
            *(b"--", boundary, b"\r\n", text, b"\r\n--", boundary, b"\r\n", html),
            *(b"\r\n--", boundary, b"--\r\n"),
        )
    )


def _part(kind: str, text: str) -> bytes:
    text = text.replace("\r", " ")
    lines = text.split("\n")
    if text.isascii() and max(map(len, lines)) <= LINE_MAX:
        encoding, content = "7bit", "\r\n".join(lines).encode()
    else:
        encoding, content = _encoded(text.encode())
        content = content.replace(b"\n", b"\r\n")
    head = (
        f'Content-Type: text/{kind}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n'
    )
    return head.encode() + b"\r\n" + content


def _encoded(raw: bytes) -> tuple[str, bytes]:
    """The one that most can be read of, unless it is much longer."""
    readable = binascii.b2a_qp(raw, istext=True)
    if len(readable) > 2 * len(raw):
        return "base64", encodebytes(raw)
    return "quoted-printable", readable


def _moment(date_ms: int) -> datetime:
    try:
        return datetime.fromtimestamp(date_ms / 1_000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, tz=UTC)
