"""`scripts/setup`: what it says when it can't go on. Programs that it calls are played by small scripts."""

import itertools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/setup"


class Machine:
    """A checkout with nothing but the script, and a PATH in which some programs are ours."""

    def __init__(self, directory: Path) -> None:
        self.checkout = directory / "checkout"
        (self.checkout / "scripts").mkdir(parents=True)
        shutil.copy(SCRIPT, self.checkout / "scripts/setup")
        (self.checkout / "requirements.lock").touch()
        (self.checkout / "pyproject.toml").touch()
        (self.checkout / "scripts/ovirt-collection.lock").touch()
        self.programs = directory / "programs"
        self.programs.mkdir()
        self.program("dpkg-query", "exit 1")  # no package is installed
        self.program("dpkg", "exit 0")
        self.program("id", 'case "$1" in -u) echo 0 ;; *) echo root ;; esac')
        self.program("apt-get", "echo called >> calls; exit 0")
        self.program("systemctl", "exit 0")  # the machine's own would be told, else

    def program(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.checkout / "scripts/setup"), *words],
            env={**os.environ, "PATH": f"{self.programs}:/usr/bin:/bin"},
            cwd=self.checkout,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_unknown_profile_is_refused(machine: Machine) -> None:
    done = machine.run("laab")
    assert done.returncode == 1
    assert "there is no profile 'laab'" in done.stderr
    assert "scripts/setup check" in done.stderr


def test_whoever_is_not_root_gets_the_line_for_root(machine: Machine) -> None:
    machine.program("id", 'case "$1" in -u) echo 1000 ;; *) echo joe ;; esac')
    done = machine.run("lab")
    assert done.returncode == 1
    assert "apt-get update && apt-get install -y --no-install-recommends python3" in done.stderr
    assert "qemu-system-x86" in done.stderr
    assert "the lab itself needs root" in done.stderr
    assert not (machine.checkout / "calls").exists()


def test_no_service_that_nobody_needs_is_started_by_its_installation(machine: Machine) -> None:
    """Alertmanager's would listen on every address: it is masked before, and its init script is left out."""
    for name in ("apt-get", "systemctl"):
        machine.program(name, f'echo "{name} $*" >> calls; [ "$1" != install ]')
    machine.run("check")
    update, mask, install = (machine.checkout / "calls").read_text().splitlines()
    assert update.startswith("apt-get update")
    assert mask == "systemctl mask prometheus-alertmanager.service"
    assert "--path-exclude=/etc/init.d/prometheus-alertmanager " in install
    machine.program("id", 'case "$1" in -u) echo 1000 ;; *) echo joe ;; esac')
    told = machine.run("check").stderr
    assert told.index("systemctl mask prometheus-alertmanager") < told.index("apt-get install")


def test_the_service_of_a_package_that_was_there_already_is_left_alone(machine: Machine) -> None:
    machine.program("apt-get", 'echo "apt-get $*" >> calls; [ "$1" != install ]')
    machine.program("systemctl", 'echo "systemctl $*" >> calls')
    machine.program("dpkg-query", "printf 'installed:prometheus-alertmanager '")
    assert machine.run("check").returncode == 1
    calls = (machine.checkout / "calls").read_text()
    assert "apt-get install" in calls and "alertmanager" not in calls and "systemctl" not in calls


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("Temporary failure resolving 'mirror'", "The network or the mirror can't be reached"),
        ("cannot copy: No space left on device", "A disk is full"),
        ("certificate verification failed", "A certificate is not trusted"),
        ("E: Unable to locate package python3", "made for Debian 12"),
        ("E: Could not get lock /var/lib/dpkg/lock", "Another apt is running"),
    ],
)
def test_what_apt_says_is_shown_with_its_fix(machine: Machine, said: str, fix: str) -> None:
    machine.program("apt-get", f'[ "$1" = update ] || {{ echo "{said}"; exit 100; }}')
    done = machine.run("check")
    assert done.returncode == 1
    assert f"| {said}" in done.stderr
    assert fix in done.stderr
    assert "run the same command again" in done.stderr
    assert not (machine.checkout / ".stamp/venv").exists()


def test_too_little_space_is_said_before_anything_is_done(machine: Machine) -> None:
    machine.program("df", "echo Avail; echo 12")
    done = machine.run("check")
    assert done.returncode == 1
    assert "12 MiB are free" in done.stderr
    assert not (machine.checkout / "calls").exists()


def test_a_ready_environment_is_left_alone(machine: Machine) -> None:
    """Its stamp names lock file, Python and place: moved elsewhere it is made anew."""
    machine.program("dpkg-query", 'shift 3; for one in "$@"; do printf "installed:$one "; done')
    virtha = machine.checkout / ".venv/bin/virtha"
    virtha.parent.mkdir(parents=True)
    virtha.write_text("#!/bin/sh\n")
    virtha.chmod(0o755)
    lines = SCRIPT.read_text().splitlines()
    (place,) = [line for line in lines if line.startswith("place=")]
    (wanted,) = [line for line in lines if line.startswith("wanted=")]
    (machine.checkout / ".stamp").mkdir()
    asked = f'python=/usr/bin/python3; {place}; {wanted}; echo "$wanted" > .stamp/venv'
    subprocess.run(["bash", "-c", asked], cwd=machine.checkout, check=True, timeout=200)
    done = machine.run("lab")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    moved = machine.checkout.rename(machine.checkout.with_name("moved"))
    machine.checkout = moved
    machine.program("df", "echo Avail; echo 12")
    done = machine.run("lab")
    assert "Making the virtual environment" in done.stdout
    assert "12 MiB are free" in done.stderr


def test_each_package_that_is_installed_has_its_reason() -> None:
    root = SCRIPT.parents[1]
    page = (root / "docs/dependencies.md").read_text()
    lists = re.findall(r"^\w+_packages=\(([^)]*)\)", SCRIPT.read_text(), re.MULTILINE)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    names = [name for words in lists for name in words.split()]
    assert len(lists) == 3 and len(names) > 30, "they are found"
    names += [Requirement(text).name for text in wanted]
    there = {word.lower() for word in re.findall(r"[\w.-]*\w", page)}
    assert [name for name in names if name.lower() not in there] == []
