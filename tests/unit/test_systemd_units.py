"""The systemd units: what must hold of them, and how they get to a host.

What the invariants stand for was seen under a booted systemd; docs/guide/install.md says what to expect.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from virtha.agent import checks, host_installation
from virtha.agent.files import Files
from virtha.agent.gate import gate_installed, install_gate
from virtha.agent.host_installation import host_units_wrong, install_host_units, uninstall
from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import hold_lock
from virtha.agent.records import SettingsStore
from virtha.cli.main import main
from virtha.drivers import systemd_units
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.systemd_units import install_units, remove_units
from virtha.model.errors import Failed, Refused
from virtha.model.ids import InstallationId, Term
from virtha.model.orders import HostSettings
from virtha.server.checks import Check, check_installation
from virtha.server.config import ServerPaths
from virtha.server.setup import install_server_units

PACKAGE = Path(__file__).resolve().parents[2] / "virtha"
UNITS = {path.name.removesuffix(".service"): path for path in PACKAGE.glob("*/units/*.service")}
HOST = ("virtha-agent", "virtha-guardian", "virtha-host-shutdown")
LONG_RUNNING = ("virtha-agent", "virtha-guardian", "virtha-server")


class Unit:
    """``unit["Service", "Restart"]``: its values in order, lists of words joined."""

    def __init__(self, text: str) -> None:
        self._found: dict[tuple[str, str], list[str]] = defaultdict(list)
        section = ""
        for line in text.splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                self._found[section, key] += value.split() or [""]

    def __getitem__(self, key: tuple[str, str]) -> list[str]:
        return self._found.get(key, [])

    def names(self) -> set[str]:
        return {key for _, key in self._found}


def unit(name: str) -> Unit:
    return Unit(UNITS[name].read_text())


def test_all_units_are_here() -> None:
    assert set(UNITS) == {*HOST, "virtha-server"}


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_is_tried_for_ever_and_ready_means_ready(name: str) -> None:
    found = unit(name)
    assert found["Unit", "StartLimitIntervalSec"] == ["0"]
    assert found["Service", "Restart"] == ["always"]
    assert found["Service", "Type"] == ["notify"]
    assert found["Service", "OOMScoreAdjust"]
    assert found["Install", "WantedBy"] == ["multi-user.target"]
    # Its directory in /run holds sockets and grants of others: no restart may empty it.
    assert found["Service", "RuntimeDirectoryPreserve"] == ["yes"]


@pytest.mark.parametrize("name", ("virtha-agent", "virtha-guardian"))
def test_stopping_a_service_of_a_host_ends_nothing_else(name: str) -> None:
    found = unit(name)
    assert found["Service", "KillMode"] == ["process"]
    # Stopped or restarted with another unit, agent and guardian would fall together.
    assert not {"Requires", "BindsTo", "PartOf", "Requisite", "Conflicts"} & found.names()
    # A mount namespace of its own would hide the host's mounts that come and go.
    assert not [key for key in found.names() if key.startswith(("Protect", "Private", "ReadOnly"))]


def test_the_guardian_is_the_last_to_go() -> None:
    found = unit("virtha-guardian")
    assert found["Service", "OOMScoreAdjust"] == ["-1000"]
    assert found["Service", "LimitMEMLOCK"] == ["infinity"]
    assert found["Service", "CPUSchedulingPolicy"] == ["rr"]
    assert "virtha-guardian.service" in unit("virtha-agent")["Unit", "After"]
    assert "virtha-guardian.service" in unit("virtha-agent")["Unit", "Wants"]


def test_a_host_without_network_is_protected_all_the_same() -> None:
    for name in ("virtha-agent", "virtha-guardian"):
        found = unit(name)
        assert "network-online.target" not in found["Unit", "After"] + found["Unit", "Wants"]


def test_a_host_that_goes_down_says_so_before_libvirt_stops_the_guests() -> None:
    """systemd stops units in the reverse order of their start; only among units that are active."""
    last = unit("virtha-host-shutdown")
    assert {
        "virtha-agent.service",
        "libvirt-guests.service",
        "libvirtd.service",
        "virtqemud.service",
        "virt-guest-shutdown.target",
    } <= set(last["Unit", "After"])
    assert last["Unit", "Wants"] == ["virt-guest-shutdown.target"]
    assert last["Service", "RemainAfterExit"] == ["yes"]
    assert last["Service", "ExecStop"][-2:] == ["agent", "host-shutdown"]
    agent = unit("virtha-agent")
    assert agent["Unit", "Before"] == ["libvirt-guests.service"]
    assert "libvirtd.service" in agent["Unit", "After"]
    assert "virtha-host-shutdown.service" in agent["Unit", "Wants"]
    # Enabling the agent enables what belongs to it.
    assert set(agent["Install", "Also"]) == {
        "virtha-guardian.service",
        "virtha-host-shutdown.service",
    }


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for path in UNITS.values():
        text = path.read_text().replace("/usr/bin/virtha", "/usr/bin/true")
        (tmp_path / path.name).write_text(text)
    files = [str(tmp_path / path.name) for path in UNITS.values()]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, complaints) == (0, [])


# How they get to a host


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    beside = tmp_path / "opt/bin/virtha"
    beside.parent.mkdir(parents=True)
    beside.touch()
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    return beside


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentPaths:
    monkeypatch.setenv("VIRTHA_LIBVIRT_HOOKS", str(tmp_path / "hooks"))
    root = tmp_path / "root"
    (root / "run/systemd/system").mkdir(parents=True)
    return AgentPaths(root=str(root))


def test_units_name_the_program_that_installs_them(paths: AgentPaths, program: Path) -> None:
    target = Path(paths.root, "etc/systemd/system")
    wanted = tuple(f"{name}.service" for name in HOST)
    assert install_host_units(paths) == wanted
    text = (target / "virtha-agent.service").read_text()
    assert f"ExecStart={program} agent run\n" in text
    assert "/usr/bin/virtha" not in text
    assert install_host_units(paths) == ()
    (target / "virtha-agent.service").write_text("[Unit]\n# of an older version\n")
    assert install_host_units(paths) == ("virtha-agent.service",)
    assert (target / "virtha-agent.service").read_text() == text
    assert install_server_units(ServerPaths(Path(paths.root))) == ("virtha-server.service",)


def test_without_systemd_nothing_is_written(tmp_path: Path, program: Path) -> None:
    assert install_host_units(AgentPaths(root=str(tmp_path))) == ()
    assert not (tmp_path / "etc").exists()


def test_units_of_a_debian_package_are_left_alone(paths: AgentPaths, program: Path) -> None:
    shipped = Path(paths.root, "usr/lib/systemd/system")
    shipped.mkdir(parents=True)
    (shipped / "virtha-agent.service").write_text("[Unit]\n")
    assert "virtha-agent.service" not in install_host_units(paths)
    assert not Path(paths.root, "etc/systemd/system/virtha-agent.service").exists()


def test_only_our_own_units_are_removed(paths: AgentPaths, program: Path) -> None:
    install_host_units(paths)
    mine = Path(paths.root, "etc/systemd/system/virtha-guardian.service")
    mine.write_text("[Unit]\n# an administrator's own\n")
    units = PACKAGE / "agent/units"
    removed = remove_units(units, Path(paths.root))
    assert removed == ("virtha-agent.service", "virtha-host-shutdown.service")
    assert mine.exists()


def test_a_program_that_no_unit_can_name_is_refused(
    paths: AgentPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "my programs%/virtha"
    beside.parent.mkdir()
    beside.touch()
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    with pytest.raises(Failed, match="my programs%") as refused:
        install_units(PACKAGE / "agent/units", Path(paths.root))
    assert "/opt/virtha" in refused.value.fix
    assert not Path(paths.root, "etc").exists()


def test_a_directory_that_cannot_be_written_is_said_so(paths: AgentPaths, program: Path) -> None:
    Path(paths.root, "etc").touch()
    with pytest.raises(Failed, match=r"can't write .*virtha-agent\.service"):
        install_host_units(paths)


@pytest.mark.bad_input("unit that is missing")
def test_checks_name_units_that_are_missing_or_old(
    paths: AgentPaths,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An upgrade whose `install-units` was forgotten, a unit that somebody deleted."""
    monkeypatch.setattr(checks, "LIBVIRT_DEADLINE_S", 0.01)
    install_host_units(paths)
    assert host_units_wrong(paths) == ()
    target = Path(paths.root, "etc/systemd/system")
    (target / "virtha-guardian.service").unlink()
    (target / "virtha-agent.service").write_text("[Unit]\n# of an older version\n")
    wrong = host_units_wrong(paths)
    assert wrong == (
        f"{target}/virtha-agent.service is not the one of this version",
        f"{target}/virtha-guardian.service is missing",
    )
    assert main(["agent", "check", "--root", paths.root]) == 1
    said = capsys.readouterr().out
    assert f"wrong    units: {'; '.join(wrong)}; run: virtha agent install-units\n" in said
    install_host_units(paths)
    main(["agent", "check", "--root", paths.root])
    assert "ok       units" in capsys.readouterr().out
    assert host_units_wrong(AgentPaths(root=str(program.parent))) is None, "no systemd, no units"


