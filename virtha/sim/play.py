"""Plays a scenario on the simulated world; its outcome is what the server recorded, and the end."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId, VmId
from virtha.model.orders import (
    AdoptVm,
    OrderBody,
    PauseVm,
    RebootMode,
    RebootVm,
    ReleaseVm,
    ResumeVm,
    StopMode,
    StopVm,
)
from virtha.model.policy import PermissionGrade, Policy, RestartPolicy
from virtha.model.size import parse_size_bytes
from virtha.model.time import parse_duration_ms
from virtha.model.value import Fields
from virtha.model.vm import OnIoError, Vm
from virtha.model.watchdog import parse_watchdog
from virtha.ports.hypervisor import GateRefused, HypervisorError, HypervisorUnavailable
from virtha.scenario.language import Scenario, Step
from virtha.sentinel.events import HostShuttingDown, MigrationMarked
from virtha.sim.ceph_faults import CephVerbs
from virtha.sim.checkers import Checkers
from virtha.sim.faults import FaultVerbs, explain_host, policy_from
from virtha.sim.host import CRASH_POINTS, SimHost
from virtha.sim.liveness import must_run
from virtha.sim.move_truth import MoveTruth
from virtha.sim.move_verbs import MoveVerbs
from virtha.sim.network import Link, Tear
from virtha.sim.told import Told
from virtha.sim.truth import Truth
from virtha.sim.world import GuestKind, World

_FOR_EVER_MS = 1 << 60

_SHOWN = (
    "action",
    "count",
    "attempt",
    "cause",
    "by",
    "reason",
    "evidence",
    "items",
    "delay_ms",
    "detail",
)
_DURATIONS = {
    "window": "window_ms",
    "delay": "delay_ms",
    "delay_max": "delay_ms_max",
    "reset_loop_window": "reset_loop_window_ms",
}
ASKED = frozenset(
    (
        "policy",
        "start",
        "shutdown",
        "power-off",
        "reboot",
        "reset",
        "pause",
        "resume",
        "adopt",
        "forget",
        "set",
        "hold",
        "unhold",
        "supersede",
        "backup-server",
    )
)
"""What the server has to be there for."""
_COUNTS = ("restarts_max", "delay_growth", "reset_loop_count")


class Player:
    def __init__(self, *, tolerant: bool = False) -> None:
        """``tolerant``: commands that don't apply (killing what does not run) are passed over."""
        self.tolerant = tolerant
        self.world = World()
        self.checkers = Checkers(self.world)
        self.truth = Truth(self.world, self.checkers)
        self.told = Told(self.world)
        self.faults = FaultVerbs(self.world)
        self.move_truth = MoveTruth(self.world, self.checkers, self.truth)
        self.moves = MoveVerbs(self.world, self.do, self.move_truth)
        self._verbs: dict[str, Callable[[Step], None]] = {
            **self.faults.verbs,
            **self.moves.verbs,
            **CephVerbs(self.world, self.faults.host_called).verbs,
            "heal-all": self._heal_all,
            "hosts": self._hosts,
            "host": self._one_host,
            "vm": self._vm,
            "policy": self._policy,
            "advance": lambda step: self.advance(step.words[0]),
            "start": self._start,
            "shutdown": lambda step: self._stop(step, StopMode.SHUTDOWN),
            "power-off": lambda step: self._stop(step, StopMode.POWER_OFF),
            "reboot": lambda step: self._reboot(step, RebootMode.REBOOT),
            "reset": lambda step: self._reboot(step, RebootMode.RESET),
            "pause": self._pause,
            "resume": self._resume,
            "adopt": self._adopt,
            "forget": self._forget,
            "set": self._set,
            "believed-dead": self._believed_dead,
            "hold": self._hold,
            "unhold": self._unhold,
            "migrating": self._migrating,
            "supersede": lambda step: self.world.supersede(self._vm_id(step)),
            "virsh": self._virsh,
            "autostart": self._autostart,
            "fail-starts": self._fail_starts,
            "blind-starts": self._blind_starts,
            "hide-records": self._hide_records,
            "crash-agent": self._crash_agent,
            "shutdown-host": self._shutdown_host,
            "stop-agent": lambda step: self._host(step).stop_agent(),
            "start-agent": lambda step: self._host(step).start_agent(),
            "stop-guardian": self._stop_guardian,
            "start-guardian": lambda step: self._host(step).start_guardian(),
            "stop-libvirt": lambda step: self._host(step).stop_libvirt(),
            "start-libvirt": lambda step: self._host(step).start_libvirt(),
            "cut-net": lambda step: self._net(step, up=False),
            "heal-net": lambda step: self._net(step, up=True),
            "cut-link": self._cut_link,
            "heal-link": lambda step: self._link(step).heal(),
            "reset-link": self._reset_link,
            "stop-server": lambda _step: self.world.stop_server(),
            "start-server": lambda _step: self.world.start_server(),
            "backup-server": lambda _step: self.world.backup_server(),
            "restore-server": self._restore_server,
            "empty-run": lambda step: self._host(step).empty_run(),
            "slow-start": self._slow_start,
            "fire": self._fire,
            "must-run": lambda _step: self._must_run(),
            "crash-points": lambda _step: None,
        }
        self._verbs["vanish-qemu"] = self._guest_fault
        for verb in (
            "kill-qemu",
            "term-qemu",
            "panic",
            "guest-shutdown",
            "guest-reboot",
            "io-error",
        ):
            self._verbs[verb] = self._guest_fault

    def play(self, scenario: Scenario) -> list[str]:
        for step in scenario.steps:
            self.do(step)
        self.at_end()
        return self.outcome()

    def at_end(self) -> None:
        self.checkers.at_end()
        self.truth.at_end()
        self.told.at_end()

    def do(self, step: Step) -> None:
        self.world.trace(f"> {step.text()}")
        if step.verb in ASKED and not self.world.gateway.running:
            if not self.tolerant:
                raise _wrong(step, "nobody can be asked: the server is stopped", ("start-server",))
            return
        try:
            self._verbs[step.verb](step)
        except HypervisorError:
            if not self.tolerant:
                raise
        self.truth.look()

    # Outcome

    def outcome(self) -> list[str]:
        lines = [
            (
                entry.at_ms,
                f"{entry.subject} {entry.code}{_shown(entry.fields, all_of=entry.by_engine)}",
            )
            for entry in self.world.server.history
        ]
        for at_ms, text in self.faults.explained:
            later = [index for index, (said_ms, _) in enumerate(lines) if said_ms > at_ms]
            lines.insert(later[0] if later else len(lines), (at_ms, text))
        return [
            *(f"{at_ms / 1_000:9.3f} {text}" for at_ms, text in lines),
            *self._ends_of_hosts(),
            *(self._end_of(name) for name in sorted(self.world.ids)),
        ]

    def _ends_of_hosts(self) -> list[str]:
        """What the engine thinks of them in the end, where it has anything to say."""
        failover = self.world.gateway.failover
        if failover is None:
            return []
        lines: list[str] = []
        for name in self.world.hosts:
            verdict = failover.engine.verdict(HostId(name))
            reasons = " ".join(why.code for why in explain_host(self.world, name))
            if verdict is not Verdict.ALIVE or reasons:
                lines.append(f"end-host {name} {verdict} [{reasons}]")
        return lines

    def _end_of(self, name: str) -> str:
        known = self.world.server.vms[self.world.ids[name]]
        where = self.world.running_on(known.vm.id)
        report = known.report
        state = report.state.value if report else "unknown"
        reasons = (
            " ".join(why.code + _shown(why.fields) for why in report.reasons) if report else ""
        )
        failover = self.world.gateway.failover
        if failover is not None:
            open_reasons = failover.engine.explain_vm(known.vm.id)
            record = self.world.server.table.vms.get(known.vm.id)
            settled = record is None or record.stage is VmStage.SETTLED
            if not settled or not where:
                # What its host said of it last is no longer how it is.
                state = state if settled and known.host in known.holders else "unknown"
                reasons = reasons if settled and known.host in known.holders else ""
            reasons = " ".join((*(why.code for why in open_reasons), *filter(None, (reasons,))))
        holders = ",".join(sorted(known.holders)) or "nobody"
        return (
            f"end {name} {state} runs_on={','.join(where) or 'none'} held_by={holders} "
            f"incarnation={known.incarnation} [{reasons}]"
        )

    # Finding

    def _vm_id(self, step: Step, index: int = 0) -> VmId:
        name = step.words[index]
        if name not in self.world.ids:
            raise _wrong(step, f"no VM '{name}'", tuple(sorted(self.world.ids)))
        return self.world.ids[name]

    def _host_of(self, vm_id: VmId) -> SimHost:
        return self.world.hosts[self.world.server.vms[vm_id].host]

    def _host(self, step: Step) -> SimHost:
        return self._named_host(step, step.words[0])

    def _named_host(self, step: Step, name: str) -> SimHost:
        if name not in self.world.hosts:
            raise _wrong(step, f"no host '{name}'", tuple(sorted(self.world.hosts)))
        return self.world.hosts[name]

    # Building and time

    def _heal_all(self, step: Step) -> None:
        self.moves.forget_what_waits()
        self.faults.verbs[step.verb](step)

    def _hosts(self, step: Step) -> None:
        hosts = [self.faults.add_host(name, step) for name in step.words]
        self._connect(hosts)

    def _one_host(self, step: Step) -> None:
        self._connect([self.faults.add_host(step.words[0], step)])

    def _connect(self, hosts: Sequence[SimHost]) -> None:
        for host in hosts:
            self.checkers.watch_host(host)
            self.world.connect_host(host)
        if self.world.kernel.now < 0:
            self.world.kernel.advance(-self.world.kernel.now)

    def _vm(self, step: Step) -> None:
        options = step.options
        card = options.get("watchdog")
        vm_id = self.world.add_vm(
            step.words[0],
            self._named_host(step, options.get("on", "")).name,
            ha="ha" in options,
            watchdog=parse_watchdog(card) if card else None,
            guest=GuestKind(
                boot_ms=parse_duration_ms(options.get("boot", "2s"), field=f"line {step.line}"),
                has_agent="no-agent" not in options,
                ignores_shutdown="ignores-shutdown" in options,
            ),
        )
        known = self.world.server.vms[vm_id]
        known.placing = self.faults.placing(step)
        if "memory" in options:
            size = parse_size_bytes(options["memory"], field=f"line {step.line}")
            known.vm = replace(known.vm, memory_bytes=size)
        known.vm = _as_said(known.vm, step)
        if "storage" in options:
            self.world.storage.place(vm_id, self.faults.leases.domain(step, "storage"))
        if "writes" in options:
            disk = self.world.storage.disk(vm_id)
            disk.interval_ms = parse_duration_ms(options["writes"], field=f"line {step.line}")
        self.world.push_settings()
        if "foreign" in options:
            self.world.server.vms[vm_id].managed = False
            self.world.push_settings()

    def _policy(self, step: Step) -> None:
        policy = policy_from(step, self.world.server.policy)
        if policy is not None:
            self.world.change_policy(policy)
            return
        values: dict[str, int | bool] = {}
        for name, text in step.options.items():
            if name in _DURATIONS:
                values[_DURATIONS[name]] = parse_duration_ms(text, field=f"line {step.line}")
            elif name in _COUNTS:
                values[name] = int(text)
            else:
                values[name] = text == "yes"
        self.world.change_policy(Policy(restart=RestartPolicy(**values)))  # type: ignore[arg-type]  # the policy checks its own fields

    def advance(self, duration: str) -> None:
        self.world.kernel.advance(parse_duration_ms(duration, field="advance"))

    def _must_run(self) -> None:
        must_run(self.world)

    # Orders

    def _start(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        host = step.options.get("on") or self.world.server.vms[vm_id].host
        self.world.start(vm_id, self._named_host(step, host).name)

    def _order(self, vm_id: VmId, body: OrderBody) -> None:
        self.world.order(self.world.server.vms[vm_id].host, body)

    def _stop(self, step: Step, mode: StopMode) -> None:
        vm_id = self._vm_id(step)
        known = self.world.server.vms[vm_id]
        known.wanted_up = False
        if self.world.with_engine:
            self.world.push_settings()
        for host in sorted(known.holders) or (known.host,):
            incarnation = max((known.incarnation, *known.copies.get(host, ())))
            body = StopVm(vm_id=vm_id, incarnation=incarnation, mode=mode, by="admin")
            self.world.order(host, body)

    def _reboot(self, step: Step, mode: RebootMode) -> None:
        vm_id = self._vm_id(step)
        incarnation = self.world.server.vms[vm_id].incarnation
        self._order(vm_id, RebootVm(vm_id=vm_id, incarnation=incarnation, mode=mode, by="admin"))

    def _pause(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        incarnation = self.world.server.vms[vm_id].incarnation
        self._order(vm_id, PauseVm(vm_id=vm_id, incarnation=incarnation, by="admin"))

    def _resume(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        incarnation = self.world.server.vms[vm_id].incarnation
        self._order(vm_id, ResumeVm(vm_id=vm_id, incarnation=incarnation, by="admin"))

    def _adopt(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        known = self.world.server.vms[vm_id]
        grant = self.world.gateway.make_grant(known.host, vm_id, known.incarnation)
        assert grant is not None, "its host is not connected"
        known.managed = True
        grant = self.world.server.grant(vm_id, known.host, grant)
        self._order(vm_id, AdoptVm(vm=known.vm, incarnation=grant.incarnation))

    def _forget(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        self._order(vm_id, ReleaseVm(vm_id=vm_id))
        self.world.server.forget(vm_id)
        self.checkers.outside.add(vm_id)

    def _set(self, step: Step) -> None:
        known = self.world.server.vms[self._vm_id(step)]
        if "ha" in step.options:
            known.vm = replace(known.vm, ha=step.options["ha"] == "yes")
        known.vm = _as_said(known.vm, step)
        self.world.push_settings()

    def _believed_dead(self, step: Step) -> None:
        host = self._named_host(step, step.words[0])
        self.checkers.believed.add(host.name)
        there = {domain.vm_id for domain in host.libvirt}
        self.checkers.may_run_twice |= there
        self.checkers.outside |= there

    def _hold(self, step: Step) -> None:
        self.world.server.hold = step.words[0] if step.words else "maintenance"
        self.world.push_settings()

    def _unhold(self, step: Step) -> None:
        self.world.server.hold = None
        self.world.push_settings()

    def _migrating(self, step: Step) -> None:
        """Migrations come later; the mark on the record counts already (G5)."""
        vm_id = self._vm_id(step)
        host = self._host_of(vm_id)
        agent = host.agent
        assert agent is not None
        agent.tell(MigrationMarked(vm_id=vm_id, migrating=step.words[1] == "yes"))

    # Faults

    def _guest_fault(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        host = self._host_of(vm_id)
        if "on" in step.options:
            host = self._named_host(step, step.options["on"])
        libvirt = host.libvirt
        faults: dict[str, Callable[[VmId], None]] = {
            "kill-qemu": libvirt.kill_qemu,
            "term-qemu": libvirt.terminate_qemu,
            "panic": libvirt.panic,
            "guest-shutdown": libvirt.guest_shutdown,
            "guest-reboot": libvirt.guest_reboot,
            "io-error": libvirt.io_error,
            "vanish-qemu": lambda vm_id: libvirt.end_silently(vm_id, "daemon"),
        }
        faults[step.verb](vm_id)

    def _fire(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        for _ in range(int(step.words[1]) if len(step.words) > 1 else 1):
            self._host_of(vm_id).libvirt.fire_watchdog(vm_id)

    def _virsh(self, step: Step) -> None:
        action, vm_id = step.words[0], self._vm_id(step, 1)
        host = self._host_of(vm_id)
        if "on" in step.options:
            host = self._named_host(step, step.options["on"])
        libvirt = host.libvirt
        if not host.powered:
            raise HypervisorUnavailable(f"{host.name} has no power")
        match action:
            case "start":
                self._virsh_start(host, vm_id)
            case "run-ungranted":
                # As with a hook that somebody removed: only the guardian is left.
                self.checkers.outside.add(vm_id)
                former = host.grants.get(vm_id)
                host.grant(vm_id, self.world.server.vms[vm_id].incarnation, until_ms=_FOR_EVER_MS)
                self._virsh_start(host, vm_id)
                host.revoke(vm_id)
                if former is not None:
                    host.grants[vm_id] = former
            case "destroy":
                libvirt.destroy(vm_id)
            case "suspend":
                libvirt.pause(vm_id)
            case "resume":
                libvirt.run(vm_id)
            case "migrate":
                target = self._named_host(step, step.options.get("to", ""))
                self.world.migrations.begin(host, vm_id, target.name)
            case "edit":
                # Its definition is written anew; what runs goes on as it is.
                libvirt.define(libvirt.domain(vm_id).xml)
            case _:
                known = (
                    "start",
                    "destroy",
                    "suspend",
                    "resume",
                    "run-ungranted",
                    "migrate",
                    "edit",
                )
                raise _wrong(step, f"virsh {action}", known)

    def _virsh_start(self, host: SimHost, vm_id: VmId) -> None:
        try:
            host.libvirt.start_paused(vm_id)
            host.libvirt.run(vm_id)
        except GateRefused as refusal:
            self.world.trace(f"gate: {refusal.message}")

    def _autostart(self, step: Step) -> None:
        vm_id = self._vm_id(step)
        host = self._host_of(vm_id)
        if "on" in step.options:
            host = self._named_host(step, step.options["on"])
        domain = host.libvirt.domain(vm_id)
        domain.autostart, domain.managed_save = True, "managed-save" in step.options

    def _fail_starts(self, step: Step) -> None:
        self._host(step).libvirt.starts_that_fail = int(step.words[1])

    def _blind_starts(self, step: Step) -> None:
        self._host(step).blind_starts = int(step.words[1])

    def _hide_records(self, step: Step) -> None:
        self._host(step).records_hidden = step.words[1] == "yes"

    def _crash_agent(self, step: Step) -> None:
        host, point = self._host(step), step.options.get("at")
        if point is None:
            host.crash_agent()
        elif point not in CRASH_POINTS:
            raise _wrong(step, f"no point '{point}'", CRASH_POINTS)
        else:
            assert host.agent is not None
            host.agent.crash_at = point

    def _stop_guardian(self, step: Step) -> None:
        self._host(step).stop_guardian()

    def _restore_server(self, step: Step) -> None:
        if not self.world.restore_server():
            raise _wrong(step, "there is no backup", ("backup-server",))
        self.truth.forget_since(self.world.backed_up_ms)

    def _slow_start(self, step: Step) -> None:
        self._host(step).slow_start_ms = parse_duration_ms(step.words[1], field=f"line {step.line}")

    def _net(self, step: Step, *, up: bool) -> None:
        for link in self.world.network.links_of(self._host(step).name):
            link.heal() if up else link.cut()

    def _link(self, step: Step) -> Link:
        known = self.world.network.endpoints
        for name in step.words:
            if name not in known:
                raise _wrong(step, f"nothing called '{name}' on the network", tuple(sorted(known)))
        return self.world.network.link(step.words[0], step.words[1])

    def _cut_link(self, step: Step) -> None:
        link = self._link(step)
        if "after" in step.options:
            link.tear = self._tear(step, resets=False)
        else:
            link.cut()

    def _reset_link(self, step: Step) -> None:
        link = self._link(step)
        if "after" in step.options:
            link.tear = self._tear(step, resets=True)
            return
        self.world.network.reset(*step.words, label=step.options.get("of"))

    def _tear(self, step: Step, *, resets: bool) -> Tear:
        after = step.options["after"]
        if not after.isdecimal():
            raise _wrong(step, f"'{after}' is no number of bytes", ("0", "1", "2"))
        return Tear(int(after), resets=resets, label=step.options.get("of"))

    def _shutdown_host(self, step: Step) -> None:
        """The init system: the agent is told, guests get SIGTERM, then the power goes."""
        host = self._host(step)
        host.shutting_down = True
        if host.agent is not None:
            host.agent.tell(HostShuttingDown())
        for domain in list(host.libvirt):
            if domain.qemu is not None:
                host.libvirt.terminate_qemu(domain.vm_id)
        self.world.kernel.advance(1_000)
        host.power_cut()


def _shown(fields: Fields, *, all_of: bool = False) -> str:
    names = sorted(fields) if all_of else _SHOWN
    return "".join(
        f" {name}={fields[name]}" for name in names if fields.get(name) not in (None, "")
    )


def _as_said(vm: Vm, step: Step) -> Vm:
    """With what both ``vm`` and ``set`` may say of it."""
    said: dict[str, Any] = {}
    for option, kind in (("on-io-error", OnIoError), ("grade", PermissionGrade)):
        word = step.options.get(option)
        if word is None:
            continue
        if word not in tuple(kind):
            raise _wrong(step, f"{option}={word}", tuple(kind))
        said[option.replace("-", "_")] = kind(word)
    return replace(vm, **said)


def _wrong(step: Step, message: str, allowed: tuple[str, ...]) -> InvalidInput:
    return InvalidInput(message, field=f"line {step.line}", allowed=allowed)
