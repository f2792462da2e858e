"""What is asked of a host about a VM's console, over a channel of its own (never over the session that carries beats,
facts and orders)."""

from enum import StrEnum

from virtha.model.ids import VmId
from virtha.model.time import UtcMillis
from virtha.model.value import Value

LOG_LINES_MAX = 20_000
LOG_BYTES_MAX = 4 << 20
"""Of one answer of one host; what is older stays on the host."""
LOG_WAIT_MS_MAX = 20_000
PICTURE_BYTES_MAX = 64 << 20


class ConsoleKind(StrEnum):
    VNC = "vnc"
    SERIAL = "serial"


class LogPosition(Value, frozen=True, kw_only=True):
    """A place in the serial log. ``file``: the inode, which stays when the log is rotated."""

    file: int
    offset: int


class ReadSerialLog(Value, frozen=True, kw_only=True, tag="read_serial_log"):
    """The end of what the VM wrote to its serial port on that host. Answered by one ``SerialLog``."""

    vm_id: VmId
    lines: int
    """At most so many, 1 to ``LOG_LINES_MAX``, the newest."""
    contains: str = ""
    """Only lines with this text, upper and lower case alike."""
    after: LogPosition | None = None
    """Only what was written behind this; a place that the host no longer has means all that it has."""
    wait_ms: int = 0
    """If there is nothing, how long to wait for something, up to ``LOG_WAIT_MS_MAX``."""


class SerialLog(Value, frozen=True, kw_only=True):
    """``text``: raw bytes of the guest. ``end``: where to go on; None: this host has no log of the VM."""

    text: bytes = b""
    end: LogPosition | None = None
    written_at: UtcMillis | None = None
    """When the newest byte was written, by the host's clock."""
    cut: bool = False
    """The host has older text that was not sent."""


class TakeScreenshot(Value, frozen=True, kw_only=True, tag="take_screenshot"):
    """What the VM's screen shows. Answered by the bytes of a PNG."""

    vm_id: VmId


class OpenSerial(Value, frozen=True, kw_only=True, tag="open_serial"):
    """The VM's serial port, both ways, for one user at a time."""

    vm_id: VmId


class OpenScreen(Value, frozen=True, kw_only=True, tag="open_screen"):
    """The VM's VNC server, both ways."""

    vm_id: VmId


ChannelSubject = ReadSerialLog | TakeScreenshot | OpenSerial | OpenScreen
