"""What every message says, whatever way it goes: its kind, what to do, and words that can't break a line."""

import unicodedata
from enum import StrEnum

from virtha.alerts.subject import solved_by
from virtha.model.codes import REGISTRY, Severity, render
from virtha.model.event import Event
from virtha.model.notification import Message, MessageGroup
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
    if message.group is not None:
        return NoticeKind(message.group.note.kind)
    if solved_by(message.event):
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
    if message.test:
        return f"Test: {said}"
    if message.group is None:
        return said
    note = message.group.note
    repeated = "Still: " if note.reason == "notify.told.repeat" else ""
    begun = "Solved: " if note.kind == NoticeKind.SOLVED else repeated
    return f"{begun}{said}{_beside(message.group)}"


def _beside(group: MessageGroup) -> str:
    """How much more there is, for a headline."""
    parts = []
    events, vms = len(group.others) + group.more, len(group.vms) + group.vms_left_out
    if events:
        parts.append(f"{events} more event{'s' * (events > 1)}")
    if vms:
        parts.append(f"{vms} VM{'s' * (vms > 1)}")
    return f" (and {', '.join(parts)})" if parts else ""


def other_lines(group: MessageGroup) -> tuple[str, ...]:
    """The group's other events, one line each; the last says how many are left out."""
    lines = [
        f"{format_utc(one.at)}  {one.severity}: {one_line(one.message, 300) or one.code}"
        f"{_again(group, one)}"
        for one in group.others
    ]
    if group.more:
        lines.append(f"and {group.more} more: virtha event list")
    return tuple(lines)


def _again(group: MessageGroup, event: Event) -> str:
    count = group.note.again.get(str(int(event.revision)), 0)
    return f" (and {count} times again)" if count else ""


def vm_lines(group: MessageGroup) -> tuple[str, ...]:
    """How far each VM of the failed host is on its way back, as the message is made."""
    lines = []
    for one in group.vms:
        where = f" on {one_line(one.host, 100)}" if one.host else ""
        why = f": {one_line(one.why, 200)}" if one.why else ""
        lines.append(f"{one_line(one.vm, 100)}: {one.state}{where}{why}")
    if group.vms_left_out:
        lines.append(
            f"and {group.vms_left_out} more: virtha incident show {group.note.incident_id}"
        )
    return tuple(lines)


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
        *_about_group(message),
        ("Installation", f"{message.installation} ({message.installation_id})"),
        ("Event number", str(int(event.revision))),
        ("Message", message.delivery_id),
    ]
    return tuple((label, one_line(text)) for label, text in pairs if text)


def _about_group(message: Message) -> tuple[tuple[str, str | None], ...]:
    if message.group is None:
        return ()
    note = message.group.note
    again = note.again.get(str(int(message.event.revision)), 0)
    return (
        ("Failed host", message.group.cause),
        ("Times again", str(again) if again else None),
        ("Sent because", render(note.reason, {})),
        ("Problems that go on", str(note.open) if note.open else None),
        ("Not followed", _unfollowed(note.unfollowed) if note.unfollowed else None),
    )


def _unfollowed(count: int) -> str:
    return f"{count} more, they were too many: 'virtha status' has what still goes on"


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
