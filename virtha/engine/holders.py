"""Hosts that come to be holders otherwise than by the engine's own orders: by a person's, or found there (G1, M2)."""

from virtha.engine.events import CopyGranted, VmSeen
from virtha.engine.incident import holds
from virtha.engine.removal import hold_fast, node_of
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.ids import BootId, Incarnation
from virtha.model.vm import PossibleCopy, Reason, VmState


def copy_granted(cluster: Cluster, event: CopyGranted) -> None:
    """By a person's order: as good as found there, but nothing to wonder at."""
    node = cluster.vms.get(event.vm_id)
    host = cluster.hosts.get(event.host_id) or node_of(cluster, event.host_id)
    if node is None or event.boot in host.record.dead_boots:
        return  # that boot is over, and with it the grant
    copy = PossibleCopy(host_id=host.id, incarnation=event.incarnation, boot=event.boot)
    if copy in node.record.guessed:
        incarnation_told(cluster, node, copy)
    if not any(same_copy(one, copy) for one in node.record.copies):
        holds(cluster, node, host, copy)
        if host.id not in cluster.hosts:
            hold_fast(cluster, host)  # it was removed when that order had gone out


def may_run(cluster: Cluster, node: VmNode, host: HostNode, event: VmSeen) -> None:
    """In a boot that has not begun as far as we know: nothing starts elsewhere before that one is proven dead (G1)."""
    copy = PossibleCopy(host_id=host.id, incarnation=event.incarnation, boot=event.boot)
    incarnation_told(cluster, node, copy)
    if copy not in node.record.copies:
        found(cluster, node, host, event.incarnation, event.boot)


def found(
    cluster: Cluster, node: VmNode, host: HostNode, incarnation: Incarnation, boot: BootId
) -> None:
    """A host has a copy that it was not known to hold: it is a holder now, and no start goes out (M2)."""
    copy = PossibleCopy(host_id=host.id, incarnation=incarnation, boot=boot)
    holds(cluster, node, host, copy)
    cluster.tell("vm.found", vm=node, host=host)


def surveyed_there(cluster: Cluster, node: VmNode, host: HostNode, boot: BootId) -> None:
    """Its QEMU is there, of an incarnation that a survey does not name: the highest known one stands for it till it is told."""
    incarnation = node.record.incarnation
    guess = PossibleCopy(host_id=host.id, incarnation=incarnation, boot=boot)
    found(cluster, node, host, incarnation, boot)
    cluster.set_vm(node, guessed=(*node.record.guessed, guess))


def incarnation_told(cluster: Cluster, node: VmNode, told: PossibleCopy) -> None:
    """By its host or by whoever ordered it: a guess about that boot gives way, for a host has one domain of a VM. Else its
    release would leave the guess, which nothing but a reboot ends."""
    record = node.record
    guesses = [
        one for one in record.guessed if (one.host_id, one.boot) == (told.host_id, told.boot)
    ]
    if not guesses:
        return
    copies = tuple(one for one in record.copies if one not in guesses)
    if not any(same_copy(one, told) for one in copies):
        copies = (*copies, told)
    cluster.set_vm(
        node,
        copies=copies,
        guessed=tuple(one for one in record.guessed if one not in guesses),
        incarnation=max(told.incarnation, record.incarnation),
    )


def same_copy(one: PossibleCopy, other: PossibleCopy) -> bool:
    """``one``, which may have been made before copies named a boot, is ``other``."""
    same = (one.host_id, one.incarnation) == (other.host_id, other.incarnation)
    return same and one.boot in (None, other.boot)


def why_held(cluster: Cluster, node: VmNode) -> tuple[Reason, ...]:
    """Hosts that keep it from being started elsewhere, when none of them is known to run it."""
    holders = {copy.host_id for copy in node.record.copies}
    said = {host_id: state for host_id, (_, state) in node.seen.items() if host_id in holders}
    if any(state is not VmState.DOWN for state in said.values()):
        return ()
    holding = {guess.host_id for guess in node.record.guessed} | said.keys()
    if not holding:
        return ()  # they are yet to tell
    nodes = [cluster.hosts.get(one) or node_of(cluster, one) for one in holding]
    names = ", ".join(sorted(host.config.name for host in nodes))
    return (reason("recovery.waiting.holder", hosts=names),)
