"""One attempt to hand a mail to a mail server (SMTP), over a connection that is kept for the next.

From the moment the mail itself goes over, a connection that ends leaves open whether it was accepted: that is told as
such, and the next attempt carries the same Message-ID.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from enum import StrEnum

import aiosmtplib

from virtha.alerts.mail_text import mail_text
from virtha.drivers.mail_format import AssembledMail, assemble
from virtha.drivers.receipts import Receipts
from virtha.model.errors import InvalidInput
from virtha.model.notification import MailSecurity, MailSettings, Message
from virtha.ports.receivers import Outcome, Receipt

GOODBYE_S = 1.0
"""How long a server may take to answer QUIT before we hang up."""
OWN_NAME_S = 2.0
_NO_NAME = "[127.0.0.1]"


_NO_SMTPUTF8 = (
    "notify.mail.address_unusable",
    "the mail server takes no addresses with letters beyond ASCII before the @",
)
_SERVICE_CLOSES = 421
_PERMANENT = 500


class _Phase(StrEnum):
    CONNECTING = "connecting"
    ENCRYPTING = "starting TLS"
    SIGNING_IN = "signing in"
    SENDER = "naming the sender"
    RECIPIENT = "naming the recipient"
    DATA = "handing over the mail"


class MailMessenger:
    """Implements ``Messenger``. The connection is closed when nothing was sent for ``idle_ms``."""

    def __init__(
        self,
        settings: MailSettings,
        secrets: Mapping[str, str],
        *,
        deadline_ms: int,
        idle_ms: int,
    ) -> None:
        self._settings = settings
        self._password = secrets.get("password")
        self._receipts = Receipts(secrets, settings.user)
        self._deadline_s = deadline_ms / 1_000
        self._idle_s = idle_ms / 1_000
        self._client: aiosmtplib.SMTP | None = None
        self._context: ssl.SSLContext | None = None
        self._name: str | None = None
        self._phase = _Phase.CONNECTING
        self._idle: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> Receipt:
        await self._end_idle()
        try:
            async with asyncio.timeout(self._deadline_s):
                receipt = await self._attempt(message)
        except TimeoutError:
            self._drop()
            return self._timed_out()
        except BaseException:
            self._drop()
            raise
        if self._client is not None:
            self._idle = asyncio.create_task(self._close_when_idle())
        return receipt

    async def close(self) -> None:
        await self._end_idle()
        await self._say_goodbye()

    async def _attempt(self, message: Message) -> Receipt:
        try:
            mail = assemble(mail_text(message, self._settings), self._settings, message.address)
        except InvalidInput as error:
            return self._receipts.make(Outcome.NEVER, "notify.mail.address_unusable", str(error))
        reused = self._client is not None
        receipt = await self._once(mail)
        if reused and self._client is None and self._phase is _Phase.SENDER:
            # The server had closed the kept connection meanwhile, or had enough of it; nothing was handed over yet.
            receipt = await self._once(mail)
        return receipt

    async def _once(self, mail: AssembledMail) -> Receipt:
        try:
            if self._client is None or not self._client.is_connected:
                self._client = None
                unusable = await self._connect()
                if unusable is not None:
                    self._drop()
                    return unusable
            assert self._client is not None
            self._phase = _Phase.SENDER
            encoding, options = "ascii", []
            if not mail.ascii:
                if self._client.is_ehlo_or_helo_needed:
                    await self._client.ehlo()
                if not self._client.supports_extension("smtputf8"):
                    return self._receipts.make(Outcome.NEVER, *_NO_SMTPUTF8)
                encoding, options = "utf-8", ["SMTPUTF8"]
            await self._client.mail(mail.sender, options=options, encoding=encoding)
            self._phase = _Phase.RECIPIENT
            await self._client.rcpt(mail.recipient, encoding=encoding)
            self._phase = _Phase.DATA
            answer = await self._client.data(mail.content)
        except aiosmtplib.SMTPResponseException as error:
            return await self._refused(error)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            self._drop()
            return self._failed(error)
        return self._receipts.make(
            Outcome.ACCEPTED, "notify.accepted", f"{answer.code} {answer.message}"
        )

    async def _connect(self) -> Receipt | None:
        """None: connected, encrypted and signed in as the settings want it."""
        settings = self._settings
        self._phase = _Phase.CONNECTING
        if settings.user is not None and settings.security is MailSecurity.NONE:
            return self._receipts.make(
                Outcome.AWAY,
                "notify.unusable_settings",
                "security: none, with a user: the password would go over unencrypted",
            )
        context = None
        if settings.security is not MailSecurity.NONE:
            try:
                context = await self._trust()
            except ssl.SSLError as error:
                return self._receipts.make(
                    Outcome.AWAY, "notify.unusable_settings", f"authority_pem: {error}"
                )
        self._client = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            local_hostname=await self._own_name(),
            use_tls=settings.security is MailSecurity.TLS,
            start_tls=False,
            tls_context=context,
            timeout=None,
        )
        await self._client.connect()
        if settings.security is MailSecurity.STARTTLS:
            self._phase = _Phase.ENCRYPTING
            await self._client.ehlo()
            if not self._client.supports_extension("starttls"):
                return self._receipts.make(Outcome.AWAY, "notify.mail.no_starttls")
            await self._client.starttls()
        return await self._sign_in()

    async def _sign_in(self) -> Receipt | None:
        if self._settings.user is None:
            return None
        assert self._client is not None
        self._phase = _Phase.SIGNING_IN
        await self._client.ehlo()
        if not self._client.supported_auth_methods:
            return self._receipts.make(Outcome.AWAY, "notify.mail.no_sign_in")
        await self._client.login(self._settings.user, self._password or "")
        return None

    async def _own_name(self) -> str:
        """For EHLO. Where DNS hangs, mail goes out under an address: it must not wait for a name."""
        if self._name is None:
            try:
                async with asyncio.timeout(OWN_NAME_S):
                    self._name = await asyncio.to_thread(_name_of_this_machine)
            except TimeoutError:
                self._name = _NO_NAME
        return self._name

    async def _trust(self) -> ssl.SSLContext:
        if self._context is None:
            # In a thread: reading the system's authorities takes tens of milliseconds.
            self._context = await asyncio.to_thread(
                ssl.create_default_context, cadata=self._settings.authority_pem
            )
        return self._context

    async def _refused(self, error: aiosmtplib.SMTPResponseException) -> Receipt:
        outcome, code = _meaning(self._phase, error)
        if outcome is Outcome.AWAY:
            self._drop()
        else:
            await self._reset()
        return self._receipts.make(outcome, code, f"{error.code} {error.message}")

    def _failed(self, error: Exception) -> Receipt:
        if self._phase is _Phase.DATA:
            return self._receipts.make(Outcome.LATER, "notify.mail.acceptance_unknown", str(error))
        receipt = self._receipts.of_error(error)
        hung_up = isinstance(error, aiosmtplib.SMTPServerDisconnected) or isinstance(
            error.__cause__, aiosmtplib.SMTPServerDisconnected
        )
        if hung_up and receipt.code not in ("notify.certificate", "notify.tls_failed"):
            return self._receipts.make(
                Outcome.AWAY, "notify.connection_lost", f"while {self._phase}: {error}"
            )
        return receipt

    def _timed_out(self) -> Receipt:
        waited = f"{self._phase}: no answer within {self._deadline_s:g} s"
        if self._phase is _Phase.DATA:
            return self._receipts.make(Outcome.LATER, "notify.mail.acceptance_unknown", waited)
        return self._receipts.make(Outcome.AWAY, "notify.no_answer", waited)

    async def _reset(self) -> None:
        """The connection is fit for the next mail, or gone."""
        try:
            if self._client is not None:
                await self._client.rset()
        except (aiosmtplib.SMTPException, OSError):
            self._drop()

    async def _close_when_idle(self) -> None:
        await asyncio.sleep(self._idle_s)
        await self._say_goodbye()

    async def _end_idle(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.cancel()
            await asyncio.wait({idle})  # awaiting it would mix up its cancellation and ours

    async def _say_goodbye(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            async with asyncio.timeout(GOODBYE_S):
                await client.quit()
        except (aiosmtplib.SMTPException, OSError):
            pass  # TimeoutError is an OSError: it had its chance
        finally:
            client.close()

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _meaning(phase: _Phase, error: aiosmtplib.SMTPResponseException) -> tuple[Outcome, str]:
    """What a refusal means: 4xx asks to come again (RFC 5321, section 4.2.1), but not before sign-in or sender, which
    are the same for all mails."""
    if error.code == _SERVICE_CLOSES:
        return Outcome.AWAY, "notify.busy"
    if error.code < 400:
        return Outcome.AWAY, "notify.not_its_protocol"
    permanent = error.code >= _PERMANENT
    if phase is _Phase.SIGNING_IN or error.code in (530, 534, 535, 538):
        return Outcome.AWAY, "notify.sign_in_refused"
    if phase is _Phase.RECIPIENT:
        if permanent:
            return Outcome.NEVER, "notify.mail.recipient_refused"
        return Outcome.LATER, "notify.mail.recipient_later"
    if phase is _Phase.DATA:
        if permanent:
            return Outcome.NEVER, "notify.mail.refused"
        return Outcome.LATER, "notify.mail.later"
    if phase is _Phase.SENDER and permanent:
        return Outcome.AWAY, "notify.mail.sender_refused"
    if phase is _Phase.ENCRYPTING:
        return Outcome.AWAY, "notify.tls_failed"
    return Outcome.AWAY, "notify.busy"


def _name_of_this_machine() -> str:
    """The full name, or an address where there is none (RFC 5321, section 4.1.4). May ask DNS."""
    name = socket.getfqdn()
    if "." in name:
        return name
    try:
        return f"[{socket.gethostbyname(socket.gethostname())}]"
    except OSError:
        return _NO_NAME
