"""Our systemd units, put where systemd finds them, naming the virtha that puts them there.

A Debian package brings the units and ``/usr/bin/virtha`` itself; then nothing is done here. An
installation in a directory of its own (a virtual environment) has them in its package data. What an
administrator changes with ``systemctl edit`` lies in other files, which stay.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from virtha.model.errors import Failed

SYSTEMCTL_DEADLINE_S = 30.0
_SHIPPED = ("usr/lib/systemd/system", "lib/systemd/system")
_OURS = "etc/systemd/system"
_WRITTEN_PROGRAM = "/usr/bin/virtha"
_MARK = "# Written by virtha; changes belong into a drop-in: systemctl edit "
# Characters that systemd.service(5) takes literally in ExecStart.
_LITERAL = re.compile(r"/[A-Za-z0-9/._+@-]+")


def has_systemd(root: Path) -> bool:
    """sd_booted(3): this directory is there if and only if systemd is the init system."""
    return (root / "run/systemd/system").is_dir()


def install_units(source: Path, root: Path) -> tuple[str, ...]:
    """Write each ``*.service`` of ``source`` below ``root``; names of those that are new or changed.

    Without systemd nothing is done. Raises Failed: not found as a program, or can't be written.
    """
    if not has_systemd(root):
        return ()
    changed = []
    for target, text in _wanted(source, root):
        if _present(target) != text:
            _write(target, text)
            changed.append(target.name)
    if changed:
        _reload(root)
    return tuple(changed)


def units_wrong(source: Path, root: Path) -> tuple[str, ...] | None:
    """What ``install_units`` would mend, in words; None without systemd. Raises Failed: not found as a program."""
    if not has_systemd(root):
        return None
    found = [(target, _present(target), text) for target, text in _wanted(source, root)]
    return tuple(
        f"{target} is {'missing' if present is None else 'not the one of this version'}"
        for target, present, text in found
        if present != text
    )


def _wanted(source: Path, root: Path) -> list[tuple[Path, str]]:
    """Where each unit of ``source`` belongs, and its text; those that a Debian package has brought are left out."""
    program = own_program()
    return [
        (
            root / _OURS / unit.name,
            f"{_MARK}{unit.name}\n" + unit.read_text().replace(_WRITTEN_PROGRAM, str(program)),
        )
        for unit in sorted(source.glob("*.service"))
        if not any((root / directory / unit.name).exists() for directory in _SHIPPED)
    ]


def remove_units(source: Path, root: Path, *, kept: Collection[str] = ()) -> tuple[str, ...]:
    """Remove what ``install_units`` wrote, but for those named in ``kept``; names of those that were there."""
    removed = []
    for unit in sorted(source.glob("*.service")):
        if unit.name in kept:
            continue
        target = root / _OURS / unit.name
        if (_present(target) or "").startswith(_MARK):
            target.unlink()
            removed.append(unit.name)
    if removed:
        _reload(root)
    return tuple(removed)


def own_program() -> Path:
    """The `virtha` beside the Python that runs, else the one in PATH."""
    beside = Path(sys.executable).with_name("virtha")
    found = beside if beside.is_file() else Path(shutil.which("virtha") or "")
    if not _LITERAL.fullmatch(str(found)):
        raise Failed(
            f"no unit can name the program virtha in '{found}'",
            fix="install virtha where docs/guide/install.md says, in /opt/virtha",
        )
    return found


def _present(target: Path) -> str | None:
    try:
        return target.read_text()
    except OSError:
        return None  # absent or unreadable: written anew


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise Failed(f"can't write {target}: {error.strerror}", fix="do it as root") from error


def _reload(root: Path) -> None:
    """systemd reads changed units only when told. Another root's systemd is none of ours."""
    if root != Path("/"):
        return
    try:
        subprocess.run(
            ["systemctl", "daemon-reload"],
            check=True,
            capture_output=True,
            timeout=SYSTEMCTL_DEADLINE_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Failed(
            f"systemd did not read the units: {error}", fix="run: systemctl daemon-reload"
        ) from error
