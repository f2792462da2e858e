"""Judges a host from the evidence about it. Pure reading: nothing is changed here.

Silence is counted from the last direct sign under our own unbroken watch (J1): a server that has just begun,
or that was itself asleep, first waits out the longest pause between two attempts of a host to connect.
"""

from virtha.engine.machine import Verdict
from virtha.engine.restored import bars_starts, may_hold
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.evidence import Answer, PowerState, ProcessKind
from virtha.model.power import PowerDeviceId
from virtha.model.value import Value
from virtha.model.vm import Reason, VmState

ROUNDS_OF_A_NEWCOMER = 2
"""When the second is asked, the first had a whole interval for its answers."""


class Judgement(Value, frozen=True, kw_only=True):
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    look_at_ms: int | None = None
    """When this could change without new evidence."""
    late: bool = False
    """A beat is overdue: witnesses are asked already, so that they have answered when suspicion begins."""
    via: str = ""
    """Who sees it alive, where that is not us."""


def silence_base_ms(cluster: Cluster, node: HostNode) -> int:
    """From when on silence counts."""
    began = max(cluster.began_ms, node.observe_from_ms)
    if node.sign_ms is not None and node.sign_ms >= began:
        return node.sign_ms
    return began + cluster.policy.detection.reconnect_ms


def counted_from_ms(cluster: Cluster, node: HostNode) -> int:
    """The same for the times of the policy: a silence that the former policy's beats allowed is none."""
    return max(silence_base_ms(cluster, node), cluster.paced_ms)


def silent_ms(cluster: Cluster, node: HostNode) -> int:
    """By the policy's count. Negative while silence does not count yet."""
    return cluster.now - counted_from_ms(cluster, node)


def judge(cluster: Cluster, node: HostNode) -> Judgement:
    incident = node.record.incident
    if incident is not None and incident.proof is not None:
        proof = incident.proof
        why = reason("host.dead.proven", proof=proof.kind.value, detail=proof.detail)
        return Judgement(verdict=Verdict.DEAD_PROVEN, reasons=(why,))
    times = cluster.policy.detection
    base = counted_from_ms(cluster, node)
    silent = cluster.now - base
    if incident is not None and incident.fence is not None:
        return _suspicion(cluster, node, base, silent, judged=True)
    if silent < 0 or (node.record.boot is None and node.sign_ms is None):
        look = base if node.record.boot is not None else None
        return Judgement(
            verdict=Verdict.UNKNOWN, reasons=(reason("host.not_heard_yet"),), look_at_ms=look
        )
    if silent < times.suspect_after_ms and node.broken_ms is None:
        late = silent >= times.late_after_ms
        look = base + (times.suspect_after_ms if late else times.late_after_ms)
        if node.sign_ms is None or node.sign_ms < max(cluster.began_ms, node.observe_from_ms):
            # It had its time to connect, and did not: what it was before says nothing.
            why = reason("host.not_heard_yet")
            return Judgement(verdict=Verdict.UNKNOWN, reasons=(why,), look_at_ms=look, late=late)
        return _alive(node, look, late=late)
    return _suspicion(cluster, node, base, silent, judged=incident is not None)


def _alive(node: HostNode, look_at_ms: int, *, late: bool) -> Judgement:
    if node.agent_alive:
        return Judgement(verdict=Verdict.ALIVE, look_at_ms=look_at_ms, late=late)
    why = reason("host.agent_down")
    return Judgement(verdict=Verdict.AGENT_DOWN, reasons=(why,), look_at_ms=look_at_ms, late=late)


