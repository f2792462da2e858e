"""What demo, tests and benchmarks do with a lab: make VMs, wait for what must come, measure."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import defusedxml.ElementTree

from virtha.lab import bmc, faults, guest
from virtha.lab.api import Json
from virtha.lab.bmc import Bmc
from virtha.lab.journals import Journals, replayed_lab
from virtha.lab.lab import Lab, down
from virtha.lab.node import STORAGE_NAME, Node, wait_until
from virtha.lab.progress import Steps
from virtha.model.errors import Failed, Unavailable

MEMORY_BYTES = 128 << 20
DEVICE = "bmc"
RUNNING_TIMEOUT_S = 60.0
AGENT_TIMEOUT_S = 120.0
"""A guest needs 5 s alone on a processor; a machine that runs other things takes its share."""
EVENT_TIMEOUT_S = 60.0
GONE_S = 60.0
TEST_S = 60.0
BY_IPMI: Json = {"driver": "ipmi", "cipher": 3}
BY_COMMAND: Json = {
    "driver": "command",
    "executable": "/usr/bin/ipmitool",
    "syntax": "$IPMI_EXEC -I lanplus -C 3 -N 1 -R 1 -H $IPMI_HOST -U $IPMI_USERNAME -E $IPMI_ACTION",
    "status": "chassis power status",
    "stop": "chassis power off",
    "start": "chassis power on",
    "blink": "chassis identify 60",
}
"""The same BMCs by any program, as docs/guide/power.md has it."""


def no_restart_limit() -> Json:
    """A policy for runs that crash a VM on purpose again and again: without it the fifth crash
    within ten minutes would stay down, as it should for everybody else. And for machines that have other things to do:
    no host kills its VMs because a disk that it shares with a test run stood still for seconds, or is no target because
    its libvirt did. Its watchdog's time stays: one that runs is not armed anew."""
    return {
        "restart": {"restarts_max": 1000, "delay_ms": 0, "reset_loop_count": 1000},
        "lease": {"self_fence_after_ms": 60_000},
        "detection": {"libvirt_hang_ms": 60_000},
    }


