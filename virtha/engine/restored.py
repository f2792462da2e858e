"""Hosts after a restored database, until each has told what it runs or is proven dead (M2).

The restored records may be older than the hosts: whom they call dead may have come back since, whom they call alive may have
booted again, and either may run anything. So until it has told and settled, a host counts as one that may hold any VM, and what
the records know of it is judged anew: no proof of theirs, no order, no reading and no test of a boot's device counts
towards a proof any more, only what came in this timeline of the database does. Who is proven dead in it has answered,
whoever leads. How far a host is with that is the engine's own record (``Told``), not the server's word.

A host that neither tells nor is proven dead holds every start of the cluster. So it is fenced like one that VMs are lost
with, as soon as any waits for it; where that can't be done, the operator's word ends the wait (P6). One that the records never
heard of has no boot that could be proven dead: it comes, or is removed.
"""

from msgspec.structs import replace

from virtha.engine.configured import EngineHost
from virtha.engine.machine import Verdict
from virtha.engine.records import HostRecord, Told, VmStage
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.evidence import ProcessKind
from virtha.model.policy import PermissionGrade
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import Reason


def is_outdated(config: EngineHost, record: HostRecord) -> bool:
    """Whether its failure was judged in another timeline than this one."""
    incident = record.incident
    if incident is None:
        return False
    return incident.timeline != config.timeline if config.timeline else config.untold


def is_untold(config: EngineHost, record: HostRecord) -> bool:
    """Whether it may run what the records have lost. The server's word counts where the timeline is not known."""
    if not config.timeline:
        return config.untold
    told = record.told
    return told is None or told.timeline != config.timeline or not told.settled


def joined(config: EngineHost) -> HostRecord:
    """The record of a host that the engine has not met before."""
    settled = bool(config.timeline) and not config.untold
    told = Told(timeline=config.timeline, settled=settled) if config.timeline else None
    return HostRecord(host_id=config.host_id, told=told)


def taken_over(cluster: Cluster, config: EngineHost, record: HostRecord) -> HostRecord:
    """As the first leader in a timeline goes on from a record of another one."""
    if is_outdated(config, record):
        record = judged_anew(cluster, config, record)
    told = record.told
    known = told is not None and told.timeline == config.timeline and bool(config.timeline)
    if known or not is_untold(config, record):
        return record
    # A device that said *on* may have been rewired since: the lost records may have known of a boot after that (P1).
    return replace(record, told=Told(timeline=config.timeline), on_devices=())


def has_told(cluster: Cluster, node: HostNode) -> None:
    """Its survey came. It may have been given a start that we know nothing of, and that it has not begun: that one is only
    over when its grant is (M2, G2)."""
    told = node.record.told or Told(timeline=node.config.timeline)
    if told.since_ms is None:
        node.set(told=replace(told, since_ms=int(cluster.now)))
        cluster.touch(node)


def sees_again(cluster: Cluster, node: HostNode) -> None:
    """Its libvirt answers again, or its agent is connected anew: what came up meanwhile it is about to tell."""
    told = node.record.told
    if node.untold and told is not None and told.since_ms is not None:
        node.set(told=replace(told, since_ms=int(cluster.now)))


def settles_ms(cluster: Cluster, node: HostNode) -> int | None:
    """A sign of it from then on settles it: it told, and was heard without a break, guardian and agent, for as long as a
    grant may last. What it told before a break may have been followed by what still lies in its outbox; and what we slept
    through nobody heard (J1). None: it has told nothing yet, can't tell now, or all is settled."""
    told = node.record.told
    if not node.untold or told is None or told.since_ms is None:
        return None
    if node.verdict is not Verdict.ALIVE or not _can_tell(node):
        return None
    since_ms = max(told.since_ms, node.verdict_ms, cluster.began_ms)
    return since_ms + cluster.policy.recovery.attempt_ms


def _can_tell(node: HostNode) -> bool:
    """That its agent is well its guardian says as well; but what came up only the agent tells, and only if libvirt answers,
    which this leader knows from a survey of its own."""
    boot = node.record.boot
    surveyed = node.survey is not None and node.survey.boot == boot
    return surveyed and node.libvirt_answers and node.sessions.get(ProcessKind.AGENT) == boot


def settle(cluster: Cluster, node: HostNode) -> None:
    """Its own records count from here on, whoever leads."""
    if not node.untold:
        return
    node.untold = False
    told = node.record.told or Told(timeline=node.config.timeline)
    node.set(told=replace(told, settled=True))
    cluster.changed_hosts.add(node.id)
    cluster.await_no_more(node.id)
    cluster.plan_wanted = True