def _suspicion(
    cluster: Cluster, node: HostNode, base: int, silent: int, *, judged: bool
) -> Judgement:
    times = cluster.policy.detection
    witness = seen_alive_by(cluster, node)
    if witness is not None:
        name, fades_ms = witness
        return Judgement(
            verdict=Verdict.ISOLATED,
            reasons=(reason("host.isolated.seen", witness=name),),
            look_at_ms=fades_ms,
            via=name,
        )
    if judged:
        return Judgement(
            verdict=Verdict.DEAD_UNPROVEN, reasons=(reason("host.dead.unproven", silent_ms=silent),)
        )
    after = times.hung_after_ms if hinted(cluster, node) else times.dead_after_ms
    if ProcessKind.AGENT in node.sessions:
        why = reason("host.suspect.guardian_silent", silent_ms=silent)
        return Judgement(verdict=Verdict.SUSPECT, reasons=(why,))
    if silent < after:
        why = reason("host.suspect.silent", silent_ms=silent, dead_after_ms=after)
        return Judgement(verdict=Verdict.SUSPECT, reasons=(why,), look_at_ms=base + after)
    waiting = awaited_checks(cluster, node)
    if waiting is not None and not _is_held_by_disks(cluster, node, waiting):
        return Judgement(verdict=Verdict.SUSPECT, reasons=(waiting,))
    return Judgement(
        verdict=Verdict.DEAD_UNPROVEN, reasons=(reason("host.dead.unproven", silent_ms=silent),)
    )


def seen_alive_by(cluster: Cluster, node: HostNode) -> tuple[str, int] | None:
    """A witness's name and when its word is too old: an authenticated answer, or its slot's change (J2)."""
    oldest = cluster.now - cluster.policy.detection.evidence_max_age_ms
    found: tuple[str, int] | None = None
    for (witness, _), (answer, at_ms) in node.neighbours.items():
        if answer is Answer.ALIVE and at_ms > oldest and witness in cluster.hosts:
            fades = at_ms + cluster.policy.detection.evidence_max_age_ms
            name = cluster.hosts[witness].config.name
            if found is None or (fades, name) > (found[1], found[0]):
                found = (name, fades)
    if node.slot_ms is not None and node.slot_ms > oldest:
        fades = node.slot_ms + cluster.policy.detection.evidence_max_age_ms
        if found is None or fades > found[1]:
            found = ("its heartbeat slot", fades)
    return found


def last_sign_ms(node: HostNode) -> int:
    """The last sign of life by anybody; 0: none in this term."""
    return max(node.sign_ms or 0, node.slot_ms or 0, node.witnessed_ms or 0)


def last_sign_of_boot_ms(node: HostNode) -> int:
    """The last sign that names the present boot. A host that is back in a boot that has not told us yet may renew its slot
    already: whoever asks how long the present boot lived must not take that for its sign (P1)."""
    return max(node.sign_ms or 0, node.named_ms or 0)


def fell_ms(cluster: Cluster, node: HostNode) -> int:
    """Since when it is absent, also where a former leader saw that."""
    incident = node.record.incident
    if incident is not None:
        return incident.silent_since_ms
    return cluster.fallen_ms.get(node.id, cluster.now)


def is_observed(cluster: Cluster, node: HostNode) -> bool:
    """Silent for a suspicion's length under our own watch (J1): what a former leader judged stands in the
    record, but nothing new is done to a host that may only be on its way to us. A connection that we saw
    break, and that did not come back, is as good."""
    if node.broken_ms is not None and node.broken_ms >= cluster.began_ms:
        return True
    return silent_ms(cluster, node) >= cluster.policy.detection.suspect_after_ms


def newcomers_unheard(cluster: Cluster, node: HostNode) -> bool:
    """A host came within reach since this one fell silent, and has not had a whole round to say what it sees (J2)."""
    cluster.take_up(node)
    return bool(node.newcomers) and node.round < node.newcomer_round + ROUNDS_OF_A_NEWCOMER


def hinted(cluster: Cluster, node: HostNode) -> bool:
    """Something of it still answers: more likely hung than without power, so it gets more time."""
    if any(state is PowerState.ON for state, _ in node.power.values()):
        return True
    return any(answer is Answer.HINT for answer, _ in node.neighbours.values())


def _is_held_by_disks(cluster: Cluster, node: HostNode, waiting: Reason) -> bool:
    """Disks that change may be anybody's where a host has not told what it runs. They hold every order (``permits``). But
    while they keep starts from VMs, it is judged like one that was: so somebody is told, and may give the word (P6)."""
    return waiting.code == "host.suspect.disks_change" and bars_starts(cluster, node)


