"""Mail against real mail servers: what arrives, and what each of their ways to fail means."""

import asyncio
import base64
import ssl

import msgspec
import pytest
from own_mail_server import PASSWORD, USER, Mailbox, OddServer, mail_server
from receiver_certificates import authority, context_of
from told_messages import AT, EVENT, INSTALLATION_ID, message
from waiting import until

from virtha.drivers.mail import MailMessenger
from virtha.model.ids import VmId
from virtha.model.notification import MailSecurity, MailSettings
from virtha.ports.receivers import Outcome, Receipt

OURS = authority()
PLAIN = MailSettings(host="127.0.0.1", security=MailSecurity.NONE, sender="virtha@example.org")
TLS = MailSettings(
    host="127.0.0.1",
    security=MailSecurity.TLS,
    sender="virtha@example.org",
    authority_pem=OURS.certificate_pem(),
)
STARTTLS = msgspec.structs.replace(TLS, security=MailSecurity.STARTTLS)
SIGNED_IN = msgspec.structs.replace(TLS, user=USER)


def messenger(
    settings: MailSettings,
    port: int,
    *,
    password: str | None = None,
    deadline_ms: int = 20_000,
    idle_ms: int = 60_000,
) -> MailMessenger:
    return MailMessenger(
        msgspec.structs.replace(settings, port=port),
        {} if password is None else {"password": password},
        deadline_ms=deadline_ms,
        idle_ms=idle_ms,
    )


async def sent(told: MailMessenger, *, number: int = 1, **changes: object) -> Receipt:
    try:
        return await told.send(message(number, **changes))
    finally:
        await told.close()


@pytest.mark.req("W7")
def test_a_mail_arrives_with_text_and_html() -> None:
    async def story() -> None:
        box = Mailbox()
        async with mail_server(box) as port:
            receipt = await sent(messenger(PLAIN, port))
        assert (receipt.outcome, receipt.code) == (Outcome.ACCEPTED, "notify.accepted")
        assert "4711" in receipt.detail
        (mail,) = box.mails
        assert mail["Subject"] == "[Lab Zürich] ERROR: QEMU of wéb-№1 died: signal 9"
        assert mail["From"].addresses[0].addr_spec == "virtha@example.org"
        assert mail["To"] == "ops@example.org"
        assert mail["Message-ID"] == f"<d1@{INSTALLATION_ID}>"
        assert mail["Auto-Submitted"] == "auto-generated"
        assert mail["References"] == f"<vm.v1@{INSTALLATION_ID}>"
        assert mail["X-Virtha-Code"] == "vm.crashed"
        assert mail["X-Virtha-Event"] == "4711"
        assert mail["X-Virtha-Delivery"] == "d1"
        assert mail["Date"].datetime.timestamp() == AT // 1_000
        text, html = mail.get_body(("plain",)), mail.get_body(("html",))
        assert text is not None and html is not None
        for part in (text.get_content(), html.get_content()):
            assert "wéb-№1" in part
            assert "2026-01-31T12:00:00.250Z" in part
            assert "node-1" in part
            assert "vm.crashed (2202)" in part
            assert "http" not in part
        content = box.envelopes[0].content
        assert isinstance(content, bytes) and content.isascii()

    asyncio.run(story())


def test_html_is_a_choice_and_shows_what_was_written_as_text() -> None:
    async def story() -> None:
        box = Mailbox()
        bold = msgspec.structs.replace(EVENT, message="<b>bold</b> & co")
        async with mail_server(box) as port:
            await sent(messenger(msgspec.structs.replace(PLAIN, html=False), port))
            await sent(messenger(PLAIN, port), event=bold)
        assert box.mails[0].get_body(("html",)) is None
        html = box.mails[1].get_body(("html",))
        assert html is not None and "&lt;b&gt;bold&lt;/b&gt; &amp; co" in html.get_content()

    asyncio.run(story())


