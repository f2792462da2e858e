"""The guardian's storage part: renewals, losses, waivers, and the host watchdog's arming and feeding."""

import msgspec
import pytest
from lease_bench import (
    BOOT,
    DS1,
    DS2,
    EMPTY,
    FENCE,
    KILL,
    POLICY,
    WATCHDOG,
    Bench,
    armed,
    mailbox,
    own_slot,
    qemu,
)

from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot import (
    BlockFault,
    Mailbox,
    MailboxReading,
    SlotReading,
    Unreadable,
)
from virtha.model.time import Millis
from virtha.sentinel.guardian import LinkLost, Report, Welcomed
from virtha.sentinel.lease import LeaseState
from virtha.sentinel.lease_events import (
    AllowStarts,
    ArmWatchdog,
    DisarmWatchdog,
    DomainAttached,
    FeedWatchdog,
    HostNature,
    PolicySet,
    QemuEnded,
    QemusSeen,
    RenewDone,
    RenewSlot,
    ResetHost,
    WaiverEnded,
    WaiverGiven,
    WaiverOver,
    WatchdogArmed,
    WatchdogDisarmed,
    WatchdogFailed,
)


def test_a_slot_promises_nothing_before_the_storage_worked_once() -> None:
    bench = Bench(works=False)
    bench.until(60_000)
    assert [slot.declaration.waived for slot in bench.slots] == [True]
    assert bench.state() is LeaseState.FREE
    assert bench.killed() == set()


def test_the_watchdog_is_armed_then_declared_never_the_other_way_round() -> None:
    bench = Bench()
    bench.until(3_000)
    assert bench.times(ArmWatchdog) == [], "no session yet"
    bench.step(Welcomed(beat_interval_ms=1_000))
    assert len(bench.times(ArmWatchdog)) == 1
    bench.until(9_000)
    assert not any(slot.declaration.armed for slot in bench.slots), "ordered, not armed"
    bench.step(WatchdogArmed(timeout_ms=WATCHDOG, no_way_out=True))
    bench.step(LinkLost())
    bench.until(11_000)
    said = bench.slots[-1].declaration
    assert (said.armed, said.no_way_out, said.fed_by_renewer) == (True, True, True)
    assert said.watchdog_ms == WATCHDOG


@pytest.mark.parametrize(
    ("nature", "why"),
    [
        (HostNature(is_virtual=True, suspend_blocked=True), "host.watchdog.unarmed.virtual"),
        (HostNature(is_virtual=None, suspend_blocked=True), "host.watchdog.unarmed.unknown"),
        (HostNature(is_virtual=False, suspend_blocked=None), "host.watchdog.unarmed.suspend"),
    ],
)
def test_a_watchdog_that_may_not_bite_is_not_armed_and_the_reason_told_once(
    nature: HostNature, why: str
) -> None:
    bench = Bench(nature=nature)
    bench.step(Welcomed(beat_interval_ms=1_000))
    bench.until(60_000)
    assert bench.times(ArmWatchdog) == []
    told = [each.fields["reason"] for _, each in bench.said if isinstance(each, Report)]
    assert told == [why]


def test_a_virtual_host_whose_operator_says_how_its_watchdog_is_real_arms_it() -> None:
    nature = HostNature(
        is_virtual=True, watchdog_is_real_because="never paused", suspend_blocked=True
    )
    assert armed(nature=nature).slots[-1].declaration.armed


def test_a_timeout_that_the_driver_rounded_up_is_fed_but_not_declared() -> None:
    bench = Bench()
    bench.step(Welcomed(beat_interval_ms=1_000))
    bench.until(2_000)
    bench.step(WatchdogArmed(timeout_ms=WATCHDOG + 1, no_way_out=True))
    bench.until(60_000)
    assert not any(slot.declaration.armed for slot in bench.slots)
    assert len(bench.times(FeedWatchdog)) > 20


def test_an_outage_shorter_than_the_deadline_kills_nobody() -> None:
    bench = armed()
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1),)))
    bench.works[DS1] = False
    good = bench.slots[-1].submitted_ms
    bench.until(good + FENCE - 1)
    slot = bench.slots[-1]
    bench.works[DS1] = True
    bench.step(RenewDone(domain_id=DS1, number=slot.counter, written=True, mailbox=bench.mailbox))
    bench.until(bench.now + 60_000)
    assert bench.killed() == set() and bench.state() is LeaseState.HELD


