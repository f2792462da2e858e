"""The database: one writer, many readers, one revision counter.

    async with store.read() as tx:  ...     # one snapshot
    async with store.write() as tx: ...     # all or nothing; readers of ``changes`` wake afterwards

Queries are functions over a transaction, one module per kind of record (``store/vms.py`` …).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import make_url, select, update
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from virtha.model.errors import InvalidInput, NotFound, Unavailable
from virtha.model.ids import Revision
from virtha.ports.clock import Clock
from virtha.store import schema
from virtha.store.changes import Changes
from virtha.store.errors import locked, translated
from virtha.store.migrate import migrate

BUSY_TIMEOUT_MS = 1_000
"""Of another process's lock. Ours never collide: there is one writer."""
WRITER_WAIT_S = 10.0
"""Of our own transactions before this one; each takes milliseconds."""
READERS_MAX = 4
READER_PRAGMAS = ("cache_size = -32768",)
"""KiB of the database, at most, that each keeps in memory. SQLite's own 2 MiB hold a tenth of 20,000 VMs: a search that looks through
them took 66 ms, and takes 33."""
_PRAGMAS = (
    f"busy_timeout = {BUSY_TIMEOUT_MS}",
    "journal_mode = WAL",
    # In WAL, NORMAL may lose the last commits at a power cut: an intent must outlive one.
    "synchronous = FULL",
    "foreign_keys = ON",
)


_with_each_write: ContextVar["Companion | None"] = ContextVar("with_each_write", default=None)


class Companion(Protocol):
    """Of all writes of one task that change something."""

    async def accompany(self, tx: "WriteTransaction") -> None:
        """Right before the commit, in the same transaction. What it raises undoes that."""
        ...

    def committed(self) -> None:
        """What was accompanied is in the database; nothing else was written in between."""
        ...


@contextmanager
def with_each_write(companion: Companion) -> Iterator[None]:
    """Of this task, and of those that it starts."""
    token = _with_each_write.set(companion)
    try:
        yield
    finally:
        _with_each_write.reset(token)


class Transaction:
    """A snapshot to read from."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def revision_now(self) -> Revision:
        """Where the installation is, as this transaction sees it."""
        found = await self.connection.scalar(select(schema.installation.c.revision))
        if found is None:
            raise NotFound("the installation was not set up", fix="run 'virtha server init'")
        return Revision(found)


class WriteTransaction(Transaction):
    """Writes of one transaction; its rows share ``revision``, each event has its own above."""

    def __init__(self, connection: AsyncConnection, base: Revision, clock: Clock) -> None:
        super().__init__(connection)
        self.clock = clock
        self._base = base
        self._last = base
        self._own: Revision | None = None

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[None]:
        """What is written within it is undone alone when it fails. Raises Unavailable where the database has undone all of the
        transaction with it, as SQLite may when it has no room: what follows would be written piece by piece."""
        try:
            with translated():
                async with self.connection.begin_nested():
                    yield
        except Exception as error:  # raised again, whatever it is
            raw = await self.connection.get_raw_connection()
            driver = raw.driver_connection
            if driver is None or not driver.in_transaction:
                raise Unavailable("the database has undone the whole transaction") from error
            raise

    @property
    def revision(self) -> Revision:
        """The revision of all rows that this transaction touches."""
        if self._own is None:
            self._own = self.next_revision()
        return self._own

    def next_revision(self) -> Revision:
        self._last = Revision(self._last + 1)
        return self._last

    @property
    def moved_to(self) -> Revision | None:
        """The counter's new value; None: nothing was touched."""
        return self._last if self._last > self._base else None


class Store:
    """Open with ``open_store``."""

    def __init__(self, url: URL, clock: Clock) -> None:
        self.url = url
        self.clock = clock
        self.changes = Changes(Revision(0))
        self._turn = asyncio.Lock()
        self._writer = _make_engine(url, begin="BEGIN IMMEDIATE", size=1)
        self._reader = _make_engine(url, begin="BEGIN", size=READERS_MAX, more=READER_PRAGMAS)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        assert self.url.database is not None
        return Path(self.url.database)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        with translated():
            async with self._reader.connect() as connection, connection.begin():
                yield Transaction(connection)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[WriteTransaction]:
        """All or nothing. Raises Unavailable (`problem.database.locked`, `problem.disk.full`)."""
        try:
            async with asyncio.timeout(WRITER_WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise locked("by this server's own transactions") from None
        try:
            companion = None
            with translated():
                async with self._writer.connect() as connection, connection.begin():
                    tx = WriteTransaction(connection, await _counter(connection), self.clock)
                    yield tx
                    if tx.moved_to is not None:
                        companion = _with_each_write.get()
                        if companion is not None:
                            await companion.accompany(tx)
                        await connection.execute(
                            update(schema.installation).values(revision=tx.moved_to)
                        )
            if companion is not None:
                companion.committed()
        finally:
            self._turn.release()
        if tx.moved_to is not None:
            self.changes.announce(tx.moved_to)

    async def is_initialised(self) -> bool:
        async with self.read() as tx:
            return await tx.connection.scalar(select(schema.installation.c.id)) is not None

    async def close(self) -> None:
        await self._writer.dispose()
        await self._reader.dispose()


async def _counter(connection: AsyncConnection) -> Revision:
    return Revision(await connection.scalar(select(schema.installation.c.revision)) or 0)


async def open_store(url: str, *, clock: Clock) -> Store:
    """Open, migrate and check the database; make it when it is not there.

    ``url``: `sqlite:///path` (a bare path is taken as one). Raises InvalidInput (field ``database``),
    Refused (`problem.schema.newer`), Unavailable.
    """
    parsed = parse_database_url(url)
    assert parsed.database is not None
    path = Path(parsed.database)
    with translated():
        await asyncio.to_thread(migrate, path)
    store = Store(parsed, clock)
    try:
        async with store.read() as tx:
            now = await _counter(tx.connection)
    except BaseException:
        await store.close()
        raise
    if now > 0:
        store.changes.announce(now)
    return store


def parse_database_url(url: str) -> URL:
    """Raises InvalidInput (field ``database``)."""
    made = make_url(url if "://" in url else f"sqlite:///{url}")
    if made.get_backend_name() != "sqlite" or not made.database or made.database == ":memory:":
        raise InvalidInput(
            f"'{url}' is no database that this version can use",
            field="database",
            allowed=("sqlite:///PATH",),
            fix="write for example sqlite:////var/lib/virtha/server/virtha.db",
        )
    return made.set(drivername="sqlite+aiosqlite")


def _make_engine(url: URL, *, begin: str, size: int, more: tuple[str, ...] = ()) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=WRITER_WAIT_S,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1_000},
    )
    # sqlite3's own transaction handling begins late, and deferred: a writer would take its lock only
    # at the first write, after it has read what it decides on. We say BEGIN ourselves.
    sqlalchemy_event.listen(engine.sync_engine, "connect", _configurer((*_PRAGMAS, *more)))
    sqlalchemy_event.listen(engine.sync_engine, "begin", _beginner(begin))
    return engine


def _configurer(pragmas: tuple[str, ...]) -> Callable[[Any, object], None]:
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return configure


def _beginner(statement: str) -> Callable[[Any], None]:
    def begin(connection: Any) -> None:
        connection.exec_driver_sql(statement)

    return begin