@pytest.mark.req("W7")
@pytest.mark.parametrize("security", [MailSecurity.STARTTLS, MailSecurity.TLS])
def test_encrypted_and_signed_in(security: MailSecurity) -> None:
    async def story() -> None:
        box = Mailbox()
        settings = msgspec.structs.replace(SIGNED_IN, security=security)
        context = context_of(OURS)
        places = {"tls": context} if security is MailSecurity.TLS else {"starttls": context}
        async with mail_server(box, sign_in=True, **places) as port:
            assert (await sent(messenger(settings, port, password=PASSWORD))).code == (
                "notify.accepted"
            )
            wrong = await sent(messenger(settings, port, password="wrong-Pass/word"))
        assert (wrong.outcome, wrong.code) == (Outcome.AWAY, "notify.sign_in_refused")
        assert len(box.mails) == 1
        assert "wrong-Pass" not in repr(wrong)

    asyncio.run(story())


def test_one_connection_for_many_mails_and_closed_when_idle() -> None:
    async def story() -> None:
        box = Mailbox()
        async with mail_server(box, tls=context_of(OURS)) as port:
            told = messenger(TLS, port, idle_ms=300)
            for number in range(5):
                assert (await told.send(message(number))).outcome is Outcome.ACCEPTED
            assert box.connections == 1
            await until(lambda: box.ended == 1)
            assert (await told.send(message(9))).outcome is Outcome.ACCEPTED
            assert box.connections == 2
            await told.close()
            await told.close()
        assert [mail["X-Virtha-Delivery"] for mail in box.mails] == [
            "d0",
            "d1",
            "d2",
            "d3",
            "d4",
            "d9",
        ]

    asyncio.run(story())


@pytest.mark.parametrize("ending", ["drop", "421 too many mails on this connection"])
def test_a_server_that_ended_the_kept_connection_costs_no_attempt(ending: str) -> None:
    async def story() -> None:
        odd = OddServer(MAIL=["250 ok", ending, "250 ok"])
        async with odd.running() as port:
            told = messenger(PLAIN, port)
            for number in (1, 2):
                assert (await told.send(message(number))).outcome is Outcome.ACCEPTED
            await told.close()
        assert (len(odd.mails), odd.connections) == (2, 2)

    asyncio.run(story())


REFUSALS = [
    ({"CONNECT": "554 go away"}, Outcome.AWAY, "notify.busy"),
    ({"CONNECT": "421 later"}, Outcome.AWAY, "notify.busy"),
    ({"CONNECT": "drop"}, Outcome.AWAY, "notify.connection_lost"),
    ({"CONNECT": "SSH-2.0-OpenSSH_9.2"}, Outcome.AWAY, "notify.not_its_protocol"),
    ({"MAIL": "550 not you"}, Outcome.AWAY, "notify.mail.sender_refused"),
    ({"MAIL": "530 sign in first"}, Outcome.AWAY, "notify.sign_in_refused"),
    ({"MAIL": "drop"}, Outcome.AWAY, "notify.connection_lost"),
    ({"RCPT": "451 greylisted"}, Outcome.LATER, "notify.mail.recipient_later"),
    ({"RCPT": "452 mailbox full"}, Outcome.LATER, "notify.mail.recipient_later"),
    ({"RCPT": "550 no such user"}, Outcome.NEVER, "notify.mail.recipient_refused"),
    ({"RCPT": "421 shutting down"}, Outcome.AWAY, "notify.busy"),
    ({"DATA": "451 not now"}, Outcome.LATER, "notify.mail.later"),
    ({"DOT": "452 no room"}, Outcome.LATER, "notify.mail.later"),
    ({"DOT": "554 spam"}, Outcome.NEVER, "notify.mail.refused"),
    ({"DOT": "drop"}, Outcome.LATER, "notify.mail.acceptance_unknown"),
]


@pytest.mark.bad_input("mail server that drops or stalls")
@pytest.mark.parametrize(
    ("words", "outcome", "code"), REFUSALS, ids=[str(one[0]) for one in REFUSALS]
)
def test_what_a_refusal_means(words: dict[str, str], outcome: Outcome, code: str) -> None:
    async def story() -> None:
        odd = OddServer(**words)
        async with odd.running() as port:
            receipt = await sent(messenger(PLAIN, port))
        assert (receipt.outcome, receipt.code) == (outcome, code), receipt
        said = next(iter(words.values()))
        if said[:3].isdigit():
            assert receipt.detail.startswith(said)

    asyncio.run(story())


