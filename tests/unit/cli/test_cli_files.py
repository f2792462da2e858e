"""Commands that find no room, or no right, for their own files: a sentence, no traceback, nothing changed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fake_api import Ran

from virtha.agent import join as join_module
from virtha.agent import properties as properties_module
from virtha.cli.file_errors import error_from_file
from virtha.model.errors import Failed, Unavailable

Run = Callable[..., Ran]


@pytest.mark.parametrize(
    ("number", "kind", "exit_code"),
    [
        (errno.ENOSPC, Unavailable, 5),
        (errno.EDQUOT, Unavailable, 5),
        (errno.EROFS, Failed, 1),
        (errno.EACCES, Failed, 1),
    ],
)
def test_what_is_said_of_a_file(number: int, kind: type[Exception], exit_code: int) -> None:
    error = error_from_file(OSError(number, os.strerror(number), "/var/x"))
    assert isinstance(error, kind)
    assert error.exit_code == exit_code
    assert "/var/x" in error.message and error.fix


def test_other_errors_are_ours_and_keep_their_traceback() -> None:
    assert error_from_file(OSError(errno.EBADF, "bad file descriptor")) is None


@pytest.mark.req("A7")
@pytest.mark.bad_input("full disk")
def test_a_property_that_finds_no_space_is_not_set(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "etc" / "virtha" / "agent.properties"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"# mine\r\nworkers=2")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(properties_module.os, "fsync", full)
    ran = run("agent", "properties", "set", "workers", "3", "--root", str(tmp_path))
    assert ran.code == 5
    assert "no space left to write" in ran.err and "code: problem.disk.full" in ran.err
    assert path.read_bytes() == b"# mine\r\nworkers=2"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.req("L6")
@pytest.mark.bad_input("full disk")
def test_a_host_without_room_asks_no_server_and_keeps_its_token(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTHA_LIBVIRT_HOOKS", str(tmp_path / "hooks"))
    monkeypatch.setattr(join_module, "ROOM_BYTES_MIN", 1 << 62)

    def asked(*_: object) -> str:
        raise AssertionError("the server was asked")

    monkeypatch.setattr(join_module, "_fetch_authority", asked)
    token = f"virtha-join.t1.secretsecret.{'0' * 64}"
    words = ("agent", "join", "https://127.0.0.1:1", "--token", token, "--name", "h1")
    ran = run(*words, "--root", str(tmp_path / "root"))
    assert ran.code == 5
    assert "code: problem.disk.full" in ran.err and "the token is still good" in ran.err
    assert not (tmp_path / "root").exists()
