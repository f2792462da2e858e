"""What witnesses said of a silent host, kept for the record of its incident: the last word of each, bounded (X4)."""

import pytest

from virtha.control.incident_log import Observed
from virtha.engine.events import (
    BeatSeen,
    DisksWatched,
    EngineEvent,
    NeighbourAnswered,
    Notice,
    OrderPower,
    PowerRead,
    SaveHost,
    SessionChanged,
    SlotChanged,
)
from virtha.engine.records import HostRecord, Incident, OrderId
from virtha.model.evidence import Answer, PowerState, ProcessKind
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.power import PowerAction, PowerDeviceId
from virtha.model.time import Millis, UtcMillis
from virtha.model.vm import Reason
from virtha.server.sightings import OF_A_HOST_MAX, SightingBook

pytestmark = pytest.mark.req("X4")
H1, H2, BOOT, BMC = HostId("h1"), HostId("h2"), BootId("b1"), PowerDeviceId("bmc@1")
OFF = OrderPower(
    order_id=OrderId("1.1"),
    host_id=H1,
    device=BMC,
    action=PowerAction.OFF,
    deadline_ms=1,
    not_after_ms=1,
)
JUDGED = Notice(code="host.judged_dead", host_id=H1, incident=1)


class _Watch:
    now = 10_000


def a_book(watch: _Watch) -> SightingBook:
    return SightingBook(
        now=lambda: Millis(watch.now),
        wall=lambda: UtcMillis(watch.now),
        name=lambda host_id: f"name of {host_id}",
        explain=lambda host_id: (),
    )


def saved(silent_since_ms: int = 10_000) -> SaveHost:
    incident = Incident(number=1, boot=BOOT, silent_since_ms=silent_since_ms, began_ms=12_000)
    return SaveHost(record=HostRecord(host_id=H1, boot=BOOT, incident=incident))


def probed(answer: Answer, network: str = "management") -> NeighbourAnswered:
    return NeighbourAnswered(witness=H2, subject=H1, network=network, answer=answer)


def session(*, up: bool, broken: bool = False) -> SessionChanged:
    return SessionChanged(host_id=H1, process=ProcessKind.AGENT, boot=BOOT, up=up, broken=broken)


def read(state: PowerState, error: str | None = None) -> PowerRead:
    return PowerRead(order_id=OrderId("1.q1"), host_id=H1, device=BMC, state=state, error=error)


def seen(book: SightingBook) -> list[tuple[str, str, str, int]]:
    sight = book.observed([saved()], [JUDGED]).sights[H1]
    return [(one.by, one.via, one.said, one.age_ms) for one in sight.seen]


def test_the_last_word_of_each_witness_with_its_age() -> None:
    watch = _Watch()
    book = a_book(watch)
    disks = DisksWatched(witness=H2, subject=H1, changed=False, disks=2)
    slot = SlotChanged(witness=H2, subject=H1, storage_domain_id=StorageDomainId("d"), boot=BOOT)
    said: list[EngineEvent] = [
        session(up=False, broken=True),
        probed(Answer.ALIVE),
        probed(Answer.HINT, "storage"),
        disks,
        slot,
        read(PowerState.UNKNOWN, "power.unreachable"),
        BeatSeen(host_id=H1, boot=BOOT, agent_alive=True),
    ]
    for one in said:
        book.heard([one])
        watch.now += 100
    book.heard([probed(Answer.SILENT)])
    assert seen(book) == [
        ("name of h2", "management", "silent", 0),
        ("bmc", "power", "unknown: power.unreachable", 200),
        ("name of h2", "slot", "goes on", 300),
        ("name of h2", "disks", "quiet (2 compared)", 400),
        ("name of h2", "storage", "hint", 500),
        ("this server", "session of its agent", "broke", 700),
    ]
    book.heard([session(up=True)])
    assert seen(book) == []


def test_what_is_older_than_the_silence_is_not_shown_and_none_grows_without_end() -> None:
    watch = _Watch()
    book = a_book(watch)
    watch.now = 9_999
    book.heard([probed(Answer.ALIVE)])
    watch.now = 10_000
    assert seen(book) == []
    book.heard(probed(Answer.SILENT, f"network {number}") for number in range(100))
    assert len(seen(book)) == OF_A_HOST_MAX
    assert seen(book)[0][1] == "network 68", "the oldest went"


def test_an_order_that_went_out_is_told_with_the_next_write_about_its_host_once() -> None:
    watch = _Watch()
    book = a_book(watch)
    book.sent(OFF)
    other = SaveHost(record=HostRecord(host_id=H2, boot=BOOT))
    assert book.observed([other], []).sent == ()
    observed = book.observed([saved()], [])
    (one,) = observed.sent
    assert (one.entry.code, one.entry.fields["device"]) == ("incident.fence.sent", "bmc")
    assert book.observed([saved()], []) == observed, "until it is written"
    book.written(observed)
    assert book.observed([saved()], []).sent == ()


def test_nothing_of_the_incident_before_is_told_and_what_breaks_here_holds_up_no_write() -> None:
    watch = _Watch()
    book = a_book(watch)
    book.sent(OFF)
    assert book.observed([saved(silent_since_ms=watch.now + 1)], []).sent == ()

    def breaks(host_id: HostId) -> tuple[Reason, ...]:
        raise AssertionError(host_id)

    book = SightingBook(
        now=lambda: Millis(watch.now),
        wall=lambda: UtcMillis(watch.now),
        name=str,
        explain=breaks,
    )
    assert book.observed([saved()], [JUDGED]) == Observed()
