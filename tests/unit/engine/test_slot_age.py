"""How old a slot's change is: a renewal of the last moment, read only after the host fell, is no sign of life after that (P1, J2)."""

import pytest
from engine_driver import TICK_MS, Play, vm

from virtha.engine.engine import Engine
from virtha.engine.events import SessionChanged, SlotChanged
from virtha.engine.lease import LeaseJudge, LifeSign
from virtha.engine.machine import Verdict
from virtha.engine.records import Fence
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


def sign_of(gap_ms: int, written_ms: int) -> LifeSign:
    """What a judge makes of two looks ``gap_ms`` apart at renewals that were submitted ``written_ms`` apart."""
    judge = LeaseJudge(InstallationId("ours"), LeasePolicy())
    for number, (clock_ms, submitted_ms) in enumerate(((0, 0), (gap_ms, written_ms)), start=1):
        slots = {
            host: Slot(
                installation_id=InstallationId("ours"),
                domain_id=StorageDomainId("ds1"),
                index=0,
                host_id=host,
                boot=BootId(f"{host}b1"),
                counter=number,
                submitted_ms=50_000 + submitted_ms,
            )
            for host in (SUBJECT, WITNESS)
        }
        judge.read(
            Millis(1_000_000),
            SlotRound(
                reader_id=WITNESS,
                reader_boot=BootId("h2b1"),
                domain_id=StorageDomainId("ds1"),
                began_ms=900_000 + clock_ms - 5,
                ended_ms=900_000 + clock_ms,
                own_counter=number,
                direct_io=True,
                slots=slots,
                mailboxes={},
            ),
        )
    (sign,) = judge.signs
    return sign


@pytest.mark.parametrize(
    ("gap_ms", "written_ms", "old_ms"),
    [
        (2_000, 2_000, 0),
        (2_040, 1_000, 980),  # two clocks of 2 % at their worst: 2,000 and 1,020
        (10_200, 0, 10_000),
        (2_000, 9_000, 0),  # the former look was at a renewal that had hung
        (2_000, -1, 0),  # no clock of a boot goes back
    ],
)
def test_a_change_is_as_old_as_its_host_s_own_clock_says(gap_ms: int, written_ms: int, old_ms: int):
    sign = sign_of(gap_ms, written_ms)
    assert (sign.within_ms, sign.old_ms) == (gap_ms, old_ms)
