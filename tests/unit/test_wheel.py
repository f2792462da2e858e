"""`make wheel`: the same bytes from the same commit, all of the package in it, and the lock of what it needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from loaded_script import ROOT, load_script


@pytest.fixture(scope="module")
def wheel() -> ModuleType:
    return load_script("wheel")


def git(directory: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=directory, check=True, capture_output=True)


def checkout(wheel: ModuleType, directory: Path) -> Path:
    """The working tree's tracked files as one commit of a fixed time."""
    directory.mkdir()
    names = [*wheel.tracked(ROOT), "requirements.lock"]
    wheel.copy_source(ROOT, names, directory)
    git(directory, "init", "--quiet")
    git(directory, "add", "--all")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    when = {"GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z", **os.environ}
    subprocess.run(
        ["git", *who, "commit", "--quiet", "--message=all"], cwd=directory, check=True, env=when
    )
    return directory


def test_the_same_commit_gives_the_same_wheel_with_all_of_the_package(
    wheel: ModuleType, tmp_path: Path
) -> None:
    here = checkout(wheel, tmp_path / "here")
    there = checkout(wheel, tmp_path / "there")
    # What lies about elsewhere: a build of before, what nobody added, another umask.
    (there / "build/lib/virtha").mkdir(parents=True)
    (there / "build/lib/virtha/of_an_older_version.py").touch()
    (there / "virtha/notes.py").touch()
    for path in there.glob("virtha/**/*.py"):
        path.chmod(0o600)
    first, lock = wheel.make(here, tmp_path / "first")
    umask = os.umask(0o077)
    try:
        second, lock_again = wheel.make(there, tmp_path / "second")
    finally:
        os.umask(umask)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert lock.read_text() == lock_again.read_text()
    with zipfile.ZipFile(first) as archive:
        found = set(archive.namelist())
        metadata = archive.read(next(name for name in found if name.endswith("/METADATA")))
    # `make` compares all; these are what programs open by name.
    assert {
        "virtha/agent/units/virtha-agent.service",
        "virtha/agent/gate_hook.py",
        "virtha/alerts/VIRTHA-MIB.txt",
        "virtha/py.typed",
        "virtha/server/units/virtha-server.service",
        "virtha/store/migrations/env.py",
    } <= found
    assert b"Provides-Extra: server" in metadata


def test_the_lock_beside_it_is_that_of_an_installation(wheel: ModuleType) -> None:
    """Only what agent and server need, each with the hashes of requirements.lock."""
    found = wheel.runtime_lock(ROOT)
    names = {line.partition("==")[0] for line in found.splitlines() if "==" in line}
    whole = (ROOT / "requirements.lock").read_text()
    assert {"libvirt-python", "litestar", "greenlet", "uvloop", "cffi"} <= names
    assert not {"pytest", "mypy", "ruff", "setuptools", "hypothesis"} & names
    assert found.count("--hash=sha256:") > len(names)
    assert all(line in whole for line in found.splitlines())


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_a_wheel_that_lacks_a_file_or_has_one_more_is_none(
    wheel: ModuleType, tmp_path: Path
) -> None:
    info = "virtha-1.dist-info/METADATA"
    unit = "virtha/agent/units/virtha-agent.service"
    tracked = ["virtha/__init__.py", unit, "README.md"]
    wheel.check_contents(zipped(tmp_path / "good.whl", "virtha/__init__.py", unit, info), tracked)
    with pytest.raises(wheel.WheelError, match=r"lacks virtha/agent/units.*package-data"):
        wheel.check_contents(zipped(tmp_path / "less.whl", "virtha/__init__.py", info), tracked)
    more = zipped(tmp_path / "more.whl", "virtha/__init__.py", unit, "virtha/old.py", info)
    with pytest.raises(wheel.WheelError, match=r"has virtha/old\.py, which git does not track"):
        wheel.check_contents(more, tracked)


def test_what_can_not_be_built_is_told_with_the_way_out(
    wheel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(wheel.WheelError, match="no git checkout of virtha: clone it"):
        wheel.make(tmp_path, tmp_path / "dist")
    with pytest.raises(wheel.WheelError, match=r"requirements\.lock lacks no-such: make lock"):
        wheel.lock_of("", {"no-such"})
    with pytest.raises(wheel.WheelError, match="no-such is not installed here"):
        wheel.needed(["no-such>=1"])
    # As typed: one line, and its exit code.
    alone = tmp_path / "scripts/wheel.py"
    alone.parent.mkdir()
    alone.write_text((ROOT / "scripts/wheel.py").read_text())
    said = subprocess.run([sys.executable, alone], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("==> no wheel: ")
    assert not (tmp_path / "dist").exists()
