"""How old a slot's change is: a renewal of the last moment, read only after the host fell, is no sign of life after that (P1, J2)."""

from typing import Any, cast

import pytest
from engine_driver import TICK_MS, Play, vm

from virtha.engine.engine import Engine
from virtha.engine.events import SessionChanged, SlotChanged
from virtha.engine.lease_desk import HostClock, LeaseDesk
from virtha.engine.machine import Verdict
from virtha.engine.records import Fence, HostRecord
from virtha.model.evidence import ProcessKind
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import Slot
from virtha.model.slot_round import SlotRound
from virtha.model.time import Millis

SUBJECT, WITNESS = HostId("h1"), HostId("h2")


def changed(play: Play, *, old_ms: int = 0, within_ms: int = 0) -> None:
    play.inbox.append(
        SlotChanged(
            witness=WITNESS,
            subject=SUBJECT,
            storage_domain_id=StorageDomainId("ds1"),
            boot=BootId("h1b1"),
            old_ms=old_ms,
            within_ms=within_ms,
        )
    )
    play.tick()


def fence_of(engine: Engine) -> Fence | None:
    incident = engine._cluster.hosts[SUBJECT].record.incident
    return incident.fence if incident is not None else None


def read_off_once() -> Play:
    """Its device took the order and said *off* for the first time."""
    play = Play(3, vms=[vm("v1")])
    play.run("v1", "h1")
    play.advance(10_000)
    play.hosts["h1"].cut()

    def said_off() -> bool:
        fence = fence_of(play.engine)
        return fence is not None and any(feed.off_since_ms is not None for feed in fence.feeds)

    play.until(said_off)
    return play


def at_the_order_ms(play: Play) -> int:
    """How old a sign of the moment of the order is in the next step."""
    fence = fence_of(play.engine)
    assert fence is not None
    return play.now + TICK_MS - fence.ordered_ms


@pytest.mark.req("F7")
def test_a_renewal_of_before_the_order_accuses_no_device():
    play = read_off_once()
    changed(play, old_ms=at_the_order_ms(play) + 1, within_ms=20_000)
    assert "fence.contradicted" not in play.told()
    assert play.verdict("h1") is Verdict.DEAD_UNPROVEN
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=10_000)
    assert play.host_record("h1").disproved_devices == ()


@pytest.mark.req("F7")
@pytest.mark.parametrize("later_ms", [0, 1])
def test_a_renewal_that_is_not_surely_older_than_the_order_does(later_ms: int):
    play = read_off_once()
    changed(play, old_ms=at_the_order_ms(play) - later_ms)
    assert "fence.contradicted" in play.told()
    play.advance(60_000)
    assert play.where("v1") == [], "its device proves nothing, and there is no lease"
    assert len(play.host_record("h1").disproved_devices) == 1


def broken(play: Play) -> None:
    host = play.hosts["h1"]
    host.beating = False
    for process in ProcessKind:
        play.inbox.append(
            SessionChanged(host_id=SUBJECT, process=process, boot=host.boot, up=False, broken=True)
        )
    play.tick()


def test_a_renewal_of_before_its_connections_broke_does_not_show_it_alive():
    play = Play(3, vms=[vm("v1")])
    play.run("v1", "h1")
    play.advance(10_000)
    play.hosts["h1"].answers_neighbours = False
    broken(play)
    changed(play, old_ms=2_000)
    assert play.verdict("h1") is not Verdict.ISOLATED
    changed(play, old_ms=0)
    assert play.verdict("h1") is Verdict.ISOLATED


def test_who_asks_whether_it_still_lived_takes_the_other_bound():
    """A change that may have landed long ago vouches for nothing since (P1), and an older word never replaces a newer one."""
    play = Play(3, vms=[vm("v1")])
    play.advance(10_000)
    play.hosts["h1"].beating = False
    play.advance(1_000)
    node = play.engine._cluster.hosts[SUBJECT]
    before_ms = node.named_ms
    changed(play, old_ms=300, within_ms=60_000)
    assert (node.slot_ms, node.named_ms) == (play.now - 300, play.now - 60_000)
    changed(play, old_ms=900, within_ms=1_000)
    assert (node.slot_ms, node.named_ms) == (play.now - TICK_MS - 300, play.now - 1_000)
    assert before_ms is None


BEAT_MS, CLOCK_MS = 1_000_000, 50_000
"""A beat's receipt, and what its host's clock had shown when it was sent."""


