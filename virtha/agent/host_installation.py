"""What virtha puts on a host outside its own directories, apart from the start gate: its units.

And the way back: nothing of virtha is left between libvirt and the host's VMs.
"""

from pathlib import Path

from virtha.agent.files import Files
from virtha.agent.gate import uninstall_gate
from virtha.agent.paths import AgentPaths
from virtha.agent.records import SettingsStore
from virtha.drivers.systemd_units import install_units, remove_units, units_wrong
from virtha.model.errors import Refused

_UNITS = Path(__file__).parent / "units"


def install_host_units(paths: AgentPaths) -> tuple[str, ...]:
    """Names of the units that are new or changed. Raises Failed."""
    return install_units(_UNITS, Path(paths.root))


def host_units_wrong(paths: AgentPaths) -> tuple[str, ...] | None:
    """As ``units_wrong``."""
    return units_wrong(_UNITS, Path(paths.root))


def uninstall(paths: AgentPaths, *, force: bool) -> None:
    """Remove start gate and units; state and properties stay.

    Raises Refused while this host holds VMs by its last settings: without the gate each of them
    could be started here while it runs on another host.
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
    uninstall_gate(paths)
    remove_units(_UNITS, Path(paths.root))
