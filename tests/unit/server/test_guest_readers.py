"""Each host reads for a while beside the two that always do, so that one with another storage mounted is found out."""

import pytest

from virtha.model.ids import HostId, StorageDomainId
from virtha.model.time import Millis
from virtha.server.guest_readers import GUEST_ROUNDS, PAUSE_MS, GuestReaders

pytestmark = pytest.mark.req("F2")
DS1 = StorageDomainId("ds1")
H3, H4, H5 = (HostId(f"h{number}") for number in (3, 4, 5))
ABLE = [H3, H4, H5]


class Guests:
    def __init__(self) -> None:
        self.now = 0
        self.guests = GuestReaders(Millis(0))

    def look(self, able: list[HostId] = ABLE, *suspects: HostId) -> HostId | None:
        return self.guests.look(Millis(self.now), DS1, able, suspects)

    def next(self, able: list[HostId] = ABLE, *suspects: HostId) -> HostId | None:
        """When the present one has read enough."""
        for host in ABLE:
            for _ in range(GUEST_ROUNDS):
                self.guests.heard(DS1, host)
        self.look(able, *suspects)
        self.now += PAUSE_MS
        return self.look(able, *suspects)


def test_each_in_its_turn_and_nobody_twice_before_the_others() -> None:
    guests = Guests()
    assert guests.look() is None, "it is no hurry"
    guests.now = PAUSE_MS
    assert guests.look() == guests.look() == H3
    assert [guests.next() for _ in range(4)] == [H4, H5, H3, H4]
    assert not guests.guests.heard(DS1, H3), "no guest any more"
    # One that reads for good by now, or says nothing, is passed over.
    assert guests.next([H3, H5]) == H3
    assert guests.next([]) is None


def test_who_was_found_out_stays_until_it_sees_what_the_others_write() -> None:
    guests = Guests()
    guests.now = PAUSE_MS
    assert guests.look() == H3
    assert guests.next(ABLE, H5) == H5
    assert guests.next(ABLE, H5) == H5
    assert guests.next() == H3