def test_a_lost_lease_kills_those_with_disks_there_then_resets_the_host() -> None:
    bench = armed(domains=(DS1, DS2))
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1), qemu(2, DS2), qemu(3))))
    bench.works[DS1] = False
    good = max(slot.submitted_ms for slot in bench.slots if slot.domain_id == DS1)
    bench.until(good + POLICY.renew_ms + FENCE + KILL + 2_000)
    refused = [
        (at, each.domain_id)
        for at, each in bench.said
        if isinstance(each, AllowStarts) and each.until_ms is None
    ]
    lost = [at for at, domain_id in refused if domain_id == DS1]
    assert len(lost) == 1 and lost[0] == good + FENCE
    assert bench.killed() == {1, 3}, "those with a disk there, and the one of which nobody knows"
    assert bench.times(ResetHost)[0] == lost[0] + KILL
    assert bench.state(DS2) is LeaseState.HELD
    last_fed = bench.times(FeedWatchdog)[-1]
    assert last_fed + WATCHDOG <= good + FENCE + KILL < last_fed + WATCHDOG + 200


def test_a_killed_qemu_that_only_vanished_is_not_dead() -> None:
    bench = armed()
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1),)))
    bench.works[DS1] = False
    bench.until(bench.slots[-1].submitted_ms + FENCE + 1)
    bench.until(bench.now + 500)
    bench.step(QemusSeen(began_ms=bench.now, qemus=()))
    assert bench.state() is LeaseState.LOST
    bench.step(QemuEnded(process=qemu(1).process))
    assert bench.state() is LeaseState.CLEARED
    assert bench.times(ResetHost) == []
    fed = len(bench.times(FeedWatchdog))
    bench.until(bench.now + 30_000)
    assert len(bench.times(FeedWatchdog)) > fed + 10, "nothing is left that could write"


def test_a_look_that_began_before_starts_were_refused_clears_nothing() -> None:
    bench = armed()
    bench.works[DS1] = False
    deadline = bench.slots[-1].submitted_ms + FENCE
    bench.until(deadline)
    bench.step(QemusSeen(began_ms=deadline - 1, qemus=()))
    assert bench.state() is LeaseState.LOST
    bench.now += 1
    bench.step(QemusSeen(began_ms=deadline + 1, qemus=()))
    assert bench.state() is LeaseState.CLEARED


def test_poison_kills_all_vms_and_ends_all_leases_for_this_boot() -> None:
    bench = armed(domains=(DS1, DS2))
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1), qemu(2, DS2))))
    bench.mailbox = mailbox(4, poisons=BOOT)
    bench.until(bench.now + 1_100)
    assert bench.killed() == {1, 2}
    bench.step(QemuEnded(process=qemu(1).process), QemuEnded(process=qemu(2).process))
    bench.now += 1
    bench.step(QemusSeen(began_ms=bench.now, qemus=()))
    bench.mailbox = mailbox(5)
    bench.until(bench.now + 60_000)
    assert {bench.state(DS1), bench.state(DS2)} == {LeaseState.CLEARED}
    assert {slot.acknowledged_poison for slot in bench.slots[-2:]} <= {4}
    assert not any(slot.declaration.waived for slot in bench.slots[-2:])
    assert bench.codes().count("host.lease.poisoned") == 1


def test_a_poison_in_one_mailbox_ends_the_leases_on_all_domains_once() -> None:
    """Swarm seed 9393: the other one was held, lost and cleared again with each renewal, for ever."""
    bench = armed(domains=(DS1, DS2))
    bench.mailboxes[DS2] = Unreadable(fault=BlockFault.UNREAD)
    bench.until(bench.now + FENCE + 1_000)
    bench.step(QemusSeen(began_ms=bench.now, qemus=()))
    assert (bench.state(DS1), bench.state(DS2)) == (LeaseState.HELD, LeaseState.CLEARED)

    bench.mailboxes[DS1] = mailbox(4, poisons=BOOT)
    del bench.mailboxes[DS2]
    bench.until(bench.now + 1_100)
    bench.step(QemusSeen(began_ms=bench.now, qemus=()))
    bench.until(bench.now + 60_000)
    assert {bench.state(DS1), bench.state(DS2)} == {LeaseState.CLEARED}
    assert bench.codes().count("host.lease.lost") == 2
    assert "host.lease.held_again" not in bench.codes()
    (last,) = {slot.acknowledged_poison for slot in bench.slots[-4:] if slot.domain_id == DS2}
    assert last == 0, "its own mailbox held none"


@pytest.mark.parametrize(
    "reading",
    [
        mailbox(9, poisons=BootId("boot-0")),
        mailbox(9),
    ],
)
def test_a_poison_of_an_earlier_boot_is_clean(reading: Mailbox) -> None:
    bench = armed()
    bench.mailbox = reading
    bench.until(bench.now + 60_000)
    assert bench.state() is LeaseState.HELD