def awaited_checks(cluster: Cluster, node: HostNode) -> Reason | None:
    """The rest of F2: a change of its VMs' disks since it fell silent means alive; else that many
    quiet rounds more."""
    if not (watched_for(cluster, node) if node.untold else cluster.vms_on.get(node.id)):
        return None
    times = cluster.policy.detection
    if disks_changed(cluster, node) and not disks_are_quiet(cluster, node):
        quiet = cluster.now - (node.disks_changed_ms or 0)
        return reason("host.suspect.disks_change", quiet_ms=quiet)
    if node.quiet_rounds > times.additional_checks:
        return None
    if node.rounds_asked - node.quiet_rounds > 2 * (1 + times.additional_checks):
        return None  # nobody can tell: fencing, which proves by itself, must not wait for that
    return reason(
        "host.suspect.checking_disks", quiet=node.quiet_rounds, needed=times.additional_checks + 1
    )


def watched_for(cluster: Cluster, node: HostNode) -> list[VmNode]:
    """The VMs whose disks speak for it when they change (F2, J3): of a host that has not told since a restore, all that
    nobody else is known to run."""
    return [vm for vm in may_hold(cluster, node) if not runs_elsewhere(cluster, vm, node)]


def disks_changed(cluster: Cluster, node: HostNode) -> bool:
    """Since it fell silent, as one reader saw between two reads (J3)."""
    return (node.disks_changed_ms or 0) > silence_base_ms(cluster, node)


def disks_are_quiet(cluster: Cluster, node: HostNode) -> bool:
    """For as long, and in as many looks of ours, as F2 wants before anything is done. No word is no quiet (J3)."""
    times = cluster.policy.detection
    rounds = 1 + times.additional_checks
    quiet_ms = cluster.now - max(node.disks_changed_ms or 0, cluster.began_ms)
    return node.quiet_rounds >= rounds and quiet_ms >= times.check_interval_ms * rounds


def runs_elsewhere(cluster: Cluster, vm: VmNode, node: HostNode) -> bool:
    """Another holder, which lives, says that it has it up: its disks are written there, so a change of them
    is no sign of ``node`` (J3)."""
    for copy in vm.record.copies:
        other = cluster.hosts.get(copy.host_id)
        if other is None or other is node or other.verdict is not Verdict.ALIVE:
            continue
        if copy.boot not in (None, other.record.boot):
            continue
        incarnation, state = vm.seen.get(other.id, (None, VmState.UNKNOWN))
        if incarnation == copy.incarnation and state in _WRITE:
            return True
    return False


_WRITE = frozenset({VmState.RUNNING, VmState.STOPPING})


def may_take_quick_road(cluster: Cluster, node: HostNode, judgement: Judgement) -> bool:
    """Its BMC says off, nobody sees it alive, and it has been silent for one suspicion: it is ordered off
    at once, which is harmless, for only readings after our order prove anything (P1). Not while its disks are
    written: then that BMC lies, or is another host's (F2)."""
    if judgement.verdict is not Verdict.SUSPECT:
        return False
    if disks_changed(cluster, node) and not disks_are_quiet(cluster, node):
        return False
    answers = {answer for answer, _ in node.neighbours.values()}
    if node.sessions and (Answer.SILENT not in answers or Answer.HINT in answers):
        return False  # a connection still stands; only neighbours that find nothing outweigh it
    if silent_ms(cluster, node) < cluster.policy.detection.suspect_after_ms and (
        node.broken_ms is None
    ):
        return False
    return any(
        all(reads_off(cluster, node, feed.device, readings=1) for feed in level.feeds)
        for level in node.config.power
    )


def reads_off(
    cluster: Cluster, node: HostNode, device: PowerDeviceId, *, readings: int = 2
) -> bool:
    """It is its own device, asked at least ``readings`` times (1 or 2) and *off* each time, lately, and no sign of the
    host came since the first. One reading may be wrong (P1): it is enough to look closer, and would let an order to a
    living host pass the brake and the cap."""
    first_ms = node.off_since.get(device)
    if first_ms is None or last_sign_ms(node) >= first_ms:
        return False
    if device in node.record.foreign_devices:
        return False
    state, last_ms = node.power[device]
    assert state is PowerState.OFF, f"{device}: off since {first_ms}, and {state}"
    fresh = cluster.now - last_ms <= cluster.policy.detection.evidence_max_age_ms
    return fresh and (readings < 2 or last_ms > first_ms)
