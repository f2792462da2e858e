"""Real mail servers on loopback, for the time of one test: aiosmtpd, and one that misbehaves as it is told."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from typing import Any, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER = "virtha"
PASSWORD = "s3cret-Pass/word"


class Mailbox:
    """aiosmtpd's handler: keeps all that is accepted."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.sessions: list[Session] = []
        self.refuse_rcpt: str | None = None
        self.connections = 0
        self.ended = 0
        """Of the connections."""

    @property
    def mails(self) -> list[EmailMessage]:
        return [
            cast(EmailMessage, message_from_bytes(cast(bytes, one.content), policy=default_policy))
            for one in self.envelopes
        ]

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refuse_rcpt is not None:
            return self.refuse_rcpt
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        self.sessions.append(session)
        return "250 2.0.0 queued as 4711"


class _Counted(SMTP):
    def connection_lost(self, error: Exception | None) -> None:
        self.event_handler.ended += 1
        super().connection_lost(error)


def accept_only_ours(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    given = cast(LoginPassword, data)
    right = given.login == USER.encode() and given.password == PASSWORD.encode()
    return AuthResult(success=right, handled=right)


@asynccontextmanager
async def mail_server(
    box: Mailbox,
    *,
    tls: ssl.SSLContext | None = None,
    starttls: ssl.SSLContext | None = None,
    sign_in: bool = False,
    smtputf8: bool = False,
) -> AsyncIterator[int]:
    """Yields the port."""

    def made() -> SMTP:
        box.connections += 1
        # Of TLS from the first byte aiosmtpd knows nothing, and warns of a sign-in without encryption.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return protocol()

    def protocol() -> SMTP:
        return _Counted(
            box,
            hostname="mail.test",
            enable_SMTPUTF8=smtputf8,
            ident="a real one",
            tls_context=starttls,
            require_starttls=starttls is not None,
            authenticator=accept_only_ours if sign_in else None,
            auth_required=sign_in,
            auth_require_tls=starttls is not None,
            loop=asyncio.get_running_loop(),
        )

    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


POLITE = {
    "CONNECT": "220 mail.test",
    "EHLO": "250-mail.test\r\n250 SIZE 1000000",
    "MAIL": "250 ok",
    "RCPT": "250 ok",
    "DATA": "354 go on",
    "DOT": "250 queued",
    "RSET": "250 ok",
    "QUIT": "221 bye",
}
"""A command's first word to its answer; None: never answers; ``drop``: hangs up. ``CONNECT`` and ``DOT`` are no
commands: what is said first, and what after the mail."""


class OddServer:
    """Speaks as ``words`` say, a list's one after the other; counts connections and keeps what it was sent."""

    def __init__(self, **words: str | list[str] | None) -> None:
        self.words: dict[str, str | list[str] | None] = {**POLITE, **words}
        self.connections = 0
        self.mails: list[str] = []
        self.heard: list[str] = []

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if await self._say(writer, "CONNECT"):
                await self._talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode().strip():
            self.heard.append(line)
            word = line.split()[0].upper()
            if not await self._say(writer, word) or word == "QUIT":
                return
            if word == "DATA" and str(self.words["DATA"]).startswith("354"):
                body = ""
                while (text := (await reader.readline()).decode()) not in (".\r\n", ""):
                    body += text
                self.mails.append(body)
                if not await self._say(writer, "DOT"):
                    return

    async def _say(self, writer: asyncio.StreamWriter, word: str) -> bool:
        said = self.words.get(word, "502 what?")
        if isinstance(said, list):
            said = said.pop(0)
        if said is None:
            await asyncio.sleep(3_600)
        if said is None or said == "drop":
            return False
        writer.write(said.encode() + b"\r\n")
        await writer.drain()
        return True
