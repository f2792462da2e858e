"""``virtha agent setup-migration``: this host's libvirt and QEMU let VMs of other hosts in, and send theirs (ADR 14).

A key of its own, a certificate of our authority with the host's id as its name, and two blocks in libvirt's configuration.
"""

import base64
import contextlib
import grp
import os
import re
from pathlib import Path

import msgspec

from virtha.agent.files import Files
from virtha.agent.identity import Identity, load_credentials, load_identity
from virtha.agent.join import post_to_server
from virtha.agent.paths import AgentPaths
from virtha.agent.properties import (
    AgentProperties,
    load_properties,
    set_property,
    write_properties,
)
from virtha.drivers.link import HostCredentials
from virtha.drivers.pki import make_key_and_csr, migration_name, signed_by
from virtha.model.errors import Failed, InvalidInput
from virtha.model.orders import MoveDestination
from virtha.model.value import Value

BEGIN, END = (
    "# virtha: live migration, begin (written by virtha; changes are lost)",
    "# virtha: end",
)
LIBVIRT_CONFIGURATION = Path("/etc/libvirt")
"""Compiled into libvirt, as its hooks' directory is; ``VIRTHA_LIBVIRT_CONFIGURATION`` moves it (tests)."""
QEMU_GROUPS = ("libvirt-qemu", "kvm", "qemu")
_ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?")


class _Signed(Value, frozen=True, kw_only=True):
    certificate_pem: str
    authority_pem: str
    name: str


def destination(
    paths: AgentPaths, properties: AgentProperties, identity: Identity
) -> MoveDestination | None:
    """Where VMs are let in. None: it was not set up. Whether libvirt listens there is seen by whoever comes."""
    address = properties.migration_address
    if not address or not (paths.migration / "server-cert.pem").exists():
        return None
    in_uri = f"[{address}]" if ":" in address else address
    return MoveDestination(
        address=address,
        name=migration_name(identity.host_id),
        serial_directory=str(paths.serial),
        data_uri=f"tcp://{in_uri}",
    )


def set_up(paths: AgentPaths, address: str, files: Files | None = None) -> tuple[str, ...]:
    """Returns what was changed of libvirt's configuration. Raises InvalidInput, Failed, Unavailable, Unauthenticated."""
    files = files or Files()
    if not _ADDRESS.fullmatch(address):
        raise InvalidInput(
            f"'{address[:64]}' is neither a name nor an address",
            field="--address",
            fix="write for example h1.example.org or 192.0.2.11",
        )
    identity = load_identity(paths)
    credentials = load_credentials(paths, identity)
    key_pem, signed = _signed(identity, credentials)
    try:
        _write_keys(paths, key_pem, signed, files)
        changed = [
            str(path) for path, lines in _blocks(paths).items() if _write_block(path, lines, files)
        ]
        text = ""
        with contextlib.suppress(FileNotFoundError):
            text = load_properties(paths.properties)
        write_properties(paths.properties, set_property(text, "migration.address", address))
    except OSError as error:
        raise Failed(
            f"{error.filename} can't be written: {error.strerror}",
            fix="run this as root, on a host with libvirt installed; then again",
        ) from error
    return tuple(changed)


def _signed(identity: Identity, credentials: HostCredentials) -> tuple[str, _Signed]:
    """A new key, and what the server made of it. The request proves itself by the key of joining: no token is needed."""
    key_pem, csr_pem = make_key_and_csr(migration_name(identity.host_id))
    signature = base64.b64encode(signed_by(credentials.key_pem, csr_pem.encode())).decode()
    content = post_to_server(
        identity.url,
        "/v1/join/migration",
        {
            "certificate_pem": credentials.certificate_pem,
            "csr_pem": csr_pem,
            "signature": signature,
        },
        authority_pem=credentials.authority_pem,
    )
    try:
        signed = msgspec.convert(content, _Signed)
    except msgspec.ValidationError as error:
        raise Failed(f"the server's answer can't be read: {error}") from error
    return key_pem, signed


def _write_keys(paths: AgentPaths, key_pem: str, signed: _Signed, files: Files) -> None:
    """One certificate for both: libvirt and QEMU are servers and clients of one another. Keys first: a certificate
    that is there says that all is."""
    directory = paths.migration
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o750)
    group = _qemu_group()
    content = {
        "ca-cert.pem": signed.authority_pem,
        "client-key.pem": key_pem,
        "server-key.pem": key_pem,
        "client-cert.pem": signed.certificate_pem,
        "server-cert.pem": signed.certificate_pem,
    }
    for name, text in content.items():
        path = directory / name
        files.write_atomic(path, text.encode(), mode=0o640)
        path.chmod(0o640)
        if group is not None:
            os.chown(path, 0, group)
    if group is not None:
        os.chown(directory, 0, group)


def _qemu_group() -> int | None:
    """QEMU reads them itself, and may run as another user."""
    for name in QEMU_GROUPS:
        with contextlib.suppress(KeyError):
            return grp.getgrnam(name).gr_gid
    return None


def _blocks(paths: AgentPaths) -> dict[Path, tuple[str, ...]]:
    etc = Path(os.environ.get("VIRTHA_LIBVIRT_CONFIGURATION", LIBVIRT_CONFIGURATION))
    keys = paths.migration
    return {
        etc / "libvirtd.conf": (
            "listen_tls = 1",
            "listen_tcp = 0",
            f'key_file = "{keys}/server-key.pem"',
            f'cert_file = "{keys}/server-cert.pem"',
            f'ca_file = "{keys}/ca-cert.pem"',
            # Of what our authority signs, hosts' migration certificates only.
            'tls_allowed_dn_list = ["*CN=*.migration.virtha*"]',
        ),
        etc / "qemu.conf": (
            f'migrate_tls_x509_cert_dir = "{keys}"',
            "migrate_tls_x509_verify = 1",
        ),
    }


def _write_block(path: Path, lines: tuple[str, ...], files: Files) -> bool:
    """The same keys of others become comments: libvirt takes the last of two, people read the first."""
    before = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    text = re.sub(rf"{re.escape(BEGIN)}\n.*?{re.escape(END)}\n", "", before, flags=re.DOTALL)
    for line in lines:
        key = line.partition("=")[0].strip()
        text = re.sub(rf"(?m)^(\s*{key}\s*=)", r"# before virtha: \1", text)
    if text and not text.endswith("\n"):
        text += "\n"
    text += "\n".join((BEGIN, *lines, END)) + "\n"
    if text == before:
        return False
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    files.write_atomic(path, text.encode("utf-8", "surrogateescape"), mode=mode)
    return True
