"""Commands that find no room, or no right, for their own files: a sentence, no traceback, nothing changed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fake_api import Ran

from virtha.agent import join as join_module
from virtha.agent import properties as properties_module
from virtha.cli import simulate as simulate_module
from virtha.cli import simulate_scenario as scenario_module
from virtha.cli.file_errors import error_from_file, error_from_words, read_text_within
from virtha.cli.main import main
from virtha.model.errors import Failed, InvalidInput, Unavailable

Run = Callable[..., Ran]


@pytest.mark.parametrize(
    ("number", "kind", "exit_code"),
    [
        (errno.ENOSPC, Unavailable, 5),
        (errno.EDQUOT, Unavailable, 5),
        (errno.EROFS, Failed, 1),
        (errno.EACCES, Failed, 1),
        (errno.ENOTDIR, Failed, 1),
        (errno.EISDIR, Failed, 1),
        (errno.EEXIST, Failed, 1),
        (errno.ENAMETOOLONG, Failed, 1),
        (errno.EIO, Failed, 1),
        (errno.EFBIG, InvalidInput, 2),
    ],
)
def test_what_is_said_of_a_file(number: int, kind: type[Exception], exit_code: int) -> None:
    error = error_from_file(OSError(number, os.strerror(number), "/var/x"))
    assert isinstance(error, kind)
    assert error.exit_code == exit_code
    assert "/var/x" in error.message and error.fix


def test_other_errors_are_ours_and_keep_their_traceback() -> None:
    assert error_from_file(OSError(errno.EBADF, "bad file descriptor")) is None
    assert error_from_file(OSError(errno.ENOTDIR, "not a directory")) is None
    assert error_from_words(("vm", "show", "größe")) is None


def test_output_that_finds_no_room_takes_nothing_back() -> None:
    error = error_from_file(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert isinstance(error, Unavailable)
    assert "unchanged" not in error.fix and "look what was done" in error.fix


@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "--inventory", "LONG", "--fail", "host=h1"),
        ("simulate", "LONG"),
        ("replay", "LONG"),
        ("man", "--write", "LONG"),
        ("simulate", "--inventory", "FILE/x", "--fail", "host=h1"),
        ("man", "--write", "FILE"),
        ("man", "--write", "FILE/x"),
    ],
)
def test_a_path_that_can_not_be_is_told_without_a_traceback(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"LONG": str(tmp_path / ("n" * 300)), "FILE": str(tmp_path / "file")}
    ran = run(*(places.get(word, word.replace("FILE", places["FILE"])) for word in words))
    assert ran.code in (1, 2)
    assert "\n  fix: " in ran.err and "Traceback" not in ran.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "words", [("simulate", "--inventory", "FILE", "--fail", "host=h1"), ("simulate", "FILE")]
)
def test_a_file_without_end_is_not_read_to_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(simulate_module, "INVENTORY_BYTES_MAX", 4_096)
    monkeypatch.setattr(scenario_module, "SCENARIO_BYTES_MAX", 4_096)
    ran = run(*("/dev/zero" if word == "FILE" else word for word in words))
    assert ran.code == 2
    assert "/dev/zero: it is larger than 4KiB" in ran.err and "is it the right file?" in ran.err


def test_line_ends_of_other_systems_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\r\nb\rc\n")
    assert read_text_within(tmp_path / "text", 100) == (tmp_path / "text").read_text()


def test_an_argument_that_is_no_text_here(run: Run) -> None:
    ran = run("vm", "show", "gr\udcc3\udcb6\udcdfe", "--url", "http://127.0.0.1:1")
    assert ran.code == 2
    assert "'gr\\udcc3\\udcb6\\udcdfe'" in ran.err and "LC_ALL" in ran.err


def test_a_closed_output_does_not_stop_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert main(["man", "--write", str(tmp_path)]) == 0
    assert (tmp_path / "virtha.1").exists()
    assert main(["codes", "no-such"]) == 3


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
