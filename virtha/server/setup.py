"""`virtha server init`: configuration, authority, certificate, database, first administrator.

The database is made beside its place and moved there last, in one rename: whatever is interrupted
before that is simply done again, and a second init finds the installation and changes nothing.
"""

import secrets
import socket
from pathlib import Path

import msgspec

from virtha.control.installation import initialise
from virtha.drivers.pki import LocalAuthority, create_authority, fingerprint_of
from virtha.drivers.systemd_units import install_units
from virtha.model.errors import Conflict, InvalidInput
from virtha.model.host import Installation
from virtha.model.ids import InstallationId
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.server.app import certificate_names, renew_certificate
from virtha.server.checks import SERVER_UNITS, database_path
from virtha.server.config import (
    ServerConfig,
    ServerPaths,
    config_text,
    parse_config,
    split_address,
)
from virtha.server.files import make_directories, only_server, sync_directory, write_whole
from virtha.server.secret_key import write_new_key
from virtha.store import open_store

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
GENERATED_FROM = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Without l, I, O, 0 and 1, which people misread."""
GENERATED_LENGTH = 20
"""20 of 56 characters: 116 bits."""


def install_server_units(paths: ServerPaths) -> tuple[str, ...]:
    """Names of the units that are new or changed; none without systemd. Raises Failed."""
    return install_units(SERVER_UNITS, paths.root)


class InitAnswers(Value, frozen=True, kw_only=True):
    """What `init` was asked for; None: as it is in the configuration, or the default."""

    admin: str = "admin"
    password: str | None = None
    """None: one is made and shown once."""
    listen: str | None = None
    gateway_listen: str | None = None
    names: tuple[str, ...] | None = None


class InitResult(Value, frozen=True, kw_only=True):
    installation_id: InstallationId
    user: str
    password: str | None
    """Shown this once; None when it was given."""
    authority_fingerprint: str
    config: str
    names: tuple[str, ...]
    listen: str
    gateway_listen: str


def generate_password() -> str:
    return "".join(secrets.choice(GENERATED_FROM) for _ in range(GENERATED_LENGTH))


def default_names(listen: str) -> tuple[str, ...]:
    """Under what others reach this machine, as far as it knows itself."""
    host, _ = split_address(listen, field="listen")
    if host not in WILDCARDS:
        return (host,)
    return tuple(dict.fromkeys(name for name in (socket.getfqdn(), socket.gethostname()) if name))


def planned_config(paths: ServerPaths, wanted: InitAnswers) -> ServerConfig:
    """A configuration that is there already is kept; what was asked for on the command line goes
    before it."""
    present = ServerConfig()
    if paths.config.exists():
        present = parse_config(paths.config.read_text(), where=str(paths.config))
    asked = {
        name: value
        for name in ("listen", "gateway_listen", "names")
        if (value := getattr(wanted, name)) is not None
    }
    config = ServerConfig(**{**msgspec.structs.asdict(present), **asked})
    if config.names:
        return config
    return msgspec.structs.replace(config, names=default_names(config.listen))


async def set_up(paths: ServerPaths, wanted: InitAnswers, clock: Clock) -> InitResult:
    """Raises Conflict when there is an installation; nothing is changed then."""
    config = planned_config(paths, wanted)
    if not wanted.admin.strip():
        raise InvalidInput("the administrator needs a name", field="--admin")
    password = wanted.password or generate_password()
    make_directories(paths)
    with only_server(paths):
        database = database_path(paths, config)
        await _check_no_installation(paths, database, clock)
        fresh = database.with_name(database.name + ".new")
        made = await _make_database(fresh, wanted.admin, password, clock)
        fingerprint = _write_authority(paths, config, made.id, clock)
        _write_config(paths, config)
        write_new_key(paths)
        fresh.replace(database)
        sync_directory(database.parent)
    return InitResult(
        installation_id=made.id,
        user=wanted.admin,
        password=None if wanted.password else password,
        authority_fingerprint=fingerprint,
        config=str(paths.config),
        names=config.names,
        listen=config.listen,
        gateway_listen=config.gateway_listen,
    )


async def _check_no_installation(paths: ServerPaths, database: Path, clock: Clock) -> None:
    """Opening it refuses a database that is a newer version's or somebody else's."""
    if not database.exists():  # noqa: ASYNC240 - once, before anything runs
        return
    store = await open_store(f"sqlite:///{database}", clock=clock)
    try:
        there = await store.is_initialised()
    finally:
        await store.close()
    if there:
        raise Conflict(
            f"there is an installation in {paths.state}; nothing was changed",
            fix="run it: virtha server run; or name another place with --root",
        )


async def _make_database(
    fresh: Path, administrator: str, password: str, clock: Clock
) -> Installation:
    for part in ("", "-wal", "-shm"):  # of an init that was interrupted
        fresh.with_name(fresh.name + part).unlink(missing_ok=True)
    store = await open_store(f"sqlite:///{fresh}", clock=clock)
    try:
        return await initialise(
            store=store, name="virtha", administrator=administrator, password=password
        )
    finally:
        await store.close()


def _write_authority(
    paths: ServerPaths, config: ServerConfig, installation_id: InstallationId, clock: Clock
) -> str:
    """A left-over authority of an interrupted init is replaced: no host has ever joined by it."""
    certificate, key = create_authority(installation_id, now=clock.wall_ms())
    authority = LocalAuthority(certificate, key, wall_ms=clock.wall_ms)
    names = certificate_names(config.names)
    renew_certificate(paths, authority, names)  # raises for a bad name before anything is kept
    write_whole(paths.authority_key, key.encode(), mode=0o600)
    write_whole(paths.authority_certificate, certificate.encode(), mode=0o644)
    return fingerprint_of(certificate)


def _write_config(paths: ServerPaths, config: ServerConfig) -> None:
    text = config_text(config)
    if paths.config.exists():
        present = paths.config.read_text()
        if parse_config(present, where=str(paths.config)) == config:
            return  # with its comments
        write_whole(_aside(paths.config), present.encode(), mode=0o644)
    write_whole(paths.config, text.encode(), mode=0o644)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".before-init")
