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
