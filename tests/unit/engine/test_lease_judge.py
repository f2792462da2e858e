"""What a round of readings is worth, and when a poisoned lease is proof (P2)."""

import msgspec
import pytest
from whole_promise import whole_promise

from virtha.engine.lease import LeaseJudge, LeaseTarget, SlotRound, expiry_ms
from virtha.model.codes import REGISTRY
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.policy import LeasePolicy
from virtha.model.proof import Proof, ProofKind
from virtha.model.slot import (
    BlockFault,
    Declaration,
    Mailbox,
    MailboxReading,
    Poison,
    Slot,
    SlotReading,
    Unreadable,
)
from virtha.model.time import Millis

OURS = InstallationId("ours")
TARGET, READER, OTHER = HostId("t"), HostId("r"), HostId("o")
BOOT = BootId("boot-t")
DS1, DS2 = StorageDomainId("ds1"), StorageDomainId("ds2")
POLICY = LeasePolicy()
FULL = whole_promise(POLICY)
SUM = expiry_ms(FULL, POLICY)
TORN = Unreadable(fault=BlockFault.TORN)


def slot(host: HostId, boot: str, counter: int, said: Declaration = FULL, **more: object) -> Slot:
    made = Slot(
        installation_id=OURS,
        domain_id=DS1,
        index=0,
        host_id=host,
        boot=BootId(boot),
        counter=counter,
        declaration=said,
    )
    return msgspec.structs.replace(made, **more)


SILENT = slot(TARGET, "boot-t", 50)


def mailbox(boot: str | None = "boot-t", host: HostId = TARGET) -> Mailbox:
    poison = boot and Poison(boot=BootId(boot), server="s1", term=Term(1), incident="i")
    return Mailbox(
        installation_id=OURS,
        domain_id=DS1,
        index=0,
        host_id=host,
        counter=1,
        poison=poison or None,
    )


class Readings:
    """One reader's rounds, two seconds apart on its own clock, that count unless told otherwise."""

    def __init__(self, *, two_hosts: bool = False, domains: tuple[StorageDomainId, ...] = (DS1,)):
        self.judge = LeaseJudge(OURS, POLICY, two_hosts=two_hosts)
        self.judge.watch(LeaseTarget(host_id=TARGET, boot=BOOT, domain_ids=frozenset(domains)))
        self.clock = 700_000
        self.counter = 0

    def round(
        self,
        target: SlotReading = SILENT,
        mail: MailboxReading | None = None,
        *,
        after: int = 2_000,
        control: bool = True,
        own_seen: bool = True,
        direct_io: bool = True,
        reader_boot: str = "boot-r",
        domain: StorageDomainId = DS1,
    ) -> tuple[Proof, ...]:
        self.clock += after
        self.counter += 1
        own = self.counter if own_seen else self.counter - 1
        slots: dict[HostId, SlotReading] = {
            TARGET: target,
            READER: slot(READER, reader_boot, own),
        }
        if not self.judge.two_hosts:
            slots[OTHER] = slot(OTHER, "boot-o", self.counter if control else 1)
        return self.judge.read(
            Millis(1_000_000),
            SlotRound(
                reader_id=READER,
                reader_boot=BootId(reader_boot),
                domain_id=domain,
                began_ms=self.clock,
                ended_ms=self.clock + 5,
                own_counter=self.counter,
                direct_io=direct_io,
                slots=slots,
                mailboxes={TARGET: mailbox() if mail is None else mail},
            ),
        )

    def settled(self) -> "Readings":
        """The poison was read back in a round that counts, the slot stood; one more millisecond is short."""
        self.round(mail=mailbox(None))
        self.round()
        return self

    @property
    def reason(self) -> str:
        code = self.judge.reasons(TARGET)[DS1].code
        assert code in REGISTRY
        return code


@pytest.mark.parametrize("policy", [POLICY, LeasePolicy(read_period_ms=3_000, drift_percent=5)])
def test_the_wait_is_the_policys_sum(policy: LeasePolicy) -> None:
    assert expiry_ms(FULL, policy) == policy.expiry_ms


def test_what_the_slot_promises_counts_not_what_the_policy_says_now() -> None:
    slower = msgspec.structs.replace(FULL, watchdog_ms=60_000)
    assert expiry_ms(slower, POLICY) == SUM + 51_000


