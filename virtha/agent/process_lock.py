"""One agent and one guardian per host."""

import fcntl
import os
from pathlib import Path

from virtha.agent.paths import AgentPaths
from virtha.model.errors import Failed


def hold_lock(paths: AgentPaths, name: str) -> int:
    """The descriptor that holds it; the lock ends with the process. Raises Failed."""
    paths.run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(paths.run / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Failed(
            f"the {name} runs already on this host",
            fix=f"stop that one first: systemctl stop virtha-{name}",
        ) from None
    return descriptor


def is_held(paths: AgentPaths, name: str) -> bool:
    """Whether that program runs. It is looked up, not tried: for a moment the lock would be ours, and its program refused."""
    try:
        status = (paths.run / f"{name}.lock").stat()
        held = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    # proc(5): "1: FLOCK ADVISORY WRITE 708 08:01:13548 0 EOF", the device's numbers in hexadecimal.
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(" FLOCK " in line and f" {device} " in line and "->" not in line for line in held)
