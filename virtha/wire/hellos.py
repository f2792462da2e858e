"""What a gateway makes of a hello beside those that it had before: the same for the server and the simulator."""

from collections.abc import Collection

from virtha.model.ids import Term
from virtha.wire.messages import Hello, PeerRole


def followed_elsewhere(hello: Hello, *, told: Collection[PeerRole], term: Term) -> Term:
    """The term that this process of the host followed under another server; 0: none that matters. The server's own term
    has to be above it (M1).

    ``told``: processes of this host that this server has welcomed. ``term``: its own. Whoever was not told it and knows
    that number has it of another server, whose database was lost: two leaders never go by the same number, or orders
    of the one would be taken for those of the other.
    """
    return Term(0) if hello.role in told and hello.term_seen <= term else hello.term_seen