def test_a_poisoned_lease_is_proof_to_the_millisecond() -> None:
    readings = Readings().settled()
    assert readings.round(after=5 + SUM - 1) == ()
    assert readings.reason == "lease.waits"
    (proof,) = readings.round(after=1)
    assert proof == Proof(
        kind=ProofKind.LEASE,
        host_id=TARGET,
        boot=BOOT,
        at_ms=1_000_000,
        detail="poisoned lease expired on ds1",
        domain_ids=(StorageDomainId("ds1"),),
    )
    assert readings.reason == "lease.expired"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"armed": False}, "no_watchdog"),
        ({"watchdog_ms": 0}, "no_watchdog"),
        ({"no_way_out": False}, "way_out"),
        ({"fed_by_renewer": False}, "other_feeder"),
        ({"direct_io": False}, "cached_io"),
        ({"waived": True}, "waived"),
    ],
)
def test_without_the_whole_declaration_it_is_evidence(said: dict[str, object], why: str) -> None:
    target = msgspec.structs.replace(SILENT, declaration=msgspec.structs.replace(FULL, **said))
    readings = Readings()
    for after in (1_000, 1_000, 10 * SUM, 10 * SUM):
        assert readings.round(target, after=after) == ()
    assert readings.reason == f"lease.not_proof.{why}"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"control": False}, "no_control"),
        ({"own_seen": False}, "own_write"),
        ({"direct_io": False}, "cached_round"),
        ({"mail": mailbox(None)}, "not_poisoned"),
        ({"mail": mailbox("boot-0")}, "not_poisoned"),
        ({"mail": mailbox(host=OTHER)}, "not_poisoned"),
        ({"mail": TORN}, "not_poisoned"),
        ({"target": TORN}, "unreadable"),
        ({"target": slot(TARGET, "boot-u", 1)}, "other_boot"),
        ({"target": slot(TARGET, "boot-t", 51)}, None),
        ({"target": slot(TARGET, "boot-t", 49)}, None),
        ({"reader_boot": "boot-r2"}, "no_control"),
    ],
)
def test_the_round_that_would_end_the_wait_has_to_be_right(
    told: dict[str, object], why: str | None
) -> None:
    readings = Readings().settled()
    assert readings.round(after=SUM + 10, **told) == ()
    assert readings.reason == (f"lease.not_proof.{why}" if why else "lease.waits")


@pytest.mark.parametrize("fault", BlockFault)
def test_a_slot_that_was_unreadable_in_between_begins_anew(fault: BlockFault) -> None:
    readings = Readings().settled()
    readings.round(Unreadable(fault=fault))
    readings.round()
    assert readings.round(after=SUM - 10) == ()
    assert len(readings.round(after=20)) == 1


def test_a_poison_that_vanished_is_awaited_anew() -> None:
    readings = Readings().settled()
    readings.round(mail=mailbox(None))
    readings.round()
    assert readings.round(after=SUM - 10) == ()
    assert len(readings.round(after=20)) == 1


def test_a_change_in_a_round_that_does_not_count_is_a_sign_of_life() -> None:
    readings = Readings().settled()
    newer = slot(TARGET, "boot-t", 51)
    readings.round(newer, control=False)
    assert readings.round(newer, after=SUM - 10) == ()
    assert len(readings.round(newer, after=20)) == 1


def test_a_host_that_acknowledged_may_go_on_writing_but_not_promise_anything_else() -> None:
    readings = Readings().settled()
    readings.round(slot(TARGET, "boot-t", 51, acknowledged_poison=1), after=SUM - 5_000)
    going = slot(TARGET, "boot-t", 52, acknowledged_poison=1)
    assert len(readings.round(going, after=5_100)) == 1
    longer = msgspec.structs.replace(FULL, kill_ms=60_000)
    assert readings.round(slot(TARGET, "boot-t", 53, longer, acknowledged_poison=1)) == ()
    assert readings.reason == "lease.waits"


def test_a_later_sign_of_the_boot_takes_the_proof_back() -> None:
    readings = Readings().settled()
    assert len(readings.round(after=SUM + 10)) == 1
    assert readings.round(slot(TARGET, "boot-t", 51)) == ()
    assert readings.reason == "lease.waits"


def test_a_waiver_on_record_ends_it_and_after_it_the_wait_begins_anew() -> None:
    readings = Readings().settled()
    readings.judge.set_waiver(TARGET, DS1, stands=True)
    assert readings.round(after=SUM + 10) == ()
    assert readings.reason == "lease.not_proof.waived"
    readings.judge.set_waiver(TARGET, DS1, stands=False)
    assert readings.round() == ()
    assert len(readings.round(after=SUM + 10)) == 1


def test_all_domains_of_the_target_have_to_expire() -> None:
    readings = Readings(domains=(DS1, DS2)).settled()
    assert readings.round(after=SUM + 10) == ()
    assert readings.judge.reasons(TARGET)[DS2].code == "lease.not_proof.unread"
    readings.round(domain=DS2)
    readings.round(domain=DS2)
    assert len(readings.round(domain=DS2, after=SUM + 10)) == 1


def test_two_hosts_need_a_reader_that_saw_the_silent_one_go_on() -> None:
    readings = Readings(two_hosts=True).settled()
    assert readings.round(after=SUM + 10) == ()
    assert readings.reason == "lease.not_proof.no_control"
    seen = Readings(two_hosts=True)
    seen.round(slot(TARGET, "boot-t", 49))
    seen.settled()
    assert len(seen.round(after=SUM + 10)) == 1
    assert seen.round(after=SUM + 10, reader_boot="boot-r2") == ()


def test_another_readers_clock_is_never_compared() -> None:
    readings = Readings().settled()
    judge = readings.judge
    far = SlotRound(
        reader_id=OTHER,
        reader_boot=BootId("boot-o"),
        domain_id=DS1,
        began_ms=10**12,
        ended_ms=10**12,
        own_counter=1_000,
        direct_io=True,
        slots={
            TARGET: SILENT,
            OTHER: slot(OTHER, "boot-o", 1_000),
            READER: slot(READER, "boot-r", 1_000),
        },
        mailboxes={TARGET: mailbox()},
    )
    assert judge.read(Millis(0), far) == ()


def test_an_incident_that_is_over_is_watched_no_more() -> None:
    readings = Readings().settled()
    readings.judge.forget(TARGET)
    assert readings.round(after=SUM + 10) == ()
    assert readings.judge.reasons(TARGET) == {}
