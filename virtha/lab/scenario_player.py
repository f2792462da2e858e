"""Plays scenario files on a real lab: the same story as on the simulator, compared as ``scenario_record.py`` says.

What the lab has no way to do is refused by name, with the story's line, before anything is done. The time of the story does not pass here:
``advance`` waits for what the story expects by its end. Then, where the story goes on without anything to come, the lab is watched for as
long, or for ``QUIET_S``: nothing may come that the story does not have yet. Above the simulator's own rules it is looked
at from outside who writes to each disk: no writer comes back that another one had followed without a start of its own.

Where the two worlds differ, and which verbs that rules out:

- A lab host has one network cable, and its storage is no network: what ``cut net`` and ``cut storage`` mean can't be told apart there, and ``cut-net`` takes
  the neighbours' sight of each other with it, so it is played only where no engine asks neighbours. A BMC that is cut off is one that does
  not answer; ``heal`` is refused, for a simulated link keeps what it held.
- Leaders and agents can't be struck at a point of a turn, nor BMCs be made to refuse, to be late, or to switch another host.
- Stories with leases wait for what slots promise, which only their own tests in the lab do (``tests/lab/test_lab_leases.py``). Without them no simulated host has a
  watchdog. A lab host's, once armed, can't be disarmed: it is taken away from whoever loses its guardian.
- A host has one power device, its BMC, which tells whose it is, and the memory of the machine.
- Whoever is to write to its disk does so in the guest, from the first answer of its guest agent on.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.bmc import BmcFault, BmcManners
from virtha.lab.disk_witnesses import DiskWitnesses
from virtha.lab.namespaces import ProcessId
from virtha.lab.node import wait_until
from virtha.lab.records import begin_writing
from virtha.lab.scenario_record import (
    EndOfHost,
    EndOfVm,
    Expectation,
    Told,
    deviation,
    early_recovery,
    lanes_of,
    missing,
    place_differs,
    read_expectation,
)
from virtha.lab.story import Story, bmcs
from virtha.model.errors import Failed, InvalidInput, Unavailable
from virtha.model.time import parse_duration_ms
from virtha.scenario.language import Scenario, Step

PATIENCE_S = 180.0
QUIET_S = 20.0
"""Longer than the longest way from a host's silence to its verdict (``detection.hung_after``, 12 s)."""
LOOK_S = 0.2
WRITES_MS = 500
"""As the simulator's VMs, unless a story says otherwise."""
SELDOM_MS = 3_600_000
READ_DEADLINE_MS = 4_500
CAP_COUNT = 1_000
LIBVIRT_HANG_MS = 60_000
START_DEADLINE_MS = 45_000

OPTIONS: dict[str, tuple[str, ...]] = {
    "engine": (),
    "crash-points": (),
    "hosts": (),
    "host": ("power", "named", "shares-feed"),
    "vm": ("on", "ha", "watchdog", "writes"),
    "advance": (),
    "start": ("on",),
    "power-off": (),
    "hold": (),
    "unhold": (),
    "kill-qemu": (),
    "crash-agent": (),
    "stop-agent": (),
    "start-agent": (),
    "stop-guardian": (),
    "start-guardian": (),
    "stop-libvirt": (),
    "start-libvirt": (),
    "stop-server": (),
    "kill-server": (),
    "start-server": (),
    "cut": (),
    "cut-net": (),
    "heal-net": (),
    "power-cut": (),
    "boot": (),
    "hang": (),
    "freeze": (),
    "thaw": (),
    "bmc": (),
    "explain": (),
}
"""The verbs that are played, and with which options."""
BMC_FAULTS = {
    "lies": BmcFault.LIAR,
    "nothing": BmcFault.IDLE,
    "slow": BmcFault.SLOW,
}
BMC_WORDS = ("ok", "dead", *BMC_FAULTS)


