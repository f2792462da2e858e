"""The machine that this server runs on."""

import hashlib
from pathlib import Path

from virtha.control.own_machine import OwnMachine
from virtha.model.ids import BootId

MACHINE_ID_DIGITS = 32
"""Before its first boot ends it is a word."""


def this_machine() -> OwnMachine:
    """Its boot, as an agent on the same machine tells it. Its id is not for others' eyes: a digest of it is kept."""
    boot, machine_id = _read("/proc/sys/kernel/random/boot_id"), _read("/etc/machine-id")
    return OwnMachine(
        boot=BootId(boot) if boot else None,
        id=hashlib.sha256(f"virtha server {machine_id}".encode()).hexdigest()[:16]
        if len(machine_id) == MACHINE_ID_DIGITS
        else None,
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
