"""The guardian takes over the certificate that the agent has renewed (`virtha.agent.certificate`)."""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from virtha.agent.files import read_bounded
from virtha.agent.identity import PEM_BYTES_MAX
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HostCredentials
from virtha.drivers.pki import certificate_ends, client_context, signed_by, signing_host
from virtha.model.errors import Failed, VirthaError

LOOKS_EVERY_S = 60.0
Use = Callable[[HostCredentials], None]
_log = structlog.get_logger(__name__)


def with_certificate(credentials: HostCredentials, pem: str) -> HostCredentials:
    """Raises Failed, InvalidInput, Unauthenticated: it is another's, of another authority, or not for this host's key."""
    words = b"virtha: is it for this key?"
    found = signing_host(
        credentials.authority_pem, pem, words, signed_by(credentials.key_pem, words)
    )
    if (found.host_id, found.installation_id) != (credentials.host_id, credentials.installation_id):
        raise Failed("that certificate is another host's")
    client_context(credentials.authority_pem, pem, credentials.key_pem)
    return msgspec.structs.replace(credentials, certificate_pem=pem)


class CertificateFollower:
    """Of the guardian: takes over what the agent has laid down."""

    def __init__(self, paths: AgentPaths, credentials: HostCredentials, use: Use) -> None:
        self._path = paths.renewed_certificate
        self._credentials = credentials
        self._use = use
        self._seen = credentials.certificate_pem

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOKS_EVERY_S)

    def look(self) -> None:
        """Never raises."""
        try:
            pem = read_bounded(self._path, PEM_BYTES_MAX).decode("ascii")
        except (OSError, ValueError):
            return  # nothing was laid down since this host booted
        if pem == self._seen:
            return
        self._seen = pem
        try:
            present = certificate_ends(self._credentials.certificate_pem)
            found = with_certificate(self._credentials, pem)
            if certificate_ends(pem) < present:
                return
        except (VirthaError, OSError) as error:
            _log.error("the renewed certificate can't be used", error=str(error))
            return
        self._credentials = found
        self._use(found)
        _log.info("this host's certificate is renewed", ends_ms=certificate_ends(pem))