def require_playable(scenario: Scenario, hosts_there: Sequence[str]) -> None:
    """Raises InvalidInput that names the first line which this lab can't play, and why."""
    verbs = {step.verb for step in scenario.steps}
    for step in scenario.steps:
        if step.verb not in OPTIONS:
            raise _wrong(step, f"the lab can't play '{step.verb}'", tuple(sorted(OPTIONS)))
        for option in step.options:
            if option not in OPTIONS[step.verb]:
                raise _wrong(
                    step, f"the lab can't play '{step.verb}' with {option}=", OPTIONS[step.verb]
                )
        _require_words(step)
        if step.verb in ("cut-net", "heal-net") and "engine" in verbs:
            raise _wrong(
                step, f"the lab can't play '{step.verb}' beside an engine that asks neighbours", ()
            )
    named = [word for step in _of(scenario, "hosts", "host") for word in step.words]
    last = _of(scenario, "hosts", "host")[-1]
    lacking = [name for name in named if name not in hosts_there]
    if lacking:
        raise _wrong(last, f"the lab has no {', '.join(lacking)}", tuple(hosts_there))
    if "engine" in verbs and set(named) != set(hosts_there):
        raise _wrong(last, "the lab has more hosts to place VMs on", tuple(hosts_there))


def _require_words(step: Step) -> None:
    """Of verbs that have more meanings than the lab can play."""
    if step.options.get("power", "bmc") != "bmc":
        raise _wrong(step, f"the lab can't play power={step.options['power']}", ("bmc",))
    if step.verb == "cut" and (step.words[0], len(step.words)) != ("bmc", 2):
        raise _wrong(step, f"the lab can't play 'cut {' '.join(step.words)}'", ("cut bmc HOST",))
    if step.verb == "bmc" and step.words[1] not in BMC_WORDS:
        raise _wrong(step, f"the lab can't play 'bmc {step.words[1]}'", BMC_WORDS)


def _of(scenario: Scenario, *verbs: str) -> list[Step]:
    return [step for step in scenario.steps if step.verb in verbs]


def _wrong(step: Step, message: str, allowed: tuple[str, ...]) -> InvalidInput:
    return InvalidInput(message, field=f"line {step.line}", allowed=allowed)