class Story:
    """A lab with an open API."""

    def __init__(self, lab: Lab, journals: Journals | None = None) -> None:
        self.lab = lab
        self.journals = journals or Journals(lab)
        self.api = lab.api()

    def close(self) -> None:
        self.api.__exit__(None, None, None)

    # VMs

    def create_vm(
        self,
        name: str,
        *,
        watchdog: str | None = "i6300esb:reset",
        ha: bool = True,
        machine: str = "q35",
        host: str | None = None,
        start: bool = True,
    ) -> Json:
        """A VM from the tiny image, running unless told otherwise; returns its view."""
        body: Json = {
            "name": name,
            "image": "tiny",
            "storage_domain": STORAGE_NAME,
            "memory_bytes": MEMORY_BYTES,
            "machine": machine,
            "ha": ha,
            "nics": [{"bridge": "br0"}],
        }
        if watchdog is not None:
            model, _, action = watchdog.partition(":")
            body["watchdog"] = {"model": model, "action": action}
        self.api.operate("/v1/vms", body)
        if start:
            self.start_vm(name, host=host)
        return self.api.vm(name)

    def start_vm(self, name: str, *, host: str | None = None) -> Node:
        self.api.operate(f"/v1/vms/{name}/start", {"host": host} if host else {})
        return self.wait_running(name)

    def _power_off(self, name: str) -> None:
        if self.api.vm(name)["status"]["state"] not in ("down", "unknown"):
            self.api.operate(f"/v1/vms/{name}/power-off")
            self.wait_state(name, "down")

    def delete_vm(self, name: str) -> None:
        """Powered off if need be, and gone with its disks. An HA VM that was down may just be on its way up."""
        deadline_s = time.monotonic() + GONE_S
        while True:
            try:
                self._power_off(name)
            except Failed:
                if time.monotonic() >= deadline_s:
                    raise
            answer = self.api.request("DELETE", f"/v1/vms/{name}", params={"delete_data": "true"})
            if answer.status_code < 400 or time.monotonic() >= deadline_s:
                break
            if answer.json().get("code") not in ("problem.vm.state", "problem.operation.open"):
                break
            time.sleep(0.2)
        if answer.status_code >= 400:
            raise Failed(f"delete {name}: {answer.status_code}: {answer.text[:500]}")
        ended = self.api.finish(answer.json())
        if ended["state"] != "done":
            raise Failed(f"delete {name}: {ended}")

    @contextlib.contextmanager
    def vm(self, name: str, **arguments: Any) -> Iterator[Json]:
        """A VM that is gone afterwards, however the block ends."""
        try:
            yield self.create_vm(name, **arguments)
        finally:
            if self.api.request("GET", f"/v1/vms/{name}").status_code == 200:
                self.delete_vm(name)

    def wait_state(self, name: str, state: str, *, timeout_s: float = RUNNING_TIMEOUT_S) -> Json:
        """Until the server says so; its view then."""
        found: Json = {}

        def is_there() -> bool:
            found.update(self.api.vm(name))
            return bool(found["status"]["state"] == state)

        try:
            wait_until(is_there, f"{name} is {state}", timeout_s=timeout_s, pause_s=0.05)
        except Failed as error:
            raise Failed(f"{error.message}; it is {found['status']}") from error
        return found

    def wait_running(self, name: str) -> Node:
        """Until server and kernel agree that it runs; its host then."""
        self.wait_state(name, "running")
        return self.lab.host_of(name)

    def wait_agent(self, name: str) -> float:
        """Until the guest agent answers; how long that took."""
        begin = time.monotonic()

        def answers() -> bool:
            try:
                return guest.agent_answers(self.lab.host_of(name), name)
            except Unavailable:
                return False

        wait_until(
            answers, f"the guest agent of {name} answers", timeout_s=AGENT_TIMEOUT_S, pause_s=0.1
        )
        return time.monotonic() - begin

    def look(self, name: str) -> guest.GuestLook:
        return guest.look(self.lab.host_of(name), name)

    # Events

    def revision(self) -> int:
        """The newest event's: what comes later is above it."""
        newest = self.api.get("/v1/events", order="desc", limit=1)["items"]
        return int(newest[0]["revision"]) if newest else 0

    def events(self, vm: str, after: int = 0, code: str | None = None) -> list[Json]:
        """Of one VM, oldest first."""
        filters: Json = {"vm": vm, "after": after}
        if code is not None:
            filters["code"] = code
        return self.api.events(**filters)

    def wait_event(
        self, vm: str, code: str, *, after: int, timeout_s: float = EVENT_TIMEOUT_S
    ) -> Json:
        """The first of its kind after a revision. Raises Failed with what came instead."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.events(vm, after, code)
            if found:
                return found[0]
            if time.monotonic() > deadline:
                came = [(event["code"], event["fields"]) for event in self.events(vm, after)]
                raise Failed(f"{vm}: no event {code} within {timeout_s:g} s; came: {came}")
            time.sleep(0.05)

    def add_power(self, host: str, settings: Json, password: str) -> None:
        """Set up as a user would, and tested until it passes: an answer may be lost. Raises Failed with what the last test said."""
        path = f"/v1/hosts/{host}/power/{DEVICE}"
        body = {"settings": {"user": bmc.USER, **settings}, "secrets": {"password": password}}
        answer = self.api.request("PUT", path, json=body)
        if answer.status_code >= 400:
            raise Failed(f"power of {host}: {answer.status_code}: {answer.text[:500]}")
        told: Json = {}

        def passes() -> bool:
            told.update(self.api.post(f"{path}/test"))
            return bool(told["test"]["passed"])

        try:
            wait_until(passes, f"the power test of {host} passes", timeout_s=TEST_S, pause_s=0.5)
        except Failed as error:
            raise Failed(f"{error.message}; the last said: {told}") from error

    def set_policy(self, policy: Json) -> None:
        cluster = self.api.get("/v1/clusters")["items"][0]["name"]
        answer = self.api.request("PUT", f"/v1/clusters/{cluster}/policy", json=policy)
        if answer.status_code >= 400:
            raise Failed(f"policy: {answer.status_code}: {answer.text[:500]}")


@contextlib.contextmanager
def bmcs(story: Story, settings: Json = BY_IPMI) -> Iterator[dict[str, Bmc]]:
    """Each host's is its power device, set up and tested; afterwards none has one, and all BMCs are well."""
    made = {host.name: story.lab.bmc(host.name) for host in story.lab.hosts}
    try:
        for name, one in made.items():
            one.begin_anew()
            story.add_power(name, {**settings, "address": one.address}, one.password)
        yield made
    finally:
        for name, one in made.items():
            story.api.request("DELETE", f"/v1/hosts/{name}/power/{DEVICE}")
            one.begin_anew()
            if story.lab.host(name).state.bmc is None:
                faults.start_bmc(story.lab, name)


