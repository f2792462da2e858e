"""No space left where the server keeps, backs up and restores its state: said so, and nothing is lost."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from virtha.drivers.machine_clock import MachineClock
from virtha.model.errors import Unavailable, VirthaError
from virtha.server import backup as backup_module
from virtha.server.config import ServerPaths
from virtha.server.files import write_whole
from virtha.server.maintenance import back_up_installation, restore_installation
from virtha.server.setup import InitAnswers, set_up

pytestmark = pytest.mark.bad_input("full disk")
CLOCK = MachineClock()


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def database_full(*_: object, **__: object) -> None:
    """As SQLite says it, in the middle of copying a database to a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def picture(root: Path) -> dict[str, bytes]:
    """All files with their content, but SQLite's own about who reads, and the lock."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock"))
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> ServerPaths:
    paths = ServerPaths(tmp_path_factory.mktemp("root"))
    wanted = InitAnswers(password="correct horse", listen="127.0.0.1:0", names=("localhost",))
    asyncio.run(set_up(paths, wanted, CLOCK))
    return paths


def test_half_a_file_does_not_keep_the_room_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    write_whole(path, b"old", mode=0o600)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(Unavailable):
        write_whole(path, b"new", mode=0o600)
    assert picture(tmp_path) == {"key": b"old"}


@pytest.mark.parametrize(
    ("where", "full"),
    [
        ("copy_database", database_full),
        ("copy_database", no_space),
        ("_write_tar", no_space),
        ("sync_directory", no_space),
    ],
)
def test_a_backup_that_finds_no_space_is_none(
    installed: ServerPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    full: Callable[..., None],
) -> None:
    before, target = picture(installed.root), tmp_path / "backup.tar.gz"
    with monkeypatch.context() as patched:
        patched.setattr(backup_module, where, full)
        with pytest.raises(Unavailable) as told:
            asyncio.run(back_up_installation(installed, target, CLOCK))
    assert told.value.code == "problem.disk.full"
    assert "free space" in told.value.fix
    assert picture(installed.root) == before
    if where != "sync_directory":
        assert picture(tmp_path) == {}
        asyncio.run(back_up_installation(installed, target, CLOCK))


@pytest.mark.parametrize("where", ["shutil.copyfileobj", "virtha.server.maintenance.open_store"])
def test_a_restore_that_finds_no_space_blames_the_disk_and_keeps_the_present(
    installed: ServerPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    target = tmp_path / "backup.tar.gz"
    asyncio.run(back_up_installation(installed, target, CLOCK))
    before = picture(installed.root)
    full: Any = no_space
    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        with pytest.raises(VirthaError) as told:
            asyncio.run(restore_installation(installed, target, force=True, clock=CLOCK))
    assert told.value.code == "problem.disk.full", str(told.value)
    assert "backup" not in told.value.fix, "the backup is good"
    assert picture(installed.root) == before
    asyncio.run(restore_installation(installed, target, force=True, clock=CLOCK))