def clock(passed_ms: int = 0, received_ms: int = BEAT_MS) -> HostClock:
    return HostClock(boot=BootId("h1b1"), clock_ms=CLOCK_MS + passed_ms, received_ms=received_ms)


@pytest.mark.parametrize(
    ("submitted_ms", "latest_ms"),
    [
        (0, 0),
        (1_000, 1_020),  # two clocks at their worst
        (-1_000, -980),
        (1, 2),
    ],
)
def test_what_a_host_did_by_its_clock_was_done_by_then(submitted_ms: int, latest_ms: int):
    assert clock().latest_ms(CLOCK_MS + submitted_ms, 2) == BEAT_MS + latest_ms


class Around:
    """What a desk asks of whoever runs it, of a host whose silence is being judged."""

    policy = LeasePolicy()

    def hosts(self) -> list[HostId]:
        return [SUBJECT, WITNESS, HostId("h3")]

    def records(self) -> list[HostRecord]:
        return []

    def record(self, _host_id: HostId) -> None:
        return None

    def verdict(self, _host_id: HostId) -> Verdict:
        return Verdict.SUSPECT


class Rounds:
    """A desk that hears beats of h1, and of h2 what it reads in h1's slot."""

    def __init__(self) -> None:
        self.desk = LeaseDesk(cast(Any, Around()), installation_id=InstallationId("ours"))
        self.number = 0

    def beat(self, received_ms: int, passed_ms: int, boot: str = "h1b1") -> None:
        self.desk.beat(Millis(received_ms), SUBJECT, BootId(boot), CLOCK_MS + passed_ms)

    def read(self, now_ms: int, submitted_ms: int) -> SlotChanged | None:
        self.number += 1
        slots = {
            host: Slot(
                installation_id=InstallationId("ours"),
                domain_id=StorageDomainId("ds1"),
                index=0,
                host_id=host,
                boot=BootId(f"{host}b1"),
                counter=self.number,
                submitted_ms=CLOCK_MS + submitted_ms,
            )
            for host in (SUBJECT, WITNESS)
        }
        seen = SlotRound(
            reader_id=WITNESS,
            reader_boot=BootId("h2b1"),
            domain_id=StorageDomainId("ds1"),
            began_ms=self.number * 1_000,
            ended_ms=self.number * 1_000 + 5,
            own_counter=self.number,
            direct_io=True,
            slots=slots,
            mailboxes={},
        )
        told = self.desk.read(Millis(now_ms), seen)
        return next((one for one in told if isinstance(one, SlotChanged)), None)


def test_a_change_is_as_old_as_its_host_s_own_clock_says():
    rounds = Rounds()
    rounds.beat(BEAT_MS, 0)
    rounds.read(BEAT_MS + 100, 0)
    changed = rounds.read(BEAT_MS + 5_000, 1_000)
    assert changed is not None and changed.old_ms == 3_980
    assert changed.within_ms == 1_000, "by the reader's clock"


def test_the_beat_that_came_quickest_tells_most_and_is_not_trusted_for_ever():
    rounds = Rounds()
    rounds.beat(BEAT_MS, 0)
    rounds.beat(BEAT_MS + 2_000, 1_000)  # under way for a second
    rounds.read(BEAT_MS + 2_100, 1_000)
    changed = rounds.read(BEAT_MS + 5_000, 2_000)
    assert changed is not None and changed.old_ms == 5_000 - 2_040
    # By now the clocks may have drifted by 2 s: a slower beat says more.
    rounds.beat(BEAT_MS + 101_000, 100_000)
    changed = rounds.read(BEAT_MS + 105_000, 100_000)
    assert changed is not None and changed.old_ms == 4_000


def test_without_a_beat_of_that_very_boot_a_change_is_of_now():
    rounds = Rounds()
    rounds.read(BEAT_MS, 0)
    changed = rounds.read(BEAT_MS + 9_000, 1)
    assert changed is not None and changed.old_ms == 0
    rounds.beat(BEAT_MS + 9_000, 60_000, boot="h1b2")
    changed = rounds.read(BEAT_MS + 19_000, 2)
    assert changed is not None and changed.old_ms == 0


def test_a_renewal_that_no_clock_can_have_shown_yet_is_not_older_than_now():
    rounds = Rounds()
    rounds.beat(BEAT_MS, 0)
    rounds.read(BEAT_MS + 100, 0)
    changed = rounds.read(BEAT_MS + 200, 60_000)
    assert changed is not None and changed.old_ms == 0
