"""One VM on one host, ready to be told things."""

from virtha.model.domain import DomainEvent, DomainEventKind, DomainReport, DomainState
from virtha.model.facts import Happened, Released, Result, VmReport
from virtha.model.ids import BootId, ClusterId, Incarnation, VmId
from virtha.model.policy import Policy
from virtha.model.time import Millis
from virtha.model.vm import Vm
from virtha.model.watchdog import Watchdog
from virtha.sentinel.events import (
    Decision,
    DomainsListed,
    SaveRecord,
    SaveWatched,
    SentinelEvent,
    SentinelRecords,
    StartAccepted,
    StartEnded,
    Told,
    VmRecord,
    Watched,
)
from virtha.sentinel.sentinel import Sentinel

WEB = VmId("web")
BOOT = BootId("boot-1")


class Bench:
    """A sentinel with its disk: what it saves is what the next process begins with."""

    def __init__(self, *, watchdog: Watchdog | None = None, ha: bool = True) -> None:
        self.vm = Vm(
            id=WEB,
            name="web",
            cluster_id=ClusterId("c"),
            memory_bytes=1 << 27,
            ha=ha,
            watchdog=watchdog,
        )
        self.saved: dict[VmId, VmRecord] = {}
        self.watched: Watched | None = None
        self.policy = Policy()
        self.now = 0
        self.sentinel = self._new(BOOT, ())

    def _new(self, boot: BootId, told: tuple[Told, ...]) -> Sentinel:
        records = SentinelRecords(
            vms=tuple(self.saved.values()), policy=self.policy, watched=self.watched, told=told
        )
        return Sentinel(boot=boot, records=records, now=Millis(self.now))

    def restart(self, *, boot: BootId = BOOT, told: tuple[Told, ...] = ()) -> None:
        self.sentinel = self._new(boot, told)

    def tell(self, *events: SentinelEvent, after_ms: int = 0) -> Decision:
        self.now += after_ms
        decision = self.sentinel.step(Millis(self.now), events)
        for intent in decision.intents:
            match intent:
                case SaveRecord(record=record):
                    self.saved[record.vm.id] = record
                case SaveWatched(watched=watched):
                    self.watched = watched
                case _:
                    del self.saved[intent.vm_id]
        return decision

    def event(self, kind: str, detail: str = "", *, after_ms: int = 0) -> Decision:
        return self.tell(self.happens(kind, detail), after_ms=after_ms)

    def happens(self, kind: str, detail: str = "") -> DomainEvent:
        return DomainEvent(vm_id=WEB, kind=DomainEventKind(kind), detail=detail)

    def listed(
        self,
        state: str = "running",
        reason: str = "booted",
        *,
        pid: int | None = None,
        at_start: bool = False,
    ) -> DomainsListed:
        report = DomainReport(
            vm_id=WEB, name="web", state=DomainState(state), reason=reason, pid=pid
        )
        return DomainsListed(domains=(report,), at_start=at_start)

    def start(self) -> None:
        """Running as incarnation 1, its list done."""
        self.tell(DomainsListed(domains=(), at_start=True))
        self.tell(StartAccepted(vm=self.vm, incarnation=Incarnation(1), by="admin"))
        self.tell(self.happens("started", "booted"), self.happens("suspended", "paused"))
        self.tell(
            self.happens("resumed", "unpaused"),
            StartEnded(vm_id=WEB, incarnation=Incarnation(1), result=Result.OK),
        )
        self.tell(self.listed(), after_ms=1_000)

    @property
    def record(self) -> VmRecord:
        (record,) = self.sentinel.view()
        return record


def codes(decision: Decision) -> list[str]:
    return [notice.code for notice in decision.notices if isinstance(notice, Happened)]


def reports(decision: Decision) -> list[VmReport]:
    return [notice for notice in decision.notices if isinstance(notice, VmReport)]


def releases(decision: Decision) -> list[int]:
    return [notice.incarnation for notice in decision.notices if isinstance(notice, Released)]
