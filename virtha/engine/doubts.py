"""Why two readings *off* would still prove nothing (P1, J3).

The heart is the question whose plug we pulled. A device that names its host answers it. One that does not may have
another host's address (two addresses swapped, or three in a ring), and then strikes, and reads, that other host.
What can be said all the same, of the devices of one level (BMCs are swapped with BMCs, outlets with outlets), where a
device belongs to one machine, and a machine has as many as are configured for its host:

- A machine that gave signs before and after a reading, in one boot, was on at that moment. A device that said *off* then
  is not its.
- A host whose devices all name it is out of the question: another host's device is not one of them.
- So the devices that read *off* belong to machines that were silent then. If no host was but the one that is to be proven
  dead, it is that one.
- If several were silent, and *every* device of *every one* of them read *off*, then these devices are as many as the
  silent machines have, and all belong to silent machines: they are the devices of the silent machines, whatever the
  order in which they are swapped. Each silent machine was off, so each of these boots is dead.
- If one device of one silent host does not read *off*, the count does not come out: the device that did may be that
  host's, and its own the one of the host that is to be proven dead, hung and about to thaw. Then nothing is proven.
- A host that is back in a new boot may have been struck by us: its signs say nothing of the time before that boot.

What is left, as P1 leaves it: the address of a machine that is no host here, or of one that was proven dead long before.
Against both the device must have said *on* while the boot in question was beating. And one of two outlets that is
really another host's: both hosts live on by their other feed, and nobody falls silent.
"""

from collections.abc import Collection

from virtha.engine.records import Fence, FenceStep, Incident
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.verdict import (
    disks_are_quiet,
    disks_changed,
    fell_ms,
    last_sign_of_boot_ms,
    reads_off,
    watched_for,
)
from virtha.model.value import Value
from virtha.model.vm import Reason


def doubt(cluster: Cluster, node: HostNode, incident: Incident, fence: Fence) -> Reason | None:
    """None: all devices of the level of ``fence`` were read *off* twice, and that proves that the boot is dead."""
    if incident.disqualified:
        return reason("proof.blocked.contradicted")
    known = set(node.record.identified_devices)
    tested = set(node.record.tested_devices)
    for feed in node.config.power[fence.level].feeds:
        if not feed.reads_state:
            return reason("proof.blocked.no_status", device=feed.device)
        if feed.device in known:
            continue
        if feed.device not in tested or feed.device not in node.record.on_devices:
            return reason("proof.blocked.untested", device=feed.device)
    if any(feed.device not in known for feed in fence.feeds):
        others = _others(cluster, node, fence)
        if others is not None:
            return others
    return _disks(cluster, node, incident, fence)


PASSING = ("proof.blocked.disks_change", "proof.waiting.disks", "proof.waiting.others")
"""Doubts that time may settle; the others are the device's."""
DISKS = ("proof.blocked.disks_change", "proof.waiting.disks")


def may_settle(cluster: Cluster, fence: Fence, code: str) -> bool:
    """Whether that doubt is waited for at all, and still. After that the level has failed, so that the next one, the lease
    and the operator have their turn (F9): by then a host that hangs was judged, ordered off and read, and disks
    that are quiet and that anybody can read were found so."""
    policy = cluster.policy
    patience_ms = policy.detection.hung_at_ms + policy.fencing.order_deadline_ms
    if code not in DISKS:
        patience_ms *= 2  # that long for each of two that wait for each other
    off_ms = max(feed.off_since_ms or 0 for feed in fence.feeds)
    return code in PASSING and cluster.now - max(off_ms, cluster.began_ms) < patience_ms


def awaited_before_next(cluster: Cluster, node: HostNode, fence: Fence) -> Reason | None:
    """What speaks against the next order of the ladder, after one that failed. Where that was read as *off* and disks were
    written after it, the two contradict each other: that is no proof, and no reason to order off what may live, for as
    long as they are written and the pause may be over (F2, J3). Quiet, they end the pause. Disks that nobody was seen to
    write only delay the proof: where they are never read, the next level, the lease and the operator have their turn (F9).
    """
    incident = node.record.incident
    if incident is not None and fence.failed in DISKS:
        why = _disks(cluster, node, incident, fence)
        if why is None or _seen_written(cluster, node, incident) or cluster.now < fence.next_ms:
            return why
    if cluster.now >= fence.next_ms:
        return None
    pause_ms = fence.next_ms - cluster.now
    return reason("fence.waiting.retry", rounds=fence.rounds, pause_ms=pause_ms)


def _disks(cluster: Cluster, node: HostNode, incident: Incident, fence: Fence) -> Reason | None:
    """J3: after our own verified *off* a change blocks until readers found the disks quiet; no word is no quiet. So does
    one that was seen in the same silence before the *off*, for readings may come and go between two looks at the disks.

    A leader that did not watch from the first order on, or had no reader yet when it did, has the disks watched anew, except
    where those that were asked can't read them: no change is known then, and the readings prove by themselves. While nobody
    is there to be asked, nobody is there to start a VM either: they prove nothing yet.
    """
    if not watched_for(cluster, node):
        return None
    rounds = 1 + cluster.policy.detection.additional_checks
    quiet = disks_are_quiet(cluster, node)
    if _seen_written(cluster, node, incident) and not quiet:
        if incident.disks_written and node.disks_changed_ms is not None:
            changed_ms = cluster.now - node.disks_changed_ms
            return reason("proof.blocked.disks_change", quiet_ms=changed_ms)
        return reason("proof.waiting.disks", quiet=node.quiet_rounds, needed=rounds)
    unread = node.reader_rounds - node.quiet_rounds > 2 * rounds
    blind = node.blind and cluster.now < readers_due_ms(cluster)
    if (cluster.began_ms > fence.began_ms or blind) and not quiet and not unread:
        return reason("proof.waiting.disks", quiet=node.quiet_rounds, needed=rounds)
    return None


