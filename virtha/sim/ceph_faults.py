"""The verbs of a scenario that concern a Ceph cluster and who is shut out of it."""

from collections.abc import Callable

from virtha.model.ids import StorageDomainId
from virtha.scenario.language import Step
from virtha.sim.ceph import POINTS
from virtha.sim.faults import wrong
from virtha.sim.host import SimHost
from virtha.sim.storage import SHARED
from virtha.sim.world import World

_OBSTACLES = {"nat": "it is behind NAT", "daemons": "Ceph daemons run there"}
_ACTIONS: dict[str, Callable[[SimHost], None]] = {
    "crash": lambda host: host.crash_agent(),
    "freeze": lambda host: host.agent.kernel.freeze() if host.agent is not None else None,
}


class CephVerbs:
    def __init__(self, world: World, find: Callable[[Step, str], SimHost]) -> None:
        self._world = world
        self._find = find
        self.verbs: dict[str, Callable[[Step], None]] = {
            "ceph": self._ceph,
            "ceph-sees": self._sees,
            "at-ceph": self._at,
        }

    def _ceph(self, step: Step) -> None:
        if self._world.hosts:
            raise wrong(step, "Ceph comes before the first host", ("ceph", "hosts"))
        domains = [StorageDomainId(name) for name in step.words] or [SHARED]
        self._world.keep_on_ceph(domains)

    def _sees(self, step: Step) -> None:
        """By another address from now on, or with something that speaks against shutting it out."""
        host, ceph = self._find(step, step.words[0]), self._world.ceph
        if ceph is None:
            raise wrong(step, f"{step.verb} needs Ceph", ("ceph",))
        if "as" in step.options:
            ceph.addresses[host.name] = step.options["as"]
        for name, text in _OBSTACLES.items():
            if name in step.options:
                ceph.obstacles[host.name] = text
        self._world.storage_changed()

    def _at(self, step: Step) -> None:
        host, ceph = self._find(step, step.words[0]), self._world.ceph
        point, action = step.words[1:]
        if ceph is None:
            raise wrong(step, f"{step.verb} needs Ceph", ("ceph",))
        if point not in POINTS:
            raise wrong(step, f"no point '{point}'", POINTS)
        if action not in _ACTIONS:
            raise wrong(step, f"nothing is called '{action}'", _ACTIONS)
        ceph.traps[host.name, point] = _ACTIONS[action]
