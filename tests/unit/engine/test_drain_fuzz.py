"""Random faults while hosts are emptied and VMs go home: never two writers (``Play`` and ``PlayedMoves`` assert it), never
down without a reason, and when all is mended every VM runs once and nobody else may hold it."""

from random import Random

import pytest
from drain_driver import settled_once, told_why
from engine_driver import Play, vm
from played_moves import Phase
from test_failback import STABLE_MS

from virtha.engine.events import (
    BrakeLifted,
    CopyReleased,
    EngineEvent,
    HoldChanged,
    MaintenanceChanged,
    MigrationEnded,
    QuarantineLifted,
    VmSeen,
)
from virtha.engine.records import Migration, VmStage
from virtha.model.evidence import IdentityMatch
from virtha.model.facts import Result
from virtha.model.ids import HostId, VmId
from virtha.model.policy import Failback, MaintenancePolicy, Policy, RecoveryPolicy
from virtha.model.vm import VmState

VMS = [vm("v1"), vm("v2"), vm("v3", priority=5), vm("v4")]


class Story:
    """One run: a cluster, and a source of trouble."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        policy = Policy(
            maintenance=MaintenancePolicy(migration_deadline_ms=20_000),
            recovery=RecoveryPolicy(failback=Failback.AUTOMATIC, failback_stable_ms=STABLE_MS),
        )
        self.play = Play(4, vms=VMS, policy=policy)
        for host in self.play.hosts.values():
            host.bmc_identity = IdentityMatch.MATCH
            self.play.test_power(host)
        for number, one in enumerate(VMS):
            self.play.run(one.vm_id, f"h{1 + number % 2}")
        self.faults = [
            self._maintain,
            self._maintain,
            self._stand_still,
            self._stand_still,
            self._cut,
            self._hang,
            self._isolate,
            self._back,
            self._back,
            self._dumb,
            self._unreachable_target,
            self._lost_orders,
            self._power_device,
            self._new_leader,
            self._hold,
        ]

    def trouble(self, steps: int) -> None:
        for _ in range(steps):
            self.random.choice(self.faults)()
            for _ in range(self.random.choice([1, 2, 5, 20, 100, 300])):
                self.tick()

    def tick(self) -> None:
        self.play.tick()
        for one in VMS:
            assert told_why(self.play, one.vm_id) or self._unheard(one.vm_id), self.state(one.vm_id)

    def _unheard(self, vm_id: VmId) -> bool:
        """Its holders are not what they were, and the engine can't have judged them yet."""
        copies = self.play.vm_record(vm_id).copies
        return any(not self.play.hosts[copy.host_id].alive for copy in copies)

    def state(self, vm_id: str) -> str:
        record = self.play.vm_record(vm_id)
        told = [one.code for one in self.play.notices if one.vm_id == vm_id][-8:]
        why = self.play.engine.explain_vm(VmId(vm_id))
        return f"{vm_id}: {record} runs on {self.play.where(vm_id)}, {told}, {why}"

    def heal(self) -> None:
        play = self.play
        play.moves.stops_at, play.moves.lost_orders = None, False
        play.moves.dumb, play.moves.fails_to = set(), set()
        play.inbox += [HoldChanged(reason=None), BrakeLifted(by="test")]
        for host in play.hosts.values():
            host.bmc_dead = False
            host.agent_alive = True
            self._bring_back(host)
            play.inbox.append(MaintenanceChanged(host_id=host.id, on=False, by="test"))

        def well() -> bool:
            for one in VMS:
                if play.vm_record(one.vm_id).stage in (VmStage.QUARANTINED, VmStage.GIVEN_UP):
                    play.inbox.append(QuarantineLifted(vm_id=one.vm_id, by="test"))
            return all(settled_once(play, one.vm_id) for one in VMS)

        try:
            play.until(well, within_ms=1_500_000)
        except AssertionError as error:
            states = [self.state(one.vm_id) for one in VMS if not settled_once(play, one.vm_id)]
            raise AssertionError("\n".join(states)) from error

    # Faults

    def _any(self) -> str:
        return self.random.choice(sorted(self.play.hosts))

    def _maintain(self) -> None:
        change = MaintenanceChanged(
            host_id=HostId(self._any()),
            on=self.random.random() < 0.7,
            by="test",
            drain=self.random.random() < 0.9,
        )
        self.play.inbox.append(change)

    def _stand_still(self) -> None:
        self.play.moves.stops_at = self.random.choice([*Phase, None, None])

    def _cut(self) -> None:
        self.play.hosts[self._any()].cut()

    def _hang(self) -> None:
        self.play.hosts[self._any()].hang()

    def _isolate(self) -> None:
        self.play.hosts[self._any()].beating = False

    def _back(self) -> None:
        self._bring_back(self.play.hosts[self._any()])

    def _bring_back(self, host: object) -> None:
        if not host.powered:
            host.boot_again()
        host.beating = host.answers_neighbours = host.answers_ping = True
        self.play._greet(host)
        for vm_id in host.running:
            self.play._say(host, vm_id)

    def _dumb(self) -> None:
        name = self._any()
        self.play.moves.dumb ^= {name}

    def _unreachable_target(self) -> None:
        self.play.moves.fails_to ^= {self._any()}

    def _lost_orders(self) -> None:
        self.play.moves.lost_orders = not self.play.moves.lost_orders

    def _power_device(self) -> None:
        host = self.play.hosts[self._any()]
        host.bmc_dead = not host.bmc_dead

    def _new_leader(self) -> None:
        self.play.new_leader(away_ms=self.random.choice([0, 1_000, 30_000]))

    def _hold(self) -> None:
        reason = self.random.choice([None, None, "hands inside"])
        self.play.inbox.append(HoldChanged(reason=reason))


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_nothing_runs_twice_and_all_of_it_runs_in_the_end(seed: int):
    story = Story(seed)
    story.trouble(12)
    story.heal()


def test_no_words_that_contradict_each_other_make_it_raise():
    """Hosts that say anything about moves, true or not; the world answers nothing, so only the engine is asked."""
    assert sum(lies(Story(seed)) for seed in range(15)) > 50


def lies(story: Story) -> int:
    """How many were told."""
    play, random = story.play, story.random
    play.answers = False
    told = 0
    for _ in range(60):
        random.choice([story._maintain, story._hold, story._new_leader, story._hang, story._back])()
        for one in VMS:
            migration = play.vm_record(one.vm_id).migration
            if migration is not None:
                told += 1
                play.inbox.append(_anything(story, one.vm_id, migration))
        for _ in range(random.choice([1, 10, 100])):
            play.tick()
    return told


def _anything(story: Story, vm_id: VmId, migration: Migration) -> EngineEvent:
    random = story.random
    side = random.choice([migration.source, migration.target])
    boot = migration.source_boot if side == migration.source else migration.target_boot
    numbers = [migration.source_incarnation, migration.incarnation]
    return random.choice(
        [
            MigrationEnded(
                order_id=migration.order_id,
                host_id=side,
                vm_id=vm_id,
                result=random.choice(list(Result)),
            ),
            VmSeen(
                host_id=side,
                boot=boot,
                vm_id=vm_id,
                incarnation=random.choice(numbers),
                state=random.choice(list(VmState)),
            ),
            CopyReleased(host_id=side, boot=boot, vm_id=vm_id, incarnation=random.choice(numbers)),
        ]
    )
