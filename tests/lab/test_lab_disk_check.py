"""The disk activity check (A5) on real hosts: another host writes, a disk is damaged, storage hangs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.node import STORAGE_NAME, Node, wait_until
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

KEYS = {
    "vm.diskactivity.checkenabled": "true",
    "vm.diskactivity.inactivetime_ms": "2000",
    "vm.diskactivity.checktimeout_s": "6",
}
WRITER = """\
import os, sys, time
path, stop = sys.argv[1:]
with open(path, "r+b", buffering=0) as file:
    file.seek(-1, os.SEEK_END)
    last = file.read(1)
    while not os.path.exists(stop):
        file.seek(-1, os.SEEK_END)
        file.write(last)
        time.sleep(0.2)
"""
"""Writes what is there already: an open image elsewhere, without harm to this one."""


@contextlib.contextmanager
def checking(story: Story, name: str) -> Iterator[None]:
    """That host with the check on; off again afterwards."""
    host = story.lab.host(name)

    def restart_agent() -> None:
        faults.kill_agent(story.lab, name)
        faults.start_agent(story.lab, name)

    def told() -> bool:
        view = story.api.get(f"/v1/hosts/{name}")
        return view["agent_connected"] and "disk_check_ms" in view["status"]["capabilities"]

    for key, value in KEYS.items():
        host.run_checked(["virtha", "agent", "properties", "set", key, value])
    try:
        restart_agent()
        wait_until(told, f"{name} says that it checks disks", timeout_s=60.0, pause_s=0.1)
        yield
    finally:
        for key in KEYS:
            host.run_checked(["virtha", "agent", "properties", "unset", key])
        restart_agent()


@contextlib.contextmanager
def writing(host: Node, path: Path) -> Iterator[None]:
    """Somebody on that host writes the image, through its own mount of the shared storage."""
    stop, ended = "/run/stop-writing", "/run/writer-has-ended"
    script = host.path_inside("/run/writer.py")
    script.write_text(WRITER)
    shell = f"python3 /run/writer.py {path} {stop}; touch {ended}"
    host.run_checked(["sh", "-c", f"({shell}) > /dev/null 2>&1 &"])
    try:
        yield
    finally:
        host.path_inside(stop).touch()
        wait_until(host.path_inside(ended).exists, "the writer has ended", timeout_s=60.0)
        for mark in (stop, ended):
            host.path_inside(mark).unlink()


def usable_on(story: Story, host: str) -> bool:
    view = story.api.get(f"/v1/storage-domains/{STORAGE_NAME}")
    return view["usable_by"].get(host) is True


def try_start(story: Story, name: str) -> Json:
    """The operation as it ended."""
    return story.api.finish(story.api.post(f"/v1/vms/{name}/start", {"host": "h1"}))


def refused_start(story: Story, name: str, reason: str) -> Json:
    """A start that the check must stop: told with its reason, seen by `virtha vm show`, nothing runs."""
    revision = story.revision()
    ended = try_start(story, name)
    assert ended["state"] == "failed", ended
    failed = story.wait_event(name, "vm.disk_check.failed", after=revision)
    assert failed["fields"]["code"] == reason
    assert failed["severity"] == "error"
    story.wait_state(name, "down")
    assert story.lab.copies_of(name) == []
    assert failed["fields"]["result"] in story.lab.virtha("vm", "show", name)
    return failed


@pytest.mark.req("A5")
def test_the_check_stops_starts_of_disks_that_are_not_quiet(story: Story) -> None:
    view = story.create_vm("careful", host="h1")
    h1, h2 = story.lab.host("h1"), story.lab.host("h2")
    (disk,) = view["vm"]["disks"]
    path = h1.storage / disk["path"]
    assert not story.events("careful", 0, "vm.disk_check*"), "off by default: nothing is said"
    story.api.operate("/v1/vms/careful/power-off")
    story.wait_state("careful", "down")
    with checking(story, "h1"):
        # Quiet.
        revision = story.revision()
        story.start_vm("careful", host="h1")
        passed = story.wait_event("careful", "vm.disk_check", after=revision)
        assert passed["fields"]["code"] == "disk_check.passed"
        assert "disks were quiet for" in story.lab.virtha("vm", "show", "careful")
        # A crash here is restarted without it, and says so.
        revision = story.revision()
        faults.kill_qemu(story.lab, "careful")
        story.wait_event("careful", "vm.restarted", after=revision)
        skipped = story.wait_event("careful", "vm.disk_check", after=revision)
        assert skipped["fields"]["code"] == "disk_check.skipped.local_restart"
        story.api.operate("/v1/vms/careful/power-off")
        story.wait_state("careful", "down")
        # Another host writes it, for longer than the check waits.
        with writing(h2, path):
            refused = refused_start(story, "careful", "disk_check.failed.active")
        assert str(path) in refused["fields"]["result"]
        # The storage hangs: a disk that nobody can look at is not a quiet one.
        faults.stall_storage(story.lab, "h1")
        try:
            refused_start(story, "careful", "disk_check.failed.unreadable")
        finally:
            faults.resume_storage(story.lab, "h1")
        # Its agent may have told that meanwhile, and looks again every half minute.
        wait_until(
            lambda: usable_on(story, "h1"),
            "h1 can use the storage again",
            timeout_s=60.0,
            pause_s=0.2,
        )
        # The file is gone.
        aside = path.with_suffix(".aside")
        h1.run_checked(["mv", str(path), str(aside)])
        refused_start(story, "careful", "disk_check.failed.unreadable")
        h1.run_checked(["mv", str(aside), str(path)])
        # Damaged, but quiet: QEMU is who says so.
        h1.run_checked(["cp", str(path), str(aside)])
        h1.run_checked(["dd", "if=/dev/zero", f"of={path}", "bs=512", "count=1", "conv=notrunc"])
        revision = story.revision()
        assert try_start(story, "careful")["state"] == "failed"
        story.wait_event("careful", "vm.disk_check", after=revision)
        broken = story.wait_event("careful", "vm.start_failed", after=revision)
        assert "qcow2" in broken["fields"]["detail"]
        assert "qcow2" in story.lab.virtha("vm", "show", "careful")
        h1.run_checked(["mv", str(aside), str(path)])
        story.start_vm("careful", host="h1")
        story.wait_agent("careful")
