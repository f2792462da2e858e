"""What a gateway makes of a hello beside those that it had before: the same for the server and the simulator."""

from collections.abc import Collection

from virtha.model.ids import BootId, Term
from virtha.wire.messages import Hello, PeerRole


def followed_elsewhere(hello: Hello, *, told: Collection[PeerRole], term: Term) -> Term:
    """The term that this process of the host followed under another server; 0: none that matters. The server's own term
    has to be above it (M1).

    ``told``: processes of this host that this server has welcomed. ``term``: its own. Whoever was not told it and knows
    that number has it of another server, whose database was lost: two leaders never go by the same number, or orders
    of the one would be taken for those of the other.
    """
    return Term(0) if hello.role in told and hello.term_seen <= term else hello.term_seen


class PresentBoot:
    """Which boot of a host runs now, for one gateway. Boots bear no number, a host's clock may be wrong, and hellos are
    not read in the order in which they were sent. What is sure is this gateway's own order of events: whoever completes
    a handshake that began here after the hello of another boot was read, was alive after that other boot was, and boots
    don't come back. So only such a connection begins a boot (P4). Any other of another boot is told to connect again:
    the boot that runs does, and its new connection is sure to be the later one; of one that is over nobody does.
    """

    def __init__(self) -> None:
        self.boot: BootId | None = None
        """The present one; None: none was heard of yet."""
        self._opened_before = 0

    def takes(self, boot: BootId, *, opened: int, opened_last: int) -> bool:
        """Whether a hello that is read now counts. False: its boot may be over (`wire.refused.overtaken`).

        Connections of a gateway have numbers, counted up as it accepts them, before it answers a handshake. ``opened``:
        of this one. ``opened_last``: the highest so far.
        """
        if boot == self.boot:
            return True
        if self.boot is not None and opened <= self._opened_before:
            return False
        self.boot, self._opened_before = boot, opened_last
        return True
