"""The verbs of a scenario that concern whole hosts, their power and storage, the leader and its operator."""

from collections.abc import Callable, Iterable

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.dependencies import Dependency, StartCondition
from virtha.engine.events import (
    BrakeLifted,
    DeathConfirmed,
    EngineEvent,
    QuarantineLifted,
)
from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId
from virtha.model.policy import Policy
from virtha.model.policy.text import read_policy
from virtha.model.size import parse_size_bytes
from virtha.model.time import parse_duration_ms
from virtha.model.vm import Reason
from virtha.scenario.language import Step
from virtha.sim.host import SimHost
from virtha.sim.kernel import Actor
from virtha.sim.leader import POINTS, Leader, Trap
from virtha.sim.lease_faults import LeaseVerbs
from virtha.sim.line import SERVER
from virtha.sim.network import Link, Network
from virtha.sim.placing import Placing
from virtha.sim.power import ANSWER_MS, SWITCH_MS, Mood
from virtha.sim.world import STORAGE, World

ADMIN = "admin"
_LEVELS = ("bmc", "outlets", "blind")
_TIMED = ("slow", "late")
"""To answer; to do what was ordered and accepted."""
_MOODS = (*(mood.value for mood in Mood), *_TIMED, "of")


def wrong(step: Step, message: str, allowed: Iterable[str]) -> InvalidInput:
    return InvalidInput(message, field=f"line {step.line}", allowed=tuple(allowed))


