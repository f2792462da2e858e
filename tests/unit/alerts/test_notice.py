"""What messages say: one line is one line, codes are codes of the registry, threads and ids stay the same."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import virtha.drivers
from virtha.alerts.mail_text import SUBJECT_CHARACTERS, mail_text, message_id
from virtha.alerts.match import check_patterns
from virtha.alerts.notice import cut_utf8, one_line
from virtha.alerts.traps import date_and_time, trap
from virtha.alerts.webhook_body import signature, webhook_body, webhook_headers
from virtha.model.codes import EVENTS, REGISTRY, SOLVES, Kind, Severity
from virtha.model.codes.notification import NOTIFICATION_REASONS
from virtha.model.event import Event
from virtha.model.ids import DeliveryId, HostId, Revision, VmId
from virtha.model.notification import MailSettings, Message
from virtha.model.time import UtcMillis

SETTINGS = MailSettings(host="mail.test", sender="virtha@example.org", reply_to="ops@example.org")
TEXT = st.text(st.characters(exclude_categories=[]), max_size=300)


def message(text: str = "it broke", **changes: object) -> Message:
    event = Event(
        revision=Revision(7),
        code="vm.restart.exhausted",
        severity=Severity.ALERT,
        message=text,
        host_id=HostId("h1"),
        at=UtcMillis(0),
    )
    values: dict[str, object] = {
        "delivery_id": DeliveryId("d1"),
        "address": "ops@example.org",
        "event": event,
        "installation_id": "i1",
        "installation": "Lab",
        **changes,
    }
    return Message(**values)


def test_what_solves_what_is_in_the_registry() -> None:
    for solved, problems in SOLVES.items():
        for code in (solved, *problems):
            assert REGISTRY[code].kind is Kind.EVENT
        assert REGISTRY[solved].severity is Severity.INFO


@pytest.mark.req("W7", "F4")
def test_who_is_told_of_trouble_is_told_what_to_do() -> None:
    bad = (Severity.ERROR, Severity.ALERT)
    assert [code.name for code in EVENTS if code.severity in bad and not code.help] == []


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize(
    "pattern",
    ["vm.watchdog.*", "vm.crashed", "vm.panicked", "vm.recover*", "fence.*", "host.proven_dead"],
)
def test_what_people_want_to_be_told_of_can_be_subscribed(pattern: str) -> None:
    assert check_patterns((pattern,), Severity.INFO) == (pattern,)


def test_every_receipt_has_its_reason_and_every_reason_its_advice() -> None:
    used: set[str] = set()
    for path in Path(str(virtha.drivers.__file__)).parent.glob("*.py"):
        used |= set(re.findall(r'"(notify\.[a-z_.]+)"', path.read_text()))
    assert used == {code.name for code in NOTIFICATION_REASONS}
    for code in NOTIFICATION_REASONS:
        assert code.help or code.name == "notify.accepted"
        assert 7800 <= code.number <= 7899


@given(TEXT)
def test_one_line_is_one_printable_line(text: str) -> None:
    line = one_line(text, 50)
    assert len(line) <= 50
    assert line.splitlines() in ([line], [])
    line.encode()


@given(TEXT, st.integers(0, 40))
def test_cut_never_tears_a_character(text: str, limit: int) -> None:
    cut = cut_utf8(text, limit)
    assert len(cut) <= limit
    cut.decode()


@given(text=TEXT, name=TEXT)
def test_no_text_writes_a_header(text: str, name: str) -> None:
    said = mail_text(
        message(text, vm=name, host=name, installation=name, delivery_id=DeliveryId(name)), SETTINGS
    )
    assert len(said.subject) <= SUBJECT_CHARACTERS
    for value in (said.subject, said.sender_name, *(value for _, value in said.headers)):
        assert value.splitlines() in ([value], [])
        value.encode()
    said.text.encode()


@given(text=TEXT, name=TEXT)
def test_bodies_and_traps_of_any_text(text: str, name: str) -> None:
    told = message(one_line(text), vm=one_line(name), delivery_id=DeliveryId(one_line(name) or "d"))
    body = webhook_body(told)
    for value in webhook_headers(told, body, secret="s", at_s=1).values():
        assert value.isascii() and "\n" not in value
    assert (
        sum(len(one.value) for one in trap(told).varbinds if isinstance(one.value, bytes)) < 1_700
    )


def test_threads_are_per_vm_else_per_host() -> None:
    def thread(told: Message) -> str | None:
        return dict(mail_text(told, SETTINGS).headers).get("References")

    told = message()
    assert thread(told) == "<host.h1@i1>"
    event = msgspec.structs.replace(told.event, vm_id=VmId("v1"))
    assert thread(message(event=event)) == "<vm.v1@i1>"
    event = msgspec.structs.replace(told.event, host_id=None)
    assert thread(message(event=event)) is None


def test_a_mail_names_what_to_do_and_a_test_says_that_it_is_one() -> None:
    said = mail_text(message(test=True), SETTINGS)
    assert said.subject == "[Lab] ALERT: Test: it broke"
    assert "Nothing happened" in said.text and "Nothing happened" in (said.html or "")
    assert dict(said.headers)["Reply-To"] == "ops@example.org"
    gate = message(
        event=Event(code="host.gate.missing", severity=Severity.ERROR, message="m", at=UtcMillis(0))
    )
    advice = REGISTRY["host.gate.missing"].help
    assert ("What to do" in mail_text(gate, SETTINGS).text) is bool(advice)
    assert message_id(gate) == "<d1@i1>"


def test_a_code_of_another_version_is_told_all_the_same() -> None:
    unknown = Event(code="x.y", severity=Severity.INFO, message="", at=UtcMillis(0))
    assert mail_text(message(event=unknown), SETTINGS).subject == "[Lab] INFO: x.y"
    assert trap(message(event=unknown)).varbinds[2].value == 0


def test_the_signature_binds_time_and_body() -> None:
    assert signature("s", b"{}", at_s=1) == (
        "v1=b253639bcd705ed1cda3073f66104f16988bd40272584dea7d0d345ae93e61cc"
    )
    assert signature("s", b"{}", at_s=1) != signature("s", b"{}", at_s=2)
    assert signature("s", b"{}", at_s=1) != signature("s", b"{ }", at_s=1)
    assert signature("s", b"{}", at_s=1) != signature("t", b"{}", at_s=1)


@pytest.mark.parametrize(
    ("at_ms", "octets"),
    [
        (0, "07b20101000000002b0000"),
        (1_769_860_800_250, "07ea011f0c0000022b0000"),
        (10**18, "07b20101000000002b0000"),
    ],
)
def test_date_and_time(at_ms: int, octets: str) -> None:
    assert date_and_time(UtcMillis(at_ms)).hex() == octets