def _seen_written(cluster: Cluster, node: HostNode, incident: Incident) -> bool:
    return incident.disks_written or disks_changed(cluster, node)


def readers_due_ms(cluster: Cluster) -> int:
    """By then agents that could read have come to a leader that has just begun, or are not coming: twice the longest
    pause of a host, for the first attempt may have gone to a server that hangs (J1)."""
    return cluster.began_ms + 2 * cluster.policy.detection.reconnect_ms


class _Off(Value, frozen=True, kw_only=True):
    """One device: the first and the last of its readings, all *off*."""

    first_ms: int
    last_ms: int


def _others(cluster: Cluster, node: HostNode, fence: Fence) -> Reason | None:
    """The argument above, for a level in which some device does not name its host."""
    since = fence.began_ms - cluster.policy.detection.suspect_after_ms
    offs = {
        _Off(first_ms=feed.off_since_ms or 0, last_ms=feed.off_since_ms or 0)
        for feed in fence.feeds
    }
    silent = {node.id}
    asked: list[HostNode] = [cluster.hosts[host_id] for host_id in sorted(cluster.absent)]
    while True:
        # One more silent host brings readings of another time, at which still others may have been silent.
        more = [
            other
            for other in asked
            if other.id not in silent
            and not _is_out_of_question(cluster, other, since)
            and not _was_on(other, offs)
        ]
        if not more:
            break
        for other in more:
            found = _offs(cluster, other, fence.level, feeds=len(fence.feeds))
            if found is None:
                return _not_off(other)
            silent.add(other.id)
            offs |= found
    for removal in cluster.record.removed:
        if removal.at_ms >= since and removal.host_id != node.id:
            return reason("proof.blocked.swapped", other=removal.host_id)
    return _unheard(cluster, silent, offs)


def _is_out_of_question(cluster: Cluster, other: HostNode, since: int) -> bool:
    """No device of ours can be its: never seen, each of its devices names it, or proven dead long before (P1)."""
    record = other.record
    feeds = [feed.device for level in other.config.power for feed in level.feeds]
    if _never_came(other) or (feeds and all(one in record.identified_devices for one in feeds)):
        return True
    proven = record.incident is not None and record.incident.proof is not None
    return proven and fell_ms(cluster, other) < since


def _never_came(other: HostNode) -> bool:
    """A machine of which we know no boot. After a restore that says nothing: it may have been at work since the backup."""
    return other.record.boot is None and not other.untold


def _was_on(other: HostNode, offs: Collection[_Off]) -> bool:
    """In one boot, at some reading of each of the devices."""
    began_ms, sign_ms = other.record.boot_seen_ms, last_sign_of_boot_ms(other)
    return all(
        began_ms <= off.first_ms < sign_ms or began_ms <= off.last_ms < sign_ms for off in offs
    )


def _offs(cluster: Cluster, other: HostNode, level: int, *, feeds: int) -> set[_Off] | None:
    """Of all its devices of that level, each *off* twice: after an order, or as they were found. None: of not all."""
    if level >= len(other.config.power) or len(other.config.power[level].feeds) != feeds:
        return None
    incident = other.record.incident
    ordered = incident.fence.feeds if incident is not None and incident.fence is not None else ()
    sound = incident is not None and not incident.disqualified
    after = {feed.device: feed.off_since_ms for feed in ordered if feed.confirmed and sound}
    found: set[_Off] = set()
    for feed in other.config.power[level].feeds:
        first_ms = after.get(feed.device)
        if not feed.reads_state or feed.device in other.record.foreign_devices:
            return None  # whatever it said after an order
        if first_ms is not None:
            found.add(_Off(first_ms=first_ms, last_ms=first_ms))
        elif reads_off(cluster, other, feed.device):
            last_ms = other.power[feed.device][1]
            found.add(_Off(first_ms=other.off_since[feed.device], last_ms=last_ms))
        else:
            return None
    return found


def _not_off(other: HostNode) -> Reason:
    """Waiting, while its own devices may still say *off* soon; else blocked, until somebody or a retry helps."""
    incident = other.record.incident
    fence = incident.fence if incident is not None else None
    soon = incident is None or bool(other.off_since)
    if fence is not None:
        soon = fence.step in (FenceStep.OFF_ORDERED, FenceStep.READING)
    code = "proof.waiting.others" if soon else "proof.blocked.swapped"
    return reason(code, other=other.config.name)


def _unheard(cluster: Cluster, silent: Collection[str], offs: Collection[_Off]) -> Reason | None:
    """Every other host must have been on at the readings; most say so with their next beat."""
    earliest, latest = min(off.first_ms for off in offs), max(off.first_ms for off in offs)
    waiting: str | None = None
    for other in cluster.hosts.values():
        record = other.record
        if record.boot_seen_ms <= earliest and last_sign_of_boot_ms(other) > latest:
            continue
        if other.id in silent or other.id in cluster.absent or _never_came(other):
            continue  # absent ones were looked at already
        if _was_on(other, offs):
            continue
        if record.boot_seen_ms > earliest:
            return reason("proof.blocked.swapped", other=other.config.name)
        waiting = other.config.name if waiting is None else min(waiting, other.config.name)
    return None if waiting is None else reason("proof.waiting.others", other=waiting)
