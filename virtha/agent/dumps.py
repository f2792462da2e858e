"""Memory dumps that libvirt writes when a watchdog with the action ``dump`` fires (W6).

libvirt tells neither the file's name nor whether the dump worked: it goes on either way. What a firing
has left is found out by what is new in libvirt's directory since before it.
"""

import os
import re
from pathlib import Path

import structlog

from virtha.model.facts import Happened
from virtha.model.ids import VmId
from virtha.model.size import format_size
from virtha.model.time import Millis
from virtha.model.value import Fields
from virtha.model.vm import Vm
from virtha.ports.clock import Clock

QEMU_CONF = Path("/etc/libvirt/qemu.conf")
DUMP_DIRECTORY = Path("/var/lib/libvirt/qemu/dump")
"""libvirt's default of ``auto_dump_path`` in qemu.conf."""
NAME_CHARACTERS_MAX = 20
"""libvirt cuts longer names in file names (VIR_DOMAIN_SHORT_NAME_MAX of its domain_conf.h)."""
LATENESS_MS = 10_000
"""The firing's time is when the agent took its event; the dump may have begun that much earlier."""

_AUTO_DUMP_PATH = re.compile(r'^\s*auto_dump_path\s*=\s*"([^"]+)"', re.MULTILINE)
_log = structlog.get_logger(__name__)


def dump_directory(qemu_conf: Path = QEMU_CONF) -> Path:
    """Where libvirt writes dumps by itself, as its configuration says."""
    try:
        found = _AUTO_DUMP_PATH.findall(qemu_conf.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = []
    return Path(found[-1]) if found else DUMP_DIRECTORY


class DumpFinder:
    """Says once per firing which file its dump is, or why there is none."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._told: dict[VmId, int] = {}
        self._began = clock.monotonic_ms()
        self._looked_at: dict[VmId, Millis] = {}
        """When the files of a VM were taken down last; of an earlier firing they may be its own."""
        self._known: dict[Path, int] = {}
        try:
            self._known = self._files()
        except OSError as error:
            _log.warning("libvirt's dumps can't be listed", error=str(error))

    def of_firing(self, vm: Vm, *, number: int, fired_ms: int) -> Happened | None:
        """``vm.dumped`` or ``vm.dump_failed``; None: told already.

        ``number`` counts the VM's firings, ``fired_ms`` is on the host's monotonic clock.
        """
        if self._told.get(vm.id) == number:
            return None
        self._told[vm.id] = number
        fields: Fields = {"vm": vm.name}
        try:
            present = self._files()
        except OSError as error:
            why = f"{self._directory} can't be listed: {error.strerror}"
            return Happened(code="vm.dump_failed", vm_id=vm.id, fields={**fields, "detail": why})
        own = {path: modified for path, modified in present.items() if _is_of(path, vm)}
        looked_at = self._looked_at.get(vm.id, self._began)
        known = self._known if fired_ms >= looked_at else {}
        # Both times are of this host's clocks, so they compare.
        fired_wall_ms = self._clock.wall_ms() - (self._clock.monotonic_ms() - fired_ms)
        fresh = {
            path: modified
            for path, modified in own.items()
            if known.get(path) != modified and modified // 1_000_000 >= fired_wall_ms - LATENESS_MS
        }
        self._known.update(own)
        self._looked_at[vm.id] = self._clock.monotonic_ms()
        if not fresh:
            why = self._why_none(vm)
            return Happened(code="vm.dump_failed", vm_id=vm.id, fields={**fields, "detail": why})
        path = max(fresh, key=lambda each: fresh[each])
        return Happened(code="vm.dumped", vm_id=vm.id, fields={**fields, "path": str(path)})

    def _files(self) -> dict[Path, int]:
        """Path -> time of its last change in ns. A directory that libvirt never made is empty."""
        found = {}
        try:
            paths = list(self._directory.iterdir())
        except FileNotFoundError:
            return {}
        for path in paths:
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # somebody tidies up
        return found

    def _why_none(self, vm: Vm) -> str:
        why = f"libvirt left no new file in {self._directory}"
        try:
            space = os.statvfs(self._directory)
        except OSError as error:
            return f"{why}: {error.strerror}"
        free = space.f_bavail * space.f_frsize
        if free < vm.memory_bytes:
            return f"{why}: {format_size(free)} free, the VM has {format_size(vm.memory_bytes)}"
        return f"{why}; libvirt's own log says why"


def _is_of(path: Path, vm: Vm) -> bool:
    """libvirt names them ``<domain id>-<name>-<time>``."""
    name = re.escape(vm.name[:NAME_CHARACTERS_MAX])
    return re.fullmatch(rf"\d+-{name}-.+", path.name) is not None
