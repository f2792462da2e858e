"""The installation's certificate authority, the certificates it issues, and TLS contexts of both sides.

Keys are EC P-256. Everything passes as PEM text; the caller keeps the files.

| certificate | subject | SAN | life |
|---|---|---|---|
| authority | CN `virtha authority`, O installation id | - | 20 years |
| server | CN `virtha server`, O installation id | DNS/IP of ``names``, URI `virtha://<installation>/server` | 825 days |
| host | CN host id, O installation id | URI `virtha://<installation>/host/<host id>` | 825 days |
| migration | CN `<host id>.migration.virtha`, O installation id | DNS, the same | 825 days |

825 days is the longest that Apple's clients accept of a private authority; the REST API shows the
same server certificate. A host's life is not shorter because a host whose certificate ends is a host
without protection; a stolen certificate is turned away by its serial at hello, not by its age.

A host checks the chain to *its* authority and the server's URI, never the DNS name: servers are
reached by any address, and an address that leads to another installation must still be refused.
"""

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from virtha.model.errors import InvalidInput, Refused, Unauthenticated, VirthaError
from virtha.model.ids import HostId, InstallationId
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.ports.authority import HostSigned, SignedCertificate

AUTHORITY_LIFE = timedelta(days=20 * 365)
CERTIFICATE_LIFE = timedelta(days=825)
RENEW_BEFORE = timedelta(days=90)
BACKDATED = timedelta(days=2)
"""Hosts whose clock is hours (or a wrong time zone, or a day) behind must be able to connect: a
certificate that is valid only from the server's now would lock them out at the moment of joining,
with an error about certificates where the clock is the fault."""

_URI = "virtha://{installation}/{rest}"


class HostIdentity(Value, frozen=True, kw_only=True):
    """Who a host's certificate says it is. ``serial``: hexadecimal, lower case, no leading zeros."""

    installation_id: InstallationId
    host_id: HostId
    serial: str


def create_authority(installation_id: InstallationId, *, now: UtcMillis) -> tuple[str, str]:
    """Make a new authority: (certificate, private key), both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("virtha authority", installation_id)
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def make_key_and_csr(name: str) -> tuple[str, str]:
    """A host's new private key and its certificate request, both PEM; ``name`` is for people only."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _key_pem(key), _request(key, name)


def request_again(key_pem: str, name: str) -> str:
    """A certificate request, PEM, for the key that a host has. Raises InvalidInput: that is no host's key."""
    return _request(_host_key(key_pem), name)


def certificate_ends(certificate_pem: str) -> UtcMillis:
    """Raises InvalidInput."""
    return _ends(_load(certificate_pem))


def _ends(certificate: x509.Certificate) -> UtcMillis:
    return UtcMillis(int(certificate.not_valid_after_utc.timestamp() * 1_000))


def _request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    # X.520 allows 64 characters; the name decides nothing, so a longer one is cut.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64] or "host")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    csr = request.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def migration_name(host_id: HostId) -> str:
    """In a host's migration certificate."""
    return f"{host_id}.migration.virtha"


def signed_by(key_pem: str, message: bytes) -> bytes:
    """Raises InvalidInput: that is no host's key."""
    return _host_key(key_pem).sign(message, ec.ECDSA(hashes.SHA256()))


