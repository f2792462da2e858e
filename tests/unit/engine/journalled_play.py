"""A play whose engine is journalled, and faults drawn from a seed that bring it into all its states.

Run as a program it prints a digest of a journal's bytes and of its replay: the same under every hash seed.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator, Sequence

import engine_driver
import msgspec
from engine_driver import Play, PlayedHost, vm

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.dependencies import Dependency, StartCondition
from virtha.engine.engine import Engine
from virtha.engine.events import (
    BrakeLifted,
    DeathConfirmed,
    Decision,
    EngineEvent,
    HoldChanged,
    HostConfigured,
    HostRemoved,
    LibvirtAnswered,
    MaintenanceChanged,
    PolicyChanged,
    QuarantineLifted,
    Stalled,
    VmConfigured,
    VmRemoved,
)
from virtha.engine.journal import Header, SegmentReader, SegmentWriter
from virtha.engine.machine import Verdict
from virtha.engine.replay import Replay
from virtha.model.facts import Result
from virtha.model.ids import ClusterId, HostId, InstallationId, Term, VmId
from virtha.model.policy import FencingAction, FencingPolicy, Policy
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.model.time import Millis, UtcMillis

APART = AffinityGroup(
    id=AffinityGroupId("g1"), name="databases.example", kind=AffinityKind.APART, hard=False
)


def header(number: int = 1, *, term: int = 1, program: str = "0.1.0") -> Header:
    return Header(
        program=program,
        installation_id=InstallationId("i1"),
        cluster_id=ClusterId("c1"),
        term=Term(term),
        created_at_ms=UtcMillis(1_700_000_000_000),
        number=number,
        follows=number > 1,
    )


class JournalledEngine(Engine):
    """Keeps its journal in ``segments``, which all engines of one play share."""

    segments: list[bytearray]
    turns_per_segment: int

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)
        self._begin()

    def _begin(self) -> None:
        self._writer = SegmentWriter()
        self._turns = 0
        state = self.snapshot()
        head = header(len(self.segments) + 1, term=state.cluster.term)
        self._segment = bytearray(self._writer.begin(head, state))
        self.segments.append(self._segment)

    def step(self, now: Millis, events: Sequence[EngineEvent]) -> Decision:
        if self._turns >= self.turns_per_segment:
            self._begin()
        self._turns += 1
        self._segment += self._writer.turn(now, events)
        decision = super().step(now, events)
        self._segment += self._writer.decided(decision)
        return decision


class NamedPlay(Play):
    """Names that aren't ids, as in the world."""

    def _config(self, host: PlayedHost) -> EngineHost:
        config = super()._config(host)
        return msgspec.structs.replace(config, name=f"node{host.number}.example")


def machine(key: str, **changes: object) -> EngineVm:
    return msgspec.structs.replace(vm(key, **changes), name=f"{key}.example")


def machines() -> list[EngineVm]:
    storage = frozenset({Feature(FeatureKind.STORAGE, "ds1")})
    database = Dependency(vm_id=VmId("db"), name="db.example", condition=StartCondition.GUEST_AGENT)
    return [
        machine("db", priority=10, groups=(APART,)),
        machine("db2", priority=10, groups=(APART,)),
        machine("web1", depends_on=(database,), groups=(APART,)),
        machine("web2", depends_on=(database,)),
        machine("big", memory_bytes=6 << 30),
        machine("stored", features=storage),
        machine("tagged", features=frozenset({Feature(FeatureKind.TAG, "ssd.example")})),
        machine("plain", ha=False),
    ]


def play_faults(seed: int, *, ticks: int = 900) -> Iterator[Play]:
    """One play under faults from ``seed``; yields after each tick."""
    chance = random.Random(seed)
    fencing = FencingPolicy(
        action=chance.choice([FencingAction.POWER_OFF, FencingAction.REBOOT]), cap_count=2
    )
    play = NamedPlay(5, policy=Policy(fencing=fencing), levels=2, vms=machines())
    for number, config in enumerate(play.vms):
        play.run(config.vm_id, f"h{number % 4 + 1}")
    yield play
    for _ in range(ticks):
        if chance.random() < 0.06:
            disturb(play, chance)
        play.tick()
        yield play