@pytest.mark.bad_input("unit that is missing")
def test_the_servers_check_names_its_unit(paths: AgentPaths, program: Path) -> None:
    server = ServerPaths(Path(paths.root))

    def units() -> Check:
        found = {one.name: one for one in check_installation(server, MachineClock())}
        return found["units"]

    server.config.parent.mkdir(parents=True)
    server.config.touch()
    assert units().state == "warning"
    assert units().detail.endswith("virtha-server.service is missing")
    assert units().fix == "run: virtha server install-units"
    install_server_units(server)
    assert units().state == "ok"


@pytest.mark.bad_input("program as another user")
@pytest.mark.parametrize(("uid", "fix"), [(0, "systemctl start libvirtd"), (1_000, "as root")])
def test_a_check_by_somebody_whom_libvirt_lets_not_in_blames_no_libvirtd(
    uid: int, fix: str, paths: AgentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LIBVIRT_DEADLINE_S", 0.01)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    found = {one.name: one for one in asyncio.run(checks.check_host(paths))}
    assert found["libvirt"].ok is False
    assert fix in found["libvirt"].fix


def test_systemd_is_told_of_changed_units_of_this_machine_only(
    paths: AgentPaths, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Path] = []
    monkeypatch.setattr(systemd_units, "_reload", told.append)
    install_host_units(paths)
    install_host_units(paths)
    assert told == [Path(paths.root)]
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: pytest.fail("another's systemd"))
    systemd_units._reload(Path(paths.root))


