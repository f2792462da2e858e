"""Snapshots of a running guest with a mounted file system: frozen for it, clean inside, and never left frozen."""

import json
import subprocess
import threading
import time
from pathlib import Path

import libvirt_qemu
import pytest

from virtha.lab import faults, guest, image
from virtha.lab.node import Node, wait_until
from virtha.lab.story import Story
from virtha.model.errors import Failed, Unavailable

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(1_200)]
VM = "frozen1"
PATIENCE_S = 400.0
MODULES = ("crc16", "crc32c_generic", "mbcache", "jbd2", "ext4")
"""In the order in which they are loaded; the tiny guest itself mounts nothing."""
MOUNT = (
    "cd /tmp && tar xf /dev/vdc && for one in "
    + " ".join(MODULES)
    + "; do insmod ./$one.ko; done; "
    "mkdir -p /mnt && mount -t ext4 /dev/vdb /mnt && grep -c ' /mnt ext4 ' /proc/mounts"
)
WRITE = "n=0; while :; do n=$((n+1)); echo $n > /mnt/count; cp /bin/busybox /mnt/copy; sync; done"


def _make_disks(storage: Path, work: Path) -> None:
    """One with a file system, one with the modules that it takes, as a tar."""
    (package,) = sorted(image.cache_directory().glob("linux-image-*_amd64.deb"))[-1:]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
        wanted = [f"*/{name}.ko" for name in MODULES]
        subprocess.run(
            ["tar", "-x", "-C", work, "--wildcards", "--transform", "s,.*/,,", *wanted],
            stdin=tar.stdout,
            check=True,
        )
    names = [f"{name}.ko" for name in MODULES]
    subprocess.run(["tar", "-C", work, "-cf", work / "modules.raw", *names], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", work / "data.raw", "64M"], check=True)
    for name in ("data", "modules"):
        target = storage / "vms" / f"freeze-{name}.qcow2"
        target.parent.mkdir(exist_ok=True)
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
        subprocess.run([*convert, work / f"{name}.raw", target], check=True)


def _says(host: Node, command: str) -> object:
    """Of the guest's agent, also while it is frozen and runs no programs."""
    with guest.domain_of(host, VM) as domain:
        text = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command}), 5, 0)
    return json.loads(text)["return"]


def _is_thawed(host: Node) -> bool:
    try:
        return _says(host, "guest-fsfreeze-status") == "thawed"
    except Unavailable:
        return False


def _writes(host: Node) -> None:
    """The writer in the guest gets on."""

    def count() -> str:
        return guest.execute(host, VM, "cat /mnt/count", timeout_s=60).strip()

    before = count()
    wait_until(lambda: count() != before, "the guest writes on", timeout_s=60, pause_s=0.2)


def _content(storage: Path, snapshot_id: str, work: Path) -> str:
    """What dumpe2fs says of the file system in that snapshot; ``-errors`` when e2fsck finds some."""
    out = work / f"{snapshot_id}.raw"
    disk = storage / "vms" / "freeze-data.qcow2"
    convert = ["qemu-img", "convert", "-U", "-f", "qcow2", "-l", snapshot_id, "-O", "raw"]
    subprocess.run([*convert, disk, out], check=True)
    told = subprocess.run(["dumpe2fs", "-h", out], capture_output=True, text=True, check=True)
    features = next(
        line for line in told.stdout.splitlines() if line.startswith("Filesystem features")
    )
    checked = subprocess.run(["e2fsck", "-fn", out], capture_output=True, check=False)
    return features + ("" if checked.returncode == 0 else " -errors")


def _snapshot(story: Story, name: str, **more: object) -> None:
    path = f"/v1/vms/{VM}/snapshots"
    story.api.operate(path, {"name": name, **more}, timeout_s=PATIENCE_S)