def disturb(play: Play, chance: random.Random) -> None:
    """One fault, or the end of one."""
    host = play.hosts[chance.choice(sorted(play.hosts))]
    if chance.random() < 0.3:
        host.boot_again()
        host.start_result, host.confirms_cancel, host.bmc_dead = Result.OK, True, False
        play._greet(host)
        return
    if chance.random() < 0.3:
        _operate(play, host, chance)
        return
    match chance.randrange(9):
        case 0 | 1 | 2:
            host.cut()
        case 3:
            host.hang()
        case 4:
            host.bmc_dead = not host.bmc_dead
        case 5:
            host.disks_change = not host.disks_change
        case 6:
            host.start_result = chance.choice([None, Result.FAILED])
        case 7:
            host.confirms_cancel = not host.confirms_cancel
        case _:
            host.agent_alive = not host.agent_alive


def _operate(play: Play, host: PlayedHost, chance: random.Random) -> None:
    flip = chance.random() < 0.3
    match chance.randrange(12):
        case 0:
            play.inbox.append(HoldChanged(reason="disks are being moved" if flip else None))
        case 1:
            play.inbox.append(MaintenanceChanged(host_id=host.id, on=flip, by="ada.example"))
        case 2:
            policy = PROFILES[chance.choice(list(Profile))]
            play.inbox.append(PolicyChanged(policy=policy))
        case 3:
            play.inbox.append(LibvirtAnswered(host_id=host.id, answering=not flip))
        case 4:
            play.inbox.append(Stalled())
        case 5:
            play.inbox.append(BrakeLifted(by="ada.example"))
        case 6:
            play.inbox += [QuarantineLifted(vm_id=one.vm_id, by="ada.example") for one in play.vms]
        case 7:
            one = chance.choice(play.vms)
            play.inbox += [VmRemoved(vm_id=one.vm_id), VmConfigured(vm=one)]
        case 8:
            play.inbox.append(VmConfigured(vm=machine("big", memory_bytes=5 << 30)))
        case 9 if not host.alive:
            play.inbox += [HostRemoved(host_id=host.id), HostConfigured(host=play._config(host))]
        case 10:
            incident = play.host_record(host.id).incident
            if incident is not None:
                word = DeathConfirmed(
                    host_id=host.id,
                    boot=incident.boot,
                    incident=incident.number,
                    by="ada.example",
                    force_reason="seen by eyes" if not host.alive else None,
                )
                play.inbox.append(word)
        case _:
            play.new_leader(away_ms=500)


@contextlib.contextmanager
def journalled(*, turns_per_segment: int = 250) -> Iterator[list[bytearray]]:
    """Plays that are made here are journalled into the segments. Not for two threads at once."""
    JournalledEngine.segments = []
    JournalledEngine.turns_per_segment = turns_per_segment
    real = engine_driver.Engine
    engine_driver.Engine = JournalledEngine
    try:
        yield JournalledEngine.segments
    finally:
        engine_driver.Engine = real


def journal_of(seed: int, *, ticks: int = 900) -> tuple[Play, list[bytes]]:
    """The play at its end and its segments."""
    with journalled() as segments:
        *_, play = play_faults(seed, ticks=ticks)
    return play, [bytes(one) for one in segments]


def confirmed_death() -> list[bytes]:
    """A death that an operator confirms, and all else that has names and people's words in it. Two segments."""
    with journalled(turns_per_segment=10_000) as segments:
        play = NamedPlay(5, vms=machines())
        for number, config in enumerate(play.vms):
            play.run(config.vm_id, f"h{number % 4 + 1}")
        maintenance = MaintenanceChanged(host_id=HostId("h4"), on=True, by="ada.example")
        play.inbox += [HoldChanged(reason="disks are being moved"), maintenance]
        dead = play.hosts["h1"]
        dead.bmc_dead = True
        dead.cut()
        play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
        incident = play.host_record("h1").incident
        assert incident is not None
        word = DeathConfirmed(
            host_id=dead.id,
            boot=incident.boot,
            incident=incident.number,
            by="ada.example",
            force_reason="seen by eyes",
        )
        play.inbox += [word, HoldChanged(reason=None)]
        play.advance(20_000)
        JournalledEngine.turns_per_segment = 0
        play.tick()
        JournalledEngine.turns_per_segment = 10_000
        play.advance(1_000)
        assert "host.proven_dead" in play.told() and "vm.recovered" in play.told()
    return [bytes(one) for one in segments]


def main() -> None:
    digest = hashlib.sha256()
    for seed in range(3):
        for segment in journal_of(seed, ticks=300)[1]:
            digest.update(segment)
            for turn in Replay(SegmentReader(segment)).turns():
                assert turn.difference is None, turn
                digest.update(repr(turn.decision).encode())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
