"""The installation's certificate authority, as the use cases see it."""

from typing import Protocol

from virtha.model.ids import HostId
from virtha.model.time import UtcMillis
from virtha.model.value import Value


class SignedCertificate(Value, frozen=True, kw_only=True):
    certificate_pem: str
    serial: str
    """Hexadecimal, as it is compared at hello."""
    not_after: UtcMillis


class HostSigned(Value, frozen=True, kw_only=True):
    host_id: HostId
    serial: str
    """Of its certificate, as in ``SignedCertificate``."""


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

    def asking_host(self, certificate_pem: str, message: bytes, signature: bytes) -> HostSigned:
        """Which host signed ``message``, by its certificate. Raises Unauthenticated."""
        ...
