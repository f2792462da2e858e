"""Database errors into ours. Only what a user can do something about gets a code of its own."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from virtha.model.errors import Failed, Unavailable, VirthaError

_PRIMARY_CODE_MASK = 0xFF
"""SQLite's extended result codes carry the primary one in the low byte (sqlite.org/rescode.html)."""


def locked(detail: str) -> Unavailable:
    return Unavailable(
        f"the database is locked by another program ({detail}); nothing was changed",
        code="problem.database.locked",
        fix="end the program that holds it (a backup tool, sqlite3, a second server), then try again",
    )


def _translate(code: int, text: str) -> VirthaError:
    # The index of its log could not grow by a page, which a full disk does not let it: said as an I/O error.
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        code = sqlite3.SQLITE_FULL
    match code & _PRIMARY_CODE_MASK:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return locked(text)
        case sqlite3.SQLITE_FULL:
            return Unavailable(
                "no space left for the database; nothing was changed",
                code="problem.disk.full",
                fix="free space on the server's disk, then try again",
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY:
            return Unavailable(
                f"the database can't be read or written: {text}",
                fix="look at the server's disk and the rights of its database file",
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Failed(
                f"the database is damaged: {text}", fix="stop the server and restore a backup"
            )
    return Failed(f"the database failed: {text}")


def translate(error: BaseException) -> VirthaError | None:
    """What a user should be told; None: a mistake of ours, that must surface as it is."""
    if isinstance(error, PoolTimeout):
        return Unavailable("too many requests wait for the database", fix="try again")
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, sqlite3.OperationalError | sqlite3.DatabaseError) and not isinstance(
        original, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError
    ):
        code = getattr(original, "sqlite_errorcode", None)
        if code is None or code & _PRIMARY_CODE_MASK == sqlite3.SQLITE_ERROR:
            return None  # wrong SQL is our bug, not the disk's
        return _translate(code, str(original))
    if isinstance(error, OperationalError):
        return Unavailable(f"the database can't be reached: {original}")
    return None


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error, PoolTimeout) as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error