STALLS = [
    ("CONNECT", Outcome.AWAY, "notify.no_answer"),
    ("EHLO", Outcome.AWAY, "notify.no_answer"),
    ("MAIL", Outcome.AWAY, "notify.no_answer"),
    ("RCPT", Outcome.AWAY, "notify.no_answer"),
    ("DATA", Outcome.LATER, "notify.mail.acceptance_unknown"),
    ("DOT", Outcome.LATER, "notify.mail.acceptance_unknown"),
]


@pytest.mark.bad_input("mail server that drops or stalls")
@pytest.mark.parametrize(("phase", "outcome", "code"), STALLS)
def test_a_server_that_stalls_is_left_at_the_deadline(
    phase: str, outcome: Outcome, code: str
) -> None:
    async def story() -> None:
        async with OddServer(**{phase: None}).running() as port:
            # On a machine with much to do a deadline may come in an earlier phase.
            for deadline_ms in (1_500, 30_000):
                async with asyncio.timeout(60):
                    receipt = await sent(messenger(PLAIN, port, deadline_ms=deadline_ms))
                if receipt.code == code:
                    break
        assert (receipt.outcome, receipt.code) == (outcome, code)

    asyncio.run(story())


@pytest.mark.bad_input("mail server that drops or stalls", story=True)
def test_a_mail_of_unknown_fate_goes_again_under_the_same_id() -> None:
    async def story() -> None:
        odd = OddServer(DOT="drop")
        async with odd.running() as port:
            told = messenger(PLAIN, port)
            assert (await told.send(message(1))).code == "notify.mail.acceptance_unknown"
            odd.words["DOT"] = "250 ok"
            assert (await sent(told)).code == "notify.accepted"
        assert len(odd.mails) == 2
        assert all(f"Message-ID: <d1@{INSTALLATION_ID}>" in mail for mail in odd.mails)

    asyncio.run(story())


def test_after_a_refused_recipient_the_connection_serves_the_next() -> None:
    async def story() -> None:
        box = Mailbox()
        async with mail_server(box) as port:
            told = messenger(PLAIN, port)
            box.refuse_rcpt = "451 greylisted"
            assert (await told.send(message(1))).outcome is Outcome.LATER
            box.refuse_rcpt = None
            assert (await sent(told, number=2)).outcome is Outcome.ACCEPTED
        assert box.connections == 1

    asyncio.run(story())


@pytest.mark.bad_input("receiver with a wrong certificate", story=True)
@pytest.mark.parametrize("security", [MailSecurity.STARTTLS, MailSecurity.TLS])
@pytest.mark.parametrize("fault", ["other authority", "other name", "expired", "system"])
def test_a_wrong_certificate_is_told_and_nothing_is_sent(
    security: MailSecurity, fault: str
) -> None:
    async def story() -> None:
        settings = msgspec.structs.replace(SIGNED_IN, security=security)
        context = context_of(OURS, "mail.test" if fault == "other name" else "127.0.0.1")
        if fault == "other authority":
            context = context_of(authority())
        if fault == "system":
            settings = msgspec.structs.replace(settings, authority_pem=None)
        if fault == "expired":
            old = authority(years_ago=True)
            context = context_of(old)
            settings = msgspec.structs.replace(settings, authority_pem=old.certificate_pem())
        box = Mailbox()
        places = {"tls": context} if security is MailSecurity.TLS else {"starttls": context}
        async with mail_server(box, **places) as port:
            receipt = await sent(messenger(settings, port, password=PASSWORD))
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.certificate"), receipt
        assert box.mails == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (STARTTLS, "notify.mail.no_starttls"),
        (TLS, "notify.tls_failed"),
        (msgspec.structs.replace(PLAIN, user=USER), "notify.unusable_settings"),
        (msgspec.structs.replace(TLS, authority_pem="nonsense"), "notify.unusable_settings"),
        (msgspec.structs.replace(PLAIN, host="name.invalid"), "notify.unresolved"),
        (msgspec.structs.replace(PLAIN, sender="a\r\nDATA@b"), "notify.mail.address_unusable"),
    ],
)
def test_settings_that_do_not_fit_the_server(settings: MailSettings, code: str) -> None:
    async def story() -> None:
        box = Mailbox()
        async with mail_server(box) as port:
            receipt = await sent(messenger(settings, port, password=PASSWORD))
        assert receipt.code == code, receipt
        assert box.mails == []

    asyncio.run(story())


