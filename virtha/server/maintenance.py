"""`virtha server backup` and `restore`: the files, and the entries in the audit log."""

import shutil
import tempfile
import uuid
from pathlib import Path

import structlog

from virtha.control.history import record
from virtha.model.errors import VirthaError
from virtha.ports.clock import Clock
from virtha.server.backup import DATABASE, Manifest, back_up, check_free, put_in_place, unpack
from virtha.server.checks import database_path, inspect_database
from virtha.server.config import ServerPaths, read_config
from virtha.server.files import make_directories, only_server, write_failed
from virtha.store import open_store
from virtha.store.installations import set_timeline
from virtha.store.migrate import head_revision

log = structlog.get_logger("virtha.server")


async def back_up_installation(paths: ServerPaths, target: Path, clock: Clock) -> Manifest:
    """A running server goes on meanwhile; SQLite's online backup gives one moment of it."""
    config = read_config(paths)
    database = database_path(paths, config)
    facts = inspect_database(database, deep=False)
    manifest = back_up(
        paths,
        database,
        target,
        installation_id=facts.installation_id,
        schema=facts.schema,
        now=clock.wall_ms(),
    )
    if facts.schema == head_revision():  # else opening it would migrate it under a running server
        try:
            await _record(database, "server.backup.made", str(target), clock)
        except VirthaError as error:
            # The backup is whole; only its entry is missing, and the operator is told so.
            log.warning("backup made, but it can't be recorded", error=str(error))
    return manifest


async def restore_installation(
    paths: ServerPaths, source: Path, *, force: bool, clock: Clock
) -> Manifest:
    """Raises Conflict when a server runs, or when there is an installation and no ``force``."""
    check_free(paths, force=force)
    make_directories(paths)
    with only_server(paths):
        staging = Path(tempfile.mkdtemp(dir=paths.state.parent, prefix="restore-"))
        try:
            manifest = unpack(source, staging)
            database = staging / DATABASE
            await _record(database, "server.restored", str(source), clock, new_timeline=True)
            put_in_place(paths, staging, now=clock.wall_ms())
        except OSError as error:
            raise write_failed(paths.state, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest


async def _record(
    database: Path, code: str, path: str, clock: Clock, *, new_timeline: bool = False
) -> None:
    """``new_timeline``: what this database says may be older than what hosts have seen since (M2)."""
    store = await open_store(f"sqlite:///{database}", clock=clock)
    try:
        async with store.write() as tx:
            if new_timeline:
                await set_timeline(tx, str(uuid.uuid4()))
            await record(tx, code, path=path)
    finally:
        await store.close()
