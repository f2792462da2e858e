"""Operators who go on with their work in the midst of chaos: they move VMs, and stop and start them. What they are refused they leave."""

import threading
import time

from virtha.lab.chaos_plan import FaultKind, Strike
from virtha.lab.lab import Lab
from virtha.model.errors import VirthaError

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

    def start_what_they_stopped(self) -> list[str]:
        """Nobody else has to: what an operator stopped stays down. Returns what was started."""
        with self._lock:
            stopped = sorted(self._stopped)
        did = []
        for vm in stopped:
            state = self._state(vm)
            if state == "running":
                with self._lock:
                    self._stopped.discard(vm)
            elif state == "down":
                did.append(f"{vm} started: {self._order(vm, 'start')}")
        return did

    def _state(self, vm: str) -> str:
        try:
            with self._lab.api() as api:
                return str(api.vm(vm)["status"]["state"])
        except VirthaError:
            return ""

    def _order(self, vm: str, what: str) -> str:
        try:
            with self._lab.api() as api:
                ended = api.finish(api.post(f"/v1/vms/{vm}/{what}"), timeout_s=ORDER_S)
        except VirthaError as error:
            return str(error)[:300]
        return f"{ended['state']} {ended.get('code') or ''}".strip()
