"""A domain's slots on real blocks: what hangs of another host's holds up no renewal of one's own (safety.md, P2)."""

import queue
import threading
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest

from virtha.agent.slot_worker import SlotWorker
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.slot import Mailbox, MailboxReading, Poison, Slot, SlotReading
from virtha.model.slot_round import LeaseDuty, SlotRound
from virtha.model.time import Millis
from virtha.sentinel.lease_events import LeaseEvent, RenewDone, RenewSlot

pytestmark = [pytest.mark.req("F1"), pytest.mark.req("F3")]

OURS, DS1 = InstallationId("ours"), StorageDomainId("ds1")
H1, H2 = HostId("h1"), HostId("h2")
BOOT = BootId("b")
PLACES = {H1: 0, H2: 1}
POISON = Poison(boot=BootId("b2"), server="s1", term=Term(1), incident="7")
BOUND_S = 60


class PartlyHung(DirectoryDomain):
    """Blocks of which another host's hang, as one placement group of a pool does."""

    def __init__(self, path: str) -> None:
        super().__init__(path, installation_id=OURS, domain_id=DS1)
        self.goes = threading.Event()
        self.looks = 0

    def read_slots(self, places: Mapping[HostId, int]) -> dict[HostId, SlotReading]:
        self._hang()
        return super().read_slots(places)

    def read_mailboxes(self, places: Mapping[HostId, int]) -> dict[HostId, MailboxReading]:
        self._hang()
        return super().read_mailboxes(places)

    def _hang(self) -> None:
        self.looks += 1
        assert self.goes.wait(BOUND_S)


class Worked:
    def __init__(self, path: Path) -> None:
        self.own = DirectoryDomain(str(path), installation_id=OURS, domain_id=DS1)
        for host_id, index in PLACES.items():
            self.own.prepare(index, host_id)
        self.others = PartlyHung(str(path))
        self.told: queue.SimpleQueue[LeaseEvent] = queue.SimpleQueue()
        self.rounds: queue.SimpleQueue[SlotRound] = queue.SimpleQueue()
        ticks = count(1)
        self.worker = SlotWorker(
            DS1,
            0,
            self.own,
            others=self.others,
            path=str(path),
            host_id=H1,
            boot=BOOT,
            now=lambda: Millis(next(ticks)),
            tell=self.told.put,
            tell_round=self.rounds.put,
        )

    def renew(self, counter: int, poisons: Mapping[HostId, Poison] | None = None) -> RenewDone:
        slot = Slot(
            installation_id=OURS, domain_id=DS1, index=0, host_id=H1, boot=BOOT, counter=counter
        )
        duty = LeaseDuty(domain_id=DS1, places=PLACES, poisons=poisons or {})
        command = RenewSlot(domain_id=DS1, number=counter, slot=slot)
        self.worker.renew(command, duty, read_period_ms=0)
        done = self.told.get(timeout=BOUND_S)
        assert isinstance(done, RenewDone)
        return done


@pytest.fixture
def worked(tmp_path: Path) -> Iterator[Worked]:
    made = Worked(tmp_path)
    yield made
    made.others.goes.set()
    made.own.close()


@pytest.mark.parametrize("poisons", [{}, {H2: POISON}], ids=["reads", "poisons"])
def test_what_hangs_of_another_host_delays_no_renewal(
    worked: Worked, poisons: dict[HostId, Poison]
) -> None:
    for counter in range(1, 6):
        done = worked.renew(counter, poisons)
        assert done.written
        assert isinstance(done.mailbox, Mailbox)
    found = worked.own.read_slot(0)
    assert isinstance(found, Slot)
    assert found.counter == 5
    assert worked.rounds.empty()


def test_only_one_look_waits_for_what_hangs(worked: Worked) -> None:
    for counter in range(1, 6):
        worked.renew(counter)
    assert worked.others.looks <= 1
    worked.others.goes.set()
    first = worked.rounds.get(timeout=BOUND_S)
    # What it read shows a renewal of its own that it says was acknowledged before it read: else no judge counts it.
    own = first.slots[H1]
    assert isinstance(own, Slot)
    assert own.counter >= first.own_counter >= 1
    later = worked.renew(6)
    assert later.written


def test_a_round_shows_the_renewal_before_it_and_the_poison_that_it_wrote(worked: Worked) -> None:
    worked.others.goes.set()
    worked.renew(1, {H2: POISON})
    seen = worked.rounds.get(timeout=BOUND_S)
    assert seen.own_counter == 1
    own, mailbox = seen.slots[H1], seen.mailboxes[H2]
    assert isinstance(own, Slot)
    assert own.counter == 1
    assert isinstance(mailbox, Mailbox)
    assert mailbox.poison == POISON
    assert seen.began_ms < seen.ended_ms
