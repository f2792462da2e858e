"""Operators who go on with their work in the midst of chaos: they move VMs, and stop and start them. What they are refused they leave.
And they free VMs that two hosts died with, which nobody else may (M5)."""

import threading
import time
from collections.abc import Iterable

from virtha.lab.chaos_plan import FaultKind, Strike
from virtha.lab.lab import Lab
from virtha.model.errors import Unavailable, VirthaError

QUARANTINED = "recovery.blocked.quarantine"
ORDER_S = 60.0
"""How long one waits for the end of what he ordered."""


class Operators:
    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._stopped: set[str] = set()

    def work(self, one: Strike) -> str:
        """What came of it, in words. Never raises VirthaError."""
        if one.kind is FaultKind.VM_MOVED:
            return self._order(one.target, "migrate")
        with self._lock:
            self._stopped.add(one.target)
        said = self._order(one.target, "power-off")
        time.sleep((one.lasts_ms or 0) / 1_000)
        return f"{said}; started: {self._order(one.target, 'start')}"

    def has_stopped(self) -> bool:
        """Something that may have to be started again yet."""
        with self._lock:
            return bool(self._stopped)

    def start_what_they_stopped(self) -> list[str]:
        """Nobody else has to: what an operator stopped stays down. An order that nobody waits for any more may still be carried
        out, so a VM that runs is done only when none is open. Returns what was started."""
        with self._lock:
            stopped = sorted(self._stopped)
        did = []
        for vm in stopped:
            state, is_open = self._look(vm)
            if state == "running" and not is_open:
                with self._lock:
                    self._stopped.discard(vm)
            elif state == "down" and not is_open:
                did.append(f"{vm} started: {self._order(vm, 'start')}")
        return did

    def free_what_is_quarantined(self, vms: Iterable[str]) -> list[str]:
        """Two power cuts within its policy's window are enough; whoever made them knows that it was not the VM. Returns what was freed."""
        return [f"{vm} freed: {self._free(vm)}" for vm in vms if self._is_quarantined(vm)]

    def _is_quarantined(self, vm: str) -> bool:
        try:
            with self._lab.api() as api:
                return any(one["code"] == QUARANTINED for one in api.vm(vm).get("engine") or [])
        except VirthaError:
            return False

    def _free(self, vm: str) -> str:
        try:
            with self._lab.api() as api:
                api.post(f"/v1/vms/{vm}/free")
        except VirthaError as error:
            return str(error)[:300]
        return "done"

    def _look(self, vm: str) -> tuple[str, bool]:
        """Its state, and whether an operation of it is open."""
        try:
            with self._lab.api() as api:
                found = api.vm(vm)
                open_ones = api.get("/v1/operations", subject=found["vm"]["id"], open="true")
                return str(found["status"]["state"]), bool(open_ones["items"])
        except Unavailable:
            return "", True

    def _order(self, vm: str, what: str) -> str:
        try:
            with self._lab.api() as api:
                ended = api.finish(api.post(f"/v1/vms/{vm}/{what}"), timeout_s=ORDER_S)
        except VirthaError as error:
            return str(error)[:300]
        return f"{ended['state']} {ended.get('code') or ''}".strip()
