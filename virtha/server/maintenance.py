"""`virtha server backup` and `restore`: the files, and the entries in the audit log."""

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from virtha.control.installation import InstallationFacts
from virtha.model.errors import VirthaError
from virtha.ports.clock import Clock
from virtha.server.backup import DATABASE, Manifest, back_up, check_free, put_in_place, unpack
from virtha.server.checks import database_path, inspect_database
from virtha.server.config import ServerPaths, read_config
from virtha.server.files import make_directories, only_server, write_failed
from virtha.store import open_store
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
            async with _opened(database, clock) as installation:
                await installation.backed_up(path=str(target), by="root")
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
            async with _opened(staging / DATABASE, clock) as installation:
                # Before it is in place: no server must ever run on it under the old timeline.
                await installation.restored(path=str(source), by="root")
            put_in_place(paths, staging, now=clock.wall_ms())
        except OSError as error:
            raise write_failed(paths.state, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest


@contextlib.asynccontextmanager
async def _opened(database: Path, clock: Clock) -> AsyncIterator[InstallationFacts]:
    store = await open_store(f"sqlite:///{database}", clock=clock)
    try:
        yield InstallationFacts(store)
    finally:
        await store.close()
