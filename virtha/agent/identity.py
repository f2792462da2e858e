"""Who this host is: what joining wrote to ``identity/``."""

from pathlib import Path

import msgspec

from virtha.agent.files import read_bounded
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HostCredentials
from virtha.model.errors import Failed
from virtha.model.ids import HostId, InstallationId
from virtha.model.value import Value

PEM_BYTES_MAX = 1 << 20


class Identity(Value, frozen=True, kw_only=True):
    """``identity.json``."""

    host_id: HostId
    number: int
    name: str
    installation_id: InstallationId
    cluster: str = ""
    servers: tuple[str, ...]
    """Gateway addresses as told at joining; ``host=`` in agent.properties wins."""
    url: str = ""


def load_identity(paths: AgentPaths) -> Identity:
    """Raises Failed: this host has not joined, or its identity can't be read."""
    path = paths.identity / "identity.json"
    try:
        return msgspec.json.decode(read_bounded(path, PEM_BYTES_MAX), type=Identity)
    except FileNotFoundError:
        raise Failed(
            "this host has not joined an installation",
            fix="run 'virtha agent join URL --token TOKEN' first",
        ) from None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise _unreadable(path, error) from error


def load_credentials(paths: AgentPaths, identity: Identity) -> HostCredentials:
    """Raises Failed."""
    return HostCredentials(
        installation_id=identity.installation_id,
        host_id=identity.host_id,
        authority_pem=_pem(paths.identity / "authority.crt"),
        certificate_pem=_pem(paths.identity / "host.crt"),
        key_pem=_pem(paths.identity / "host.key"),
    )


def _pem(path: Path) -> str:
    try:
        return read_bounded(path, PEM_BYTES_MAX).decode("ascii")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Failed:
    """A user who may not read it is told nothing of joining again: the host's identity is all right."""
    if isinstance(error, PermissionError):
        return Failed(f"{path} can't be read: {error.strerror}", fix="run it as root")
    return Failed(f"{path} can't be read: {error}", fix="join again with --force")