@pytest.mark.parametrize(
    "reading",
    [
        *(Unreadable(fault=fault) for fault in BlockFault),
        msgspec.structs.replace(mailbox(2), host_id=HostId("h2")),
        mailbox(0),
    ],
)
def test_a_mailbox_that_is_not_known_to_be_clean_ends_the_lease(reading: MailboxReading) -> None:
    bench = armed()
    bench.mailbox = mailbox(1)
    bench.until(bench.now + 3_000)
    bench.mailbox = reading
    good = bench.slots[-1].submitted_ms
    bench.until(good + FENCE - 1)
    assert bench.state() is LeaseState.HELD
    bench.until(good + FENCE + 1)
    assert bench.state() is not LeaseState.HELD


def test_an_isolated_host_goes_on_as_long_as_its_storage_does() -> None:
    bench = armed()
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1),)), LinkLost())
    bench.until(bench.now + 300_000)
    assert bench.state() is LeaseState.HELD and bench.killed() == set()


def test_a_waiver_holds_at_once_and_ends_only_when_the_storage_works() -> None:
    bench = armed()
    bench.works[DS1] = False
    bench.step(WaiverGiven(domain_id=DS1))
    bench.until(bench.now + 100_000)
    assert bench.state() is LeaseState.WAIVED
    fed = bench.times(FeedWatchdog)
    assert fed[-1] > bench.now - WATCHDOG, "nothing binds its feeding"
    bench.step(WaiverEnded(domain_id=DS1))
    bench.until(bench.now + 100_000)
    assert bench.times(WaiverOver) == []
    bench.works[DS1] = True
    bench.step(
        RenewDone(
            domain_id=DS1, number=bench.slots[-1].counter, written=False, mailbox=bench.mailbox
        )
    )
    bench.until(bench.now + 3_000)
    assert bench.state() is LeaseState.HELD and len(bench.times(WaiverOver)) == 1
    after = [slot.declaration.waived for slot in bench.slots[-3:]]
    assert after[-1] is False


def test_a_waiver_comes_too_late_for_a_lost_lease() -> None:
    bench = armed()
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1),)))
    bench.works[DS1] = False
    bench.until(bench.slots[-1].submitted_ms + FENCE + 1)
    bench.step(WaiverGiven(domain_id=DS1))
    assert bench.state() is LeaseState.LOST
    assert "host.lease.waived" not in bench.codes()


def test_shorter_times_bind_from_submission_longer_ones_from_acknowledgement() -> None:
    bench = armed()
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1),)))
    bench.works[DS1] = False
    longer = msgspec.structs.replace(POLICY, self_fence_after_ms=60_000)
    good = bench.slots[-1].submitted_ms
    bench.step(PolicySet(policy=longer))
    bench.until(good + FENCE + 1)
    assert bench.state() is not LeaseState.HELD, "its slot still promises the old time"
    other = armed()
    other.step(PolicySet(policy=longer))
    other.until(other.now + 3_000)
    other.works[DS1] = False
    good = other.slots[-1].submitted_ms
    other.until(good + FENCE + 5_000)
    assert other.state() is LeaseState.HELD, "and now the new one"


def test_a_shorter_time_that_is_over_already_begins_with_the_next_good_renewal() -> None:
    """Found at review: promised while renewals fail it was broken at once, which ended the guardian and reset the host."""
    bench = armed()
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1),)))
    bench.works[DS1] = False
    good = bench.slots[-1].submitted_ms
    bench.until(good + 12_000)
    shorter = msgspec.structs.replace(POLICY, self_fence_after_ms=11_000)
    bench.step(PolicySet(policy=shorter))
    for _ in range(2):
        failed = bench.slots[-1].counter
        bench.step(RenewDone(domain_id=DS1, number=failed, written=False, mailbox=bench.mailbox))
        bench.until(bench.now + 1_000)
        assert bench.slots[-1].counter == failed + 1
    assert bench.slots[-1].declaration.self_fence_after_ms == FENCE
    assert bench.state() is LeaseState.HELD and bench.killed() == set()
    bench.works[DS1] = True
    last = bench.slots[-1].counter
    bench.step(RenewDone(domain_id=DS1, number=last, written=True, mailbox=bench.mailbox))
    bench.until(bench.now + 2_000)
    assert bench.slots[-1].declaration.self_fence_after_ms == 11_000
    assert bench.state() is LeaseState.HELD


