"""Brings a SQLite database to this program's schema: forward only, with a backup of its own first."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, inspect
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from virtha.model.errors import Refused

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_WAIT_S = 1.0


def head_revision(migrations: Path = MIGRATIONS) -> str:
    """The schema that this program works with."""
    head = ScriptDirectory(str(migrations)).get_current_head()
    assert head is not None, "there is no migration"
    return head


def known_revisions(migrations: Path = MIGRATIONS) -> frozenset[str]:
    scripts = ScriptDirectory(str(migrations)).walk_revisions()
    return frozenset(script.revision for script in scripts)


def check_known(current: str | None, *, migrations: Path = MIGRATIONS) -> None:
    """Raises Refused: an older program must not touch what a newer one has written."""
    if current is None or current in known_revisions(migrations):
        return
    raise Refused(
        f"the database has schema {current}, which this version does not know",
        code="problem.schema.newer",
        allowed=(head_revision(migrations),),
        fix="run the version that wrote it, or a newer one; or restore an older backup",
    )


def migrate(database: Path, *, migrations: Path = MIGRATIONS) -> Path | None:
    """Make or upgrade ``database``. Returns the backup's path, if one was made.

    The backup is `<database>.before-<from>-<to>`. Each migration is one transaction: when it fails,
    the database is as it was. Raises Refused (`problem.schema.newer`).
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    if not database.exists():
        # Before SQLite makes it with the umask's rights: it holds password hashes.
        os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
    head = head_revision(migrations)
    engine = create_engine(
        URL.create("sqlite", database=str(database)),
        poolclass=NullPool,
        connect_args={"timeout": _LOCK_WAIT_S, "isolation_level": None},
    )
    # Transactional DDL: sqlite3 would commit before each CREATE TABLE by itself.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.connect() as connection:
        with connection.begin():
            current = MigrationContext.configure(connection).get_current_revision()
            check_known(current, migrations=migrations)
            _check_ours(connection, current)
        if current == head:
            return None
        backup = _back_up(database, current, head) if current is not None else None
        config = Config()
        config.set_main_option("script_location", str(migrations).replace("%", "%%"))
        config.attributes["connection"] = connection
        with connection.begin():
            command.upgrade(config, "head")
        return backup


def _check_ours(connection: Connection, current: str | None) -> None:
    if current is None and (tables := inspect(connection).get_table_names()):
        raise Refused(
            f"the database holds tables that are not virtha's ({', '.join(sorted(tables)[:3])} …)",
            fix="name another file in server.toml (database)",
        )


def _back_up(database: Path, current: str, head: str) -> Path:
    """A copy through SQLite itself: one of the file alone would miss what is in the WAL."""
    target = database.with_name(f"{database.name}.before-{current}-{head}")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    copy_database(database, partial)
    partial.replace(target)
    return target


def copy_database(source: Path, target: Path) -> None:
    """SQLite's online backup: a consistent copy, while others write. ``target`` gets rights 0600."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with (
        closing(
            sqlite3.connect(f"file:{_quoted(source)}?mode=ro", uri=True, timeout=_LOCK_WAIT_S)
        ) as reader,
        closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer)
        # Without a WAL file beside it, the copy is one file that can be moved.
        writer.execute("PRAGMA journal_mode = DELETE")
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _quoted(path: Path) -> str:
    return str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
