"""The lab's parts that need no root: archive, state on disk, which process is which."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtha.lab import guest_files, namespaces, state
from virtha.lab.archive import Archive
from virtha.lab.image import load_order
from virtha.lab.lab import start_beside
from virtha.model.errors import Conflict, Failed, NotFound


def parse_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A second, dumb reader of the format: name -> (mode, content)."""
    found, position = {}, 0
    while True:
        header = data[position : position + 110]
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        name_at = position + 110
        name = data[name_at : name_at + fields[11] - 1].decode()
        data_at = (name_at + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[data_at : data_at + fields[6]])
        position = (data_at + fields[6] + 3) // 4 * 4


def test_an_archive_reads_back_with_parents_and_modes() -> None:
    tree = Archive()
    tree.file("etc/acpi/PWRF/00000080", b"#!/bin/sh\n", 0o755)
    tree.symlink("sbin/init", "/bin/busybox")
    tree.character_device("dev/console", 5, 1)
    packed = tree.to_bytes()
    found = parse_cpio(gzip.decompress(packed))
    assert list(found)[:3] == ["etc", "etc/acpi", "etc/acpi/PWRF"]
    assert found["etc/acpi/PWRF/00000080"] == (0o100755, b"#!/bin/sh\n")
    assert found["sbin/init"] == (0o120777, b"/bin/busybox")
    assert found["dev/console"][0] == 0o020600
    assert packed == tree.to_bytes(), "the same inputs give the same bytes"


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    def module(name: str, needs: str = "") -> Path:
        path = tmp_path / f"{name}.ko"
        path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")
        return path

    modules = {name: module(name) for name in ("virtio", "watchdog", "virtio_ring")}
    for name in guest_files.MODULES:
        plain = name.replace("-", "_")
        modules[plain] = module(plain, "watchdog" if "wdt" in name else "virtio,virtio-ring")
    order = load_order(modules)
    assert order.index("virtio_ring") < order.index("virtio_pci")
    assert order.index("watchdog") < order.index("ib700wdt")
    assert len(order) == len(set(order))
    del modules["watchdog"]
    with pytest.raises(Failed, match="watchdog"):
        load_order(modules)


def test_state_survives_and_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="virtha lab up"):
        state.read_state(tmp_path)
    node = state.NodeState(name="h1", number=1, kind="host")
    found = state.LabState(id="vl1", directory=str(tmp_path), nodes=(node,))
    state.write_state(found)
    assert state.read_state(tmp_path) == found
    with pytest.raises(NotFound, match="h1"):
        found.node("h9")
    (tmp_path / state.STATE_NAME).write_text('{"id": "vl1"')
    with pytest.raises(Failed, match="lab down"):
        state.read_state(tmp_path)


def test_a_lab_is_found_by_its_directory_alone_and_paths_are_short(tmp_path: Path) -> None:
    assert state.lab_id(tmp_path) == state.lab_id(Path(str(tmp_path)))
    assert state.lab_id(tmp_path) != state.lab_id(tmp_path / "other")
    with pytest.raises(Failed, match="too long"):
        state.lab_directory(Path("/" + "x" * 70))


def test_two_commands_do_not_change_one_lab_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "REGISTRY", tmp_path / "registry")
    with state.exclusive(tmp_path):
        with pytest.raises(Conflict), state.exclusive(tmp_path):
            raise AssertionError("entered twice")
        with state.exclusive(tmp_path / "another"):
            pass
    with state.exclusive(tmp_path):
        pass
    state.register(tmp_path)
    assert state.registered() == [tmp_path]
    state.unregister(tmp_path)
    assert state.registered() == []


def test_only_the_very_process_is_signalled() -> None:
    code = "print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"  # its command line is there only after its exec
        process = namespaces.identify(child.pid)
        assert process is not None
        assert process.is_alive()
        # The same id with another start time is somebody else: left alone.
        other = namespaces.ProcessId(pid=child.pid, start_ticks=process.start_ticks + 1)
        assert namespaces.kill(other) is False
        assert process.is_alive()
        assert namespaces.command_line(process)[-1] == code
        assert namespaces.kill(process) is True
        assert namespaces.wait_gone([process], timeout_s=60.0) == []
        child.wait()
    assert namespaces.identify(child.pid) is None
    assert namespaces.kill(process) is False
    assert namespaces.inner_pid(process) is None
    mine = namespaces.identify(os.getpid())
    assert mine is not None
    assert namespaces.wait_gone([mine], timeout_s=0.0) == [mine]


def test_a_program_beside_the_lab_is_there_when_it_listens_and_outlives_its_command(
    tmp_path: Path,
) -> None:
    ready = tmp_path / "ready"
    program = "import pathlib, sys, threading; pathlib.Path(sys.argv[1]).touch(); threading.Event().wait()"
    begun = start_beside(
        tmp_path / "log", [sys.executable, "-c", program, str(ready)], ready.exists, "it"
    )
    assert begun is not None
    try:
        assert begun.is_alive() and os.getsid(begun.pid) == begun.pid
    finally:
        namespaces.kill(begun)
        os.waitpid(begun.pid, 0)


def test_a_program_beside_the_lab_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no port is free')"]
    with pytest.raises(Failed, match=r"the forward ended: no port is free"):
        start_beside(tmp_path / "log", command, lambda: False, "the forward")