class Twin:
    """The same domain under another name, which virtha does not manage: what `virsh start` of this
    very configuration takes, hook included. Its disk is a copy on the same shared storage, beside the
    storage domain."""

    def __init__(self, host: Node, vm: str) -> None:
        self.host = host
        self.name = f"{vm}-twin"
        disk = f"{host.shared}/other/{self.name}.qcow2"
        source = f"{host.storage}/images/tiny.qcow2"
        host.run_checked(["cp", source, disk])
        xml = _twin_xml(host.run_checked(["virsh", "dumpxml", "--inactive", vm]), self.name, disk)
        path = f"/run/{self.name}.xml"
        host.path_inside(path).write_text(xml)
        host.run(["virsh", "undefine", self.name])  # one of an earlier measurement, if any
        host.run_checked(["virsh", "define", path])

    def start_s(self) -> float:
        """Seconds that one `virsh start` takes; it is destroyed again."""
        begin = time.monotonic()
        self.host.run_checked(["virsh", "start", self.name])
        taken = time.monotonic() - begin
        self.host.run_checked(["virsh", "destroy", self.name])
        return taken

    def remove(self) -> None:
        self.host.run_checked(["virsh", "undefine", self.name])


def _twin_xml(xml: str, name: str, disk: str) -> str:
    """Without our mark, with its own name, id, address and files."""
    tree = defusedxml.ElementTree.fromstring(xml)
    own_name, source = tree.find("name"), tree.find("devices/disk/source")
    if own_name is None or source is None:
        raise Failed("libvirt's XML of the VM has no name or no disk")
    own_name.text = name
    for tag in ("uuid", "metadata"):
        found = tree.find(tag)
        if found is not None:
            tree.remove(found)
    source.set("file", disk)
    for interface in tree.findall("devices/interface"):
        address = interface.find("mac")
        if address is not None:
            interface.remove(address)
    for kind in ("serial", "console"):
        for console in tree.findall(f"devices/{kind}"):
            for part in (console.find("source"), console.find("log")):
                if part is not None and (part.get("path") or part.get("file")):
                    key = "path" if part.get("path") else "file"
                    part.set(key, f"/var/log/libvirt/{name}.{kind}.{part.tag}")
    return str(defusedxml.ElementTree.tostring(tree, encoding="unicode"))


def temporary_directory(name: str) -> Path:
    return Path(f"/var/lib/virtha-{name}")


@contextlib.contextmanager
def temporary_lab(name: str, *, hosts: int, steps: Steps) -> Iterator[Story]:
    """A lab for one measurement, without restart limits; gone afterwards. Raises Failed when its journal, replayed, decides otherwise."""
    directory = temporary_directory(name)
    down(directory, steps=steps)
    with (
        replayed_lab(directory, hosts=hosts, steps=steps) as journals,
        contextlib.closing(Story(journals.lab, journals)) as story,
    ):
        story.set_policy(no_restart_limit())
        yield story