class FaultVerbs:
    """``explained`` keeps what ``explain`` was answered."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.explained: list[tuple[int, str]] = []
        self._frozen_leaders: list[Actor] = []
        self.leases = LeaseVerbs(world, self.host_called)
        self.verbs: dict[str, Callable[[Step], None]] = {
            "engine": self._engine,
            "cut": lambda step: self._network(step, up=False),
            "heal": lambda step: self._network(step, up=True),
            "power-cut": self._power_cut,
            "boot": self._boot,
            "hang": self._hang,
            "heal-all": lambda _step: self._heal_all(),
            "freeze": self._freeze,
            "thaw": self._thaw,
            "bmc": self._bmc,
            "kill-server": self._kill_server,
            "freeze-server": self._freeze_server,
            "stop-driver": self._stop_driver,
            "thaw-server": lambda _step: self._wake_leaders(),
            "second-server": lambda _step: world.second_server(),
            "stop-database": lambda _step: self._database(up=False),
            "start-database": lambda _step: self._database(up=True),
            "confirm-dead": self._confirm_dead,
            "free": self._free,
            "lift-brake": lambda _step: self._tell(BrakeLifted(by=ADMIN)),
            "explain": self._explain,
            **self.leases.verbs,
        }

    # Finding

    def host(self, step: Step, index: int = 0) -> SimHost:
        return self.host_called(step, step.words[index])

    def host_called(self, step: Step, name: str) -> SimHost:
        if name not in self.world.hosts:
            raise wrong(step, f"no host '{name}'", sorted(self.world.hosts))
        return self.world.hosts[name]

    def _leader(self, step: Step) -> Leader:
        failover = self.world.gateway.failover
        if failover is None:
            raise wrong(step, f"{step.verb} needs an engine", ("engine",))
        return failover.leader

    def _tell(self, event: EngineEvent) -> None:
        failover = self.world.gateway.failover
        if failover is not None:
            failover.leader.offer(event)

    # Building

    def _engine(self, step: Step) -> None:
        if self.world.hosts:
            raise wrong(step, "the engine comes before the first host", ("engine", "hosts"))
        self.world.lead_with_engine()

    def add_host(self, name: str, step: Step) -> SimHost:
        """Known, and not yet switched on."""
        host = self.world.add_host(name)
        self.leases.equip(host, step)
        if "memory" in step.options:
            host.memory_bytes = parse_size_bytes(step.options["memory"], field=f"line {step.line}")
        levels = step.options.get("power", "bmc").split(",")
        if levels != ["none"]:
            for level in levels:
                if level not in _LEVELS:
                    raise wrong(step, f"no power device '{level}'", (*_LEVELS, "none"))
            devices = self.world.power.add(host, levels, named="named" in step.options)
            for device in devices:
                device.shares_feed = "shares-feed" in step.options
            self._leave_untested(name, step)
        return host

    def _leave_untested(self, name: str, step: Step) -> None:
        levels = self.world.power.levels[name]
        numbers = {str(number): level for number, level in enumerate(levels, 1)}
        for word in filter(None, step.options.get("untested", "").split(",")):
            if word not in numbers:
                raise wrong(step, f"no level '{word}' of power devices", tuple(numbers))
            for feed in numbers[word].feeds:
                self.world.power.by_name[feed.device].set_up_untested = True

    def placing(self, step: Step) -> Placing:
        options = step.options
        groups = [
            AffinityGroup(
                id=AffinityGroupId(options[word]), name=options[word], kind=kind, hard=hard
            )
            for word, kind, hard in (
                ("apart", AffinityKind.APART, True),
                ("prefer-apart", AffinityKind.APART, False),
                ("together", AffinityKind.TOGETHER, True),
            )
            if word in options
        ]
        depends: list[Dependency] = []
        for each in options.get("depends", "").split(","):
            name, _, condition = each.partition(":")
            if not name:
                continue
            if name not in self.world.ids:
                raise wrong(step, f"no VM '{name}'", sorted(self.world.ids))
            depends.append(
                Dependency(
                    vm_id=self.world.ids[name],
                    name=name,
                    condition=StartCondition(condition or "started"),
                )
            )
        return Placing(
            priority=int(options.get("priority", "0")),
            groups=tuple(groups),
            depends_on=tuple(depends),
        )

    # Networks and storage

    def _links(self, step: Step) -> tuple[Network, list[Link]]:
        networks = {
            "net": (self.world.network, SERVER),
            "storage": (self.world.storage_network, STORAGE),
            "bmc": (self.world.bmc_network, SERVER),
        }
        if step.words[0] not in networks:
            raise wrong(step, f"no network '{step.words[0]}'", networks)
        network, _centre = networks[step.words[0]]
        ends = step.words[1:]
        for name in (ends[0], ends[-1]):
            if name not in network.endpoints:
                raise wrong(step, f"no '{name}' on that network", network.endpoints)
        if len(ends) == 1:
            return network, network.links_of(ends[0])
        if len(ends) != 3 or ends[1] != "to":
            raise wrong(step, "one host, or one to another", ("HOST", "HOST to HOST"))
        return network, [network.link(ends[0], ends[2])]

    def _network(self, step: Step, *, up: bool) -> None:
        network, links = self._links(step)
        for link in links:
            link.heal() if up else link.cut()
        if network is self.world.storage_network:
            self.world.storage_changed()

    # Power, and processes that sleep

    def _power_cut(self, step: Step) -> None:
        host = self.host(step)
        host.fed = False
        host.power_cut()

    def _boot(self, step: Step) -> None:
        host = self.host(step)
        host.fed = True
        for device in self.world.power.of(host.name):
            device.on = True
        if not host.powered:
            delay = step.options.get("agent-after", "0s")
            host.start_delay_ms = parse_duration_ms(delay, field=f"line {step.line}")
            host.power_on()

    def _hang(self, step: Step) -> None:
        host = self.host(step)
        until = step.options.get("until")
        if until not in (None, "off"):
            raise wrong(step, f"until={until} is nothing that wakes a host", ("off",))
        if "at" in step.options:
            self.leases.trap(step, host, lambda: self.world.hang(host))
        elif host.powered:
            self.world.hang(host)
        if until is not None:
            self.world.power.after_off[host.name] = lambda: self._wake(host)

    def _heal_all(self) -> None:
        world = self.world
        for network in (world.network, world.storage_network, world.bmc_network):
            for name in network.endpoints:
                for link in network.links_of(name):
                    link.heal()
        world.database_up = True
        world.power.after_off.clear()
        self.leases.heal()
        if world.ceph is not None:
            world.ceph.traps.clear()
        for device in world.power.by_name.values():
            device.mood, device.strikes, device.delay_ms = Mood.OK, device.host, ANSWER_MS
            device.switch_ms = SWITCH_MS
            device.on = True
        self._wake_leaders()
        if world.gateway.failover is not None and not world.gateway.failover.leader.alive:
            world.gateway.kill()
        world.start_server()
        if world.gateway.failover is not None:
            world.gateway.failover.leader.trap = None
        world.server.hold = None
        world.push_settings()
        world.storage_changed()
        for host in world.hosts.values():
            self._heal_host(host)

    def _heal_host(self, host: SimHost) -> None:
        if host.agent is not None:
            host.agent.crash_at = None
        host.libvirt.starts_that_fail = host.blind_starts = host.slow_start_ms = 0
        host.fed = True
        self._wake(host)
        if not host.powered:
            host.power_on()
        if not host.libvirt_up:
            host.start_libvirt()
        host.start_guardian()
        host.start_agent()

    def _freeze(self, step: Step) -> None:
        host, process = self.host(step), step.words[1]
        processes = {"agent": host.agent, "guardian": host.guardian}
        if process not in processes:
            raise wrong(step, f"no process '{process}'", processes)
        sleeper = processes[process]
        if "at" in step.options:
            self.leases.trap(step, host, lambda: self._sleep(host))
        elif sleeper is not None:
            sleeper.kernel.freeze()

    def _sleep(self, host: SimHost) -> None:
        if host.guardian is not None:
            host.guardian.kernel.freeze()

    def _thaw(self, step: Step) -> None:
        self._wake(self.host(step))

    def _wake(self, host: SimHost) -> None:
        if host.kernel.frozen:
            self.world.thaw(host)
        for process in (host.agent, host.guardian):
            if process is not None and process.kernel.frozen:
                process.kernel.thaw()

    def _bmc(self, step: Step) -> None:
        host, mood = self.host(step), step.words[1]
        devices = self.world.power.of(host.name)
        if "device" in step.options:
            names = [device.name for device in devices]
            devices = [device for device in devices if device.name == step.options["device"]]
            if not devices:
                raise wrong(step, f"no device '{step.options['device']}'", names)
        if mood not in _MOODS or (mood in (*_TIMED, "of")) != (len(step.words) == 3):
            raise wrong(step, f"'{' '.join(step.words[1:])}' is no behaviour", _MOODS)
        for device in devices:
            if mood == "of":
                device.strikes = self.host(step, 2)
            elif mood == "slow":
                device.delay_ms = parse_duration_ms(step.words[2], field=f"line {step.line}")
            elif mood == "late":
                device.switch_ms = parse_duration_ms(step.words[2], field=f"line {step.line}")
            else:
                device.mood = Mood(mood)
                device.delay_ms, device.switch_ms = ANSWER_MS, SWITCH_MS

    # The leader

    def _strike(self, step: Step, blow: Callable[[], None]) -> None:
        point = step.options.get("at")
        if point is None:
            blow()
            return
        if point not in POINTS:
            raise wrong(step, f"no point '{point}'", POINTS)
        self._leader(step).trap = Trap(point, step.options.get("of"), blow)

    def _kill_server(self, step: Step) -> None:
        gateway = self.world.gateway
        self._strike(step, gateway.kill)

    def _freeze_server(self, step: Step) -> None:
        gateway = self.world.gateway

        def sleep() -> None:
            gateway.kernel.freeze()
            self._frozen_leaders.append(gateway.kernel)

        self._strike(step, sleep)

    def _stop_driver(self, _step: Step) -> None:
        self.world.power.drivers_that_stop += 1

    def _wake_leaders(self) -> None:
        sleepers, self._frozen_leaders = self._frozen_leaders, []
        for sleeper in sleepers:
            sleeper.thaw()

    def _database(self, *, up: bool) -> None:
        self.world.database_up = up

    # The operator

    def _confirm_dead(self, step: Step) -> None:
        """The operator confirms the incident that is shown; without one, the first that could be."""
        host = self.host(step)
        record = self.world.server.table.hosts.get(HostId(host.name))
        incident = record.incident if record is not None else None
        boot = incident.boot if incident is not None else host.boot
        self._tell(
            DeathConfirmed(
                host_id=HostId(host.name),
                boot=boot,
                incident=incident.number if incident is not None else 1,
                by=ADMIN,
                force_reason=step.options.get("force"),
            )
        )

    def _free(self, step: Step) -> None:
        name = step.words[0]
        if name not in self.world.ids:
            raise wrong(step, f"no VM '{name}'", sorted(self.world.ids))
        self._tell(QuarantineLifted(vm_id=self.world.ids[name], by=ADMIN))

    def _explain(self, step: Step) -> None:
        name, engine = step.words[0], self._leader(step).engine
        if name in self.world.ids:
            reasons = engine.explain_vm(self.world.ids[name])
        else:
            reasons = explain_host(self.world, self.host(step).name)
        codes = " ".join(why.code for why in reasons)
        self.explained.append((self.world.kernel.now, f"explain {name} [{codes}]"))


def explain_host(world: World, name: str) -> tuple[Reason, ...]:
    """Why it is as it is: the engine's reasons, then those for which its lease is no proof."""
    failover = world.gateway.failover
    if failover is None:
        return ()
    host_id = HostId(name)
    lease = failover.lease.reasons(host_id) if failover.lease is not None else ()
    return (*failover.engine.explain_host(host_id), *lease)


def policy_from(step: Step, current: Policy) -> Policy | None:
    """What a ``policy`` line says by the fields' own names; None: nothing of it."""
    sections: dict[str, list[str]] = {}
    for key, value in step.options.items():
        section, dot, field = key.partition(".")
        if dot:
            sections.setdefault(section, []).append(f"{field}: {value}")
    profile = step.options.get("profile")
    if not sections and profile is None:
        return None
    lines = [] if profile is None else [f"profile: {profile}"]
    for section, fields in sections.items():
        lines += [f"{section}:", *(f"  {field}" for field in fields)]
    return read_policy("\n".join(lines), file=f"line {step.line}")
