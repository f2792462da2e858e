"""Evidence of a failure (W12): what the screen showed, the end of the serial console, the event.

``evidence/<vm>/<utc>-<cause>/{screenshot.png|.ppm, serial.tail, event.json}``. Gathered after the
restart was ordered, never before: no picture is worth a second of downtime. Bounded per VM.
"""

import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from virtha.agent.paths import AgentPaths
from virtha.agent.records import safe_name
from virtha.model.facts import Happened
from virtha.model.ids import VmId
from virtha.model.time import UtcMillis
from virtha.model.vm import Vm
from virtha.ports.hypervisor import DomainEvidence, HypervisorError

FOLDERS_PER_VM_MAX = 20
SERIAL_TAIL_BYTES = 64 << 10
FREE_BYTES_MIN = 64 << 20
"""Below that much free space nothing is gathered: the agent's records need the room."""

_log = structlog.get_logger(__name__)


class EvidenceKeeper:
    def __init__(self, paths: AgentPaths, hypervisor: DomainEvidence | None) -> None:
        self._paths = paths
        self._hypervisor = hypervisor

    async def gather(
        self, vm: Vm, cause: str, *, at: UtcMillis, screenshot: bool
    ) -> Happened | None:
        """None: there was nothing to keep, or no room.

        ``screenshot`` False: the VM was restarted, its screen would show the wrong guest.
        """
        parent = self._paths.evidence / safe_name(vm.id)
        if self._free_bytes() < FREE_BYTES_MIN:
            _log.warning("no room for evidence", vm=vm.name)
            return None
        folder = self._make_folder(parent, cause, at)
        items = [*self._keep_serial(vm.id, folder), *self._keep_event(vm, cause, at, folder)]
        if screenshot and self._hypervisor is not None:
            try:
                shot = await self._hypervisor.screenshot(vm.id, str(folder / "screenshot"))
                items.append(Path(shot).name)
            except HypervisorError as error:
                # A VM without a graphics card has no screen; the serial console is what there is.
                _log.info("no screenshot", vm=vm.name, error=str(error))
        self._trim(parent)
        return Happened(
            code="vm.evidence.kept",
            vm_id=vm.id,
            fields={"vm": vm.name, "path": str(folder), "items": ", ".join(items)},
        )

    def _free_bytes(self) -> int:
        free = os.statvfs(self._paths.evidence)
        return free.f_bavail * free.f_frsize

    def _make_folder(self, parent: Path, cause: str, at: UtcMillis) -> Path:
        stamp = datetime.fromtimestamp(at / 1_000, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3] + "Z"
        words = re.sub(r"[^a-z0-9]+", "-", cause.lower()).strip("-") or "unknown"
        folder = parent / f"{stamp}-{words}"
        number = 1
        while folder.exists():
            number += 1
            folder = parent / f"{stamp}-{words}-{number}"
        folder.mkdir(parents=True, mode=0o700)
        return folder

    def _keep_serial(self, vm_id: VmId, folder: Path) -> list[str]:
        try:
            with self._paths.serial_log(vm_id).open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - SERIAL_TAIL_BYTES))
                tail = log.read(SERIAL_TAIL_BYTES)
        except OSError:
            return []  # an adopted VM may have no serial console, or one that is logged elsewhere
        (folder / "serial.tail").write_bytes(tail)
        return ["serial.tail"]

    def _keep_event(self, vm: Vm, cause: str, at: UtcMillis, folder: Path) -> list[str]:
        content = {"vm": vm.id, "name": vm.name, "cause": cause, "at_ms": at}
        (folder / "event.json").write_bytes(msgspec.json.format(msgspec.json.encode(content)))
        return ["event.json"]

    def _trim(self, parent: Path) -> None:
        for old in sorted(p for p in parent.iterdir() if p.is_dir())[:-FOLDERS_PER_VM_MAX]:
            shutil.rmtree(old, ignore_errors=True)

    def forget(self, vm_id: VmId) -> None:
        shutil.rmtree(self._paths.evidence / safe_name(vm_id), ignore_errors=True)
