"""The verbs of a scenario about moving running VMs, and what happens in the middle of that."""

from collections.abc import Callable

from virtha.engine.events import EngineEvent, MaintenanceChanged, MoveAsked, MoveCancelled
from virtha.model.ids import HostId, VmId
from virtha.scenario.language import Step
from virtha.scenario.verbs import VERBS
from virtha.sim.faults import ADMIN, wrong
from virtha.sim.migration import Phase
from virtha.sim.move_truth import MoveTruth
from virtha.sim.world import World

_PHASES = {phase.name.lower(): phase for phase in Phase}
_NOT_IN_ONE = ("advance", "in-migration", "heal-all")
"""Time is what a migration takes; and healing waits for nothing."""


class MoveVerbs:
    """``do`` plays a step."""

    def __init__(self, world: World, do: Callable[[Step], None], truth: MoveTruth) -> None:
        self._world = world
        self._truth = truth
        self._do = do
        self._waiting: dict[tuple[VmId, Phase], list[Step]] = {}
        world.migrations.on_phase = self._phase
        self.verbs: dict[str, Callable[[Step], None]] = {
            "migrate": self._migrate,
            "cancel-migration": self._cancel,
            "busy": self._busy,
            "in-migration": self._in_migration,
            "maintenance": self._maintenance,
        }

    def _vm_id(self, step: Step) -> VmId:
        name = step.words[0]
        if name not in self._world.ids:
            raise wrong(step, f"no VM '{name}'", sorted(self._world.ids))
        return self._world.ids[name]

    def _tell(self, step: Step, event: EngineEvent) -> None:
        failover = self._world.gateway.failover
        if failover is None:
            raise wrong(step, f"{step.verb} needs an engine", ("engine",))
        failover.leader.offer(event)

    def _migrate(self, step: Step) -> None:
        target = step.options.get("to")
        if target is not None and target not in self._world.hosts:
            raise wrong(step, f"no host '{target}'", sorted(self._world.hosts))
        host_id = None if target is None else HostId(target)
        self._truth.asked.add(self._vm_id(step))
        self._tell(step, MoveAsked(vm_id=self._vm_id(step), target=host_id, by=ADMIN))

    def _maintenance(self, step: Step) -> None:
        name, word = step.words
        if name not in self._world.hosts:
            raise wrong(step, f"no host '{name}'", sorted(self._world.hosts))
        if word not in ("on", "off"):
            raise wrong(step, f"maintenance '{word}'", ("on", "off"))
        drain = "keep-vms" not in step.options
        # A move that was ordered in the moment before its end may still be begun after it: never taken off here.
        if word == "on" and drain:
            self._truth.emptied.add(name)
        self._tell(
            step,
            MaintenanceChanged(host_id=HostId(name), on=word == "on", by=ADMIN, drain=drain),
        )

    def _cancel(self, step: Step) -> None:
        self._tell(step, MoveCancelled(vm_id=self._vm_id(step), by=ADMIN))

    def _busy(self, step: Step) -> None:
        vm_id, word = self._vm_id(step), step.words[1]
        if word not in ("yes", "no"):
            raise wrong(step, f"busy '{word}'", ("yes", "no"))
        busy = self._world.migrations.busy
        busy.add(vm_id) if word == "yes" else busy.discard(vm_id)

    def _in_migration(self, step: Step) -> None:
        vm_id, phase, verb, *words = self._vm_id(step), *step.words[1:]
        if phase not in _PHASES:
            raise wrong(step, f"no phase '{phase}'", _PHASES)
        if verb not in VERBS or verb in _NOT_IN_ONE:
            raise wrong(step, f"'{verb}' can't happen there", sorted(set(VERBS) - {*_NOT_IN_ONE}))
        nested = Step(line=step.line, verb=verb, words=tuple(words), options=step.options)
        self._waiting.setdefault((vm_id, _PHASES[phase]), []).append(nested)

    def forget_what_waits(self) -> None:
        """Of ``in-migration``: all is to be well from now on."""
        self._waiting.clear()

    def _phase(self, vm_id: VmId, phase: Phase) -> None:
        for step in self._waiting.pop((vm_id, phase), []):
            self._do(step)