def unsettle(cluster: Cluster, node: HostNode) -> None:
    """The proof that had settled it was wrong: all that it may run is yet to be told, and nothing starts before (M2)."""
    node.untold = True
    cluster.await_survey(node)
    told = node.record.told or Told(timeline=node.config.timeline)
    node.set(told=replace(told, since_ms=None, settled=False))


def forget_told(node: HostNode) -> None:
    """Another boot of it began: what was told is of the boot before."""
    told = node.record.told
    if told is not None and told.since_ms is not None and not told.settled:
        node.set(told=replace(told, since_ms=None))


def covers_all(node: HostNode, proof: Proof) -> bool:
    """Whether a proof is about all that may run there. A host that has not told may be in a later boot than the records
    know, and a storage fence is about one boot's addresses and nonces (P3)."""
    return not node.untold or proof.kind is not ProofKind.STORAGE_FENCE


def judged_anew(cluster: Cluster, config: EngineHost, record: HostRecord) -> HostRecord:
    """Of an outdated incident only what speaks against a proof is left, and since when the host was silent, so that it
    isn't counted as fallen now (J5)."""
    incident = record.incident
    assert incident is not None, f"{config.name}: no incident to judge anew"
    was_proven = incident.proof is not None
    anew = replace(
        incident,
        number=cluster.next_incident(),
        began_ms=int(cluster.now),
        timeline=config.timeline,
        fence=None,
        proofs=(),
        poisoned=False,
        storage_fenced=False,
        levels_told=0,
        told_written=False,
        told_late=False,
        once_proven=was_proven or incident.once_proven,
    )
    struck_ms = record.struck_ms
    if incident.fence is not None:
        struck_ms = max(struck_ms, incident.fence.ordered_ms)  # that order may still strike (J7)
    dead_boots = record.dead_boots
    if was_proven:
        # It may live in that very boot for all that is known now: then it is heard, and tells.
        dead_boots = tuple(one for one in dead_boots if one != incident.boot)
    # What was read back then may have been lifted since.
    cuts = tuple(replace(cut, epoch=0) for cut in record.cuts)
    return replace(record, incident=anew, struck_ms=struck_ms, dead_boots=dead_boots, cuts=cuts)


def may_hold(cluster: Cluster, node: HostNode) -> list[VmNode]:
    """The VMs that a proof of its death must be about. Of a host that has not told: any, whatever the records say."""
    if node.untold:
        return [cluster.vms[key] for key in sorted(cluster.vms)]
    return cluster.vms_held_by(node.id)


def bars_starts(cluster: Cluster, node: HostNode) -> bool:
    """Somebody waits for its word who may have hosts fenced for it. Rare enough to ask all: only of silent hosts that have
    not told since a restore."""
    if not node.untold or node.id not in cluster.awaited:
        return False
    return any(
        (
            vm.record.stage in (VmStage.LOST, VmStage.READY)
            or vm.half is not None
            or vm.stands is not None  # by its source it is settled, and stands still
        )
        and vm.protected
        and vm.config.grade in (None, PermissionGrade.FENCE)
        for vm in cluster.vms.values()
    )


def why_inventory(cluster: Cluster) -> tuple[Reason, ...]:
    """Whose word is awaited, and for whom an operator may have to give it (P6)."""
    nodes = [cluster.hosts[one] for one in cluster.awaited]
    names = sorted(node.config.name for node in nodes)
    silent = sorted(
        node.config.name for node in nodes if node.untold and node.record.incident is not None
    )
    missing = sorted(node.config.name for node in nodes if is_missing(node))
    return (
        reason("recovery.waiting.inventory", hosts=", ".join(names)),
        *(reason("recovery.waiting.restored", host=one) for one in silent),
        *(reason("recovery.waiting.missing", host=one) for one in missing),
    )


def is_missing(node: HostNode) -> bool:
    """The records never heard of it, nor has this leader: there is no boot that could be proven dead."""
    return node.untold and node.record.boot is None and node.sign_ms is None


def tell_missing(cluster: Cluster, node: HostNode) -> None:
    """Once in a timeline: nobody else will say that it holds every start."""
    told = node.record.told or Told(timeline=node.config.timeline)
    if not told.missing:
        node.set(told=replace(told, missing=True))
        cluster.changed_hosts.add(node.id)
        cluster.tell("host.missing_since_restore", host=node)
