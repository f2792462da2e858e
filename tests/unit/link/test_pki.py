"""Certificates: what is issued, what is refused, and that identities are ours, never the request's."""

import datetime
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from link_rig import INSTALLATION, Pki

from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import (
    LocalAuthority,
    create_authority,
    fingerprint_of,
    host_identity,
    make_key_and_csr,
    server_certificate_fits,
    server_context,
    server_installation,
)
from virtha.model.errors import InvalidInput, Refused
from virtha.model.ids import HostId
from virtha.model.time import UtcMillis

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def csr_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str = "h1") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.req("L6")
def test_a_host_certificate_names_host_and_installation(pki: Pki) -> None:
    _, csr = make_key_and_csr("somebody-else")
    signed = pki.authority.sign_host(csr, host_id=HostId("h7"))
    identity = host_identity(signed.certificate_pem)
    assert (identity.installation_id, identity.host_id) == (INSTALLATION, "h7")
    assert identity.serial == signed.serial
    der = ssl.PEM_cert_to_DER_cert(signed.certificate_pem)
    assert host_identity(der) == identity
    certificate = x509.load_pem_x509_certificate(signed.certificate_pem.encode())
    assert certificate.not_valid_after_utc.timestamp() * 1_000 == signed.not_after
    assert "somebody-else" not in certificate.subject.rfc4514_string()


@pytest.mark.req("L6")
def test_valid_for_a_host_whose_clock_is_a_day_behind(pki: Pki) -> None:
    for pem in (pki.authority_pem, pki.server_pem, pki.host().certificate_pem):
        certificate = x509.load_pem_x509_certificate(pem.encode())
        age = datetime.datetime.now(datetime.UTC) - certificate.not_valid_before_utc
        assert age > datetime.timedelta(days=1, hours=23)


def test_two_certificates_have_two_serials(pki: Pki) -> None:
    _, csr = make_key_and_csr("h1")
    serials = {pki.authority.sign_host(csr, host_id=HostId("h1")).serial for _ in range(3)}
    assert len(serials) == 3


@pytest.mark.parametrize(
    "csr",
    [
        "",
        "no PEM at all",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        csr_of(rsa.generate_private_key(public_exponent=65_537, key_size=2_048)),
        csr_of(ec.generate_private_key(ec.SECP384R1())),
    ],
)
def test_a_bad_request_is_refused_by_field(pki: Pki, csr: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        pki.authority.sign_host(csr, host_id=HostId("h1"))
    assert refused.value.field == "csr"


def test_a_request_with_a_foreign_signature_is_refused(pki: Pki) -> None:
    request = x509.load_pem_x509_csr(make_key_and_csr("h1")[1].encode())
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    # The last byte is the lowest of the signature's second number: any value is well encoded.
    der[-1] ^= 1
    changed = x509.load_der_x509_csr(bytes(der))
    assert changed.signature != request.signature
    pem = changed.public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(InvalidInput) as refused:
        pki.authority.sign_host(pem, host_id=HostId("h1"))
    assert refused.value.field == "csr"


@pytest.mark.req("L6")
def test_fingerprint_is_of_the_der_form(pki: Pki) -> None:
    fingerprint = pki.authority.fingerprint()
    certificate = x509.load_pem_x509_certificate(pki.authority_pem.encode())
    assert fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert fingerprint == fingerprint_of("\n" + pki.authority_pem + "\n")
    with pytest.raises(InvalidInput):
        fingerprint_of("no certificate")


def test_roles_of_certificates_do_not_mix(pki: Pki) -> None:
    assert server_installation(pki.server_pem) == INSTALLATION
    with pytest.raises(Refused) as refused:
        server_installation(pki.host().certificate_pem)
    assert refused.value.code == "wire.refused.certificate"
    for pem in (pki.server_pem, pki.authority_pem):
        with pytest.raises(Refused):
            host_identity(pem)


@pytest.mark.parametrize("uri", ["virtha://i/host/", "virtha:///host/h1", "https://i/host/h1"])
def test_other_uris_are_no_identity(pki: Pki, uri: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(Refused):
        host_identity(certificate.public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize("names", [("virtha.example.org", "192.0.2.1", "2001:db8::1"), ()])
def test_server_certificate_carries_its_names(pki: Pki, names: tuple[str, ...]) -> None:
    pem, key = pki.authority.issue_server_certificate(names)
    now = UtcMillis(time.time_ns() // 1_000_000)
    assert server_certificate_fits(pem, names, now=now)
    assert server_certificate_fits(pem, tuple(reversed(names)), now=now)
    assert not server_certificate_fits(pem, (*names, "new.example.org"), now=now)
    assert not server_certificate_fits(pem, names, now=UtcMillis(now + 740 * DAY_MS))
    server_context(pki.authority_pem, pem, key)


@pytest.mark.parametrize(
    "name", ["", "with space", "-", "a..b", "x" * 64 + ".org", "ü.example.org"]
)
def test_a_bad_server_name_is_refused(pki: Pki, name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        pki.authority.issue_server_certificate((name,))
    assert refused.value.field == "names"


def test_key_and_certificate_must_belong_together(pki: Pki, other_pki: Pki) -> None:
    _, other_key = create_authority(INSTALLATION, now=UtcMillis(time.time_ns() // 1_000_000))
    for key in (other_key, "no key"):
        with pytest.raises(InvalidInput) as refused:
            LocalAuthority(pki.authority_pem, key, wall_ms=MachineClock().wall_ms)
        assert refused.value.field == "authority.key"
    with pytest.raises(InvalidInput):
        server_context(pki.authority_pem, pki.server_pem, other_pki.server_key)


def test_contexts_speak_tls_13_only(pki: Pki) -> None:
    assert pki.context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert pki.context.verify_mode is ssl.CERT_REQUIRED
    assert pki.context.num_tickets == 0
    plain = server_context(
        pki.authority_pem, pki.server_pem, pki.server_key, client_certificates=False
    )
    assert plain.verify_mode is ssl.CERT_NONE