def test_the_watchdog_is_disarmed_only_when_no_slot_can_prove_anything() -> None:
    bench = Bench()
    bench.step(Welcomed(beat_interval_ms=1_000))
    bench.until(2_000)
    bench.step(WatchdogArmed(timeout_ms=WATCHDOG, no_way_out=False))
    bench.until(5_000)
    bench.works[DS1] = False
    bench.step(PolicySet(policy=msgspec.structs.replace(POLICY, enabled=False)))
    bench.until(8_000)
    assert bench.times(DisarmWatchdog) == []
    bench.works[DS1] = True
    bench.step(
        RenewDone(
            domain_id=DS1, number=bench.slots[-1].counter, written=True, mailbox=bench.mailbox
        )
    )
    bench.until(11_000)
    assert bench.slots[-1].declaration.waived
    assert len(bench.times(DisarmWatchdog)) == 1
    bench.step(WatchdogDisarmed())
    assert bench.state() is LeaseState.FREE


def test_leases_turned_off_still_bind_where_an_older_write_may_yet_land() -> None:
    bench = armed()
    bench.step(QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1),)))
    bench.works[DS1] = False
    bench.until(bench.now + 1_500)
    bench.step(
        RenewDone(
            domain_id=DS1, number=bench.slots[-1].counter, written=False, mailbox=bench.mailbox
        )
    )
    bench.works[DS1] = True
    bench.step(PolicySet(policy=msgspec.structs.replace(POLICY, enabled=False)))
    bench.until(bench.now + 5_000)
    assert bench.slots[-1].declaration.waived
    assert bench.state() is LeaseState.HELD


def test_a_feeding_that_fails_takes_the_declaration_back() -> None:
    bench = armed()
    bench.feeds = False
    bench.until(bench.now + 2_000)
    bench.step(WatchdogFailed(detail="no such device"))
    bench.until(bench.now + 2_000)
    assert not bench.slots[-1].declaration.armed
    assert bench.codes().count("host.watchdog.broken") == 1


def test_one_feeding_at_a_time() -> None:
    bench = armed()
    bench.feeds = False
    bench.until(bench.now + 60_000)
    assert len([at for at in bench.times(FeedWatchdog) if at > 4_000]) == 1


@pytest.mark.parametrize(
    ("own", "first_of_boot", "state"),
    [
        (EMPTY, True, LeaseState.HELD),
        (EMPTY, False, LeaseState.HELD),
        (Unreadable(fault=BlockFault.TORN), True, LeaseState.HELD),
        (Unreadable(fault=BlockFault.TORN), False, LeaseState.UNKNOWN),
        (Unreadable(fault=BlockFault.FUTURE), True, LeaseState.UNKNOWN),
        (Unreadable(fault=BlockFault.FOREIGN), True, LeaseState.UNKNOWN),
        (own_slot(BootId("boot-0")), True, LeaseState.HELD),
        (own_slot(good_ms=8_000), False, LeaseState.HELD),
        (own_slot(acknowledged_poison=2), False, LeaseState.LOST),
    ],
)
def test_what_a_guardian_makes_of_its_slot(
    own: SlotReading, first_of_boot: bool, state: LeaseState
) -> None:
    bench = Bench(own=own, first_of_boot=first_of_boot, now=9_000)
    assert bench.until(11_500).state() is state


def test_a_guardian_resumes_from_the_last_good_renewal_not_from_what_stands_there() -> None:
    bench = Bench(own=own_slot(), first_of_boot=False, now=9_000)
    bench.step(QemusSeen(began_ms=9_000, qemus=(qemu(1, DS1),)))
    late = Bench(own=own_slot(), first_of_boot=False, now=3_000 + FENCE)
    late.step(QemusSeen(began_ms=late.now, qemus=(qemu(1, DS1),)))
    assert bench.killed() == set()
    assert late.killed() == {1}


def test_a_guardian_that_restarts_in_a_waived_outage_feeds_and_kills_nobody() -> None:
    unread = Unreadable(fault=BlockFault.UNREAD)
    bench = Bench(own=unread, first_of_boot=False, now=9_000)
    bench.step(QemusSeen(began_ms=9_000, qemus=(qemu(1, DS1),)), WaiverGiven(domain_id=DS1))
    bench.step(DomainAttached(domain_id=DS1, index=0, own=own_slot(), direct_io=True))
    bench.until(300_000)
    assert bench.state() is LeaseState.WAIVED
    assert bench.killed() == set() and bench.codes() == ["host.lease.waived"]


