"""``virtha agent setup-migration`` against a real TLS server of a real authority."""

import base64
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from test_join import HOST, INSTALLATION, Server

from virtha.agent.identity import load_identity
from virtha.agent.join import join
from virtha.agent.migration_setup import BEGIN, destination, set_up
from virtha.agent.paths import AgentPaths
from virtha.agent.properties import load_agent_properties
from virtha.drivers.libvirt_mover import tls_context
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import (
    LocalAuthority,
    create_authority,
    host_identity,
    make_key_and_csr,
    signed_by,
)
from virtha.model.errors import Failed, InvalidInput, Refused, Unauthenticated, VirthaError
from virtha.model.orders import MoveDestination
from virtha.model.time import UtcMillis

NAME = f"{HOST}.migration.virtha"


class MigrationServer(Server):
    """Signs as the server does: for the host that signed the request."""

    def sign(self, body: dict[str, str]) -> dict[str, object]:
        if "token" in body:
            return super().sign(body)
        signed = self.authority.asking_host(
            body["certificate_pem"], body["csr_pem"].encode(), base64.b64decode(body["signature"])
        )
        certificate = self.authority.sign_migration(body["csr_pem"], host_id=signed.host_id)
        return {
            "certificate_pem": certificate.certificate_pem,
            "authority_pem": self.authority.certificate_pem(),
            "name": NAME,
        }


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentPaths:
    monkeypatch.setenv("VIRTHA_LIBVIRT_HOOKS", str(tmp_path / "hooks"))
    monkeypatch.setenv("VIRTHA_LIBVIRT_CONFIGURATION", str(tmp_path / "libvirt"))
    (tmp_path / "libvirt").mkdir()
    return AgentPaths(root=str(tmp_path / "root"))


@pytest.fixture
def joined(tmp_path: Path, paths: AgentPaths) -> Iterator[AgentPaths]:
    (tmp_path / "server").mkdir()
    server = MigrationServer(tmp_path / "server")
    join(paths, server.url, server.token, name="h1")
    yield paths
    server.stop()


def configuration(paths: AgentPaths, name: str) -> Path:
    return Path(paths.root).parent / "libvirt" / name


def let_in(paths: AgentPaths) -> MoveDestination | None:
    return destination(paths, load_agent_properties(paths), load_identity(paths))


def test_a_host_is_set_up(joined: AgentPaths) -> None:
    assert let_in(joined) is None
    changed = set_up(joined, "192.0.2.11")
    assert [Path(one).name for one in changed] == ["libvirtd.conf", "qemu.conf"]
    assert let_in(joined) == MoveDestination(
        address="192.0.2.11",
        name=NAME,
        serial_directory=str(joined.serial),
        data_uri="tcp://192.0.2.11",
    )
    text = configuration(joined, "qemu.conf").read_text()
    assert f'migrate_tls_x509_cert_dir = "{joined.migration}"' in text
    assert "migrate_tls_x509_verify = 1" in text
    for key in ("server-key.pem", "client-key.pem"):
        assert stat.S_IMODE((joined.migration / key).stat().st_mode) == 0o640
    tls_context(joined.migration)


def test_again_changes_nothing_but_the_key(joined: AgentPaths) -> None:
    set_up(joined, "192.0.2.11")
    before = (joined.migration / "server-key.pem").read_text()
    assert set_up(joined, "192.0.2.11") == ()
    assert (joined.migration / "server-key.pem").read_text() != before


def test_an_administrators_lines_stay_and_those_that_clash_become_comments(
    joined: AgentPaths,
) -> None:
    path = configuration(joined, "libvirtd.conf")
    path.write_text('# mine\nlisten_tls = 0\nmax_clients = 7\n  ca_file="/x"')
    set_up(joined, "h1.example.org")
    text = path.read_text()
    assert text.startswith("# mine\n# before virtha: listen_tls = 0\nmax_clients = 7\n")
    assert '# before virtha:   ca_file="/x"\n' in text
    assert text.count(BEGIN) == 1
    assert text.count("\nlisten_tls = 1\n") == 1
    set_up(joined, "h2.example.org")
    assert path.read_text() == text


def test_an_ipv6_address_is_written_as_libvirt_wants_it(joined: AgentPaths) -> None:
    set_up(joined, "2001:db8::7")
    found = let_in(joined)
    assert found is not None
    assert (found.address, found.data_uri) == ("2001:db8::7", "tcp://[2001:db8::7]")


@pytest.mark.bad_input
@pytest.mark.parametrize("address", ["", "h1 h2", "h1/x", "-h1", "h" * 300, "tcp://h1", "h1\n"])
def test_what_is_no_address_is_refused_before_anything_is_asked(
    joined: AgentPaths, address: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        set_up(joined, address)
    assert raised.value.field == "--address"
    assert not joined.migration.exists()


@pytest.mark.bad_input
def test_a_host_that_has_not_joined_is_told_to(paths: AgentPaths) -> None:
    with pytest.raises(Failed, match="has not joined"):
        set_up(paths, "192.0.2.11")


# The certificates themselves


def authority() -> LocalAuthority:
    made = create_authority(INSTALLATION, now=UtcMillis(1_760_000_000_000))
    return LocalAuthority(*made, wall_ms=MachineClock().wall_ms)


@pytest.mark.req("L6")
def test_a_migration_certificate_is_good_for_libvirt_and_nothing_of_ours() -> None:
    _, csr = make_key_and_csr("anything")
    signed = authority().sign_migration(csr, host_id=HOST)
    with pytest.raises((Refused, VirthaError)):
        host_identity(signed.certificate_pem)
    certificate = x509.load_pem_x509_certificate(signed.certificate_pem.encode())
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == [NAME]
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == []
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    keys = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert keys.key_encipherment
    assert not keys.key_cert_sign


@pytest.mark.req("L6")
@pytest.mark.bad_input
def test_only_a_host_of_ours_that_signed_it_is_believed(joined: AgentPaths) -> None:
    ours, other = authority(), authority()
    key_pem, csr = make_key_and_csr("h1")
    mine = ours.sign_host(csr, host_id=HOST).certificate_pem
    signature = signed_by(key_pem, b"text")
    assert ours.asking_host(mine, b"text", signature).host_id == HOST
    strange = make_key_and_csr("h2")[0]
    server = ours.issue_server_certificate(("localhost",))
    for certificate, message, word in (
        (mine, b"another text", signature),
        (mine, b"text", signed_by(strange, b"text")),
        (other.sign_host(csr, host_id=HOST).certificate_pem, b"text", signature),
        (ours.sign_migration(csr, host_id=HOST).certificate_pem, b"text", signature),
        (server[0], b"text", signed_by(server[1], b"text")),
        (ours.certificate_pem(), b"text", signature),
        ("nonsense", b"text", signature),
        (mine, b"text", b""),
    ):
        with pytest.raises(Unauthenticated):
            ours.asking_host(certificate, message, word)


def test_the_context_of_a_mover_wants_a_server_of_that_name(joined: AgentPaths) -> None:
    set_up(joined, "192.0.2.11")
    context = tls_context(joined.migration)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
