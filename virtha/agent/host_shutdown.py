"""Whether this whole host goes down: then VMs that stop are not restarted here (rule G5).

The mark is ``/run/virtha/shutting-down`` with the boot id in it. ``virtha-host-shutdown.service``
makes it (its ExecStop runs before libvirt's), so does ``virtha agent host-shutdown`` in any other
init system's scripts. A mark of an earlier boot says nothing.
"""

import subprocess
from pathlib import Path

from virtha.agent.paths import AgentPaths
from virtha.model.ids import BootId

SYSTEMCTL_DEADLINE_S = 5.0


def mark(paths: AgentPaths, boot: BootId) -> None:
    paths.run.mkdir(parents=True, exist_ok=True)
    temporary = paths.shutting_down.with_suffix(".new")
    temporary.write_text(boot, encoding="ascii")
    temporary.replace(paths.shutting_down)


def unmark(paths: AgentPaths) -> None:
    paths.shutting_down.unlink(missing_ok=True)


def is_marked(paths: AgentPaths, boot: BootId) -> bool:
    try:
        return paths.shutting_down.read_text(encoding="ascii").strip() == boot
    except (OSError, UnicodeDecodeError):
        return False


def systemd_is_stopping() -> bool | None:
    """None: no systemd here, so nobody but the caller knows."""
    if not Path("/run/systemd/system").is_dir():
        return None
    try:
        answer = subprocess.run(
            ["systemctl", "is-system-running"],
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() == "stopping"
