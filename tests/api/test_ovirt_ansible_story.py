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
RUN_S = 600
CHANGING = {
    "A host's power management",
    "A VM as a pattern",
    "A template of it",
    "A VM from the template, running",
}

AFTERWARDS = """
- hosts: localhost
  connection: local
  gather_facts: false
  module_defaults:
    group/ovirt.ovirt.ovirt:
      auth: {url: "{{ url }}", ca_file: "{{ ca_file }}", username: "{{ username }}", password: "{{ password }}"}
  tasks:
"""
"""Plays on what the example made; their tasks follow."""
CHANGES = """
    - name: Another action, more memory, a priority
      ovirt.ovirt.ovirt_vm:
        name: pattern
        cluster: default
        memory: 2GiB
        description: changed
        high_availability: true
        high_availability_priority: 50
        storage_error_resume_behaviour: kill
        watchdog: {model: i6300esb, action: none}
    - name: No watchdog
      ovirt.ovirt.ovirt_vm: {name: app1, watchdog: {model: }}
    - name: Off
      ovirt.ovirt.ovirt_vm: {name: app1, state: stopped, force: true}
"""
REMOVALS = """
    - name: No VM
      ovirt.ovirt.ovirt_vm: {name: app1, state: absent}
    - name: No template
      ovirt.ovirt.ovirt_template: {name: pattern-template, cluster: default, state: absent}
    - name: No pattern
      ovirt.ovirt.ovirt_vm: {name: pattern, state: absent}
    - name: No power management
      ovirt.ovirt.ovirt_host_pm: {name: h2, address: 127.0.0.1, type: ipmilan, state: absent}
"""


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
@pytest.mark.timeout(900)  # eight runs, of a dozen modules each at first
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
    for tasks in (CHANGES, REMOVALS):
        playbook = tmp_path / "afterwards.yml"
        playbook.write_text(AFTERWARDS + tasks)
        assert set(ansible.run(playbook).values()) == {"changed"}
        assert set(ansible.run(playbook).values()) == {"ok"}
        if tasks is CHANGES:
            _check_changes(story)
    with story.rest() as client:
        assert [item["vm"]["name"] for item in client.get("/v1/vms").json()["items"]] == ["web1"]
        assert client.get("/v1/templates").json()["items"] == []


def _check_changes(story: Story) -> None:
    with story.rest() as client:
        vm = client.get("/v1/vms/pattern").json()["vm"]
        app = client.get("/v1/vms/app1").json()
    assert (vm["memory_bytes"], vm["description"], vm["priority"]) == (2 << 30, "changed", 50)
    assert vm["watchdog"] == {"model": "i6300esb", "action": "none"}
    assert vm["on_io_error"] == "kill" and vm["ha"]
    assert app["vm"].get("watchdog") is None and app["status"]["state"] == "down"
