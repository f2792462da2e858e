"""What a mail says: subject, text, HTML and headers. The driver puts it into MIME."""

import re
from html import escape

from virtha.alerts.notice import (
    facts,
    headline,
    help_of,
    kind_of,
    one_line,
    other_lines,
    vm_lines,
)
from virtha.model.codes import Severity
from virtha.model.notification import MailSettings, Message
from virtha.model.time import UtcMillis
from virtha.model.value import Value

SUBJECT_CHARACTERS = 180
_COLOURS = {
    Severity.INFO: "#2f6f4f",
    Severity.WARNING: "#8a6100",
    Severity.ERROR: "#b3261e",
    Severity.ALERT: "#8c1d5b",
}
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._-]")
_WHY = "Sent by virtha because a subscription asks for it. Nobody reads answers to it."


class MailText(Value, frozen=True, kw_only=True):
    """``headers``: all but From, To, Date and those of MIME; values are one line each."""

    subject: str
    text: str
    html: str | None
    date: UtcMillis
    sender_name: str
    headers: tuple[tuple[str, str], ...]


def mail_text(message: Message, settings: MailSettings) -> MailText:
    """The same at each attempt, Message-ID included."""
    return MailText(
        subject=_subject(message),
        text=_text(message),
        html=_html(message) if settings.html else None,
        date=message.created or message.event.at,
        sender_name=one_line(f"virtha {message.installation}", 60),
        headers=_headers(message, settings),
    )


def message_id(message: Message) -> str:
    """``<delivery id@installation id>``."""
    return f"<{_id(message.delivery_id)}@{_id(message.installation_id)}>"


def _subject(message: Message) -> str:
    where = one_line(message.installation, 40)
    said = f"[{where}] {message.event.severity.upper()}: {headline(message)}"
    return one_line(said, SUBJECT_CHARACTERS)


def _headers(message: Message, settings: MailSettings) -> tuple[tuple[str, str], ...]:
    pairs = [
        ("Message-ID", message_id(message)),
        ("Auto-Submitted", "auto-generated"),
        ("X-Auto-Response-Suppress", "All"),  # Exchange's absence notes ignore Auto-Submitted
        ("X-Virtha-Event", str(int(message.event.revision))),
        ("X-Virtha-Code", _id(message.event.code)),
        ("X-Virtha-Severity", str(message.event.severity)),
        ("X-Virtha-Kind", str(kind_of(message))),
        ("X-Virtha-Delivery", _id(message.delivery_id)),
        ("X-Virtha-Installation", _id(message.installation_id)),
        ("References", _thread(message)),
        ("Reply-To", settings.reply_to),
    ]
    return tuple((name, value) for name, value in pairs if value)


def _thread(message: Message) -> str | None:
    """A mail that never was, as the first of all about one group, VM or host: clients show them together."""
    event = message.event
    if message.group is not None:
        return f"<group.{_id(message.group.note.group_id)}@{_id(message.installation_id)}>"
    if event.vm_id is not None:
        return f"<vm.{_id(event.vm_id)}@{_id(message.installation_id)}>"
    if event.host_id is not None:
        return f"<host.{_id(event.host_id)}@{_id(message.installation_id)}>"
    return None


def _text(message: Message) -> str:
    pairs = facts(message)
    width = max(len(label) for label, _ in pairs) + 2
    lines = [headline(message), ""]
    if message.test:
        lines += ["This is a test. Nothing happened.", ""]
    lines += [f"{label + ':':<{width}}{text}" for label, text in pairs]
    if help_of(message):
        lines += ["", "What to do: " + help_of(message)]
    for title, some in _lists(message):
        lines += ["", f"{title}:", *(f"  {one}" for one in some)]
    return "\n".join([*lines, "", "-- ", _WHY, ""])


def _lists(message: Message) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What a group has beside its event, under its titles."""
    if message.group is None:
        return ()
    found = (("VMs", vm_lines(message.group)), ("Also", other_lines(message.group)))
    return tuple((title, lines) for title, lines in found if lines)


def _html(message: Message) -> str:
    colour = _COLOURS[message.event.severity]
    cell = 'style="padding:2px 16px 2px 0;vertical-align:top"'
    rows = "".join(
        f"<tr><th {cell} align='left'>{escape(label)}</th><td {cell}>{escape(text)}</td></tr>"
        for label, text in facts(message)
    )
    test = "<p><b>This is a test. Nothing happened.</b></p>" if message.test else ""
    advice = f"<p><b>What to do:</b> {escape(help_of(message))}</p>" if help_of(message) else ""
    lists = "".join(
        f"<h2 style='font-size:15px'>{escape(title)}</h2><ul>"
        + "".join(f"<li>{escape(one)}</li>" for one in lines)
        + "</ul>"
        for title, lines in _lists(message)
    )
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'></head>"
        "<body style='font-family:sans-serif;font-size:14px'>"
        f"<h1 style='font-size:18px;border-left:6px solid {colour};padding-left:10px'>"
        f"{escape(headline(message))}</h1>{test}"
        f"<table style='border-collapse:collapse;font-size:14px'>{rows}</table>{advice}{lists}"
        f"<p style='color:#666666;font-size:12px'>{escape(_WHY)}</p></body></html>\n"
    )


def _id(text: str) -> str:
    return _NOT_IN_IDS.sub("_", text)
