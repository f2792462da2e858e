"""The installation's certificate authority, as the use cases see it."""

from typing import Protocol

from virtha.model.ids import HostId
from virtha.model.time import UtcMillis
from virtha.model.value import Value

_DAY_MS = 86_400_000
RENEW_BEFORE_MS = 275 * _DAY_MS
"""A host asks for its next certificate when its present one ends so soon: a third of its life (ADR 6), so that months of a
server that can't be asked change nothing."""
RENEW_EARLY_MS = 30 * _DAY_MS
"""By how much a host's clock may be ahead of the server's when it asks."""


class SignedCertificate(Value, frozen=True, kw_only=True):
    certificate_pem: str
    serial: str
    """Hexadecimal, as it is compared at hello."""
    not_after: UtcMillis


class HostSigned(Value, frozen=True, kw_only=True):
    host_id: HostId
    serial: str
    """Of its certificate, as in ``SignedCertificate``."""
    public_key: bytes
    """Of its certificate, DER."""
    not_after: UtcMillis


class Authority(Protocol):
    def certificate_pem(self) -> str: ...

    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate (DER), 64 hexadecimal digits: what a join token pins."""
        ...

    def sign_host(self, csr_pem: str, *, host_id: HostId) -> SignedCertificate:
        """Sign a host's request. The identity is ours, never what the request asks for.

        Raises InvalidInput (field ``csr``) when it is no valid request.
        """
        ...

    def sign_migration(self, csr_pem: str, *, host_id: HostId) -> SignedCertificate:
        """For a host's libvirt and QEMU among each other. As ``sign_host``."""
        ...

    def key_of_request(self, csr_pem: str) -> bytes:
        """Its public key, DER. Raises InvalidInput (field ``csr``)."""
        ...

    def asking_host(self, certificate_pem: str, message: bytes, signature: bytes) -> HostSigned:
        """Which host signed ``message``, by its certificate. Raises Unauthenticated."""
        ...
