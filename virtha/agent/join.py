"""``virtha agent join``: this host becomes a member of an installation (L6).

Nothing is trusted before the authority's fingerprint matches the one in the token; nothing is
written before the server has signed; a failure leaves this host as it was.
"""

import os
import re
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from virtha.agent.files import Files
from virtha.agent.gate import GateRecords, install_gate
from virtha.agent.host_clock import read_boot_id
from virtha.agent.identity import Identity
from virtha.agent.paths import AgentPaths
from virtha.agent.properties import (
    get_property,
    load_properties,
    set_property,
    write_properties,
)
from virtha.drivers.pki import fingerprint_of, host_identity, make_key_and_csr
from virtha.model.errors import (
    Conflict,
    Failed,
    InvalidInput,
    Refused,
    Unauthenticated,
    Unavailable,
    VirthaError,
)
from virtha.model.ids import HostId, InstallationId, Term
from virtha.model.orders import HostSettings
from virtha.model.size import format_size
from virtha.model.value import Value

DEADLINE_S = 15.0
ANSWER_BYTES_MAX = 1 << 20
ROOM_BYTES_MIN = 8 << 20
"""For identity and properties, and for the agent's outbox with its reserve, which is most of it."""
_TOKEN = re.compile(r"virtha-join\.([A-Za-z0-9-]{1,64})\.([A-Za-z0-9_-]{8,256})\.([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


class JoinAnswer(Value, frozen=True, kw_only=True):
    host_id: HostId
    number: int
    name: str
    installation_id: InstallationId
    cluster: str
    certificate_pem: str
    authority_pem: str
    servers: tuple[str, ...]


class Joined(Value, frozen=True, kw_only=True):
    identity: Identity
    gate_is_new: bool
    """A libvirtd that runs must be restarted once: it looks for hooks only when it starts."""


def token_fingerprint(token: str) -> str:
    """Raises InvalidInput: it is no join token."""
    match = _TOKEN.fullmatch(token.strip())
    if match is None:
        raise InvalidInput(
            "this is no join token",
            field="token",
            allowed=("virtha-join.<id>.<secret>.<fingerprint>",),
            fix="make one with 'virtha token create' and copy it whole",
        )
    return match[3]


def default_name() -> str:
    return socket.gethostname().split(".")[0] or "host"


def join(
    paths: AgentPaths,
    url: str,
    token: str,
    *,
    name: str | None = None,
    force: bool = False,
    files: Files | None = None,
) -> Joined:
    """Raises InvalidInput, Conflict (joined already), Unauthenticated (token), Refused, Unavailable."""
    files = files or Files()
    fingerprint = token_fingerprint(token)
    base = _checked_url(url)
    wanted_name = name or default_name()
    if not _NAME.fullmatch(wanted_name):
        raise InvalidInput(
            f"'{wanted_name}' is no host name",
            field="name",
            fix="letters, digits, '.', '_' and '-', for example --name h1",
        )
    if (paths.identity / "identity.json").exists() and not force:
        raise Conflict(
            "this host has joined an installation already",
            code="problem.conflict",
            fix="--force leaves that one and joins anew; its VMs must be gone first",
        )
    _check_room(paths)
    authority_pem = _fetch_authority(base, fingerprint)
    key_pem, csr_pem = make_key_and_csr(wanted_name)
    answer = _ask(base, authority_pem, token.strip(), csr_pem, wanted_name)
    _check(answer, authority_pem, fingerprint)
    identity = Identity(
        host_id=answer.host_id,
        number=answer.number,
        name=answer.name,
        installation_id=answer.installation_id,
        cluster=answer.cluster,
        servers=answer.servers,
        url=base,
    )
    return _settle(paths, identity, answer, key_pem, files)


def _check_room(paths: AgentPaths) -> None:
    """Before the server is asked: a token is used up by an answer that can't be kept then."""
    for wanted in (paths.state, paths.properties.parent, paths.hooks):
        directory = next(one for one in (wanted, *wanted.parents) if one.exists())
        found = os.statvfs(directory)
        if found.f_bavail * found.f_frsize < ROOM_BYTES_MIN:
            raise Unavailable(
                f"{directory} has less than {format_size(ROOM_BYTES_MIN)} left",
                code="problem.disk.full",
                fix="free space there, then join again; the token is still good",
            )
        if not os.access(directory, os.W_OK):
            raise Failed(
                f"{directory} can't be written",
                fix="run this as root, on a file system that is not read-only; the token is still good",
            )


def _checked_url(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
        raise InvalidInput(
            f"'{url}' is no address of a server",
            field="url",
            fix="write for example https://virtha.example.org:8443",
        )
    return f"https://{parts.hostname if ':' not in parts.hostname else f'[{parts.hostname}]'}" + (
        f":{parts.port or 8443}"
    )


def _fetch_authority(base: str, fingerprint: str) -> str:
    """The only request without verified TLS: what it brings is checked against the token."""
    with httpx.Client(verify=False, timeout=DEADLINE_S, trust_env=False) as client:  # noqa: S501 - see above
        content = _content(_send(client, "GET", f"{base}/v1/authority"))
    try:
        pem = str(content["certificate_pem"])
        found = fingerprint_of(pem)
    except (KeyError, VirthaError, ValueError) as error:
        raise Refused(
            f"{base} does not answer as a virtha server", code="problem.authority.wrong"
        ) from error
    if found != fingerprint:
        raise Refused(
            f"the authority of {base} is not the one in the token "
            f"(token {fingerprint[:16]}…, server {found[:16]}…)",
            code="problem.authority.wrong",
            fix="is this the right server? If so, make a new token there",
        )
    return pem


def post_to_server(
    base: str, path: str, body: dict[str, str], *, authority_pem: str
) -> dict[str, Any]:
    """Of a server of that authority. Raises what it answers, and Unavailable."""
    context = ssl.create_default_context(cadata=authority_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=context, timeout=DEADLINE_S, trust_env=False) as client:
        return _content(_send(client, "POST", f"{base}{path}", json=body))


def _ask(base: str, authority_pem: str, token: str, csr_pem: str, name: str) -> JoinAnswer:
    body = {"token": token, "csr_pem": csr_pem, "name": name}
    content = post_to_server(base, "/v1/join", body, authority_pem=authority_pem)
    try:
        return msgspec.convert(content, JoinAnswer)
    except msgspec.ValidationError as error:
        raise Failed(f"the server's answer can't be read: {error}") from error


def _send(client: httpx.Client, method: str, url: str, json: object = None) -> httpx.Response:
    try:
        response = client.request(method, url, json=json)
    except httpx.HTTPError as error:
        fix = "check address, port and firewall"
        if _is_out_of_its_time(error):
            fix = "is this host's clock right, and the server's? Set both, then join again"
        raise Unavailable(f"{url} can't be reached: {error}", fix=fix) from error
    if len(response.content) > ANSWER_BYTES_MAX:
        raise Failed(f"{url} answers with {len(response.content)} bytes; that is no virtha server")
    return response


def _is_out_of_its_time(error: BaseException | None) -> bool:
    """Whether a certificate is not valid yet, or not any more (X509_V_ERR_… 9 and 10)."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in (9, 10):
            return True
        error = error.__cause__ or error.__context__
    return False


def _content(response: httpx.Response) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Failed(f"{response.url} is no virtha server (HTTP {response.status_code})") from error
    if response.is_success:
        return content
    kinds: dict[int, type[VirthaError]] = {
        400: InvalidInput,
        401: Unauthenticated,
        403: Unauthenticated,
        409: Conflict,
        422: Refused,
        503: Unavailable,
    }
    kind = kinds.get(response.status_code, Failed)
    raise kind(
        str(content.get("detail") or content.get("title") or f"HTTP {response.status_code}"),
        code=content.get("code"),
        field=content.get("field"),
        fix=str(content.get("fix") or ""),
    )


def _check(answer: JoinAnswer, authority_pem: str, fingerprint: str) -> None:
    if fingerprint_of(answer.authority_pem) != fingerprint or not authority_pem:
        raise Refused("the server signed with another authority", code="problem.authority.wrong")
    found = host_identity(answer.certificate_pem)
    if found.host_id != answer.host_id or found.installation_id != answer.installation_id:
        raise Failed("the server's certificate is not for this host")


def _settle(
    paths: AgentPaths, identity: Identity, answer: JoinAnswer, key_pem: str, files: Files
) -> Joined:
    """Write it all beside the present identity, then change names: half a join is none."""
    paths.make_directories()
    staged = paths.state / "identity.joining"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    try:
        files.write_atomic(staged / "host.key", key_pem.encode(), mode=0o600)
        files.write_atomic(staged / "host.crt", answer.certificate_pem.encode(), mode=0o644)
        files.write_atomic(staged / "authority.crt", answer.authority_pem.encode(), mode=0o644)
        files.write_atomic(
            staged / "identity.json", msgspec.json.format(msgspec.json.encode(identity))
        )
        # The gate before the identity: a host that counts as joined has a gate.
        empty = HostSettings(revision=0, installation_id=identity.installation_id, term=Term(0))
        gate = GateRecords(paths, files, boot=read_boot_id())
        if not gate.records_path.exists():
            gate.write(empty)
        gate_is_new = install_gate(paths, files)
    except (OSError, VirthaError):
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _write_properties(paths, identity)
    former = paths.state / "identity.former"
    shutil.rmtree(former, ignore_errors=True)
    if paths.identity.exists():
        paths.identity.replace(former)
    staged.replace(paths.identity)
    files.sync_directory(paths.state)
    return Joined(identity=identity, gate_is_new=gate_is_new)


def _write_properties(paths: AgentPaths, identity: Identity) -> None:
    """Only what is missing: an administrator's ``host=`` stays."""
    try:
        text = load_properties(paths.properties)
    except FileNotFoundError:
        text = "# virtha agent; all keys: virtha agent properties list\n"
    before = text
    for key, value in (("host", ",".join(identity.servers)), ("guid", identity.host_id)):
        if get_property(text, key) is None:
            text = set_property(text, key, value)
    if text != before or not Path(paths.properties).exists():
        write_properties(paths.properties, text)
