"""The database: one writer, all or nothing, migrations with a backup, clear errors."""

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from msgspec.structs import replace
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from virtha.model.codes import Severity
from virtha.model.errors import Failed, InvalidInput, NotFound, Refused, Unavailable
from virtha.model.event import Event
from virtha.model.host import Cluster, Installation, StorageDomain
from virtha.model.ids import (
    ClusterId,
    DiskId,
    InstallationId,
    Revision,
    StorageDomainId,
    TemplateId,
    VmId,
)
from virtha.model.machine import MachineType
from virtha.model.template import Template
from virtha.model.time import Millis, UtcMillis
from virtha.model.vm import Disk, Vm
from virtha.store import Store, open_store
from virtha.store.clusters import all_clusters, save_cluster, save_storage
from virtha.store.errors import translated
from virtha.store.events import EventFilter, add_event, events_after
from virtha.store.installations import add_installation
from virtha.store.migrate import MIGRATIONS, copy_database, head_revision, migrate
from virtha.store.schema import metadata
from virtha.store.templates import find_template, save_template, templates_after
from virtha.store.vms import save_vm


class FixedClock:
    def monotonic_ms(self) -> Millis:
        return Millis(1)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(1_700_000_000_000)


Story = Callable[[Store], Awaitable[None]]


def run(database: Path, story: Story) -> None:
    async def main() -> None:
        store = await open_store(f"sqlite:///{database}", clock=FixedClock())
        try:
            if not await store.is_initialised():
                async with store.write() as tx:
                    made = Installation(id=InstallationId("i1"))
                    await add_installation(tx, made, timeline="t1")
                    _ = tx.revision
            await story(store)
        finally:
            await store.close()

    asyncio.run(main())


def cluster(name: str, description: str = "") -> Cluster:
    return Cluster(id=ClusterId(f"id-{name}"), name=name, description=description)


def event(code: str = "server.stopped") -> Event:
    return Event(code=code, severity=Severity.INFO, message="")


async def names(store: Store) -> list[str]:
    async with store.read() as tx:
        return [one.name for one in await all_clusters(tx)]


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        before = store.changes.revision
        with pytest.raises(ZeroDivisionError):
            async with store.write() as tx:
                await save_cluster(tx, cluster("a"))
                await add_event(tx, event())
                raise ZeroDivisionError
        assert await names(store) == []
        assert store.changes.revision == before
        async with store.write() as tx:
            saved = await save_cluster(tx, cluster("a"))
            first, second = await add_event(tx, event()), await add_event(tx, event())
        assert (saved.revision, first.revision, second.revision) == (
            before + 1,
            before + 2,
            before + 3,
        )
        assert store.changes.revision == second.revision

    run(tmp_path / "virtha.db", story)


