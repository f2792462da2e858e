"""`virtha server check`: is what is on disk fit to run? Reads only."""

import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from virtha.drivers.pki import LocalAuthority, server_certificate_fits
from virtha.drivers.systemd_units import has_systemd, units_wrong
from virtha.model.errors import Failed, NotFound, VirthaError
from virtha.model.time import UtcMillis, format_utc
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.server.app import CLOCK_SLACK_MS, certificate_names, check_pair, load_authority
from virtha.server.config import ServerConfig, ServerPaths, read_config
from virtha.server.files import is_locked
from virtha.server.listeners import bind_tcp
from virtha.server.secret_key import read_key
from virtha.store.errors import translated
from virtha.store.migrate import check_known
from virtha.store.store import parse_database_url

SERVER_UNITS = Path(__file__).parent / "units"
PRIVATE_BITS = 0o077


class CheckState(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Check(Value, frozen=True, kw_only=True):
    name: str
    state: CheckState
    detail: str = ""
    fix: str = ""


class DatabaseFacts(Value, frozen=True, kw_only=True):
    schema: str
    installation_id: str
    revision: int
    last_event: UtcMillis | None
    """When its last event was, by the clock of then; None: it has none."""


def database_path(paths: ServerPaths, config: ServerConfig) -> Path:
    return Path(parse_database_url(paths.database_url(config)).database or "")


def inspect_database(path: Path, *, deep: bool) -> DatabaseFacts:
    """Without migrating. ``deep``: SQLite's own check as well. Raises VirthaError."""
    if not path.is_file():
        raise NotFound(f"there is no {path}", fix="virtha server init, or restore a backup")
    with (
        translated(),
        closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection,
    ):
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {str(row[0]) for row in found}
        if not {"alembic_version", "installation"} <= tables:
            raise NotFound(f"{path} was never set up", fix="virtha server init")
        schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        check_known(schema[0] if schema else None)
        row = connection.execute("SELECT id, revision FROM installation").fetchone()
        if row is None:
            raise NotFound(f"{path} holds no installation", fix="virtha server init")
        last = connection.execute("SELECT max(at) FROM event").fetchone()[0]
        if deep:
            _quick_check(connection, path)
    return DatabaseFacts(
        schema=schema[0],
        installation_id=row[0],
        revision=row[1],
        last_event=None if last is None else UtcMillis(last),
    )


def _quick_check(connection: sqlite3.Connection, path: Path) -> None:
    (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise Failed(f"{path} is damaged: {answer}", fix="stop the server and restore a backup")


def check_installation(paths: ServerPaths, clock: Clock) -> list[Check]:
    """One entry per part; later parts are left out where an earlier one makes them pointless."""
    found: list[Check] = []

    def attempt(name: str, work: Callable[[], str | Check]) -> bool:
        try:
            answer = work()
        except VirthaError as error:
            detail = f"{error.field}: {error.message}" if error.field else error.message
            fix = error.fix or (
                f"write one of: {', '.join(error.allowed)}" if error.allowed else ""
            )
            found.append(Check(name=name, state=CheckState.FAILED, detail=detail, fix=fix))
            return False
        if isinstance(answer, str):
            answer = Check(name=name, state=CheckState.OK, detail=answer)
        found.append(answer)
        return True

    config: list[ServerConfig] = []

    def read() -> str:
        config.append(read_config(paths))
        return str(paths.config)

    if not attempt("config", read):
        return found
    authority: list[LocalAuthority] = []

    def open_authority() -> str | Check:
        authority.append(load_authority(paths, clock))
        return (
            _check_key_rights(paths.authority_key)
            or _check_owner("authority", paths.authority_key, paths)
            or authority[0].fingerprint()
        )

    if attempt("authority", open_authority):
        attempt("certificate", lambda: _check_certificate(paths, config[0], authority[0], clock))
        if attempt("database", lambda: _check_database(paths, config[0], authority[0])):
            attempt("clock", lambda: _check_clock(paths, config[0], clock))
    attempt("secrets", lambda: _check_secrets_key(paths))
    attempt("journals", lambda: _check_journals(paths))
    if has_systemd(paths.root):
        attempt("units", lambda: _check_units(paths))
    running = paths.lock.exists() and is_locked(paths.lock)
    attempt("server", lambda: "runs" if running else "is stopped")
    if not running:
        attempt("listen", lambda: _check_port(config[0].listen, "listen"))
        attempt("gateway", lambda: _check_port(config[0].gateway_listen, "gateway_listen"))
    return found


def _check_key_rights(key: Path) -> Check | None:
    mode = key.stat().st_mode & 0o777
    if not mode & PRIVATE_BITS:
        return None
    return Check(
        name="authority",
        state=CheckState.WARNING,
        detail=f"{key} can be read by others (mode {mode:o}): they could pose as any host",
        fix=f"chmod 600 {key}",
    )


def _check_secrets_key(paths: ServerPaths) -> str | Check:
    path = paths.secrets_key
    try:
        read_key(path)
    except FileNotFoundError:
        return Check(
            name="secrets",
            state=CheckState.WARNING,
            detail=f"there is no {path}: receivers' secrets can't be read",
            fix="restore it from a backup; where no receiver has secrets yet, the next start makes it",
        )
    except OSError as error:
        raise Failed(
            f"can't read {path}: {error.strerror or error}", fix="check its rights"
        ) from None
    if path.stat().st_mode & PRIVATE_BITS:
        return Check(
            name="secrets",
            state=CheckState.WARNING,
            detail=f"{path} can be read by others: with the database they have the receivers' secrets",
            fix=f"chmod 600 {path}",
        )
    return _check_owner("secrets", path, paths) or str(path)


def _check_owner(name: str, path: Path, paths: ServerPaths) -> Check | None:
    """The service is root without root's powers: what another user keeps to himself it can't use, whatever
    root sees in a shell."""
    there, ours = path.stat(), paths.state.stat()
    if there.st_uid == ours.st_uid:
        return None
    return Check(
        name=name,
        state=CheckState.WARNING,
        detail=f"{path} belongs to user {there.st_uid}: the service can't use it",
        fix=f"chown {ours.st_uid}:{ours.st_gid} {path}",
    )


def _check_journals(paths: ServerPaths) -> str | Check:
    """What the engine decides is written there; the server runs without it, but `virtha replay` has nothing."""
    path = paths.journals
    if not path.exists():
        return f"{path} is made when the server starts"
    if not path.is_dir():
        return Check(
            name="journals",
            state=CheckState.WARNING,
            detail=f"{path} is no directory: what the engine decides can't be written down",
            fix=f"move {path} away",
        )
    return _check_owner("journals", path, paths) or str(path)


def _check_certificate(
    paths: ServerPaths, config: ServerConfig, authority: LocalAuthority, clock: Clock
) -> str | Check:
    names = certificate_names(config.names)
    if paths.server_certificate.is_file():
        certificate = paths.server_certificate.read_text(errors="replace")
        if server_certificate_fits(certificate, names, now=clock.wall_ms()):
            if paths.server_key.is_file():
                key = paths.server_key.read_text(errors="replace")
                check_pair(paths, authority, certificate, key)
            return ", ".join(names)
    return Check(
        name="certificate",
        state=CheckState.WARNING,
        detail="missing, about to end, or of other names than server.toml's",
        fix="it is made anew at the next start, or now by: virtha server renew-certificate",
    )


def _check_database(paths: ServerPaths, config: ServerConfig, authority: LocalAuthority) -> str:
    path = database_path(paths, config)
    facts = inspect_database(path, deep=True)
    if facts.installation_id != authority.installation_id:
        raise Failed(
            f"the database is of installation {facts.installation_id}, the authority of "
            f"{authority.installation_id}",
            fix="restore both from the same backup",
        )
    return f"{path}, revision {facts.revision}"


def _check_clock(paths: ServerPaths, config: ServerConfig, clock: Clock) -> str | Check:
    """Times of tokens, certificates and history are this clock's; what it has said before is in the database."""
    now = clock.wall_ms()
    last = inspect_database(database_path(paths, config), deep=False).last_event
    if last is None or now >= last - CLOCK_SLACK_MS:
        return format_utc(now)
    return Check(
        name="clock",
        state=CheckState.WARNING,
        detail=f"it says {format_utc(now)}, but the last event on record was at {format_utc(last)}",
        fix="set this machine's clock (timedatectl; chrony or systemd-timesyncd keep it right)",
    )


def _check_units(paths: ServerPaths) -> str | Check:
    wrong = units_wrong(SERVER_UNITS, paths.root)
    if not wrong:
        return "as this version has them"
    return Check(
        name="units",
        state=CheckState.WARNING,
        detail="; ".join(wrong),
        fix="run: virtha server install-units",
    )


def _check_port(address: str, field: str) -> str:
    sock: socket.socket = bind_tcp(address, field=field)
    sock.close()
    return f"{address} is free"
