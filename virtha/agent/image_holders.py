"""Whom a start shuts out of its images, and whom it never does. No I/O but what it is handed; the argument is in
docs/adr/0019-heartbeat-on-rados.md, the rule in safety.md (P3).

An image is open at whoever *watches* it; and at whoever *owns its lock*: such a client died with it, or lost its watch, and
may have writes on their way.
"""

from collections.abc import Callable, Collection, Sequence

from virtha.agent.storage import ClaimRefused, VmHeader
from virtha.model.errors import Failed, InvalidInput, Refused
from virtha.model.value import Value


class ImageLook(Value, frozen=True, kw_only=True):
    """``name`` as QEMU writes it; ``prefix`` of its objects, with the image's own number. Addresses are of one connection of one
    process each (IP:PORT/NONCE)."""

    name: str
    prefix: str
    exclusive: bool
    watchers: tuple[str, ...]
    owners: tuple[str, ...]


class Opened(Refused):
    def __init__(self, look: ImageLook, addresses: Collection[str], why: str) -> None:
        super().__init__(
            f"image {look.name} is open at {', '.join(sorted(addresses))}, {why}",
            code="problem.disk.in_use",
            fix=f"end what has it open: 'rbd status {look.name}', 'rbd lock ls {look.name}'",
        )


def to_shut_out(
    looks: Sequence[ImageLook], *, known: Collection[str] | None, proven: bool
) -> tuple[str, ...]:
    """Addresses. ``known``: prefixes of images that this VM ran with; None: all of these. ``proven``: the engine ordered this start,
    with proof for every former holder. Raises Opened where one of them may be a client that nothing is proven of;
    InvalidInput, Failed."""
    addresses: set[str] = set()
    for look in looks:
        check_exclusive(look)
        if not proven:
            # An owner that does not watch is left to Ceph: the next writer breaks its lock, and shuts it out before.
            if look.watchers:
                raise Opened(look, look.watchers, "and a start without proof shuts out nobody")
            continue
        holders = {*look.watchers, *look.owners}
        if holders and known is not None and look.prefix not in known:
            raise Opened(look, holders, "and this VM never ran with it")
        if "" in holders:
            raise Failed(f"who has image {look.name} open can't be told")
        addresses |= holders
    return tuple(sorted(addresses))


def shut_out(
    claim: VmHeader,
    *,
    look: Callable[[], tuple[str, ...]],
    read_claim: Callable[[], VmHeader | None],
    block: Callable[[str], None],
) -> None:
    """In this order: the claim is read after it was seen who has the images open. Whoever comes after us claims before it opens
    anything: where the claim is ours yet, none of those addresses is a later copy's, however long it takes from there.
    Raises ClaimRefused where we are the old one: nobody is shut out; Failed; what the three raise."""
    addresses = look()
    present = read_claim()
    if present is None:
        raise Failed("the claim on the storage is gone: its record was removed meanwhile")
    if present != claim:
        raise ClaimRefused(claim, present)
    for address in addresses:
        block(address)


def check_exclusive(look: ImageLook) -> None:
    """Raises InvalidInput."""
    if not look.exclusive:
        raise InvalidInput(
            f"image {look.name} lacks the feature exclusive-lock, so two writers could go unseen",
            field="disk.path",
            fix=f"turn it on: rbd feature enable {look.name} exclusive-lock",
        )
