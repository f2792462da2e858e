"""A host's certificate does not end while the host runs (L6).

The agent asks the server for the next one when a third of the present one's life is left, for the same key, so that key and
certificate fit whatever is cut half-way. What begins a connection from then on shows the new one; connections that stand go on.
The guardian reads no disk for it: the agent lays the certificate, which is no secret, on the tmpfs of `/run`.
"""

import asyncio
import base64
import contextlib
from collections.abc import Callable

import msgspec
import structlog

from virtha.agent.certificate_follower import Use, with_certificate
from virtha.agent.files import Files
from virtha.agent.identity import Identity
from virtha.agent.join import post_to_server
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HostCredentials
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import (
    certificate_ends,
    request_again,
    signed_by,
)
from virtha.model.errors import Failed, VirthaError
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.ports.authority import RENEW_BEFORE_MS

LOOK_EVERY_S = 6 * 3_600.0
"""A server that can't be asked is asked again then."""
_log = structlog.get_logger(__name__)


class _Renewed(Value, frozen=True, kw_only=True):
    certificate_pem: str


def is_due(credentials: HostCredentials, now: UtcMillis) -> bool:
    """Raises InvalidInput: it is no certificate."""
    return certificate_ends(credentials.certificate_pem) - RENEW_BEFORE_MS <= now


def renewed(identity: Identity, credentials: HostCredentials) -> HostCredentials:
    """The same with the server's next certificate. Blocks. Raises what the server answers, Unavailable, Failed."""
    if not identity.url:
        raise Failed("this host does not know its server's address", fix="join again with --force")
    csr_pem = request_again(credentials.key_pem, identity.name)
    signature = base64.b64encode(signed_by(credentials.key_pem, csr_pem.encode())).decode()
    body = {"certificate_pem": credentials.certificate_pem, "csr_pem": csr_pem}
    content = post_to_server(
        identity.url,
        "/v1/join/renew",
        {**body, "signature": signature},
        authority_pem=credentials.authority_pem,
    )
    try:
        pem = msgspec.convert(content, _Renewed).certificate_pem
    except msgspec.ValidationError as error:
        raise Failed(f"the server's answer can't be read: {error}") from error
    return with_certificate(credentials, pem)


class CertificateKeeper:
    """Of the agent. ``use`` is told of each new one, on the event loop."""

    def __init__(
        self,
        paths: AgentPaths,
        identity: Identity,
        credentials: HostCredentials,
        use: Use,
        *,
        files: Files | None = None,
        now: Callable[[], UtcMillis] | None = None,
    ) -> None:
        self._paths = paths
        self._identity = identity
        self._credentials = credentials
        self._use = use
        self._files = files or Files()
        self._now = now or MachineClock().wall_ms

    async def run(self) -> None:
        # An agent before us may have died before the guardian had it.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._lay_down, self._credentials)
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Never raises: whatever keeps it from a new one, there are months to try again."""
        try:
            if not is_due(self._credentials, self._now()):
                return
            found = await asyncio.to_thread(self._renew)
        except (VirthaError, OSError) as error:
            _log.warning("this host's certificate could not be renewed", error=str(error))
            return
        self._credentials = found
        self._use(found)
        ends = certificate_ends(found.certificate_pem)
        _log.info("this host's certificate is renewed", ends_ms=ends)

    def _renew(self) -> HostCredentials:
        found = renewed(self._identity, self._credentials)
        pem = found.certificate_pem.encode()
        # First where a reboot finds it: what the guardian has been given is never lost.
        self._files.write_atomic(self._paths.identity / "host.crt", pem, mode=0o644)
        self._lay_down(found)
        return found

    def _lay_down(self, credentials: HostCredentials) -> None:
        pem = credentials.certificate_pem.encode()
        self._files.write_atomic(self._paths.renewed_certificate, pem, mode=0o644)
