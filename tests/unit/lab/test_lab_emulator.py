"""Emulated guests of the lab get a memory whose written pages QEMU counts one by one (`virtha.lab.emulator`)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from virtha.lab import emulator
from virtha.model.errors import Failed

BACKEND = '{"qom-type":"memory-backend-ram","id":"pc.ram","size":%d}'
COUNTED_AT_ONCE_BYTES = 64 * 4_096
"""Of which QEMU's memory must be no multiple."""


def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str, waits_ms: int = 0
) -> list[str]:
    """With which words the real program is called."""
    real = tmp_path / "real"
    real.write_text("#!/bin/sh\nfor word do printf '%s\\0' \"$word\"; done\n")
    real.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _name: str(real))
    emulator.install_emulator(tmp_path / "programs")
    emulator.set_firmware_wait(tmp_path / "programs", waits_ms)
    program = tmp_path / "programs" / emulator.PROGRAM
    done = subprocess.run([program, *words], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("memory", ["128", "size=131072k"])
def test_8_kib_are_taken_off_in_both_places(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU starts no guest whose two sizes differ."""
    told = started(
        tmp_path, monkeypatch, "-name", "guest=a b,x='y'", "-m", memory,
        "-object", BACKEND % (128 << 20), "-smp", "1", "",
    )  # fmt: skip
    less = (128 << 20) - 8_192
    assert less % COUNTED_AT_ONCE_BYTES
    assert told == [
        "-name", "guest=a b,x='y'", "-m", f"size={less // 1024}k",
        "-object", BACKEND % less, "-smp", "1", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-machine", "none", "-device", "help"),
        ("-m", "size=131072k,slots=16", "-smp", "1"),
        ("-m", "size=131072k,slots=16,maxmem=262144k", "-smp", "1"),
        ("-m", "", "-smp", "1"),
        ("-object", '{"qom-type":"secret","id":"masterKey0","format":"raw"}'),
        ("-append", "-m 128 $(reboot) `id` \"quoted\" 'so' \\ *"),
    ],
)
def test_all_else_arrives_as_it_was(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(tmp_path, monkeypatch, *words) == list(words)


def test_a_guest_may_wait_before_it_boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = started(tmp_path, monkeypatch, "-object", BACKEND % (128 << 20), waits_ms=15_000)
    assert told[2:] == ["-boot", "menu=on,splash-time=15000"]
    told = started(tmp_path, monkeypatch, "-object", BACKEND % (128 << 20), waits_ms=0)
    assert told[2:] == [], "and the next one doesn't, when it is taken back"


@pytest.mark.parametrize(
    ("words", "niceness"),
    [(("-object", BACKEND % (128 << 20)), emulator.NICENESS), (("-machine", "none"), 0)],
)
def test_a_guest_has_the_lower_priority(
    words: tuple[str, ...], niceness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.write_text("#!/bin/sh\nnice\n")
    real.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _name: str(real))
    emulator.install_emulator(tmp_path / "programs")
    done = subprocess.run(
        [tmp_path / "programs" / emulator.PROGRAM, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == min(19, os.nice(0) + niceness), "19 is the kernel's last"


def test_only_a_guest_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt asks QEMU what it can do with a machine that has no memory."""
    words = ("-machine", "none", "-m", "128")
    assert "-boot" not in started(tmp_path, monkeypatch, *words, waits_ms=15_000)


@pytest.mark.parametrize("wait_ms", [-1, emulator.FIRMWARE_WAIT_MAX_MS + 1])
def test_a_wait_that_the_firmware_cannot_count_is_refused(wait_ms: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"wait_ms: {wait_ms}"):
        emulator.set_firmware_wait(tmp_path, wait_ms)


def test_without_qemu_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(Failed, match=emulator.PROGRAM):
        emulator.install_emulator(tmp_path)
