"""A storage domain that isn't shared after all: two hosts see different contents."""

from pathlib import Path

import pytest

from virtha.drivers.directory_domain import DirectoryDomain
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId
from virtha.model.slot import Slot
from virtha.model.slot_round import SlotRound
from virtha.server.shared_check import ROUNDS, NotShared, SharedCheck

pytestmark = pytest.mark.req("F1")

OURS, DS1, H1, H2 = InstallationId("ours"), StorageDomainId("ds1"), HostId("h1"), HostId("h2")
PLACES = {H1: 0, H2: 1}
BOTH = (
    NotShared(domain_id=DS1, reader_id=H1, writer_id=H2),
    NotShared(domain_id=DS1, reader_id=H2, writer_id=H1),
)


class Reader:
    def __init__(self, host_id: HostId, path: Path) -> None:
        self.host_id, self.boot, self.counter = host_id, BootId("boot-1"), 0
        path.mkdir(exist_ok=True)
        self.blocks = DirectoryDomain(str(path), installation_id=OURS, domain_id=DS1)
        for each, index in PLACES.items():
            self.blocks.prepare(index, each)

    def round(self) -> SlotRound:
        self.counter += 1
        self.blocks.write_slot(
            Slot(
                installation_id=OURS,
                domain_id=DS1,
                index=PLACES[self.host_id],
                host_id=self.host_id,
                boot=self.boot,
                counter=self.counter,
            )
        )
        return SlotRound(
            reader_id=self.host_id,
            reader_boot=self.boot,
            domain_id=DS1,
            began_ms=0,
            ended_ms=0,
            own_counter=self.counter,
            direct_io=True,
            slots=self.blocks.read_slots(PLACES),
            mailboxes={},
        )


def rounds(check: SharedCheck, readers: list[Reader], count: int) -> None:
    for _ in range(count):
        for reader in readers:
            check.fold(reader.round())


def test_two_directories_of_the_same_name_are_found_out(tmp_path: Path) -> None:
    check = SharedCheck()
    rounds(check, [Reader(H1, tmp_path / "one"), Reader(H2, tmp_path / "two")], ROUNDS + 1)
    assert check.not_shared() == BOTH


def test_one_directory_is_shared_also_when_hosts_reboot(tmp_path: Path) -> None:
    check, readers = SharedCheck(), [Reader(H1, tmp_path), Reader(H2, tmp_path)]
    rounds(check, readers, 20)
    readers[0].boot, readers[0].counter = BootId("boot-2"), 0
    rounds(check, readers, 20)
    assert check.not_shared() == ()


def test_a_host_that_went_silent_is_not_taken_for_one_apart(tmp_path: Path) -> None:
    check, readers = SharedCheck(), [Reader(H1, tmp_path), Reader(H2, tmp_path)]
    rounds(check, readers, 3)
    rounds(check, readers[:1], 20)
    assert check.not_shared() == ()


def test_it_is_shared_again_once_one_sees_the_other(tmp_path: Path) -> None:
    check = SharedCheck()
    first, second = Reader(H1, tmp_path / "one"), Reader(H2, tmp_path / "two")
    rounds(check, [first, second], ROUNDS + 1)
    moved = Reader(H2, tmp_path / "one")
    moved.counter = second.counter
    rounds(check, [first, moved], 3)
    assert check.not_shared() == ()


def test_who_is_gone_is_forgotten(tmp_path: Path) -> None:
    check = SharedCheck()
    rounds(check, [Reader(H1, tmp_path / "one"), Reader(H2, tmp_path / "two")], ROUNDS + 1)
    check.forget(H2)
    assert check.not_shared() == BOTH, "a session that ends mends no mount"
    check.drop(H2)
    assert check.not_shared() == ()
