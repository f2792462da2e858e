"""What virtha puts on a host outside its own directories, apart from the start gate: its units.

And the way back: nothing of virtha is left between libvirt and the host's VMs.
"""

from pathlib import Path

from virtha.agent.files import Files
from virtha.agent.gate import uninstall_gate
from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import is_held
from virtha.agent.records import SettingsStore
from virtha.drivers.systemd_units import install_units, remove_units, units_wrong
from virtha.model.errors import Refused

_UNITS = Path(__file__).parent / "units"
_GUARDIAN_UNIT = "virtha-guardian.service"


def install_host_units(paths: AgentPaths) -> tuple[str, ...]:
    """Names of the units that are new or changed. Raises Failed."""
    return install_units(_UNITS, Path(paths.root))


def host_units_wrong(paths: AgentPaths) -> tuple[str, ...] | None:
    """As ``units_wrong``."""
    return units_wrong(_UNITS, Path(paths.root))


def uninstall(paths: AgentPaths, *, force: bool) -> bool:
    """Remove start gate and units; state and properties stay. Whether the guardian's unit stays, too: of one that runs.

    It may feed an armed watchdog, which nobody can stop before the host's next boot: without its unit nobody would begin
    it anew when it dies, and the host would be reset with all that runs there. Done again after that boot, it goes.

    Raises Refused while this host holds VMs by its last settings, for without the gate each of them could be started here
    while it runs on another host; and while the agent runs, which could be ordered to start one.
    """
    settings = SettingsStore(paths.settings, Files()).load()
    names = sorted(held.vm.name for held in settings.vms) if settings is not None else []
    if names and not force:
        raise Refused(
            f"this host holds {len(names)} protected VMs: {', '.join(names[:5])}"
            + ("…" if len(names) > 5 else ""),
            code="problem.host.busy",
            fix="on the server: move them away, then 'virtha host remove'; --force does it all the same",
        )
    if is_held(paths, "agent") and not force:
        raise Refused(
            "the agent runs on this host, and could be ordered to start a VM without the gate",
            code="problem.host.busy",
            fix="stop it first: systemctl stop virtha-agent; --force does it all the same",
        )
    uninstall_gate(paths)
    guardian_runs = is_held(paths, "guardian")
    kept = {_GUARDIAN_UNIT} if guardian_runs else frozenset[str]()
    remove_units(_UNITS, Path(paths.root), kept=kept)
    return guardian_runs