class ScenarioPlayer:
    """Of one scenario on one lab, whose policy and power devices it sets; a context manager. What it breaks stays broken,
    as after any test, and its VMs stay; hosts that lost their watchdog are off, for their next boot brings another."""

    def __init__(
        self, story: Story, scenario: Scenario, say: Callable[[str], object] = print
    ) -> None:
        """Raises InvalidInput where the lab can't play it."""
        self._story, self._lab, self._scenario = story, story.lab, scenario
        require_playable(scenario, [host.name for host in story.lab.hosts])
        self._say = say
        self._with_engine = bool(_of(scenario, "engine"))
        self._wanted: Expectation = read_expectation(
            scenario.expected, with_engine=self._with_engine
        )
        self._stack = contextlib.ExitStack()
        self._revision = 0
        self._now_ms = 0
        self._began_s = 0.0
        self._known: tuple[Told, ...] = ()
        self._names: dict[str, str] = {}
        """Of the ids of hosts and VMs."""
        self._homes: dict[str, str] = {}
        self._vms: dict[str, Step] = {}
        self._writing: set[str] = set()
        self._disks: dict[str, DiskWitnesses] = {}
        self._shared_feed: set[str] = set()
        self._unwatched: dict[str, ProcessId | None] = {}
        """Hosts without a watchdog, and their process 1 then."""
        self._explained = 0
        self._verbs: dict[str, Callable[[Step], None]] = {
            "engine": self._nothing,
            "crash-points": self._nothing,
            "hosts": self._nothing,
            "host": self._host,
            "vm": self._vm,
            "advance": self._advance,
            "start": self._start,
            "power-off": self._power_off,
            "hold": self._hold,
            "unhold": self._unhold,
            "kill-qemu": self._kill_qemu,
            "crash-agent": self._crash_agent,
            "stop-agent": lambda step: faults.kill_agent(self._lab, step.words[0]),
            "start-agent": lambda step: faults.start_agent(self._lab, step.words[0]),
            "stop-guardian": self._stop_guardian,
            "start-guardian": lambda step: faults.start_guardian(self._lab, step.words[0]),
            "stop-libvirt": lambda step: faults.kill_libvirtd(self._lab, step.words[0]),
            "start-libvirt": lambda step: faults.start_libvirtd(self._lab, step.words[0]),
            "stop-server": lambda _step: faults.kill_server(self._lab),
            "kill-server": lambda _step: faults.kill_server(self._lab),
            "start-server": lambda _step: faults.start_server_again(self._lab),
            "cut": lambda step: faults.kill_bmc(self._lab, step.words[1]),
            "cut-net": lambda step: faults.cut_net(self._lab, step.words[0]),
            "heal-net": lambda step: faults.heal_net(self._lab, step.words[0]),
            "power-cut": self._power_cut,
            "boot": self._boot,
            "hang": self._hang,
            "freeze": self._freeze,
            "thaw": lambda step: faults.thaw_host(self._lab, step.words[0]),
            "bmc": self._bmc,
            "explain": self._explain,
        }

    def __enter__(self) -> Self:
        self._set_policy()
        if self._with_engine:
            self._stack.enter_context(bmcs(self._story))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, init in self._unwatched.items():
            host = self._lab.host(name)
            if host.is_on() and host.state.init == init:
                faults.kill_host(self._lab, name)
        self._stack.__exit__(kind, error, trace)

    def play(self) -> None:
        """Raises Failed with the first difference between what the file has and what the lab did."""
        self._began_s = time.monotonic()
        self._revision = self._story.revision()
        for one in self._story.api.get("/v1/hosts")["items"]:
            self._names[one["host"]["id"]] = one["host"]["name"]
        for step in self._scenario.steps:
            self._tell(step.text())
            self._verbs[step.verb](step)
        self._compare_ends()

    def _tell(self, text: str) -> None:
        took_s = time.monotonic() - self._began_s
        self._say(f"[{took_s:6.1f} s, {self._now_ms / 1_000:g} s in the story] {text}")

    def _set_policy(self) -> None:
        """The default one, for that is the stories'; but a loaded machine takes its time to run a program, and this lab may have
        fenced all day. Without an engine in the story, restarts in place are all that happens by itself."""
        policy: Json = {
            "fencing": {"read_deadline_ms": READ_DEADLINE_MS, "cap_count": CAP_COUNT},
            "detection": {"libvirt_hang_ms": LIBVIRT_HANG_MS},
            "lease": {"enabled": False},
            "recovery": {"start_deadline_ms": START_DEADLINE_MS},
        }
        if not self._with_engine:
            policy["recovery"]["grade"] = "restart"
        self._story.set_policy(policy)

    # Time

    def _advance(self, step: Step) -> None:
        began_ms = self._now_ms
        self._now_ms += parse_duration_ms(step.words[0], field=f"line {step.line}")
        if not self._server_runs():
            # Nobody records anything; what came about is seen when a server runs again.
            self._watch(self._now_ms - began_ms)
            return
        due = self._wanted.due(self._now_ms)
        self._wait_for(due, step)
        last_ms = max((one.at_ms for one in due), default=0)
        self._watch(self._now_ms - max(began_ms, last_ms))

    def _server_runs(self) -> bool:
        return "server" in self._lab.server.running_services()

    def _wait_for(self, due: Sequence[Told], step: Step) -> None:
        wanted = self._lanes(due)

        def has_come() -> bool:
            self._look()
            return not missing(wanted, self._lanes(self._known))

        try:
            wait_until(has_come, f"line {step.line}", timeout_s=PATIENCE_S, pause_s=LOOK_S)
        except Failed as error:
            lacking = "; ".join(missing(wanted, self._lanes(self._known)))
            came = [f"{one.subject} {one.words}" for one in self._known]
            raise Failed(f"{error.message}: {lacking}; came: {came}") from error
        self._begin_writing(due)

    def _watch(self, rest_ms: int) -> None:
        """While the story has nothing to come, nothing comes."""
        until_s = time.monotonic() + min(rest_ms / 1_000, QUIET_S)
        ahead = self._lanes(self._wanted.due(self._now_ms))

        def is_over() -> bool:
            if self._server_runs():
                self._look()
                self._require_no_deviation(ahead, "before its time: ")
            return time.monotonic() >= until_s

        wait_until(is_over, "the watch", timeout_s=QUIET_S + PATIENCE_S, pause_s=LOOK_S)

    def _look(self) -> None:
        """Raises Failed with the first thing that the story does not have, or not at this place."""
        found = []
        for event in self._story.api.events(after=self._revision):
            subject = self._names.get(event["vm_id"] or event["host_id"] or "", "cluster")
            fields = {name: str(value) for name, value in event["fields"].items()}
            found.append(Told(subject=subject, code=event["code"], fields=fields))
        self._known = tuple(found)
        self._require_no_deviation(self._lanes(self._wanted.told), "")
        early = early_recovery(self._wanted.told, self._known)
        if early:
            raise Failed(early)

    def _require_no_deviation(self, wanted: dict[tuple[str, str], list[str]], when: str) -> None:
        differs = deviation(wanted, self._lanes(self._known))
        if differs:
            raise Failed(f"{when}{differs}")

    def _lanes(self, told: Sequence[Told]) -> dict[tuple[str, str], list[str]]:
        return lanes_of(told, with_engine=self._with_engine)

    # Building

    def _nothing(self, step: Step) -> None:
        """The lab was built that way, or the word is for another player."""

    def _host(self, step: Step) -> None:
        if "shares-feed" in step.options:
            self._shared_feed.add(step.words[0])

    def _vm(self, step: Step) -> None:
        name = step.words[0]
        view = self._story.create_vm(
            name,
            ha="ha" in step.options,
            watchdog=step.options.get("watchdog"),
            start=False,
        )
        self._names[view["vm"]["id"]] = name
        self._vms[name] = step
        self._homes[name] = step.options["on"]
        path = str(view["vm"]["disks"][0]["path"])
        witnesses = DiskWitnesses(self._lab, {name: path})
        self._disks[name] = self._stack.enter_context(witnesses)

    def _begin_writing(self, due: Sequence[Told]) -> None:
        """Each that has answered for the first time."""
        for one in due:
            step = self._vms.get(one.subject)
            if step is None or one.code != "vm.agent.connected" or one.subject in self._writing:
                continue
            self._writing.add(one.subject)
            text = step.options.get("writes", f"{WRITES_MS}ms")
            pause_ms = parse_duration_ms(text, field=f"line {step.line}")
            if pause_ms < SELDOM_MS:
                self._story.wait_agent(one.subject)
                begin_writing(self._story, one.subject, pause_s=pause_ms / 1_000)

    # Orders

    def _start(self, step: Step) -> None:
        """Whether it is taken or refused, what comes of it says."""
        name = step.words[0]
        host = step.options.get("on", self._homes[name])
        if self._request("POST", f"/v1/vms/{name}/start", {"host": host}):
            self._homes[name] = host

    def _power_off(self, step: Step) -> None:
        self._request("POST", f"/v1/vms/{step.words[0]}/power-off", {})

    def _hold(self, step: Step) -> None:
        self._request("PUT", "/v1/hold", {"reason": step.words[0] if step.words else "maintenance"})

    def _unhold(self, _step: Step) -> None:
        self._request("DELETE", "/v1/hold")

    def _request(self, method: str, path: str, body: Json | None = None) -> bool:
        """True: taken. The end of long work is not waited for: the story goes on meanwhile."""
        answer = self._story.api.request(method, path, json=body)
        if answer.status_code >= 500:
            raise Failed(f"{method} {path}: {answer.status_code}: {answer.text[:500]}")
        self._tell(f"  answered {answer.status_code}")
        return answer.status_code < 400

    def _explain(self, step: Step) -> None:
        name, wanted = self._wanted.explained[self._explained]
        self._explained += 1
        assert name == step.words[0], "the file's lines are in the order of its questions"
        path = f"/v1/vms/{name}" if name in self._vms else f"/v1/hosts/{name}"
        self._wait_equal(f"line {step.line}: why {name} is so", wanted, lambda: self._why(path))

    def _why(self, path: str) -> tuple[str, ...]:
        return tuple(sorted(one["code"] for one in self._story.api.get(path)["engine"]))

    def _wait_equal(self, what: str, wanted: object, ask: Callable[[], object]) -> None:
        answer: list[object] = [None]

        def is_equal() -> bool:
            answer[0] = ask()
            return answer[0] == wanted

        try:
            wait_until(is_equal, what, timeout_s=PATIENCE_S, pause_s=LOOK_S)
        except Failed as error:
            raise Failed(f"{error.message}: the story has {wanted}, the lab {answer[0]}") from error

    # Faults

    def _kill_qemu(self, step: Step) -> None:
        name = step.words[0]

        def is_killed() -> bool:
            try:
                faults.kill_qemu(self._lab, name)
            except Unavailable:
                return False  # it is about to be made
            return True

        wait_until(is_killed, f"line {step.line}: {name} has a QEMU", timeout_s=PATIENCE_S)

    def _crash_agent(self, step: Step) -> None:
        faults.kill_agent(self._lab, step.words[0])
        faults.start_agent(self._lab, step.words[0])

    def _power_cut(self, step: Step) -> None:
        name = step.words[0]
        if name in self._shared_feed:
            faults.kill_bmc(self._lab, name)
        if self._lab.host(name).is_on():
            faults.kill_host(self._lab, name, silent=True)

    def _boot(self, step: Step) -> None:
        name = step.words[0]
        if self._lab.host(name).state.bmc is None:
            faults.start_bmc(self._lab, name)
        if not self._lab.host(name).is_on():
            faults.press_power(self._lab, name)

    def _hang(self, step: Step) -> None:
        self._note_unwatched(step.words[0])
        faults.hang_host(self._lab, step.words[0], with_watchdog=False)

    def _stop_guardian(self, step: Step) -> None:
        faults.kill_guardian(self._lab, step.words[0])
        self._end_watchdog(step.words[0])

    def _freeze(self, step: Step) -> None:
        name, service = step.words
        faults.freeze_service(self._lab, name, service)
        if service == "guardian":
            self._end_watchdog(name)

    def _end_watchdog(self, name: str) -> None:
        self._note_unwatched(name)
        faults.end_watchdog(self._lab, name)

    def _note_unwatched(self, name: str) -> None:
        self._unwatched[name] = self._lab.host(name).state.init

    def _bmc(self, step: Step) -> None:
        name, word = step.words[:2]
        if word == "dead":
            faults.kill_bmc(self._lab, name)
            return
        if self._lab.host(name).state.bmc is None:
            faults.start_bmc(self._lab, name)
        manners = BmcManners()
        if word in BMC_FAULTS:
            slow_ms = 0
            if word == "slow":
                slow_ms = parse_duration_ms(step.words[2], field=f"line {step.line}")
            manners = BmcManners(fault=BMC_FAULTS[word], slow_ms=slow_ms)
        faults.spoil_bmc(self._lab, name, manners)

    # The end

    def _compare_ends(self) -> None:
        self._look()
        left = missing(self._lanes(self._wanted.told), self._lanes(self._known))
        if left:
            raise Failed(f"at the end: {'; '.join(left)}")
        for vm in self._wanted.vms:
            wanted = (vm.state, "", vm.incarnation, len(vm.held_by))
            self._wait_equal(f"the end of {vm.name}", wanted, partial(self._end_of, vm))
        if self._with_engine:
            for end in self._ends_of_hosts():
                ask = partial(self._end_of_host, end.name)
                self._wait_equal(f"the end of {end.name}", end, ask)
        self._compare_writers()

    def _end_of(self, vm: EndOfVm) -> tuple[str, str, int, int]:
        view = self._story.api.vm(vm.name)
        copies = self._lab.copies_of(vm.name)
        return (
            str(view["status"]["state"]),
            place_differs(vm, copies, self._homes[vm.name]),
            int(view["status"]["incarnation"]),
            len(view["holder_names"]),
        )

    def _ends_of_hosts(self) -> list[EndOfHost]:
        """Of all: a file leaves out who is simply alive."""
        told = {end.name: end for end in self._wanted.hosts}
        return [
            told.get(host.name, EndOfHost(name=host.name, verdict="alive", reasons=()))
            for host in self._lab.hosts
        ]

    def _end_of_host(self, name: str) -> EndOfHost:
        view = self._story.api.get(f"/v1/hosts/{name}")
        return EndOfHost(
            name=name,
            verdict=str(view["verdict"]),
            reasons=tuple(sorted(one["code"] for one in view["engine"])),
        )

    def _compare_writers(self) -> None:
        """From outside of the product. A host that writes after another one did was started anew meanwhile."""
        for name, witnesses in self._disks.items():
            disk = witnesses.of[name]
            self._tell(f"disk of {name}: written by {', then '.join(disk.writers)}")
            if witnesses.error is not None:
                raise Failed(f"the witness of the disk of {name} ended: {witnesses.error!r}")
            starts = int(self._story.api.vm(name)["status"]["incarnation"])
            if disk.twice or disk.strangers or len(disk.writers) > max(starts, 1):
                raise Failed(
                    f"{name} had two writers: {disk.writers}, locked at once: {disk.twice}"
                )
