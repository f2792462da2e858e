"""Power devices of a host, as far as decisions need them; how to reach them is the drivers' business."""

from enum import StrEnum
from typing import NewType

from virtha.model.value import Value

PowerDeviceId = NewType("PowerDeviceId", str)


def device_name(device: PowerDeviceId) -> str:
    """As people gave it: an id names its settings' revision after it (`bmc@17`), and no name holds an @."""
    return device.partition("@")[0]


TOO_LATE = "power.too_late"
"""Of an order that was refused because it was too old when it would have gone to its device: never carried out."""


class PowerAction(StrEnum):
    OFF = "off"
    ON = "on"
    BLINK = "blink"
    """Lights the identify LED; proves nothing."""


class PowerFeed(Value, frozen=True, kw_only=True):
    """One device that feeds the host: a BMC, or one outlet of a power strip."""

    device: PowerDeviceId
    reads_state: bool = True
    """False: a command without a status string. Its exit code 0 proves nothing (P1)."""


class PowerLevel(Value, frozen=True, kw_only=True):
    """Devices that must all be off for the host to be off; the next level is tried when this one fails."""

    feeds: tuple[PowerFeed, ...]

    def __post_init__(self) -> None:
        assert self.feeds, "a level without a device proves nothing"