def test_the_verb_writes_them_anew(
    paths: AgentPaths, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "install-units", "--root", paths.root]) == 0
    assert "virtha-guardian.service" in capsys.readouterr().out
    assert main(["agent", "install-units", "--root", paths.root]) == 0
    assert capsys.readouterr().out == "nothing to change\n"
    assert main(["server", "install-units", "--root", paths.root]) == 0
    assert capsys.readouterr().out == "written: virtha-server.service\n"


# The way back


class Held:
    def __init__(self, name: str) -> None:
        self.vm = self
        self.name = name


def test_a_host_that_holds_vms_keeps_its_gate(
    paths: AgentPaths, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.make_directories()
    install_gate(paths, Files())
    install_host_units(paths)

    class Settings:
        vms = (Held("web2"), Held("web1"))

    monkeypatch.setattr(SettingsStore, "load", lambda store: Settings)
    with pytest.raises(Refused, match="holds 2 protected VMs: web1, web2") as refused:
        uninstall(paths, force=False)
    assert refused.value.code == "problem.host.busy"
    assert gate_installed(paths) is None
    assert install_host_units(paths) == ()
    uninstall(paths, force=True)
    assert "missing" in (gate_installed(paths) or "")


def test_a_host_whose_agent_runs_keeps_its_gate(
    paths: AgentPaths, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a member still, perhaps: a start may be ordered right then."""
    paths.make_directories()
    install_gate(paths, Files())
    install_host_units(paths)
    agent = hold_lock(paths, "agent")
    try:
        assert main(["agent", "uninstall", "--root", paths.root]) == 4
        assert "stop it first: systemctl stop virtha-agent" in capsys.readouterr().err
        assert gate_installed(paths) is None
        assert install_host_units(paths) == ()
        assert main(["agent", "uninstall", "--root", paths.root, "--force"]) == 0
    finally:
        os.close(agent)
    assert "missing" in (gate_installed(paths) or "")


def test_a_guardian_that_runs_keeps_its_unit_until_it_does_not(
    paths: AgentPaths, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may feed an armed watchdog: killed, somebody has to begin it anew."""
    paths.make_directories()
    install_gate(paths, Files())
    install_host_units(paths)
    units = Path(paths.root, "etc/systemd/system")
    guardian = hold_lock(paths, "guardian")
    try:
        assert main(["agent", "uninstall", "--root", paths.root]) == 0
        assert [unit.name for unit in units.iterdir()] == ["virtha-guardian.service"]
        said = capsys.readouterr().out
        assert "after the next boot once more: virtha agent uninstall" in said
        assert "now: systemctl disable virtha-guardian" in said, "else it begins anew in that boot"
        assert "missing" in (gate_installed(paths) or "")
    finally:
        os.close(guardian)
    assert main(["agent", "uninstall", "--root", paths.root]) == 0
    assert list(units.iterdir()) == []
    assert "once more" not in capsys.readouterr().out


def test_uninstalling_leaves_nothing_between_libvirt_and_the_vms(
    paths: AgentPaths, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.make_directories()
    empty = HostSettings(revision=1, installation_id=InstallationId("i"), term=Term(1))
    paths.settings.write_bytes(msgspec.json.encode(empty))
    install_gate(paths, Files())
    install_host_units(paths)
    assert main(["agent", "uninstall", "--root", paths.root]) == 0
    assert "restart libvirtd" in capsys.readouterr().out
    assert "missing" in (gate_installed(paths) or "")
    assert list(Path(paths.root, "etc/systemd/system").iterdir()) == []
    # Done twice it says the same.
    assert main(["agent", "uninstall", "--root", paths.root]) == 0
    assert host_installation.remove_units(PACKAGE / "agent/units", Path(paths.root)) == ()
