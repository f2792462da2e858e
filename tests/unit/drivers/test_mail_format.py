"""A mail on the wire: whatever an event says, its lines are short ASCII, its headers ours, its text what was said."""

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.alerts.mail_text import MailText, mail_text
from virtha.drivers.mail_format import assemble
from virtha.model.codes import Severity
from virtha.model.errors import InvalidInput
from virtha.model.event import Event
from virtha.model.ids import DeliveryId, Revision, VmId
from virtha.model.notification import MailSettings, Message
from virtha.model.time import UtcMillis

SETTINGS = MailSettings(host="mail.test", sender="virtha@example.org", reply_to="ops@example.org")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=2_000)
HEADERS = [
    *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "X-Auto-Response-Suppress"),
    *("X-Virtha-Event", "X-Virtha-Code", "X-Virtha-Severity", "X-Virtha-Kind", "X-Virtha-Delivery"),
    *("X-Virtha-Installation", "References", "Reply-To", "MIME-Version", "Content-Type"),
]


def said(text: str, settings: MailSettings = SETTINGS) -> MailText:
    event = Event(
        revision=Revision(7),
        code="vm.crashed",
        severity=Severity.ERROR,
        message=text,
        vm_id=VmId("v1"),
        at=UtcMillis(0),
    )
    message = Message(
        delivery_id=DeliveryId("d1"), event=event, installation_id="i1", installation=text[:50]
    )
    return mail_text(message, settings)


def read(content: bytes) -> EmailMessage:
    return cast(EmailMessage, message_from_bytes(content, policy=default_policy))


def parts(mail: EmailMessage) -> list[str]:
    return [
        str(part.get_content()).replace("\r\n", "\n").rstrip("\n")
        for part in mail.walk()
        if not part.is_multipart()
    ]


@given(TEXT, st.booleans())
def test_whatever_is_said_arrives_as_it_was_said_and_nothing_else(text: str, html: bool) -> None:
    settings = msgspec.structs.replace(SETTINGS, html=html)
    told = said(text, settings)
    content = assemble(told, settings, "ops@example.org").content
    assert content.isascii()
    lines = content.split(b"\r\n")
    assert not [line for line in lines if b"\r" in line or b"\n" in line]
    assert max(map(len, lines)) <= 998  # RFC 5321, section 4.5.3.1.6
    mail = read(content)
    own = HEADERS if html else [*HEADERS, "Content-Transfer-Encoding"]
    assert list(mail.keys()) == own
    assert mail["Message-ID"] == "<d1@i1>"
    wanted = [told.text, told.html] if told.html is not None else [told.text]
    assert parts(mail) == [one.rstrip("\n") for one in wanted]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("short", "7bit"), ("läuft", "quoted-printable"), ("虚拟机看门狗触发" * 200, "base64")],
)
def test_a_text_is_written_so_that_most_of_it_can_be_read_underway(
    text: str, encoding: str
) -> None:
    settings = msgspec.structs.replace(SETTINGS, html=False)
    told = MailText(
        subject=text[:100], text=text, html=None, date=UtcMillis(0), sender_name="v", headers=()
    )
    mail = read(assemble(told, settings, "ops@example.org").content)
    assert mail["Content-Transfer-Encoding"] == encoding
    assert (mail["Subject"], parts(mail)) == (text[:100], [text])


def test_the_same_message_is_the_same_bytes_at_each_attempt() -> None:
    first, second = (assemble(said("läuft"), SETTINGS, "ops@example.org") for _ in range(2))
    assert first == second


@pytest.mark.bad_input("address with a line break")
@pytest.mark.parametrize("value", ["x\r\nBcc: eve@example.org", "x\nBcc: eve@example.org", "x\ry"])
def test_no_header_begins_another(value: str) -> None:
    told = msgspec.structs.replace(said("x"), headers=(("X-Virtha-Code", value),))
    with pytest.raises(InvalidInput):
        assemble(told, SETTINGS, "ops@example.org")
    with pytest.raises(InvalidInput):
        assemble(said("x"), SETTINGS, f"ops@example.org{value}")
