"""oVirt's own Ansible modules, unchanged, against a real server process over TLS: a playbook's first run changes, its second nothing."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_bmc import PASSWORD as BMC_PASSWORD
from own_bmc import IpmiSim
from server_process import PASSWORD
from story import Story

from virtha.lab.bmc import USER

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = ROOT / "examples/ovirt-ansible.yml"
RUN_S = 300
CHANGING = {
    "A host's power management",
    "A VM as a pattern",
    "A template of it",
    "A VM from the template, running",
}


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[IpmiSim]:
    made = IpmiSim(tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Ansible:
    """`ansible-playbook` with the collection that scripts/setup has fetched, and nothing of its user's settings."""

    def __init__(self, story: Story, directory: Path) -> None:
        authority = story.server.root / "var/lib/virtha/server/authority/authority.crt"
        self._directory = directory
        self._told = {
            "url": f"{story.url}/ovirt-engine/api",
            "ca_file": str(authority),
            "username": "admin@internal",
            "password": PASSWORD,
        }

    def run(self, playbook: Path, **told: Any) -> dict[str, str]:
        """What each task ended with: ``ok`` or ``changed``."""
        settings = self._directory / "ansible.cfg"
        settings.touch()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(settings),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections"),
            "ANSIBLE_LOCAL_TEMP": str(self._directory / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self._directory / "remote"),
            "ANSIBLE_NOCOLOR": "1",
        }
        variables = self._directory / "variables.json"
        variables.write_text(json.dumps({**self._told, **told}))
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *("-i", "localhost,", "-e", f"ansible_python_interpreter={sys.executable}"),
                *("-e", f"@{variables}"),
                str(playbook),
            ],
            env=environment,
            cwd=self._directory,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.findall(r"^TASK \[(.*?)\] \*+\n(ok|changed|skipping)", done.stdout, re.MULTILINE)
        assert found, done.stdout
        return dict(found)


@pytest.mark.req("W3", "W1", "W5")
def test_a_playbook_changes_what_it_says_and_then_nothing(
    story: Story, sim: IpmiSim, tmp_path: Path
) -> None:
    ansible = Ansible(story, tmp_path)
    bmc = {
        "host": "h2",
        "bmc_address": "127.0.0.1",
        "bmc_port": sim.port,
        "bmc_user": USER,
        "bmc_password": BMC_PASSWORD,
    }
    first = ansible.run(PLAYBOOK, **bmc)
    assert {name for name, ended in first.items() if ended == "changed"} == CHANGING, first
    with story.rest() as client:
        app = client.get("/v1/vms/app1").json()
    assert app["vm"]["ha"] and app["status"]["state"] == "running"
    assert app["vm"]["watchdog"] == {"model": "i6300esb", "action": "poweroff"}
    second = ansible.run(PLAYBOOK, **bmc)
    assert set(second) == set(first) and "changed" not in second.values(), second
