"""What a hello says beside those before it."""

import pytest

from virtha.model.ids import BootId, HostId, Term
from virtha.wire.hellos import followed_elsewhere
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
