"""Certificates of receivers, from our own authority's code."""

import ssl
import time

from virtha.drivers.pki import LocalAuthority, create_authority, server_context
from virtha.model.ids import InstallationId
from virtha.model.time import UtcMillis

YEARS_MS = 10 * 365 * 86_400_000


def authority(*, years_ago: bool = False) -> LocalAuthority:
    """``years_ago``: what it signs has long expired, itself not."""
    now = UtcMillis(time.time_ns() // 1_000_000)
    pem, key = create_authority(InstallationId("tests"), now=UtcMillis(now - YEARS_MS))
    signed_at = UtcMillis(now - YEARS_MS) if years_ago else now
    return LocalAuthority(pem, key, wall_ms=lambda: signed_at)


def context_of(signer: LocalAuthority, *names: str) -> ssl.SSLContext:
    """A server's, with a certificate for these names and addresses."""
    certificate, key = signer.issue_server_certificate(names or ("127.0.0.1",))
    return server_context(signer.certificate_pem(), certificate, key, client_certificates=False)
