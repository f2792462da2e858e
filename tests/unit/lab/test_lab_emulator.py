"""Emulated guests of the lab get a memory whose written pages QEMU counts one by one (`virtha.lab.emulator`)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from virtha.lab import emulator
from virtha.model.errors import Failed

BACKEND = '{"qom-type":"memory-backend-ram","id":"pc.ram","size":%d}'
COUNTED_AT_ONCE_BYTES = 64 * 4_096
"""Of which QEMU's memory must be no multiple."""


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """With which words the real program is called."""
    real = tmp_path / "real"
    real.write_text("#!/bin/sh\nfor word do printf '%s\\0' \"$word\"; done\n")
    real.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _name: str(real))
    emulator.install_emulator(tmp_path / "programs")
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


def test_without_qemu_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(Failed, match=emulator.PROGRAM):
        emulator.install_emulator(tmp_path)
