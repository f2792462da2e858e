"""One run of chaos: builds its lab, strikes round by round, heals, and judges from outside.

Ends early at the first write by a superseded copy, lost record, or VM that does not come back: what is there then is kept.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from virtha import __version__
from virtha.lab import lab
from virtha.lab.api import Json
from virtha.lab.chaos_faults import OFF_RESTS_S, Striker
from virtha.lab.chaos_operators import Operators
from virtha.lab.chaos_plan import OPERATORS_WORK, FaultKind, Round, Scene, Strike, rounds
from virtha.lab.node import BOOT_TIMEOUT_S
from virtha.lab.progress import Steps
from virtha.lab.recording_vms import Recorders, RecordingVm, make_recording_vm
from virtha.lab.story import BY_IPMI, Story
from virtha.lab.write_log import WriteLog
from virtha.model.errors import Failed, VirthaError
from virtha.model.policy import Policy
from virtha.model.policy.budget import budget
from virtha.model.value import Value

HOSTS = 3
VMS = 6
GUESTS_BOOT_S = 240.0
"""Of all VMs at once, until they write: 35 s on an idle machine of two cores, under emulation; four times that while others
want those as well."""
FIRST_RECORDS_S = 300.0
FOUND_MAX = 10
"""Of a kind, that are told."""
_LOOK_S = 1.0
_WORKERS = 16
"""A round has at most six strikes, and their ends may be late."""


class Options(Value, frozen=True, kw_only=True):
    seed: int
    minutes: float
    directory: Path
    """The lab's."""
    out: Path
    """Lists, logs and evidence."""
    leases: bool = True
    kinds: frozenset[FaultKind] = frozenset(FaultKind)
    stretch: float = 1.0
    """How many times as long each round takes."""


VIOLATION = "violation"
STRAY = "stray write"


class Finding(Value, frozen=True, kw_only=True):
    """Why a run has failed. ``what``: ``violation`` (a superseded copy wrote), ``stray write`` (nobody that the witness knows did),
    ``record lost``, ``vm lost``, ``host lost``, ``witness``."""

    what: str
    detail: str


@dataclass
class Tally:
    """What a run counts."""

    rounds: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    """By kind, those that struck."""
    struck_at_ms: list[int] = field(default_factory=list)
    """Each strike's moment, on the machine's clock since its boot, as writes have it."""
    missed: int = 0
    """That found their host off, or what they were to strike gone."""
    back_s: list[float] = field(default_factory=list)
    """Per round, from the healing until all hosts were up and all VMs wrote."""
    findings: list[Finding] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    struck_s: float = 0.0
    """How long rounds took in all."""


def chaos_policy(*, leases: bool) -> Json:
    """The defaults, but for what a host or VM that fails again and again would come up against (F7, M5, restart limits), and for
    the time in which a loaded machine runs ipmitool."""
    return {
        "restart": {"restarts_max": 1000, "delay_ms": 0, "reset_loop_count": 1000},
        "fencing": {"cap_count": 1000, "read_deadline_ms": 4_500},
        "recovery": {"quarantine_window_ms": 60_000},
        "lease": {"enabled": leases},
    }


def back_within_s(policy: Json) -> float:
    """From the healing until all is back: the policy's longest way, a host that has to be booted, and all guests' boots."""
    ways = budget(msgspec.convert(policy, Policy)).ways
    return max(one.worst_ms for one in ways) / 1_000 + OFF_RESTS_S + BOOT_TIMEOUT_S + GUESTS_BOOT_S


FAULT_LOG = "faults.jsonl"