@pytest.mark.req("G1")
def test_a_guest_is_frozen_for_its_snapshot_and_never_stays_so(
    story: Story, tmp_path: Path
) -> None:
    first = story.lab.host("h1")
    storage = first.path_inside(first.storage)
    _make_disks(storage, tmp_path)
    disks = [
        word
        for name in ("data", "modules")
        for word in ("--disk", f"path=vms/freeze-{name}.qcow2,name={name}")
    ]
    create = ("vm", "create", VM, "--image", "tiny", "--memory", "192MiB", "--start", *disks)
    story.lab.virtha(*create, "--timeout", "5m", timeout_s=PATIENCE_S)
    host = story.wait_running(VM)
    guest.wait_for_agent(host, VM, timeout_s=PATIENCE_S)
    assert guest.execute(host, VM, MOUNT, timeout_s=PATIENCE_S).strip() == "1"
    guest.begin(host, VM, WRITE)
    wait_until(
        lambda: guest.execute(host, VM, "cat /mnt/count 2>/dev/null", timeout_s=60) != "",
        "the writer has begun",
        timeout_s=60,
        pause_s=0.2,
    )

    _snapshot(story, "frozen")
    _writes(host)
    _snapshot(story, "pulled", crash_consistent=True)
    found = {one["name"]: one for one in story.api.get(f"/v1/vms/{VM}/snapshots")["items"]}
    assert {name: one["frozen"] for name, one in found.items()} == {"frozen": True, "pulled": False}
    inside = {name: _content(storage, one["id"], tmp_path) for name, one in found.items()}
    assert "needs_recovery" not in inside["frozen"] and "-errors" not in inside["frozen"]
    assert "needs_recovery" in inside["pulled"], "as after a power failure"

    for number, delay_s in enumerate((0.02, 0.1, 0.2, 0.4, 0.8)):
        _killed_in_the_midst(story, host, number, delay_s)
    _thawed_by_the_next_agent(story, host)
    names = [one["name"] for one in story.api.get(f"/v1/vms/{VM}/snapshots")["items"]]
    for name in names:
        deleted = story.api.request("DELETE", f"/v1/vms/{VM}/snapshots/{name}").json()
        assert story.api.finish(deleted, timeout_s=PATIENCE_S)["state"] == "done"


def _killed_in_the_midst(story: Story, host: Node, number: int, delay_s: float) -> None:
    """The host's agent ends somewhere between order and answer; the order comes again to the next one."""
    begun = story.api.post(f"/v1/vms/{VM}/snapshots", {"name": f"killed{number}"})
    time.sleep(delay_s)
    faults.kill_agent(story.lab, host.name)
    faults.start_agent(story.lab, host.name)
    ended = story.api.finish(begun, timeout_s=PATIENCE_S)
    assert ended["state"] in ("done", "failed"), ended
    wait_until(lambda: _is_thawed(host), "the guest is thawed", timeout_s=60)
    _writes(host)


def _thawed_by_the_next_agent(story: Story, host: Node) -> None:
    """Frozen, the host's agent dead and the guest's own killed: as bad as it gets while both come back."""
    vm_id = story.api.vm(VM)["vm"]["id"]
    faults.kill_agent(story.lab, host.name)
    note = host.root / "var/lib/virtha/agent/frozen" / f"{vm_id}.frozen"
    note.parent.mkdir(exist_ok=True)
    note.write_text((host.directory / "boot-id").read_text().strip())
    guest.begin(host, VM, "sleep 3; kill -9 $(pidof qemu-ga)")
    assert _says(host, "guest-fsfreeze-freeze") == 1
    with pytest.raises((Failed, Unavailable)):
        guest.execute(host, VM, "true")
    # The guest's own agent is killed meanwhile, and comes again; a frozen guest tells nobody.
    threading.Event().wait(4)
    faults.start_agent(story.lab, host.name)
    wait_until(lambda: _is_thawed(host), "the next agent thaws it", timeout_s=PATIENCE_S)
    wait_until(lambda: not note.exists(), "its note goes", timeout_s=PATIENCE_S)
    _writes(host)
