"""What is asked of power devices, and what is shown of them."""

from enum import StrEnum

from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.power_settings import PowerRecord, PowerSettings, PowerTest
from virtha.model.value import Request, Value


class PowerPut(Request, frozen=True, kw_only=True):
    """``settings``: all that is set here; what is left out is inherited, or the default. ``secrets``: those that change, by
    name; null takes one away."""

    settings: PowerSettings = PowerSettings()
    secrets: dict[str, str | None] = {}


class HostPowerAction(StrEnum):
    OFF = "off"
    ON = "on"
    REBOOT = "reboot"
    """Off, read back, then on: never the device's own reset (P1)."""
    BLINK = "blink"


class HostPowerOrder(Request, frozen=True, kw_only=True):
    """``device``: only that one; none: all of the host's, level by level until one works. ``force``: although VMs run on
    the host, which are cut off with it."""

    action: HostPowerAction
    device: str | None = None
    force: bool = False


class ClusterPowerView(Value, frozen=True, kw_only=True):
    power: PowerRecord


class HostPowerView(Value, frozen=True, kw_only=True):
    """One device of a host. ``whole``: what holds, its cluster's values included; ``inherited``: the names of those."""

    name: str
    host: str
    power: PowerRecord | None
    """What the host itself sets; None: nothing, so this device is its cluster's only and has no address."""
    whole: PowerSettings
    inherited: tuple[str, ...]
    secrets: tuple[str, ...]
    """Names of those that are set, here or for the cluster."""
    usable: bool
    problem: str = ""
    """Why it is not usable."""
    proves: bool
    """Whether its readings can prove that the host is off (P1)."""
    warnings: tuple[str, ...] = ()
    """Codes (``power.…``)."""
    warning_texts: tuple[str, ...] = ()
    test: PowerTest | None = None
    tested: bool = False
    """The last test passed, and nothing was changed since."""


class PowerStatusView(Value, frozen=True, kw_only=True):
    """One reading."""

    name: str
    host: str
    state: PowerState
    identity: IdentityMatch
    code: str | None = None
    reason: str = ""
    """``code`` rendered."""
    detail: str = ""
    """The device's own words."""
    took_ms: int = 0


class PowerTestView(Value, frozen=True, kw_only=True):
    name: str
    host: str
    test: PowerTest
    reason: str = ""
