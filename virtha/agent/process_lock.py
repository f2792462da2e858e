"""One agent and one guardian per host."""

import fcntl
import os

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
