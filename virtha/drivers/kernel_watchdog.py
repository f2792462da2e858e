"""The host's watchdog and its reset, by the kernel: /dev/watchdog and sysrq.

See linux/watchdog.h. Devices count whole seconds. Without ``nowayout`` the driver stops when the character V is
written before it is closed, and only then, so a guardian that dies does not stop it.
"""

import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

from virtha.ports.host_watchdog import ArmedWatchdog

DEVICE = Path("/dev/watchdog")
CLASS = Path("/sys/class/watchdog/watchdog0")
SYSRQ = Path("/proc/sysrq-trigger")
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of linux/proc_ns.h: the namespace of the machine itself."""
_KEEP_ALIVE = 0x80045705
_SET_TIMEOUT = 0xC0045706
_INTEGER = struct.Struct("i")


class KernelWatchdog:
    """Implements ``HostWatchdog``."""

    def __init__(self, device: Path = DEVICE, about: Path = CLASS) -> None:
        self._path = device
        self._about = about
        self._device: int | None = None

    def runs_ms(self) -> int:
        try:
            if self._say("state") != "active":
                return 0
            return int(self._say("timeout")) * 1_000
        except (OSError, ValueError):
            return 0

    def arm(self, timeout_ms: int) -> ArmedWatchdog:
        seconds = -(-timeout_ms // 1_000)
        opened = self._device is None
        if self._device is None:
            self._device = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)  # it runs from here on
        try:
            told = fcntl.ioctl(self._device, _SET_TIMEOUT, _INTEGER.pack(seconds))
            self.feed()
        except OSError:
            if opened:
                # Nobody would feed it, and it would reset a host that promised nothing.
                with suppress(OSError):
                    self.disarm()
            raise
        (seconds,) = _INTEGER.unpack(told)
        return ArmedWatchdog(timeout_ms=seconds * 1_000, no_way_out=self._no_way_out())

    def feed(self) -> None:
        if self._device is None:
            raise OSError(errno.EBADF, "the watchdog is not open")
        fcntl.ioctl(self._device, _KEEP_ALIVE, _INTEGER.pack(0))

    def disarm(self) -> None:
        if self._device is not None:
            os.write(self._device, b"V")
            os.close(self._device)
            self._device = None

    def _no_way_out(self) -> bool:
        """Nobody can tell: it has one."""
        with suppress(OSError):
            return self._say("nowayout") == "1"
        return False

    def _say(self, name: str) -> str:
        return (self._about / name).read_text(encoding="ascii").strip()


class SysrqReset:
    """Implements ``HostReset``. Only for a host that is a machine: below a PID namespace (a lab's host, a container) it
    would reset the machine that everything else runs on as well, so there it refuses."""

    def __init__(self, trigger: Path = SYSRQ, namespace: Path = Path("/proc/self/ns/pid")) -> None:
        self._trigger = trigger
        self._namespace = namespace

    def reset(self) -> None:
        if str(self._namespace.readlink()) != FIRST_PID_NAMESPACE:
            raise PermissionError(errno.EPERM, "this host is no machine of its own")
        descriptor = os.open(self._trigger, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"b")
        finally:
            os.close(descriptor)
