"""What a leader asks of the neighbours of a silent host (``Investigate``: F1, F2), and what of their answers counts.

The engine chooses who is asked, and judges. Here a question finds its way to a session, and an answer the question: one
that nobody asked for, that came of another host, or late, says nothing about now. Evidence has the time of its receipt.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from virtha.control.leading import LedHost, LedVm
from virtha.engine.events import DisksWatched, EngineEvent, Investigate, NeighbourAnswered
from virtha.model.evidence import Answer, WatchedDisk
from virtha.model.ids import HostId, StorageDomainId, Term, VmId
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.wire.witness_messages import (
    DISKS_MAX,
    DisksLooked,
    HostProbed,
    LookAtDisks,
    ProbeHost,
    ProbeTarget,
    WitnessAnswer,
    WitnessOrder,
)

PROBE_MS = 500
"""How long a witness waits for the subject."""
DISK_GAP_MS = 600
"""Between the two looks: longer than the pause between two writes of a guest that is not idle."""
LOOK_MS = 2_000
"""For each of the two."""
LATE_MS = 3_000
"""Beyond what the witness itself may take."""

log = structlog.get_logger("virtha.server.witnesses")


class WitnessLines(Protocol):
    """Sessions, as far as witnesses need them: the gateway's part."""

    instance: str
    """Of this server."""

    def ask_witness(self, host_id: HostId, order: WitnessOrder) -> bool:
        """To a process of that host that can do it. False: there is none."""
        ...


class WatchedCluster(Protocol):
    """What is configured, and who decides: the cluster's feed."""

    @property
    def led_hosts(self) -> Mapping[HostId, LedHost]: ...

    @property
    def led_vms(self) -> Mapping[VmId, LedVm]: ...

    def is_shared(self, domain_id: StorageDomainId) -> bool:
        """False: two hosts are known to see two different things there."""
        ...

    def offer(self, *events: EngineEvent) -> None: ...


class _Question(Value, frozen=True, kw_only=True):
    witness: HostId
    subject: HostId
    until_ms: int
    """An answer after that is too old."""
    networks: frozenset[str] = frozenset()
    """Of a probe: those that are not answered yet."""
    about_all: bool = True
    """Of a look: all that the host's VMs may write is looked at."""


class WitnessDesk:
    """Of one leader, and gone with it."""

    def __init__(
        self,
        cluster: WatchedCluster,
        lines: WitnessLines,
        *,
        term: Term,
        now: Callable[[], Millis],
    ) -> None:
        """``term``: its leader's. ``now``: cluster time."""
        self._cluster = cluster
        self._lines = lines
        self._now = now
        self._silences: dict[HostId, int] = {}
        """A number for each silence, from its first look at disks to the next sign."""
        self._silences_begun = 0
        self._questions: dict[int, _Question] = {}
        self._asked = term << 32
        """No number is given twice: what was asked by the leader before may be answered yet."""

    def signed(self, host_id: HostId) -> None:
        """It lives: what its disks looked like before is compared with nothing that comes (J3)."""
        if self._silences.pop(host_id, None) is None:
            return
        for number, asked in tuple(self._questions.items()):
            if asked.subject == host_id and not asked.networks:
                del self._questions[number]

    def investigate(self, command: Investigate) -> None:
        now = self._now()
        for number in [one for one, asked in self._questions.items() if asked.until_ms < now]:
            del self._questions[number]
        for witness in command.witnesses:
            self._probe(witness, command.subject)
        if command.disk_reader is not None:
            self._look(command.disk_reader, command)

    def _probe(self, witness: HostId, subject: HostId) -> None:
        hosts = self._cluster.led_hosts
        there, here = hosts.get(subject), hosts.get(witness)
        if there is None or here is None:
            return
        sources = {one.network: one.address for one in here.probed_at}
        targets = tuple(
            ProbeTarget(
                network=one.network,
                address=one.address,
                port=one.port,
                source=sources[one.network],
            )
            for one in there.probed_at
            if one.network in sources
        )
        if not targets:
            return
        self._asked += 1
        order = ProbeHost(
            question=self._asked, subject=subject, targets=targets, deadline_ms=PROBE_MS
        )
        if self._lines.ask_witness(witness, order):
            self._questions[self._asked] = _Question(
                witness=witness,
                subject=subject,
                until_ms=self._now() + PROBE_MS + LATE_MS,
                networks=frozenset(one.network for one in targets),
            )

    def _look(self, reader: HostId, command: Investigate) -> None:
        disks, about_all = self._disks_of(command.vms)
        if not disks:
            return
        if command.subject not in self._silences:
            self._silences_begun += 1
            self._silences[command.subject] = self._silences_begun
        self._asked += 1
        order = LookAtDisks(
            question=self._asked,
            subject=command.subject,
            silence=f"{self._lines.instance} {self._silences[command.subject]}",
            disks=disks,
            gap_ms=DISK_GAP_MS,
            deadline_ms=LOOK_MS,
        )
        if self._lines.ask_witness(reader, order):
            self._questions[self._asked] = _Question(
                witness=reader,
                subject=command.subject,
                until_ms=self._now() + DISK_GAP_MS + 2 * LOOK_MS + LATE_MS,
                about_all=about_all,
            )

    def _disks_of(self, vms: tuple[VmId, ...]) -> tuple[tuple[WatchedDisk, ...], bool]:
        """False: that is not all that those VMs may write, or it is read where it can't be seen by all."""
        found: list[WatchedDisk] = []
        about_all = True
        for vm_id in vms:
            led = self._cluster.led_vms.get(vm_id)
            if led is None or led.disks is None:
                about_all = False
                continue
            found += led.disks
        shared = [disk for disk in found if self._cluster.is_shared(disk.domain_id)]
        about_all = about_all and len(shared) == len(found) and len(shared) <= DISKS_MAX
        return tuple(shared[:DISKS_MAX]), about_all

    def heard(self, host_id: HostId, answer: WitnessAnswer) -> None:
        asked = self._questions.get(answer.question)
        if asked is None or asked.witness != host_id or self._now() > asked.until_ms:
            log.debug("an answer that nobody waits for", witness=host_id, answer=repr(answer))
            return
        match answer:
            case HostProbed():
                self._heard_probe(asked, answer)
            case DisksLooked() if not asked.networks:
                del self._questions[answer.question]
                changed = answer.changed
                if changed is False and not asked.about_all:
                    changed = None
                self._cluster.offer(
                    DisksWatched(
                        witness=host_id, subject=asked.subject, changed=changed, disks=answer.disks
                    )
                )

    def _heard_probe(self, asked: _Question, answer: HostProbed) -> None:
        if answer.network not in asked.networks:
            return
        left = asked.networks - {answer.network}
        if left:
            self._questions[answer.question] = _Question(
                witness=asked.witness,
                subject=asked.subject,
                until_ms=asked.until_ms,
                networks=left,
            )
        else:
            del self._questions[answer.question]
        self._cluster.offer(
            NeighbourAnswered(
                witness=asked.witness,
                subject=asked.subject,
                network=answer.network,
                answer=answer.answer,
                boot=answer.boot if answer.answer is Answer.ALIVE else None,
            )
        )