def test_a_server_without_sign_in_gets_no_password() -> None:
    async def story() -> None:
        odd = OddServer()
        async with odd.running(context_of(OURS)) as port:
            receipt = await sent(messenger(SIGNED_IN, port, password=PASSWORD))
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.mail.no_sign_in")
        assert not any(line.startswith("AUTH") for line in odd.heard)

    asyncio.run(story())


def test_nobody_listens() -> None:
    async def story() -> None:
        async with mail_server(Mailbox()) as port:
            pass
        receipt = await sent(messenger(PLAIN, port))
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.unreachable")

    asyncio.run(story())


@pytest.mark.bad_input("address with a line break")
@pytest.mark.parametrize(
    "address",
    [
        "ops@example.org\r\nBcc: all@example.org",
        "ops@example.org\nRCPT TO:<all@example.org>",
        "ops@example.org>\r\nDATA",
        "ops@example.org, all@example.org",
        "Ops <ops@example.org>",
        "ops",
        "",
    ],
)
def test_no_address_writes_headers_or_commands(address: str) -> None:
    async def story() -> None:
        box = Mailbox()
        async with mail_server(box) as port:
            receipt = await sent(messenger(PLAIN, port), address=address)
        assert (receipt.outcome, receipt.code) == (Outcome.NEVER, "notify.mail.address_unusable")
        assert "\n" not in receipt.detail
        assert box.connections == 0

    asyncio.run(story())


@pytest.mark.bad_input("address with a line break", story=True)
def test_no_event_writes_headers() -> None:
    async def story() -> None:
        box = Mailbox()
        evil = "x\r\nBcc: all@example.org\r\n\r\nbody\u2028\u202e\x00"
        event = msgspec.structs.replace(EVENT, message=evil, code=evil, vm_id=VmId(evil))
        async with mail_server(box) as port:
            receipt = await sent(messenger(PLAIN, port), event=event, installation=evil, vm=evil)
        assert receipt.outcome is Outcome.ACCEPTED
        (mail,) = box.mails
        assert mail["Bcc"] is None
        assert box.envelopes[0].rcpt_tos == ["ops@example.org"]
        assert "\n" not in str(mail["Subject"]) and "\n" not in str(mail["From"])

    asyncio.run(story())


def test_no_secret_in_what_is_told() -> None:
    async def story() -> None:
        plain = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
        alone = base64.b64encode(PASSWORD.encode()).decode()
        said = f"535 you said {PASSWORD} and {plain} and {alone}"
        odd = OddServer(EHLO="250-mail.test\r\n250 AUTH PLAIN", AUTH=said)
        async with odd.running(context_of(OURS)) as port:
            told = messenger(SIGNED_IN, port, password=PASSWORD)
            receipt = await sent(told)
        assert receipt.code == "notify.sign_in_refused"
        assert any(plain in line for line in odd.heard)
        for secret in (PASSWORD, plain, alone):
            assert secret not in repr(receipt)
            assert secret not in repr(told)

    asyncio.run(story())


def test_being_stopped_in_the_middle_stops() -> None:
    async def story() -> None:
        odd = OddServer(DOT=None)
        async with odd.running() as port:
            told = messenger(PLAIN, port)
            sending = asyncio.create_task(told.send(message()))
            await until(lambda: len(odd.mails) == 1)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await told.close()

    asyncio.run(story())


def test_the_context_checks_names_and_chains() -> None:
    async def story() -> None:
        told = messenger(TLS, 1)
        context = await told._trust()
        assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED

    asyncio.run(story())


@pytest.mark.parametrize("known", [True, False])
def test_letters_beyond_ascii_before_the_at_go_where_they_are_known(known: bool) -> None:
    async def story() -> None:
        box = Mailbox()
        async with mail_server(box, smtputf8=known) as port:
            receipt = await sent(messenger(PLAIN, port), address="börse@bücher.example")
            assert (receipt.code == "notify.accepted") is known
            assert known or receipt.code == "notify.mail.address_unusable"
        assert [one.rcpt_tos for one in box.envelopes] == (
            [["börse@xn--bcher-kva.example"]] if known else []
        )

    asyncio.run(story())
