"""The verbs of a scenario that concern storage leases, the storage domains under them, and clocks."""

from collections.abc import Callable, Iterable

from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.time import parse_duration_ms
from virtha.scenario.language import Step
from virtha.sentinel.lease_events import HostNature
from virtha.sim.host import SimHost
from virtha.sim.lease import HostLease
from virtha.sim.slots import HostIo
from virtha.sim.storage import SHARED, PathState
from virtha.sim.world import World

WATCHDOGS = ("armed", "way-out", "none")
_BROKEN = (PathState.ERRORS.value, PathState.READ_ONLY.value)
DRIFT_PPM_MAX = 10_000
"""1 %: the most that ADR 8 assumes of any clock."""


class LeaseVerbs:
    """``find``: a host by its name, or an error that names the line."""

    def __init__(self, world: World, find: Callable[[Step, str], SimHost]) -> None:
        self.world = world
        self._find = find
        self.verbs: dict[str, Callable[[Step], None]] = {
            "lease": self._lease,
            "stall-storage": lambda step: self._set_storage(step, PathState.STALLED),
            "resume-storage": lambda step: self._set_storage(step, PathState.WELL),
            "break-storage": self._break_storage,
            "tear-slot": self._tear_slot,
            "late-slot": self._late_slot,
            "stale-slots": self._stale_slots,
            "fresh-slots": self._fresh_slots,
            "drift": self._drift,
            "jump-clock": self._jump_clock,
        }

    # Building

    def _lease(self, step: Step) -> None:
        if self.world.hosts:
            raise _wrong(step, "leases come before the first host", ("lease", "hosts"))
        self.world.keep_leases([StorageDomainId(name) for name in step.words] or [SHARED])

    def equip(self, host: SimHost, step: Step) -> None:
        """What the line that adds a host says of its watchdog and its slots."""
        asked = [name for name in ("watchdog", "virtual", "cached-io") if name in step.options]
        if not self.world.slots:
            if asked:
                raise _wrong(step, f"'{asked[0]}' needs leases", ("lease",))
            return
        watchdog = step.options.get("watchdog", "armed")
        if watchdog not in WATCHDOGS:
            raise _wrong(step, f"no watchdog '{watchdog}'", WATCHDOGS)
        nature = HostNature(is_virtual="virtual" in step.options, suspend_blocked=True)
        self.world.give_lease(host, nature=nature, watchdog=watchdog)
        if host.lease is not None:
            host.lease.direct_io = "cached-io" not in step.options

    # Storage domains

    def domain(self, step: Step, option: str = "domain") -> StorageDomainId:
        """The only one of a world needs no name."""
        name = step.options.get(option)
        if name is None:
            return self.world.domains[0]
        if name not in self.world.domains:
            raise _wrong(step, f"no storage domain '{name}'", self.world.domains)
        return StorageDomainId(name)

    def _set_storage(self, step: Step, state: PathState) -> None:
        host = self._find(step, step.options["on"]).name if "on" in step.options else ""
        domains = [self.domain(step)] if "domain" in step.options else self.world.domains
        for domain_id in domains:
            self.world.storage_faults[host, domain_id] = state
        self.world.storage_changed()

    def _break_storage(self, step: Step) -> None:
        if step.words[0] not in _BROKEN:
            raise _wrong(step, f"storage that is '{step.words[0]}'", _BROKEN)
        self._set_storage(step, PathState(step.words[0]))

    # Slots

    def _kit(self, step: Step) -> HostLease:
        host = self._find(step, step.words[0])
        if host.lease is None:
            raise _wrong(step, f"{step.verb} needs leases", ("lease",))
        return host.lease

    def _io(self, step: Step) -> HostIo:
        return self._kit(step).io[self.domain(step)]

    def _tear_slot(self, step: Step) -> None:
        self._io(step).faults.tear = True

    def _late_slot(self, step: Step) -> None:
        late_ms = parse_duration_ms(step.words[1], field=f"line {step.line}")
        self._io(step).faults.late_ms = late_ms

    def _stale_slots(self, step: Step) -> None:
        kit = self._kit(step)
        names: Iterable[str] = self.world.hosts
        if "of" in step.options:
            names = [self._find(step, step.options["of"]).name]
        kit.domains[self.domain(step)].hold_still(kit.host.name, [HostId(name) for name in names])

    def _fresh_slots(self, step: Step) -> None:
        kit = self._kit(step)
        kit.domains[self.domain(step)].let_go(kit.host.name)

    # Clocks

    def _drift(self, step: Step) -> None:
        text = step.words[1]
        if not text.lstrip("-").isdecimal() or abs(int(text)) > DRIFT_PPM_MAX:
            limit = str(DRIFT_PPM_MAX)
            raise _wrong(step, f"'{text}' is no drift in ppm", (f"-{limit}", "0", limit))
        self._find(step, step.words[0]).clocks.drift(int(text))

    def _jump_clock(self, step: Step) -> None:
        back = step.words[1].startswith("-")
        jump_ms = parse_duration_ms(step.words[1].lstrip("-"), field=f"line {step.line}")
        host = self._find(step, step.words[0])
        host.clocks.wall_offset_ms += -jump_ms if back else jump_ms

    # Sleep between a decision and its act

    def trap(self, step: Step, host: SimHost, sleep: Callable[[], None]) -> None:
        """``at``: a part of the name of what was decided: renew, kill, reset, feed, arm, allow; or read, poison."""
        if host.lease is None:
            raise _wrong(step, f"{step.verb} at= needs leases", ("lease",))
        points = ("renew", "kill", "reset", "feed", "arm", "allow", "read", "poison", "waiver")
        if step.options["at"] not in points:
            raise _wrong(step, f"no point '{step.options['at']}'", points)
        host.lease.trap_at, host.lease.trap = step.options["at"], sleep

    def heal(self) -> None:
        """All domains, slots, clocks and traps."""
        world = self.world
        world.storage_faults.clear()
        for host in world.hosts.values():
            host.clocks.drift(0)
            if host.lease is None:
                continue
            host.lease.trap = None
            for io in host.lease.io.values():
                io.faults.tear, io.faults.late_ms = False, 0
            for domain in host.lease.domains.values():
                domain.let_go(host.name)


def _wrong(step: Step, message: str, allowed: Iterable[str]) -> InvalidInput:
    return InvalidInput(message, field=f"line {step.line}", allowed=tuple(allowed))
