"""The lab leaves nothing behind, whatever happened to the command that built it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virtha.lab import lab, state
from virtha.lab.namespaces import network_namespaces, processes_in_network
from virtha.model.errors import Conflict, NotFound

pytestmark = [pytest.mark.lab, pytest.mark.timeout(200)]


def leftovers(directory: Path) -> list[object]:
    prefix = f"{state.lab_id(directory)}-"
    names = network_namespaces(prefix)
    mounts = [
        line
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if f" {directory}/" in line
    ]
    return [*names, *processes_in_network(names), *mounts]


@pytest.mark.parametrize("after", ["net", "boot-id", "agent.log"])
def test_down_is_complete_after_a_killed_up(after: str, tmp_path: Path) -> None:
    """`up` is killed at three depths; `down` needs nothing of what it could not write down."""
    directory = Path(f"/tmp/vlab-{tmp_path.name[-12:]}")
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "virtha.cli.main"),
            *("lab", "up", "--hosts", "1", "--dir", str(directory)),
        ],
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 60.0
        prefix = f"{state.lab_id(directory)}-"
        while time.monotonic() < deadline and process.poll() is None:
            if after == "net" and network_namespaces(prefix):
                break
            if after == "boot-id" and (directory / "s1/boot-id").exists():
                break
            if after == "agent.log" and (directory / "h1/logs/agent.log").exists():
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        errors = process.stderr.read().decode() if process.stderr else ""
    assert network_namespaces(prefix), errors
    with pytest.raises(Conflict):
        lab.up(directory, hosts=1)
    # As if the state had been lost, too.
    (directory / state.STATE_NAME).unlink(missing_ok=True)
    assert lab.down(directory) is True
    assert leftovers(directory) == []
    assert not directory.exists()
    assert directory not in state.registered()
    assert lab.down(directory) is False


def test_a_directory_with_somebody_elses_files_is_refused(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("not yours")
    with pytest.raises(Conflict):
        lab.up(tmp_path, hosts=1)
    lab.down(tmp_path)
    assert precious.read_text() == "not yours"


def test_there_is_no_lab_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="virtha lab up"):
        lab.Lab.open(tmp_path)
