"""The watchdog card of a VM: which models and actions there are, and what fits what (W1, W2).

Source of the table: libvirt's formatdomain documentation, "Watchdog devices" (i6300esb since 0.8.0,
ib700 since 0.7.3, diag288 since 1.2.17, itco since 9.1.0), checked against libvirt 9.0 and QEMU 7.2.
What a VM may really use is this table *and* what the host's libvirt says it accepts.
"""

from enum import StrEnum

from virtha.model.errors import InvalidInput
from virtha.model.machine import MachineType
from virtha.model.value import Value


class WatchdogModel(StrEnum):
    I6300ESB = "i6300esb"
    IB700 = "ib700"
    DIAG288 = "diag288"
    ITCO = "itco"


class WatchdogAction(StrEnum):
    RESET = "reset"
    POWEROFF = "poweroff"
    PAUSE = "pause"
    DUMP = "dump"
    NONE = "none"
    SHUTDOWN = "shutdown"
    INJECT_NMI = "inject-nmi"


class Watchdog(Value, frozen=True, kw_only=True):
    """One card: both parts are mandatory (W1)."""

    model: WatchdogModel
    action: WatchdogAction


class _Fit(Value, frozen=True, kw_only=True):
    architectures: tuple[str, ...]
    machines: tuple[MachineType, ...]
    libvirt_version_min: int
    """As libvirt counts: major * 1,000,000 + minor * 1,000 + release."""


_TABLE: dict[WatchdogModel, _Fit] = {
    WatchdogModel.I6300ESB: _Fit(
        architectures=("x86_64",),
        machines=(MachineType.PC, MachineType.Q35),
        libvirt_version_min=8_000,
    ),
    # An ISA card: q35 has an ISA bridge too, and QEMU accepts it there.
    WatchdogModel.IB700: _Fit(
        architectures=("x86_64",),
        machines=(MachineType.PC, MachineType.Q35),
        libvirt_version_min=7_003,
    ),
    WatchdogModel.DIAG288: _Fit(
        architectures=("s390x",),
        machines=(MachineType.S390_CCW,),
        libvirt_version_min=1_002_017,
    ),
    WatchdogModel.ITCO: _Fit(
        architectures=("x86_64",), machines=(MachineType.Q35,), libvirt_version_min=9_001_000
    ),
}


def models_that_fit(
    architecture: str, machine: MachineType, *, libvirt_version: int | None
) -> tuple[WatchdogModel, ...]:
    """The models for this machine; ``libvirt_version`` None means no host is known yet."""
    return tuple(
        model
        for model, fit in _TABLE.items()
        if architecture in fit.architectures
        and machine in fit.machines
        and (libvirt_version is None or libvirt_version >= fit.libvirt_version_min)
    )


def parse_watchdog(text: str) -> Watchdog:
    """Read ``MODEL:ACTION`` as the CLI takes it. Raises InvalidInput that lists what is allowed."""
    model_text, _, action_text = text.partition(":")
    try:
        model = WatchdogModel(model_text)
    except ValueError:
        raise InvalidInput(
            f"'{model_text}' is no watchdog model",
            code="problem.watchdog.model",
            field="watchdog.model",
            allowed=tuple(WatchdogModel),
            fix="write MODEL:ACTION, for example i6300esb:reset",
        ) from None
    try:
        action = WatchdogAction(action_text)
    except ValueError:
        wrong = f"'{action_text}' is no watchdog action" if action_text else "the action is missing"
        raise InvalidInput(
            wrong,
            code="problem.watchdog.action",
            field="watchdog.action",
            allowed=tuple(WatchdogAction),
            fix="write MODEL:ACTION, for example i6300esb:reset",
        ) from None
    return Watchdog(model=model, action=action)
