"""The oracle of two writers on real lab hosts with real FUSE mounts, but without libvirt: writers that are called as QEMU is called."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO, cast

import pytest

from virtha.lab import lab, network, state
from virtha.lab.disk_witnesses import DiskStory, DiskWitnesses
from virtha.lab.lab import Lab
from virtha.lab.node import STORAGE_NAME, Node, wait_until
from virtha.lab.write_log import WriteLog

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("bindfs") or not shutil.which("nsenter"),
        reason="namespaces, FUSE and the kernel's notices need root and bindfs",
    ),
]
PATIENCE_S = 60.0
_WRITER = """
import os, sys
image = os.open(sys.argv[3], os.O_RDWR)
for number, line in enumerate(sys.stdin):
    os.pwrite(image, b"x", number)
    print("done", flush=True)
"""


def _script(hosts: list[Node]) -> Path:
    """Where a host sees it as well: its /dev/shm, say, is another."""
    path = hosts[0].directory / "writer.py"
    path.write_text(_WRITER)
    return path


class Writer:
    """A process on a host that lab and kernel take for the QEMU of ``web1``; it writes when it is told to."""

    def __init__(self, host: Node, script: Path) -> None:
        self._image = f"{host.storage}/web1.raw"
        # As python sees them: sys.argv is [script, -name, guest=…, image].
        words = f"exec -a qemu-system {sys.executable} {script} -name guest=web1,x {self._image}"
        self._process = subprocess.Popen(
            host.command(["bash", "-c", words]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        wait_until(
            lambda: host.qemu_of("web1") is not None, f"{host.name}: writer", timeout_s=PATIENCE_S
        )
        self.process = host.qemu_of("web1")

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"write\n")
        self._process.stdin.flush()

    def wait_done(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"done\n"

    def write(self) -> None:
        self.begin()
        self.wait_done()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def hosts() -> Iterator[list[Node]]:
    """Two, with nothing but their storage."""
    directory = Path(f"/tmp/virtha-write-log-{os.getpid()}")
    (directory / f"storage/{STORAGE_NAME}").mkdir(parents=True)
    (directory / "shared").mkdir()
    (directory / "VIRTHA-LAB").write_text("a lab of a test\n")
    nodes = [state.NodeState(name=f"h{n}", number=n, kind="host") for n in (1, 2)]
    state.write_state(
        state.LabState(id=state.lab_id(directory), directory=str(directory), nodes=tuple(nodes))
    )
    try:
        made = Lab.open(directory)
        network.make_switch(f"{made.state.id}-sw")
        for host in made.hosts:
            host.make_files()
            host.make_network()
            made.change_node(host.name, init=host.boot(("storage",)))
        yield made.hosts
    finally:
        lab.down(directory)


def _log(hosts: list[Node], tmp_path: Path) -> WriteLog:
    directory = Path(hosts[0].lab.directory)
    image = directory / f"storage/{STORAGE_NAME}/web1.raw"
    image.write_bytes(b"\0" * 4_096)
    return WriteLog(Lab.open(directory), {image: ("web1", "boot")}, tmp_path / "writes.log")


def _counted(log: WriteLog, writes: int) -> None:
    wait_until(lambda: log.judge.writes >= writes, f"{writes} writes", timeout_s=PATIENCE_S)


@pytest.mark.req("G4")
def test_a_copy_that_writes_after_a_newer_one_elsewhere_is_caught_with_its_process(
    hosts: list[Node], tmp_path: Path
) -> None:
    script = _script(hosts)
    with _log(hosts, tmp_path) as log:
        old = Writer(hosts[0], script)
        old.write()
        _counted(log, 1)
        new = Writer(hosts[1], script)
        old.write()  # the newer one has not written yet
        _counted(log, 2)
        new.write()
        _counted(log, 3)
        assert log.violations == [] and not log.violated.is_set()
        old.write()
        assert log.violated.wait(PATIENCE_S)
        (violation,) = log.violations
        written, newer = violation.write.copy, violation.newer
        assert written is not None and old.process is not None
        assert (written.host, written.pid) == ("h1", old.process.pid)
        assert newer is not None and newer.host == "h2"
        for one in (old, new):
            one.end()
    assert log.error is None
    lines = (tmp_path / "writes.log").read_text().splitlines()
    assert len(lines) == 5 and lines[-1].startswith("# written by a superseded copy")


def test_a_write_that_hung_in_the_storage_and_lands_late_is_caught(
    hosts: list[Node], tmp_path: Path
) -> None:
    """Its copy has been killed meanwhile, and could not end."""
    script = _script(hosts)
    with _log(hosts, tmp_path) as log:
        old = Writer(hosts[0], script)
        old.write()
        hosts[0].signal_service("storage", signal.SIGSTOP)
        old.begin()
        new = Writer(hosts[1], script)
        new.write()
        _counted(log, 2)
        assert log.violations == []
        hosts[0].signal_service("storage", signal.SIGCONT)
        assert log.violated.wait(PATIENCE_S)
        assert [one.write.host for one in log.violations] == ["h1"]
        old.wait_done()
        for one in (old, new):
            one.end()


def test_a_restart_on_the_same_host_is_a_newer_copy_and_nobodys_write_is_told(
    hosts: list[Node], tmp_path: Path
) -> None:
    script = _script(hosts)
    with _log(hosts, tmp_path) as log:
        first = Writer(hosts[0], script)
        first.write()
        _counted(log, 1)  # seen while it ran: one that nobody saw alive is "no copy"
        first.end()
        wait_until(lambda: hosts[0].qemu_of("web1") is None, "its end", timeout_s=PATIENCE_S)
        second = Writer(hosts[0], script)
        second.write()
        _counted(log, 2)
        assert log.violations == []
        second.end()
        hosts[1].run_checked(["sh", "-c", f"echo x > {hosts[1].storage}/web1.raw"])
        assert log.violated.wait(PATIENCE_S)
        assert str(log.violations[0]).startswith("written by no copy")


def _own_writes(tmp_path: Path) -> tuple[Lab, Path]:
    """A lab of one host on which nothing runs, and a disk to which this process writes."""
    image = tmp_path / "storage" / STORAGE_NAME / "web1.raw"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"\0" * 512)
    host = SimpleNamespace(name="h1", storage=tmp_path, processes=list)
    return cast("Lab", SimpleNamespace(directory=str(tmp_path), hosts=[host])), image


def test_what_is_written_as_a_log_is_told_to_end_counts(tmp_path: Path) -> None:
    made, image = _own_writes(tmp_path)

    class Ended(WriteLog):
        def _note(self, told: list[Any], log: TextIO) -> None:
            super()._note(told, log)
            if not self._over.is_set():
                self._over.set()
                append(b"last")

    def append(data: bytes) -> None:
        with image.open("ab", buffering=0) as disk:
            disk.write(data)

    with Ended(made, {image: ("web1", "boot")}, tmp_path / "writes.log") as log:
        append(b"first")
        assert log._over.wait(PATIENCE_S)
    assert log.error is None
    assert log.judge.writes == 2


def test_what_is_written_as_the_witnesses_of_disks_are_told_to_end_counts(tmp_path: Path) -> None:
    made, image = _own_writes(tmp_path)

    class Ended(DiskWitnesses):
        def _look_at_locks(self, disk: DiskStory) -> None:
            if not self._over.is_set():
                self._over.set()
                image.write_bytes(b"last")

    with Ended(made, {"web1": image.name}) as witnesses:
        assert witnesses._over.wait(PATIENCE_S)
    assert witnesses.error is None
    assert witnesses.of["web1"].writers == [f"process {os.getpid()}"]


def test_the_witnesses_of_disks_hear_of_each_write_while_a_look_at_locks_takes_long(
    tmp_path: Path,
) -> None:
    """The kernel tells writes of one process that nobody has read in between as one: a writer that came back would not be seen."""
    made, image = _own_writes(tmp_path)
    shown = threading.Event()

    class Slow(DiskWitnesses):
        def _look_at_locks(self, disk: DiskStory) -> None:
            assert shown.wait(2 * PATIENCE_S)

    def heard(writers: int) -> None:
        story = witnesses.of["web1"]
        wait_until(lambda: len(story.writers) == writers, f"writer {writers}", timeout_s=PATIENCE_S)

    with Slow(made, {"web1": image.name}) as witnesses:
        image.write_bytes(b"first")
        heard(1)
        with subprocess.Popen(["sh", "-c", 'echo x >> "$0"', str(image)]) as other:
            pass
        heard(2)
        image.write_bytes(b"last")
        heard(3)
        assert witnesses.looks == 0
        shown.set()
    assert witnesses.error is None
    ours = f"process {os.getpid()}"
    assert witnesses.of["web1"].writers == [ours, f"process {other.pid}", ours]