def test_what_is_written_apart_is_undone_alone(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        async with store.write() as tx:
            await save_cluster(tx, cluster("a"))
            for mistake in (True, False):
                with contextlib.suppress(ZeroDivisionError):
                    async with tx.apart():
                        await save_cluster(tx, cluster(f"apart {mistake}"))
                        if mistake:
                            raise ZeroDivisionError
            with pytest.raises(IntegrityError):
                async with tx.apart():
                    await save_cluster(tx, replace(cluster("a"), id=ClusterId("other")))
            await save_cluster(tx, cluster("b"))
        assert await names(store) == ["a", "apart False", "b"]

    run(tmp_path / "virtha.db", story)


def test_a_cancelled_writer_leaves_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        inside = asyncio.Event()

        async def write_for_ever() -> None:
            async with store.write() as tx:
                await save_cluster(tx, cluster("a"))
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(write_for_ever())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with store.write() as tx:
            await save_cluster(tx, cluster("b"))
        assert await names(store) == ["b"]

    run(tmp_path / "virtha.db", story)


def test_readers_see_one_snapshot_while_a_writer_commits(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        async with store.read() as reading:
            assert await all_clusters(reading) == ()
            async with store.write() as tx:
                await save_cluster(tx, cluster("a"))
            assert await all_clusters(reading) == (), "the snapshot stays"
        assert await names(store) == ["a"]

    run(tmp_path / "virtha.db", story)


def test_commit_order_is_revision_order(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        seen: list[int] = []

        async def follow() -> None:
            at = store.changes.revision
            while len(seen) < 60:
                await store.changes.beyond(at)
                async with store.read() as tx:
                    for one in await events_after(tx, EventFilter(), at, 100):
                        seen.append(one.revision)
                        at = Revision(one.revision)

        async def write(number: int) -> None:
            async with store.write() as tx:
                for _ in range(1 + number % 3):
                    await add_event(tx, event())

        follower = asyncio.create_task(follow())
        await asyncio.gather(*(write(number) for number in range(30)))
        await asyncio.wait_for(follower, 60)
        assert seen == sorted(set(seen)) and len(seen) == 60

    run(tmp_path / "virtha.db", story)


@pytest.mark.bad_input("locked database")
def test_a_lock_of_another_process_is_a_clear_error_and_passes(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"

    async def story(store: Store) -> None:
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable) as locked:
                async with store.write() as tx:
                    await save_cluster(tx, cluster("a"))
            assert locked.value.code == "problem.database.locked"
            assert locked.value.exit_code == 5
            assert await names(store) == [], "readers go on"
            other.execute("ROLLBACK")
        async with store.write() as tx:
            await save_cluster(tx, cluster("a"))
        assert await names(store) == ["a"]

    run(database, story)


@pytest.mark.bad_input("full disk")
def test_an_index_that_can_not_grow_is_told_as_a_full_disk() -> None:
    """As SQLite says it when a database is opened on a full disk; any other I/O error is the disk's own."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    with pytest.raises(Unavailable) as caught, translated():
        raise error
    assert caught.value.code == "problem.disk.full"
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    with pytest.raises(Unavailable) as caught, translated():
        raise error
    assert caught.value.code != "problem.disk.full"


@pytest.mark.bad_input("full disk")
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        async with store.write() as tx:
            await save_cluster(tx, cluster("kept"))
            pages = await tx.connection.scalar(text("PRAGMA page_count"))
            # What the file system would say at this size, SQLite says itself: the same error code.
            await tx.connection.execute(text(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(Unavailable) as full:
            async with store.write() as tx:
                for number in range(50):
                    await save_cluster(tx, cluster(f"c{number}", "x" * 10_000))
        assert full.value.code == "problem.disk.full"
        assert await names(store) == ["kept"]
        async with store.write() as tx:
            await tx.connection.execute(text("PRAGMA max_page_count = 1000000"))
            await save_cluster(tx, cluster("later"))
        assert await names(store) == ["kept", "later"]

    run(tmp_path / "virtha.db", story)


def test_commits_are_durable_and_foreign_keys_hold(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        for transaction in (store.read, store.write):
            async with transaction() as tx:
                pragmas = {
                    name: await tx.connection.scalar(text(f"PRAGMA {name}"))
                    for name in ("journal_mode", "synchronous", "foreign_keys")
                }
                assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        with pytest.raises(IntegrityError):
            async with store.write() as tx:
                await save_vm(
                    tx, Vm(id=VmId("v"), name="v", cluster_id=ClusterId("none"), memory_bytes=1)
                )

    run(tmp_path / "virtha.db", story)


@pytest.mark.bad_input("disk of another VM")
def test_the_schema_itself_keeps_two_vms_off_one_disk(tmp_path: Path) -> None:
    def vm(name: str) -> Vm:
        disk = Disk(
            id=DiskId(f"disk-{name}"),
            name="disk0",
            storage_domain_id=StorageDomainId("s1"),
            path="same.qcow2",
            size_bytes=1,
        )
        return Vm(
            id=VmId(name), name=name, cluster_id=ClusterId("id-c"), memory_bytes=1, disks=(disk,)
        )

    async def story(store: Store) -> None:
        async with store.write() as tx:
            await save_cluster(tx, cluster("c"))
            domain = StorageDomain(
                id=StorageDomainId("s1"), name="s1", cluster_id=ClusterId("id-c"), path="/s1"
            )
            await save_storage(tx, domain)
            await save_vm(tx, vm("one"))
            await save_vm(tx, vm("one"))
        with pytest.raises(IntegrityError):
            async with store.write() as tx:
                await save_vm(tx, vm("two"))

    run(tmp_path / "virtha.db", story)


def test_before_init_reading_says_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/virtha.db", clock=FixedClock())
        try:
            async with store.read() as tx:
                with pytest.raises(NotFound) as missing:
                    await tx.revision_now()
            assert "virtha server init" in str(missing.value)
        finally:
            await store.close()

    asyncio.run(main())


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        rights = await asyncio.to_thread(
            lambda: {path.name: path.stat().st_mode & 0o077 for path in tmp_path.iterdir()}
        )
        assert rights == {"virtha.db": 0, "virtha.db-wal": 0, "virtha.db-shm": 0}

    run(tmp_path / "virtha.db", story)


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as bad:
        asyncio.run(open_store(url, clock=FixedClock()))
    assert bad.value.field == "database"


def test_migrations_make_the_schema_of_the_code(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    assert migrate(database) is None
    engine = create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def _with_a_further_migration(tmp_path: Path, body: str) -> Path:
    scripts = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, scripts)
    _add_migration(scripts, "9999", head_revision(), body)
    return scripts


def _add_migration(scripts: Path, revision: str, after: str, body: str) -> None:
    (scripts / "versions" / f"v{revision}_next.py").write_text(
        "import os, signal\nimport sqlalchemy as sa\n"
        "from alembic import op\n"
        f"revision = '{revision}'\ndown_revision = '{after}'\n"
        "branch_labels = None\ndepends_on = None\n\n"
        f"def upgrade() -> None:\n    {body}\n"
    )


def _one_cluster(database: Path) -> None:
    async def story(store: Store) -> None:
        async with store.write() as tx:
            await save_cluster(tx, cluster("a"))

    run(database, story)


def test_a_migration_makes_a_backup_first(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    _one_cluster(database)
    scripts = _with_a_further_migration(
        tmp_path, "op.add_column('cluster', sa.Column('colour', sa.Text))"
    )
    backup = migrate(database, migrations=scripts)
    assert backup == tmp_path / f"virtha.db.before-{head_revision()}-9999"
    assert backup.stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(backup)) as old, closing(sqlite3.connect(database)) as new:
        assert old.execute("SELECT name FROM cluster").fetchall() == [("a",)]
        assert new.execute("SELECT name, colour FROM cluster").fetchall() == [("a", None)]
    assert migrate(database, migrations=scripts) is None, "done is done"


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    _one_cluster(database)
    scripts = _with_a_further_migration(
        tmp_path,
        "op.add_column('cluster', sa.Column('colour', sa.Text)); raise ValueError('half way')",
    )
    with pytest.raises(ValueError, match="half way"):
        migrate(database, migrations=scripts)
    with closing(sqlite3.connect(database)) as found:
        columns = [row[1] for row in found.execute("PRAGMA table_info(cluster)")]
        assert "colour" not in columns
        assert found.execute("SELECT version_num FROM alembic_version").fetchone() == (
            head_revision(),
        )
    _one_cluster(database)  # and this program still opens it


MIGRATES = """
import sys
from pathlib import Path
from virtha.store.migrate import migrate
migrate(Path(sys.argv[1]), migrations=Path(sys.argv[2]))
"""


def test_a_kill_between_two_migrations_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    """An upgrade over two versions, killed after the first; then the same again, undisturbed."""
    database = tmp_path / "virtha.db"
    _one_cluster(database)
    scripts = _with_a_further_migration(
        tmp_path, "op.add_column('cluster', sa.Column('colour', sa.Text))"
    )
    _add_migration(scripts, "99999", "9999", "os.kill(os.getpid(), signal.SIGKILL)")
    words = [sys.executable, "-c", MIGRATES, str(database), str(scripts)]
    assert subprocess.run(words, timeout=200).returncode == -signal.SIGKILL
    with closing(sqlite3.connect(database)) as found:
        version = found.execute("SELECT version_num FROM alembic_version").fetchone()
        columns = [row[1] for row in found.execute("PRAGMA table_info(cluster)")]
    assert version == (head_revision(),) and "colour" not in columns
    _one_cluster(database)  # the version before still opens it
    _add_migration(scripts, "99999", "9999", "op.add_column('cluster', sa.Column('size', sa.Text))")
    backup = migrate(database, migrations=scripts)
    assert backup is not None and backup.exists()
    with closing(sqlite3.connect(database)) as found:
        row = found.execute("SELECT name, colour, size FROM cluster").fetchall()
    assert row == [("a", None, None)]
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.bad_input("record of a newer version")
def test_a_record_with_a_word_of_a_later_version_is_named(tmp_path: Path) -> None:
    """As after going back to an older program whose schema is the same."""
    database = tmp_path / "virtha.db"

    async def story(store: Store) -> None:
        async with store.write() as tx:
            await save_cluster(tx, cluster("c"))
            await save_template(
                tx,
                Template(
                    id=TemplateId("t"),
                    name="base",
                    cluster_id=ClusterId("id-c"),
                    source_vm="web1",
                    memory_bytes=1 << 27,
                    vcpus=1,
                    architecture="x86_64",
                    machine=MachineType.Q35,
                    created=UtcMillis(1),
                ),
            )
        with closing(sqlite3.connect(database)) as newer, newer:
            newer.execute(
                "UPDATE template SET body = replace(body, 'auto_resume', 'restart_elsewhere')"
            )
        async with store.read() as tx:
            for reading in (find_template(tx, "base"), templates_after(tx, "", 10)):
                with pytest.raises(Failed) as failed:
                    await reading
                assert failed.value.code == "problem.record.unknown"
                assert "template base" in str(failed.value)
                assert "restart_elsewhere" in str(failed.value)
                assert "on_io_error" in str(failed.value)

    run(database, story)


def test_an_older_program_refuses_a_newer_schema(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    _one_cluster(database)
    with closing(sqlite3.connect(database)) as newer, newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
    before = database.read_bytes()
    with pytest.raises(Refused) as refused:
        asyncio.run(open_store(f"sqlite:///{database}", clock=FixedClock()))
    assert refused.value.code == "problem.schema.newer" and "9999" in str(refused.value)
    assert database.read_bytes() == before


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    with closing(sqlite3.connect(database)) as other, other:
        other.execute("CREATE TABLE recipe (name TEXT)")
    with pytest.raises(Refused) as refused:
        asyncio.run(open_store(f"sqlite:///{database}", clock=FixedClock()))
    assert "recipe" in str(refused.value)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    database.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(Failed) as damaged:
        asyncio.run(open_store(f"sqlite:///{database}", clock=FixedClock()))
    assert "damaged" in str(damaged.value)


@pytest.mark.bad_input("locked database")
def test_a_locked_database_at_start_is_a_clear_error(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    _one_cluster(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable) as locked:
            asyncio.run(open_store(f"sqlite:///{database}", clock=FixedClock()))
        assert locked.value.code == "problem.database.locked"


def test_a_copy_is_whole_while_others_write(tmp_path: Path) -> None:
    database, copy = tmp_path / "virtha.db", tmp_path / "copy.db"

    async def story(store: Store) -> None:
        async with store.write() as tx:
            await save_cluster(tx, cluster("a"))
            # Not committed yet, and in the WAL: in the copy there is neither half of it.
            await asyncio.to_thread(copy_database, database, copy)
        with closing(sqlite3.connect(copy)) as found:
            assert found.execute("SELECT count(*) FROM cluster").fetchone() == (0,)
            assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        copy.unlink()
        await asyncio.to_thread(copy_database, database, copy)
        with closing(sqlite3.connect(copy)) as found:
            assert found.execute("SELECT name FROM cluster").fetchone() == ("a",)

    run(database, story)
    assert copy.stat().st_mode & 0o077 == 0
    reopened: dict[str, Any] = {}

    async def again(store: Store) -> None:
        reopened["names"] = await names(store)

    run(copy, again)
    assert reopened["names"] == ["a"]


@pytest.mark.parametrize("all_of_it", [False, True])
def test_what_is_written_apart_is_undone_alone_or_everything_is(
    tmp_path: Path, all_of_it: bool
) -> None:
    """SQLite that has no room left may undo the whole transaction, and would then write what follows piece by piece."""

    async def story(store: Store) -> None:
        async def write() -> None:
            async with store.write() as tx:
                await save_cluster(tx, Cluster(id=ClusterId("c1"), name="before"))
                with pytest.raises(Unavailable if all_of_it else RuntimeError):
                    async with tx.apart():
                        await save_cluster(tx, Cluster(id=ClusterId("c2"), name="apart"))
                        if all_of_it:
                            raw = await tx.connection.get_raw_connection()
                            assert raw.driver_connection is not None
                            await raw.driver_connection.execute("ROLLBACK")
                        raise RuntimeError("it fails")
                if all_of_it:
                    raise Unavailable("nothing else was written")
                await save_cluster(tx, Cluster(id=ClusterId("c3"), name="after"))

        if all_of_it:
            with pytest.raises(Unavailable):
                await write()
        else:
            await write()
        async with store.read() as tx:
            found = {one.name for one in await all_clusters(tx)}
        assert found == (set() if all_of_it else {"before", "after"})

    run(tmp_path / "server.db", story)
