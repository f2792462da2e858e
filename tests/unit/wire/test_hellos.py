"""What a hello says beside those before it."""

import pytest

from virtha.model.ids import BootId, HostId, Term
from virtha.wire.hellos import PresentBoot, followed_elsewhere
from virtha.wire.messages import VERSION_MAJOR, VERSION_MINOR, Hello, PeerRole

AGENT, GUARDIAN = PeerRole.AGENT, PeerRole.GUARDIAN


def hello(term_seen: int, role: PeerRole = AGENT, *, boot: str = "boot-1") -> Hello:
    return Hello(
        version_major=VERSION_MAJOR,
        version_minor=VERSION_MINOR,
        role=role,
        host_id=HostId("h1"),
        boot=BootId(boot),
        term_seen=Term(term_seen),
    )


@pytest.mark.parametrize(
    ("term_seen", "told", "elsewhere"),
    [
        (0, (), 0),
        (2, (), 2),
        (3, (), 3),  # the server's own number, from another that had it
        (3, (GUARDIAN,), 3),
        (3, (AGENT,), 0),  # from this server
        (2, (AGENT,), 0),
        (4, (AGENT,), 4),
    ],
)
def test_a_term_that_this_server_did_not_tell_is_another_ones(
    term_seen: int, told: tuple[PeerRole, ...], elsewhere: int
) -> None:
    assert followed_elsewhere(hello(term_seen), told=told, term=Term(3)) == elsewhere


def takes(present: PresentBoot, boot: str, *, opened: int, opened_last: int) -> bool:
    return present.takes(BootId(boot), opened=opened, opened_last=opened_last)


def test_a_connection_opened_after_the_present_boots_hello_begins_the_next() -> None:
    present = PresentBoot()
    assert takes(present, "boot-1", opened=1, opened_last=1)
    assert takes(present, "boot-1", opened=2, opened_last=2)
    assert takes(present, "boot-2", opened=3, opened_last=3)
    assert present.boot == "boot-2"


def test_a_hello_that_lay_unread_brings_no_former_boot_back() -> None:
    """P4: all of the present one's copies would be dead."""
    present = PresentBoot()
    assert takes(present, "boot-1", opened=1, opened_last=1)
    assert takes(present, "boot-2", opened=3, opened_last=3)
    assert not takes(present, "boot-1", opened=2, opened_last=3)
    assert present.boot == "boot-2"


def test_of_two_boots_whose_connections_overlap_the_one_that_comes_again_is_the_later() -> None:
    present = PresentBoot()
    assert takes(present, "boot-1", opened=1, opened_last=2)
    assert not takes(present, "boot-2", opened=2, opened_last=2), "opened before boot-1 was heard"
    assert takes(present, "boot-1", opened=3, opened_last=3)
    assert takes(present, "boot-2", opened=4, opened_last=4)


def test_processes_of_one_boot_come_in_any_order() -> None:
    present = PresentBoot()
    assert takes(present, "boot-1", opened=2, opened_last=2)
    assert takes(present, "boot-1", opened=1, opened_last=2)