class FaultLog:
    """One JSON object per line: when, what, and what came of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def note(self, **fields: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        boot_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        with self._lock, self._path.open("a") as log:
            log.write(json.dumps({"at": at, "at_ms": boot_ms, **fields}) + "\n")


class ChaosRun:
    """A context manager: builds the lab, and leaves it as it is."""

    def __init__(self, options: Options, steps: Steps) -> None:
        self.options = options
        self.tally = Tally()
        self.policy = chaos_policy(leases=options.leases)
        self._steps = steps
        self._log = FaultLog(options.out / FAULT_LOG)
        # A seed strikes the same only in the version that drew it.
        self._log.note(seed=options.seed, version=__version__, kinds=sorted(options.kinds))
        self._healing = threading.Event()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="chaos")
        self.lab = lab.up(options.directory, hosts=HOSTS, steps=steps)
        self.story = Story(self.lab)
        self._striker = Striker(self.lab)
        self._operators = Operators(self.lab)
        self._set_up()
        vms = [self._make_vm(number) for number in range(VMS)]
        disks = {path: (vm.name, disk) for vm in vms for path, disk in vm.disks.items()}
        self.writes = WriteLog(self.lab, disks, options.out / "writes.log")
        self.records = Recorders(self.lab, vms)
        self._witnesses = contextlib.ExitStack()
        self.scene = Scene(
            hosts=tuple(host.name for host in self.lab.hosts),
            vms=tuple(vm.name for vm in vms),
            server=self.lab.server.name,
            kinds=options.kinds,
        )

    def _set_up(self) -> None:
        with self._steps.step("policy, and each host's BMC as its power device, tested"):
            self.story.set_policy(self.policy)
            for host in self.lab.hosts:
                bmc = self.lab.bmc(host.name)
                settings = {**BY_IPMI, "address": bmc.address}
                self.story.add_power(host.name, settings, bmc.password)

    def _make_vm(self, number: int) -> RecordingVm:
        name = f"rec{number + 1}"
        host = self.lab.hosts[number % HOSTS].name
        with self._steps.step(f"{name}: created and started on {host}"):
            return make_recording_vm(self.story, name, host=host)

    def __enter__(self) -> "ChaosRun":
        self._witnesses.enter_context(self.writes)
        self._witnesses.enter_context(self.records)
        return self

    def __exit__(self, *_: object) -> None:
        self._healing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._witnesses.close()
        self.story.close()

    def play(self) -> None:
        """Rounds until the minutes are over; the last one is played to its end."""
        with self._steps.step("all VMs write"):
            marks = dict.fromkeys(self.scene.vms, 0)
            self._wait_back(marks, FIRST_RECORDS_S, [])
        self.tally.began_s = time.monotonic()
        for drawn in rounds(self.options.seed, self.scene):
            if self.tally.findings or self._minutes() >= self.options.minutes:
                return
            self._play_round(drawn.stretched(self.options.stretch))
            self.tally.struck_s = time.monotonic() - self.tally.began_s

    def _minutes(self) -> float:
        return (time.monotonic() - self.tally.began_s) / 60

    def _play_round(self, drawn: Round) -> None:
        for one in drawn.strikes:
            self._steps.say(f"round {drawn.number}: {one}")
        planned = [str(one) for one in drawn.strikes]
        self._log.note(round=drawn.number, planned=planned, heal_at_ms=drawn.heal_at_ms)
        began_s = time.monotonic()
        healing = self._healing = threading.Event()
        jobs = [
            self._pool.submit(self._carry_out, drawn.number, one, began_s, healing)
            for one in drawn.strikes
        ]
        self.writes.violated.wait(max(0.0, began_s + drawn.heal_at_ms / 1_000 - time.monotonic()))
        healing.set()
        if self._violated():
            return
        marks = self.records.newest()
        healed_s = time.monotonic()
        self._log.note(round=drawn.number, healing=True)
        self._wait_back(marks, back_within_s(self.policy), jobs)
        if self.tally.findings:
            return
        self.tally.rounds += 1
        self.tally.back_s.append(time.monotonic() - healed_s)
        self._look_for_lost_records()
        self._steps.say(
            f"round {drawn.number}: all back {self.tally.back_s[-1]:.0f} s after the healing; "
            f"{self.writes.judge.writes} writes, {self.records.acknowledged()} records"
        )

    def _carry_out(
        self, number: int, one: Strike, began_s: float, healing: threading.Event
    ) -> None:
        """Waits for its time, strikes, waits for its end, mends; the healing of the round cuts its waits short."""
        said = {"round": number, "kind": one.kind.value, "target": one.target}
        if healing.wait(max(0.0, began_s + one.at_ms / 1_000 - time.monotonic())):
            return
        self._log.note(**said, lasts_ms=one.lasts_ms, amount_ms=one.amount_ms)
        if one.kind in OPERATORS_WORK:
            self.tally.strikes[one.kind.value] += 1
            self._log.note(**said, came=self._operators.work(one))
            return
        struck_at_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        try:
            mend = self._striker.strike(one)
        except (VirthaError, OSError) as error:
            self.tally.missed += 1
            self._log.note(**said, missed=str(error))
            return
        self.tally.struck_at_ms.append(struck_at_ms)
        self.tally.strikes[one.kind.value] += 1
        if one.lasts_ms is None or healing.wait(one.lasts_ms / 1_000):
            return
        try:
            mend()
            self._log.note(**said, mended=True)
        except (VirthaError, OSError) as error:
            self._log.note(**said, not_mended=str(error))

    def _wait_back(
        self, marks: dict[str, int], within_s: float, jobs: Iterable["Future[None]"]
    ) -> None:
        """Until all jobs are done, all hosts are up and each VM has acknowledged more than ``marks``. What was broken is mended all
        the while."""
        over_s = time.monotonic() + within_s
        starting: Future[list[str]] | None = None
        told: dict[str, str] | None = None
        while True:
            for did in self._striker.mend_all():
                self._log.note(mending=did)
            if starting is None or starting.done():
                for did in self._came_of(starting):
                    self._log.note(operator=did)
                starting = self._pool.submit(self._start_and_free)
            at_work = self._operators.has_stopped() or not all(job.done() for job in jobs)
            missing = self._missing(marks)
            if missing != told:
                self._log.note(missing=missing, operators_at_work=at_work)
                told = missing
            if self._violated() or (not at_work and not missing):
                break
            if time.monotonic() > over_s:
                self._not_back(missing, within_s)
                break
            self.writes.violated.wait(_LOOK_S)
        for job in jobs:
            if job.done():
                job.result()  # an error of our own is not to be lost

    def _start_and_free(self) -> list[str]:
        freed = self._operators.free_what_is_quarantined(self.scene.vms)
        return [*freed, *self._operators.start_what_they_stopped()]

    @staticmethod
    def _came_of(starting: "Future[list[str]] | None") -> list[str]:
        try:
            return [] if starting is None else starting.result()
        except VirthaError as error:
            return [f"not known: {error}"]

    def _missing(self, marks: dict[str, int]) -> dict[str, str]:
        """Host, VM or storage -> what it lacks."""
        try:
            missing = {text.partition(":")[0]: text for text in lab.hosts_not_up(self.lab)}
            if not lab.storage_is_usable(self.lab):
                missing["storage"] = "not usable by all hosts"
            newest = self.records.newest()
            for name in self.scene.vms:
                if (lacks := self._lacks(name, newest[name] > marks[name])) is not None:
                    missing[name] = lacks
        except VirthaError as error:
            return {"server": str(error)}
        return missing

    def _lacks(self, vm: str, writes: bool) -> str | None:
        view = self.story.api.vm(vm)
        status = view["status"]
        copies = self.lab.copies_of(vm)
        if status["state"] != "running":
            reasons = [*(status.get("reasons") or []), *(view.get("engine") or [])]
            return f"{status['state']} {[one.get('code') for one in reasons]}"
        if len(copies) != 1:
            return f"its copies: {copies}"
        return None if writes else "has written nothing since"

    def _not_back(self, missing: dict[str, str], within_s: float) -> None:
        for name, lacks in missing.items() or {"operators": "still at work"}.items():
            what = "vm lost" if name in self.scene.vms else "host lost"
            self._find(what, f"{name}: not back within {within_s:.0f} s: {lacks}")

    def _violated(self) -> bool:
        if not self.writes.violated.is_set():
            return False
        if self.writes.error is not None:
            self._find("witness", f"of writes: {self.writes.error!r}")
        found = self.writes.violations
        superseded = [one for one in found if one.newer is not None]
        stray = [one for one in found if one.newer is None]
        for what, ones in ((VIOLATION, superseded), (STRAY, stray)):
            for one in ones[:FOUND_MAX]:
                self._find(what, str(one))
        return True

    def _look_for_lost_records(self) -> None:
        if self.records.error is not None:
            self._find("witness", f"of records: {self.records.error!r}")
        for vm, lost in self.records.lost():
            self._find("record lost", f"{vm}: {lost}")

    def _find(self, what: str, detail: str) -> None:
        finding = Finding(what=what, detail=detail)
        if finding not in self.tally.findings:
            self.tally.findings.append(finding)
            self._log.note(found=what, detail=detail)
            self._steps.say(f"FOUND {what}: {detail}")

    def last_look(self) -> None:
        """When all is over: what did the witnesses see to their end, and were any records lost that nobody has looked for yet?"""
        self._witnesses.close()
        self._violated()
        if not any(one.what == "record lost" for one in self.tally.findings):
            self._look_for_lost_records()


def refuse_nothing_to_strike(kinds: frozenset[FaultKind]) -> None:
    if kinds <= set(OPERATORS_WORK):
        raise Failed("there is no fault among the kinds", fix="name one that strikes something")