def _host_key(key_pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the host's key can't be read: {error}", field="host.key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput("the host's key is of another kind", field="host.key")
    return key


def signing_host(
    authority_pem: str, certificate_pem: str, message: bytes, signature: bytes
) -> HostIdentity:
    """Raises Unauthenticated: no host's certificate of this authority, or not signed by its key."""
    try:
        certificate = _load(certificate_pem)
        certificate.verify_directly_issued_by(_load(authority_pem))
        found = host_identity(certificate_pem)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (VirthaError, ValueError, TypeError, InvalidSignature) as error:
        raise Unauthenticated(
            "the request is not signed by a host of this installation",
            code="wire.refused.certificate",
            field="certificate_pem",
            fix="has the host joined this server? If not: 'virtha agent join'",
        ) from error
    return found


def fingerprint_of(certificate_pem: str) -> str:
    """SHA-256 over the DER form, 64 hexadecimal digits: what a join token pins.

    Raises InvalidInput when the text is no certificate.
    """
    der = _load(certificate_pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def host_identity(certificate: str | bytes) -> HostIdentity:
    """Whose certificate (PEM text or DER) it is. Does not check its signature: TLS did.

    Raises Refused (`wire.refused.certificate`) when it is no host's, and InvalidInput when it is no
    certificate at all.
    """
    loaded = _load(certificate)
    for uri in _uris(loaded):
        installation, host = _split_uri(uri, "host/")
        if installation and host and "/" not in host:
            return HostIdentity(
                installation_id=InstallationId(installation),
                host_id=HostId(host),
                serial=format(loaded.serial_number, "x"),
            )
    raise Refused(
        "the certificate is not a host's",
        code="wire.refused.certificate",
        fix="join the host again: virtha agent join",
    )


def server_installation(certificate: str | bytes) -> InstallationId:
    """The installation whose server shows this certificate.

    Raises Refused (`wire.refused.certificate`) when it is no server's.
    """
    for uri in _uris(_load(certificate)):
        installation, rest = _split_uri(uri, "server")
        if installation and not rest:
            return InstallationId(installation)
    raise Refused(
        "the peer's certificate is not a virtha server's",
        code="wire.refused.certificate",
        fix="check the server address: this one belongs to something else",
    )


def server_certificate_fits(
    certificate_pem: str, names: tuple[str, ...], *, now: UtcMillis
) -> bool:
    """Whether a server certificate on disk can be used on: names unchanged, not about to end."""
    certificate = _load(certificate_pem)
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    wanted = {str(name.value) for name in map(_general_name, names)}
    have = {str(name.value) for name in san if not isinstance(name, x509.UniformResourceIdentifier)}
    return have == wanted and certificate.not_valid_after_utc - RENEW_BEFORE > _moment(now)


class LocalAuthority:
    """Implements ``virtha.ports.authority.Authority`` with a key in this process."""

    def __init__(
        self,
        certificate_pem: str,
        key_pem: str,
        *,
        wall_ms: Callable[[], UtcMillis],
    ) -> None:
        """``wall_ms``: of a ``ports.clock.Clock``, asked when something is signed. Raises InvalidInput when certificate or key can't be read or don't belong together."""
        self._certificate = _load(certificate_pem)
        self._pem = certificate_pem
        self._wall_ms = wall_ms
        try:
            key = serialization.load_pem_private_key(key_pem.encode(), password=None)
        except (ValueError, TypeError) as error:
            raise InvalidInput(
                f"the authority's key can't be read: {error}", field="authority.key"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != self._certificate.public_key()
        ):
            raise InvalidInput(
                "the authority's key does not belong to its certificate",
                field="authority.key",
                fix="restore both from the same backup",
            )
        self._key = key
        organization = self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        self._installation_id = InstallationId(str(organization[0].value) if organization else "")

    @property
    def installation_id(self) -> InstallationId:
        return self._installation_id

    def certificate_pem(self) -> str:
        return self._pem

    def fingerprint(self) -> str:
        return fingerprint_of(self._pem)

    def sign_host(self, csr_pem: str, *, host_id: HostId) -> SignedCertificate:
        """Sign a host's request. What the request asks for as a name is ignored: the id is ours.

        Raises InvalidInput (field ``csr``): no request, a signature that is not its key's, or a key
        other than EC P-256.
        """
        uri = _URI.format(installation=self._installation_id, rest=f"host/{host_id}")
        certificate = self._sign(
            common_name=host_id,
            public_key=_public_key_of_request(csr_pem),
            names=[x509.UniformResourceIdentifier(uri)],
            purpose=(ExtendedKeyUsageOID.CLIENT_AUTH,),
        )
        return SignedCertificate(
            certificate_pem=_pem(certificate),
            serial=format(certificate.serial_number, "x"),
            not_after=_ends(certificate),
        )

    def issue_server_certificate(self, names: tuple[str, ...]) -> tuple[str, str]:
        """A new key and certificate for this server: (certificate, key), PEM.

        ``names``: DNS names and IP addresses. Raises InvalidInput for a name that is neither.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        uri = _URI.format(installation=self._installation_id, rest="server")
        certificate = self._sign(
            common_name="virtha server",
            public_key=key.public_key(),
            names=[*map(_general_name, names), x509.UniformResourceIdentifier(uri)],
            purpose=(ExtendedKeyUsageOID.SERVER_AUTH,),
        )
        return _pem(certificate), _key_pem(key)

    def sign_migration(self, csr_pem: str, *, host_id: HostId) -> SignedCertificate:
        """For a host's libvirt and QEMU, which are servers and clients of one another. It has no URI of ours, so it is
        good for no session with a virtha server, and poses as none. Its name is the host's id, never an address.

        Raises InvalidInput (field ``csr``).
        """
        name = migration_name(host_id)
        certificate = self._sign(
            common_name=name,
            public_key=_public_key_of_request(csr_pem),
            names=[x509.DNSName(name)],
            purpose=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
            # GnuTLS needs it for RSA only, but libvirt 9.0 and QEMU 7.2 refuse any certificate without it.
            key_encipherment=True,
        )
        return SignedCertificate(
            certificate_pem=_pem(certificate),
            serial=format(certificate.serial_number, "x"),
            not_after=_ends(certificate),
        )

    def asking_host(self, certificate_pem: str, message: bytes, signature: bytes) -> HostSigned:
        """Raises Unauthenticated: no host's certificate of this authority, or not signed by its key."""
        found = signing_host(self._pem, certificate_pem, message, signature)
        certificate = _load(certificate_pem)
        return HostSigned(
            host_id=found.host_id,
            serial=found.serial,
            public_key=_der(certificate.public_key()),
            not_after=_ends(certificate),
        )

    def key_of_request(self, csr_pem: str) -> bytes:
        return _der(_public_key_of_request(csr_pem))

    def _sign(
        self,
        *,
        common_name: str,
        public_key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        purpose: tuple[x509.ObjectIdentifier, ...],
        key_encipherment: bool = False,
    ) -> x509.Certificate:
        subject = _name(common_name, self._installation_id)
        issuer = self._certificate.subject
        return (
            _builder(subject, issuer, public_key, self._wall_ms(), CERTIFICATE_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                _key_usage(signs_certificates=False, key_encipherment=key_encipherment),
                critical=True,
            )
            # One purpose each: a host's certificate can't pose as the server, nor the reverse.
            .add_extension(x509.ExtendedKeyUsage(purpose), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


def server_context(
    authority_pem: str, certificate_pem: str, key_pem: str, *, client_certificates: bool = True
) -> ssl.SSLContext:
    """TLS 1.3 for the gateway. A client without a certificate of our authority is refused.

    ``client_certificates=False`` is for the REST port, whose users sign in instead.
    Raises InvalidInput when the PEM texts can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
    # Tickets are of no use to hosts (asyncio can't resume a session) and cost 20 % of a handshake.
    context.num_tickets = 0
    return _filled(context, authority_pem, certificate_pem, key_pem)


def client_context(authority_pem: str, certificate_pem: str, key_pem: str) -> ssl.SSLContext:
    """TLS 1.3 for a host. The caller must check ``server_installation`` after the handshake.

    Raises InvalidInput when the PEM texts can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The name is not what identifies a server here (see the module's text); the chain is checked.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return _filled(context, authority_pem, certificate_pem, key_pem)


def _filled(
    context: ssl.SSLContext, authority_pem: str, certificate_pem: str, key_pem: str
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=authority_pem)
        _load_chain(context, certificate_pem, key_pem)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidInput(
            f"certificate and key can't be used: {error}",
            field="certificate",
            fix="check that key and certificate belong together",
        ) from None
    return context


def _load_chain(context: ssl.SSLContext, certificate_pem: str, key_pem: str) -> None:
    """Python's ssl reads a key only from a path: one in memory keeps it off every disk."""
    descriptor = os.memfd_create("virtha-key", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{certificate_pem.strip()}\n{key_pem.strip()}\n".encode())
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def _der(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _public_key_of_request(csr_pem: str) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature, TypeError) as error:
        raise InvalidInput(
            f"this is no certificate request: {error}", field="csr", allowed=("PKCS #10 in PEM",)
        ) from None
    if not valid:
        raise InvalidInput("the request is not signed by its own key", field="csr")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise InvalidInput(
            "the request has another kind of key", field="csr", allowed=("EC P-256",)
        )
    return key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: UtcMillis,
    life: timedelta,
) -> x509.CertificateBuilder:
    moment = _moment(now).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - BACKDATED)
        .not_valid_after(moment + life)
    )


def _key_usage(*, signs_certificates: bool, key_encipherment: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str, installation_id: InstallationId) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, installation_id),
        ]
    )


