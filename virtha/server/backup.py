"""Backup and restore of a whole installation: database, authority with its key, configuration, key of secrets.

The backup is a tar file with a manifest of checksums. It holds the authority's private key: whoever
has it can pose as a server or a host, and read the receivers' passwords, so it is written with rights 0600.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO

import msgspec

from virtha import __version__
from virtha.model.errors import Conflict, Failed, InvalidInput, NotFound, Refused
from virtha.model.time import UtcMillis, format_utc
from virtha.model.value import Value
from virtha.server.config import ServerPaths, parse_config
from virtha.server.files import sync_directory, write_failed
from virtha.store.errors import translated
from virtha.store.migrate import check_known, copy_database
from virtha.store.store import parse_database_url

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "virtha.db"
CONFIG = "server.toml"
AUTHORITY_FILES = ("authority.crt", "authority.key", "server.crt", "server.key")
MEMBERS = (DATABASE, CONFIG, *(f"authority/{name}" for name in AUTHORITY_FILES))
SECRETS_KEY = "secrets.key"
"""Not in backups of before there were secrets."""
MANIFEST_BYTES_MAX = 1 << 16


class Manifest(Value, frozen=True, kw_only=True):
    """``files``: SHA-256 by member name. ``schema``: the database's migration."""

    format: int
    program_version: str
    installation_id: str
    schema: str
    made: UtcMillis
    files: dict[str, str]


def back_up(
    paths: ServerPaths,
    database: Path,
    target: Path,
    *,
    installation_id: str,
    schema: str,
    now: UtcMillis,
) -> Manifest:
    """Write ``target``; a running server goes on meanwhile. Raises Conflict when it is there already."""
    if target.exists():
        raise Conflict(f"{target} is there already", field="FILE", fix="name a new file")
    partial = target.with_name(target.name + ".partial")
    try:
        with tempfile.TemporaryDirectory(dir=paths.state, prefix="backup-") as scratch:
            copy = Path(scratch) / DATABASE
            with translated():
                copy_database(database, copy)
            sources = _sources(paths, copy)
            manifest = Manifest(
                format=FORMAT,
                program_version=__version__,
                installation_id=installation_id,
                schema=schema,
                made=now,
                files={name: _sha256(path) for name, path in sources.items()},
            )
            _write_tar(partial, manifest, sources)
        partial.replace(target)
        sync_directory(target.resolve().parent)
    except OSError as error:
        raise write_failed(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, it can't be unlinked
            partial.unlink(missing_ok=True)
    return manifest


def _sources(paths: ServerPaths, database: Path) -> dict[str, Path]:
    sources = {DATABASE: database, CONFIG: paths.config}
    sources |= {f"authority/{name}": paths.authority / name for name in AUTHORITY_FILES}
    if paths.secrets_key.is_file():
        sources[SECRETS_KEY] = paths.secrets_key
    missing = [str(path) for path in sources.values() if not path.is_file()]
    if missing:
        raise Failed(f"can't back up: {', '.join(missing)} missing", fix="virtha server check")
    return sources


def _write_tar(path: Path, manifest: Manifest, sources: dict[str, Path]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) as tar:
            raw = msgspec.json.format(msgspec.json.encode(manifest))
            entry = tarfile.TarInfo(MANIFEST)
            entry.size, entry.mode = len(raw), 0o600
            tar.addfile(entry, io.BytesIO(raw))
            for name, source in sources.items():
                tar.add(source, arcname=name, recursive=False)
        file.flush()
        os.fsync(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(source: Path, into: Path) -> Manifest:
    """Into an empty directory, by our own list of names, each checked against the manifest.

    Raises InvalidInput when the file is no backup or is damaged, Refused when it is of a newer version.
    """
    try:
        with tarfile.open(source, "r:gz") as tar:
            manifest = _read_manifest(tar)
            for name in (*MEMBERS, *((SECRETS_KEY,) if SECRETS_KEY in manifest.files else ())):
                _unpack_one(tar, name, manifest, into)
    except FileNotFoundError:
        raise NotFound(f"there is no {source}", field="FILE") from None
    except (tarfile.TarError, EOFError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise write_failed(into, error) from error  # nothing is wrong with the backup
        raise InvalidInput(
            f"{source} is no complete backup: {error}", field="FILE", fix="use another backup"
        ) from None
    check_known(manifest.schema)
    return manifest


def _read_manifest(tar: tarfile.TarFile) -> Manifest:
    raw = _member(tar, MANIFEST).read(MANIFEST_BYTES_MAX)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise tarfile.TarError(f"its manifest can't be read ({error})") from None
    if manifest.format != FORMAT:
        raise Refused(
            f"the backup has format {manifest.format}, this version reads {FORMAT}",
            fix=f"use virtha {manifest.program_version}",
        )
    return manifest


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    found = tar.extractfile(tar.getmember(name))
    if found is None:
        raise tarfile.TarError(f"{name} is no file")
    return found


def _unpack_one(tar: tarfile.TarFile, name: str, manifest: Manifest, into: Path) -> None:
    target = into / name
    target.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(_member(tar, name), file)
        file.flush()
        os.fsync(descriptor)
    if _sha256(target) != manifest.files.get(name):
        raise tarfile.TarError(f"{name} is damaged")


def check_free(paths: ServerPaths, *, force: bool) -> None:
    """Raises Conflict without ``force`` if there is an installation."""
    if (paths.config.exists() or paths.database.exists()) and not force:
        raise Conflict(
            f"there is an installation in {paths.state}",
            fix="add --force: the present one is moved aside, not deleted",
        )


def _stamp(now: UtcMillis) -> str:
    return format_utc(now).replace(":", "").replace("-", "").replace(".", "")


def put_in_place(paths: ServerPaths, staging: Path, *, now: UtcMillis) -> None:
    """What was there is moved aside, never deleted; the caller holds the server's lock.

    The state's rename comes last but one: until then the old installation is whole."""
    suffix = f".before-restore-{_stamp(now)}"
    new_config = paths.config.with_name(paths.config.name + ".partial")
    shutil.copyfile(staging / CONFIG, new_config)
    new_config.chmod(0o644)
    (staging / CONFIG).unlink()
    elsewhere = _database_elsewhere(paths, new_config)
    if elsewhere is not None:
        _move_database(staging / DATABASE, elsewhere, suffix)
    if paths.config.exists():
        shutil.copy2(paths.config, paths.config.with_name(paths.config.name + suffix))
    paths.state.rename(paths.state.with_name(paths.state.name + suffix))
    staging.rename(paths.state)
    new_config.replace(paths.config)
    sync_directory(paths.state.parent)
    sync_directory(paths.config.parent)


def _database_elsewhere(paths: ServerPaths, config: Path) -> Path | None:
    """Where the restored configuration wants the database, if not in the state directory."""
    url = paths.database_url(parse_config(config.read_text(), where=CONFIG))
    wanted = Path(parse_database_url(url).database or "")
    return None if wanted == paths.database else wanted


def _move_database(source: Path, target: Path, suffix: str) -> None:
    for part in ("", "-wal", "-shm"):
        # An old WAL beside the restored database would be replayed into it.
        old = target.with_name(target.name + part)
        if old.exists():
            old.rename(old.with_name(old.name + suffix))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)
    sync_directory(target.parent)
