"""Files written whole, one server per state, sd_notify."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from virtha.drivers.service_notify import notify
from virtha.model.errors import Conflict, Failed, Unavailable
from virtha.server.config import ServerPaths
from virtha.server.files import (
    is_locked,
    make_directories,
    only_server,
    write_failed,
    write_whole,
)
from virtha.server.listeners import bind_unix


def test_written_whole_with_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        write_whole(path, b"one", mode=0o600)
        write_whole(path, b"two", mode=0o600)
    finally:
        os.umask(old)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


@pytest.mark.bad_input("full disk")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_whole(path, b"old", mode=0o600)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable) as caught:
        write_whole(path, b"new", mode=0o600)
    assert caught.value.code == "problem.disk.full"
    assert path.read_bytes() == b"old"


@pytest.mark.bad_input("full disk")
def test_a_lock_that_finds_no_space_names_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file is made on a full disk; a byte in it is not."""
    paths = ServerPaths(tmp_path)
    make_directories(paths)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Unavailable) as caught, only_server(paths):
        raise AssertionError("it runs without its lock")
    assert caught.value.code == "problem.disk.full"
    assert "server.lock" in caught.value.message
    assert not is_locked(paths.lock)


@pytest.mark.bad_input("program as another user")
@pytest.mark.parametrize(
    ("number", "uid", "fix"),
    [
        (errno.EACCES, 1_000, "run it as root"),
        (errno.EACCES, 0, "look at the rights of "),
        (errno.EROFS, 0, "read-only"),
    ],
)
def test_what_may_not_be_written_names_the_way_out(
    number: int, uid: int, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    path = tmp_path / "virtha.db"
    told = write_failed(path, PermissionError(number, os.strerror(number)))
    assert isinstance(told, Failed)
    assert str(path) in told.message
    assert fix in told.fix


def test_a_missing_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Failed) as caught:
        write_whole(tmp_path / "no" / "key", b"x", mode=0o600)
    assert "no/key" in caught.value.message


def test_one_server_per_state(tmp_path: Path) -> None:
    paths = ServerPaths(tmp_path)
    make_directories(paths)
    with only_server(paths):
        assert is_locked(paths.lock)
        with pytest.raises(Conflict) as caught, only_server(paths):
            raise AssertionError("two servers on one state")
        assert str(os.getpid()) in caught.value.message
    assert not is_locked(paths.lock)
    with only_server(paths):
        assert paths.lock.read_text() == f"{os.getpid()}\n"


def test_notify_to_a_path_an_abstract_name_and_nobody(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    for address in (str(tmp_path / "n"), f"@virtha-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(address.replace("@", "\0", 1))
            server.settimeout(60)
            assert notify("READY=1", {"NOTIFY_SOCKET": address})
            assert server.recv(100) == b"READY=1"


def test_a_dead_servers_socket_is_taken_over_but_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "server.sock"
    bind_unix(path).close()
    assert path.is_socket()
    bind_unix(path).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(Failed):
        bind_unix(path)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Failed) as caught:
        bind_unix(tmp_path / ("x" * 120) / "server.sock")
    assert caught.value.field == "socket"
