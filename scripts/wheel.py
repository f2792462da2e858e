"""Builds the wheel, and beside it the lock of what it needs (`make wheel`).

The same commit gives the same bytes, wherever it is built: what goes in is what git tracks, its times are the
commit's, its rights are fixed, and setuptools is the one of requirements.lock. Whatever of `virtha/` the wheel would
lack, or have besides, is an error: a unit, the MIB or a migration that is left out would be missed on a host only.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "virtha"
BESIDE = ("pyproject.toml", "README.md", "LICENSE")
EXTRAS = ("agent", "server")
"""What an installation needs; `dev` and `build` are for those who work on it."""
_ENTRIES = re.compile(r"^(?=[A-Za-z0-9])", re.MULTILINE)


class WheelError(Exception):
    """What is wrong, and what to do."""


def tracked(root: Path) -> list[str]:
    """Files of the wheel's source, below ``root``. Raises WheelError outside of a git checkout."""
    words = ("git", "ls-files", "-z", "--", PACKAGE, *BESIDE)
    said = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    names = sorted(name for name in said.stdout.split("\0") if name)
    if said.returncode != 0 or not names:
        raise WheelError(f"{root} is no git checkout of {PACKAGE}: clone it, then build there")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise WheelError(f"git tracks {missing[0]}, but it is gone: git checkout {missing[0]}")
    return names


def commit_time_s(root: Path) -> int:
    words = ("git", "log", "-1", "--format=%ct")
    return int(subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout)


def is_changed(root: Path) -> bool:
    """Whether tracked files of the wheel differ from the commit."""
    words = ("git", "status", "--porcelain", "--", PACKAGE, *BESIDE)
    return bool(subprocess.run(words, cwd=root, capture_output=True, check=True).stdout.strip())


def copy_source(root: Path, names: Iterable[str], target: Path) -> None:
    """Rights as if every checkout had the same umask; no left-over of a build before comes along."""
    for name in names:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, place)
        place.chmod(0o755 if os.access(root / name, os.X_OK) else 0o644)


def build(source: Path, target: Path, *, epoch_s: int) -> Path:
    """The wheel in ``target``. Raises WheelError with what pip said."""
    words = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    words += ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(target))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_s), "PYTHONHASHSEED": "0"}
    said = subprocess.run(
        (*words, str(source)),
        capture_output=True,
        text=True,
        env=environment,
        umask=0o022,  # its own files carry their rights into the wheel, too
        check=False,
    )
    made = sorted(target.glob("*.whl"))
    if said.returncode != 0 or len(made) != 1:
        raise WheelError(f"pip made no wheel:\n{said.stdout}{said.stderr}")
    return made[0]


def check_contents(wheel: Path, names: Iterable[str]) -> None:
    """All of `virtha/`, nothing else of ours. Raises WheelError."""
    wanted = {name for name in names if name.startswith(f"{PACKAGE}/")}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    if lacking := sorted(wanted - found):
        raise WheelError(
            f"the wheel lacks {', '.join(lacking)}: name it in pyproject.toml, package-data"
        )
    if besides := sorted(found - wanted):
        raise WheelError(f"the wheel has {', '.join(besides)}, which git does not track")


def needed(roots: Iterable[str]) -> set[str]:
    """Canonical names of all packages that these requirements lead to, as installed here."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in roots]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        found.add(name)
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _requirements_of(name, extra)
    return found


def _requirements_of(name: str, extra: str) -> Iterator[Requirement]:
    try:
        texts = requires(name) or []
    except PackageNotFoundError as error:
        raise WheelError(f"{name} is not installed here: scripts/setup lab") from error
    for text in texts:
        found = Requirement(text)
        plain = found.marker is None or found.marker.evaluate({"extra": ""})
        if plain if not extra else not plain and found.marker.evaluate({"extra": extra}):
            yield found


def lock_of(lock: str, names: set[str]) -> str:
    """The entries of ``lock`` for these packages, with their hashes. Raises WheelError for one that it lacks."""
    entries = {
        canonicalize_name(text.partition("==")[0]): text for text in _ENTRIES.split(lock) if text
    }
    if lacking := sorted(names - entries.keys()):
        raise WheelError(f"requirements.lock lacks {', '.join(lacking)}: make lock")
    return "".join(text for name, text in entries.items() if name in names)


def runtime_lock(root: Path) -> str:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    roots = [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]
    return lock_of((root / "requirements.lock").read_text(), needed(roots))


def make(root: Path, target: Path) -> tuple[Path, Path]:
    """Wheel and lock in ``target``; those of the same version that were there are replaced."""
    names = tracked(root)
    locked = runtime_lock(root)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="virtha-wheel-") as directory:
        source, built = Path(directory, "source"), Path(directory, "built")
        built.mkdir()
        copy_source(root, names, source)
        made = build(source, built, epoch_s=commit_time_s(root))
        check_contents(made, names)
        wheel = Path(shutil.copyfile(made, target / made.name))
    lock = target / f"{'-'.join(wheel.name.split('-')[:2])}-requirements.txt"
    lock.write_text(locked)
    return wheel, lock


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist")
    wanted = parser.parse_args(arguments)
    try:
        for path in make(ROOT, wanted.directory):
            print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")
        if is_changed(ROOT):
            print("==> not of a commit: tracked files were changed since", file=sys.stderr)
    except WheelError as error:
        print(f"==> no wheel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
