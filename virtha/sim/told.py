"""Nobody is left in the dark: of what stays down somebody was told, in an event that calls (X1, W7).

A reason that ``explain`` would give to who asks is not enough: at night nobody asks.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from virtha.model.codes import REGISTRY
from virtha.model.codes.entry import Severity
from virtha.model.ids import VmId
from virtha.sim.checkers import Violation

if TYPE_CHECKING:
    from virtha.sim.server import HistoryEntry
    from virtha.sim.world import World

TOLD_WITHIN_MS = 120_000
"""Devices are asked, brakes hold, and what only lasts a moment is not told of: all of them have spoken by then. A leader counts anew
for how long nothing was done: it has as long from its beginning."""
A_RUN_MS = 10_000
"""The moment between a dump's end and our pause is none, nor is a start that fails."""
PROOF = "recovery.waiting.proof"
_ONLY_GONE = frozenset(
    ("host.agent.down", "host.judged_dead", "host.suspected", "host.unreachable")
)
"""They say that a host is gone: whose VMs come back in a moment, as far as anybody knows."""
_ON_PURPOSE = frozenset(
    (
        "restart.blocked.stopped_on_purpose",
        "vm.down.as_ordered",
        "vm.down.destroyed_outside",
        "vm.down.guest_shutdown",
        "vm.paused.as_ordered",
        "vm.paused.outside",
    )
)
"""Somebody did it, in the guest or with libvirt's own tools, and knows."""
_CALLS = frozenset((Severity.WARNING, Severity.ERROR, Severity.ALERT))


class Told:
    """From when on an event counts: since the VM last ran, of what was said before it is another failure."""

    def __init__(self, world: "World") -> None:
        self._world = world
        world.on_processors = self.processors
        self._began: dict[VmId, tuple[int, int]] = {}
        """When its processors last began to run, and how much had been said by then."""
        self._counts_from: dict[VmId, int] = {}
        self._down_since: dict[VmId, int] = {}

    def processors(self, vm_id: VmId, runs: bool) -> None:
        now = self._world.kernel.now
        if runs:
            self._began.setdefault(vm_id, (now, len(self._world.server.history)))
        elif vm_id in self._began and not self._world.running_on(vm_id):
            began_ms, said = self._began.pop(vm_id)
            if now - began_ms >= A_RUN_MS or vm_id not in self._down_since:
                self._counts_from[vm_id], self._down_since[vm_id] = said, now

    def at_end(self) -> None:
        for vm_id, known in self._world.server.vms.items():
            protected = known.vm.ha and known.wanted_up and known.managed
            if not protected or self._world.running_on(vm_id):
                continue
            report = known.report
            if report and any(why.code in _ON_PURPOSE for why in report.reasons):
                continue
            since_ms = self._down_since.get(vm_id, 0)
            failover = self._world.gateway.failover
            seen_since_ms = since_ms if failover is None else max(since_ms, failover.began_ms)
            if self._world.kernel.now - seen_since_ms < TOLD_WITHIN_MS:
                continue
            if not any(_calls(one) for one in self._about(vm_id)):
                raise Violation(f"{known.vm.name} is down since {since_ms} and nobody was told")

    def _about(self, vm_id: VmId) -> Iterator["HistoryEntry"]:
        subjects = {self._world.server.vms[vm_id].vm.name, *self._waited_for(vm_id)}
        for entry in self._world.server.history[self._counts_from.get(vm_id, 0) :]:
            if entry.subject in subjects:
                yield entry

    def _waited_for(self, vm_id: VmId) -> Iterator[str]:
        """Hosts: what is said of them is the reason of what they hold."""
        failover = self._world.gateway.failover
        if failover is None:
            return
        for why in failover.engine.explain_vm(vm_id):
            yield str(why.fields.get("host"))
            if why.code == PROOF:
                yield from self._world.server.vms[vm_id].holders


def _calls(entry: "HistoryEntry") -> bool:
    known = REGISTRY.get(entry.code)
    calls = known is None or known.severity in _CALLS
    return calls and entry.code not in _ONLY_GONE
