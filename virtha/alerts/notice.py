"""What every message says, whatever way it goes: its kind, what to do, and words that can't break a line."""

import unicodedata
from enum import StrEnum

from virtha.model.codes import REGISTRY, SOLVES, Severity
from virtha.model.notification import Message
from virtha.model.time import format_utc

_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They can make a line read as something else."""


class NoticeKind(StrEnum):
    PROBLEM = "problem"
    SOLVED = "solved"
    """What an earlier event told of has ended (``model/codes/pairs.py``)."""
    NOTICE = "notice"
    TEST = "test"


def kind_of(message: Message) -> NoticeKind:
    if message.test:
        return NoticeKind.TEST
    if message.event.code in SOLVES:
        return NoticeKind.SOLVED
    if message.event.severity is Severity.INFO:
        return NoticeKind.NOTICE
    return NoticeKind.PROBLEM


def number_of(message: Message) -> int:
    """The code's number; 0 for one that this version doesn't know."""
    code = REGISTRY.get(message.event.code)
    return 0 if code is None else code.number


def help_of(message: Message) -> str:
    """What an administrator should do, or nothing."""
    code = REGISTRY.get(message.event.code)
    return "" if code is None else code.help


def headline(message: Message) -> str:
    said = one_line(message.event.message) or message.event.code
    return f"Test: {said}" if message.test else said


def facts(message: Message) -> tuple[tuple[str, str], ...]:
    """What, where and when, as pairs of a label and one line."""
    event = message.event
    number = number_of(message)
    pairs = [
        ("Severity", str(event.severity)),
        ("Kind", str(kind_of(message))),
        ("Event", f"{event.code} ({number})" if number else event.code),
        ("VM", message.vm or event.vm_id),
        ("Host", message.host or event.host_id),
        ("Cluster", message.cluster or event.cluster_id),
        ("When", format_utc(event.at)),
        ("By the host's clock", None if event.host_at is None else format_utc(event.host_at)),
        ("By", event.user),
        ("Operation", event.operation_id),
        ("Installation", f"{message.installation} ({message.installation_id})"),
        ("Event number", str(int(event.revision))),
        ("Message", message.delivery_id),
    ]
    return tuple((label, one_line(text)) for label, text in pairs if text)


def one_line(text: str, limit: int = 1_000) -> str:
    """Without line breaks, control characters and marks that turn the direction of writing; at most ``limit``
    characters."""
    shown = text
    if not (text.isascii() and text.isprintable()):
        shown = "".join(" " if _breaks(character) else character for character in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def cut_utf8(text: str, limit_bytes: int) -> bytes:
    """At most so many bytes of UTF-8, no character torn."""
    encoded = text.encode("utf-8", errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded
    return encoded[:limit_bytes].decode("utf-8", errors="ignore").encode()


def _breaks(character: str) -> bool:
    return (
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _BIDIRECTIONAL
    )