def test_one_that_restarts_under_a_waiver_takes_over_the_watchdog_as_it_runs() -> None:
    unread = Unreadable(fault=BlockFault.UNREAD)
    bench = Bench(own=unread, now=50_000, first_of_boot=False, watchdog_runs_ms=7_000)
    bench.until(51_000)
    assert bench.times(ArmWatchdog) == []
    bench.step(WaiverGiven(domain_id=DS1))
    assert [each for _, each in bench.said if isinstance(each, ArmWatchdog)] == [
        ArmWatchdog(timeout_ms=7_000)
    ]
    bench.step(WatchdogArmed(timeout_ms=7_000, no_way_out=True))
    bench.until(120_000)
    assert len(bench.times(FeedWatchdog)) > 69_000 // 7_000
    assert bench.killed() == set()


@pytest.mark.req("F2")
def test_a_host_without_vms_outlives_an_outage_of_its_storage() -> None:
    """The renewal that hung in it would be lost again at once, its kill time over with it."""
    bench = armed()
    bench.works[DS1] = False
    bench.until(bench.now + 4 * FENCE)
    bench.step(QemusSeen(began_ms=bench.now, qemus=()))
    bench.until(bench.now + 10 * FENCE)
    assert bench.state() is LeaseState.CLEARED
    resets = len(bench.times(ResetHost))
    number = max(each.number for _, each in bench.said if isinstance(each, RenewSlot))
    bench.works[DS1] = True
    bench.step(RenewDone(domain_id=DS1, number=number, written=True, mailbox=bench.mailbox))
    bench.until(bench.now + 5_000)
    assert len(bench.times(ResetHost)) == resets
    assert bench.state() is LeaseState.HELD


def test_a_guardian_that_restarts_feeds_nothing_while_one_domain_is_unknown() -> None:
    unread = Unreadable(fault=BlockFault.UNREAD)
    bench = Bench(own=unread, domains=(DS1, DS2), first_of_boot=False, now=9_000)
    bench.step(DomainAttached(domain_id=DS1, index=0, own=own_slot(good_ms=8_900), direct_io=True))
    # It began with it, so also without a QEMU there that it sees.
    bench.step(QemusSeen(began_ms=9_000, qemus=()))
    bench.until(15_000)
    assert bench.state(DS1) is LeaseState.HELD
    assert bench.times(ArmWatchdog) == []
    other = own_slot(BootId("boot-0"), domain_id=DS2)
    bench.step(DomainAttached(domain_id=DS2, index=0, own=other, direct_io=True))
    assert len(bench.times(ArmWatchdog)) == 1


FOREIGN = Unreadable(fault=BlockFault.FOREIGN)


def fed_by_a_restarted_guardian() -> Bench:
    """With nothing unknown, one QEMU in DS1, and its watchdog taken over."""
    bench = Bench(own=own_slot(good_ms=8_900), first_of_boot=False, now=9_000)
    bench.step(QemusSeen(began_ms=9_000, qemus=(qemu(1, DS1),)))
    assert len(bench.times(ArmWatchdog)) == 1
    bench.step(WatchdogArmed(timeout_ms=WATCHDOG, no_way_out=True))
    bench.until(15_000)
    assert bench.times(FeedWatchdog) and bench.state(DS1) is LeaseState.HELD
    return bench


@pytest.mark.req("F2")
@pytest.mark.parametrize("own", [FOREIGN, Unreadable(fault=BlockFault.UNREAD)])
def test_a_domain_that_is_added_and_cannot_be_read_ends_no_host(own: SlotReading) -> None:
    bench = fed_by_a_restarted_guardian()
    began = bench.now
    bench.step(DomainAttached(domain_id=DS2, index=0, own=own, direct_io=True))
    bench.until(began + 10 * WATCHDOG)
    fed = [at for at in bench.times(FeedWatchdog) if at >= began]
    assert len(fed) >= 10 and max(fed) > bench.now - WATCHDOG
    assert bench.killed() == set() and bench.state(DS2) is LeaseState.UNKNOWN


@pytest.mark.req("F9")
@pytest.mark.parametrize("disks", [(DS2,), (DS1, DS2), ()], ids=["there", "there too", "not known"])
def test_one_with_a_qemu_there_may_be_promised_and_nothing_is_fed(
    disks: tuple[StorageDomainId, ...],
) -> None:
    bench = fed_by_a_restarted_guardian()
    bench.step(
        QemusSeen(began_ms=bench.now, qemus=(qemu(1, DS1), qemu(2, *disks))),
        DomainAttached(domain_id=DS2, index=0, own=FOREIGN, direct_io=True),
    )
    began = bench.now
    bench.until(began + WATCHDOG)
    assert [at for at in bench.times(FeedWatchdog) if at > began] == []


def test_time_never_goes_back() -> None:
    bench = Bench(now=100)
    with pytest.raises(AssertionError, match="time went back"):
        bench.core.step(Millis(99), ())