def _general_name(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass  # not an address, so it must be a DNS name
    if not name or len(name) > 253 or not name.isascii() or not _is_dns_name(name):
        raise InvalidInput(
            f"'{name}' is neither a DNS name nor an IP address",
            field="names",
            fix="write for example virtha.example.org or 192.0.2.10",
        )
    return x509.DNSName(name)


def _is_dns_name(name: str) -> bool:
    labels = name.removeprefix("*.").split(".")
    return all(
        0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum()
        for label in labels
    )


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return san.get_values_for_type(x509.UniformResourceIdentifier)


def _split_uri(uri: str, path_prefix: str) -> tuple[str, str]:
    """(installation, what follows ``path_prefix``), or two empty texts when the URI is another's."""
    scheme, _, rest = uri.partition("://")
    installation, _, path = rest.partition("/")
    if scheme != "virtha" or not path.startswith(path_prefix):
        return "", ""
    return installation, path.removeprefix(path_prefix)


def _load(certificate: str | bytes) -> x509.Certificate:
    try:
        if isinstance(certificate, bytes):
            return x509.load_der_x509_certificate(certificate)
        return x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise InvalidInput(f"this is no certificate: {error}", field="certificate") from None


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _moment(now: UtcMillis) -> datetime:
    return datetime.fromtimestamp(now / 1_000, UTC)
