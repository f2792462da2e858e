"""The storage fence of one host (P3): asked of a helper, read back, proven, and lifted after its next boot (ADR 20).

A helper is another host that has the same Ceph cluster; the order is repeated, by another helper where one does not answer.
Before the first order the questions are those of a poison, and the brake's (J4, J5). After it there is no way back before the
host's next boot: what is shut out stays so, so it is gone through with also where the host turns out to live.

Nobody can tell a helper that is frozen in the midst of an order from one that is gone. So whoever was asked to let the host in
and has not answered may do so at any time: no fence of that host proves anything until that very helper, in that very
worker, has carried out a later order, or is in another boot.
"""

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from virtha.engine.cuts import (
    clusters_by_domain,
    drop_cut,
    may_be_cut_off,
    seen_by_ceph,
    set_cut,
    shut_out_of,
    tell_left,
)
from virtha.engine.cutting import CutRemoved, StorageFenced, StorageLetIn, StorageOpened
from virtha.engine.events import StorageFence
from virtha.engine.incident import domains_of, proven
from virtha.engine.machine import Verdict
from virtha.engine.permits import hands_off, own_lease, poison_refusal
from virtha.engine.records import AskedHelper, Incident, StorageCut
from virtha.engine.removal import is_removed, keep, node_of
from virtha.engine.restored import may_hold
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.targets import refresh_target
from virtha.model.ceph import CephEpoch
from virtha.model.evidence import ProcessKind
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.policy import Unreachable
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import Millis
from virtha.model.vm import Reason

HELPER_MS = 30_000
"""After so long without an answer another helper is asked, and the same one no sooner again: each of its questions to the
monitors may take 20 s (``ceph_blocklist.PATIENCE_MS``), and mostly takes none."""


def is_wanted(cluster: Cluster) -> bool:
    """Off by default (P3)."""
    return Unreachable.STORAGE_FENCE in cluster.policy.fencing.unreachable


def plan_storage_fence(cluster: Cluster, node: HostNode) -> Reason | None:
    """One look at the incident of ``node``; the answer is what its fence waits for, None when there is none or it is done."""
    incident = node.record.incident
    assert incident is not None
    if not incident.storage_fenced or any(
        proof.kind is ProofKind.STORAGE_FENCE for proof in incident.proofs
    ):
        return None
    by_word = incident.proof is not None
    if by_word:
        fsids = sorted({one.fsid for one in _blockable(node, incident.boot)})
    else:
        needed, why_not = _clusters_needed(cluster, node, incident.boot)
        if why_not is not None:
            return why_not
        fsids = sorted(needed)
    waiting: Reason | None = None
    for fsid in fsids:
        why = obstacle(cluster, node, fsid, incident.boot) or _cut_off(
            cluster, node, incident, fsid, by_word=by_word
        )
        waiting = waiting or why
    if waiting is None and not by_word:
        _conclude(cluster, node, incident.boot, fsids)
    return waiting


def _blockable(node: HostNode, boot: BootId) -> Iterator[StorageCut]:
    """What shutting it out of each cluster would take, by all that it told in that boot."""
    addresses: dict[str, set[str]] = {}
    for one in seen_by_ceph(node, boot):
        addresses.setdefault(one.fsid, set()).update(one.addresses)
    for fsid in sorted(addresses):
        yield StorageCut(fsid=fsid, boot=boot, addresses=tuple(sorted(addresses[fsid])))


def _clusters_needed(
    cluster: Cluster, node: HostNode, boot: BootId
) -> tuple[set[str], Reason | None]:
    """Clusters in which VMs that it may hold have disks; and why shutting it out of them would prove nothing."""
    if node.untold:
        return set(), reason("fence.storage.untold")
    known = clusters_by_domain(node, boot)
    needed: set[str] = set()
    for vm in may_hold(cluster, node):
        domains = domains_of(vm)
        missing = sorted(domains - known.keys())
        if missing:
            domain = missing[0]
            on_ceph = _is_on_ceph(cluster, domain)
            code = "fence.storage.unknown_addresses" if on_ceph else "fence.storage.elsewhere"
            return set(), reason(code, vm=vm.config.name, domain=domain)
        fsids = {known[domain] for domain in domains}
        if len(fsids) > 1:
            return set(), reason("fence.storage.two_clusters", vm=vm.config.name)
        needed |= fsids
    return needed, None if needed else reason("fence.storage.nothing")


def _is_on_ceph(cluster: Cluster, domain_id: StorageDomainId) -> bool:
    """Some host sees it there: only this one did not say how, in that boot."""
    return any(
        one.domain_id == domain_id for other in cluster.hosts.values() for one in other.record.ceph
    )


def obstacle(cluster: Cluster, node: HostNode, fsid: str, boot: BootId) -> Reason | None:
    """Why it may not be shut out of that cluster by its addresses (P3)."""
    mine: set[str] = set()
    for one in seen_by_ceph(node, boot):
        if one.fsid == fsid:
            if one.obstacle:
                return reason("fence.storage.obstacle", why=one.obstacle)
            mine.update(one.addresses)
    for other in cluster.hosts.values():
        if other is node:
            continue
        for one in seen_by_ceph(other, other.record.boot):
            shared = sorted(mine.intersection(one.addresses)) if one.fsid == fsid else []
            if shared:
                return reason(
                    "fence.storage.shared_address", address=shared[0], other=other.config.name
                )
    return None


# Shutting out


def _cut_off(
    cluster: Cluster, node: HostNode, incident: Incident, fsid: str, *, by_word: bool
) -> Reason | None:
    """None: it was read back that it is shut out, and nobody may let it in."""
    wanted = next(one for one in _blockable(node, incident.boot) if one.fsid == fsid)
    cut = next((one for one in node.record.cuts if _same(one, wanted)), wanted)
    if cut.addresses != wanted.addresses:
        # It had told more by the time it fell silent, and that came late.
        cut = replace(cut, addresses=wanted.addresses, epoch=0)
    if cut.epoch and not _may_let_in(cluster, node, fsid):
        return None
    if not by_word:
        begun = may_be_cut_off(node, incident)
        why_not = hands_off(cluster, node) or own_lease(cluster)
        if not begun:
            why_not = why_not or poison_refusal(cluster, node) or _brake(cluster)
        if why_not is not None:
            return why_not
    lifting = _may_let_in(cluster, node, fsid)
    must = {one.host_id for one in lifting}
    chosen, why = _choose_helper(cluster, node, fsid, cut.asked, first=must)
    if lifting:
        name = cluster.host_name(lifting[0].host_id)
        why = reason("fence.storage.may_let_in", helper=name)
    if chosen is None:
        return why
    touched = cut.touched or bool(cut.asked)  # whoever has not answered may have done it
    set_cut(node, replace(cut, asked=_with(cut.asked, chosen), lifted=False, touched=touched))
    _note_asked(cluster, node, chosen)
    cluster.order(
        StorageFence(
            host_id=node.id,
            boot=cut.boot,
            order_id=chosen.order_id,
            fsid=fsid,
            helper=chosen.host_id,
            helper_boot=chosen.boot,
            domain_id=chosen.domain_id,
            addresses=cut.addresses,
        )
    )
    if not (cut.asked or cut.touched or cut.error):
        cluster.tell("fence.storage.ordered", host=node, addresses=", ".join(cut.addresses))
    return why


def _same(one: StorageCut, other: StorageCut) -> bool:
    return (one.fsid, one.boot) == (other.fsid, other.boot)


def _brake(cluster: Cluster) -> Reason | None:
    brake = cluster.record.brake
    return None if brake is None else reason("fence.blocked.brake", hosts=brake.hosts)


def _conclude(cluster: Cluster, node: HostNode, boot: BootId, fsids: list[str]) -> None:
    """All that it may hold is in clusters that it is shut out of."""
    cuts = {cut.fsid: cut for cut in node.record.cuts if cut.boot == boot}
    domains = clusters_by_domain(node, boot)
    proven(
        cluster,
        node,
        Proof(
            kind=ProofKind.STORAGE_FENCE,
            host_id=node.id,
            boot=boot,
            at_ms=int(cluster.now),
            detail=", ".join(f"cluster {one}, map {cuts[one].epoch}" for one in fsids),
            domain_ids=tuple(sorted(key for key, fsid in domains.items() if fsid in fsids)),
            epochs=tuple(CephEpoch(fsid=one, epoch=cuts[one].epoch) for one in fsids),
        ),
    )
    cluster.touch(node)


def storage_fenced(cluster: Cluster, event: StorageFenced) -> None:
    """Only what was read back counts, and only all of it."""
    node, cut, entry = _answered(cluster, event, lifting=False)
    if node is None or cut is None or entry is None:
        return
    missing = sorted(set(cut.addresses) - set(event.addresses))
    wrong = event.fsid != cut.fsid or bool(missing) or event.epoch <= 0
    if event.result is not Result.OK or wrong:
        if event.result is Result.REFUSED:
            cut = replace(cut, asked=_without(cut.asked, entry))
        else:
            cut = replace(cut, touched=True)
        error = event.error or f"not read back: {', '.join(missing) or event.fsid}"
        _note_error(cluster, node, cut, error)
    else:
        _is_over(node, cut.fsid, entry)
        cut = next(one for one in node.record.cuts if _same(one, cut))
        open_yet = _may_let_in(cluster, node, cut.fsid)
        epoch = 0 if open_yet else event.epoch
        set_cut(
            node,
            replace(cut, epoch=epoch, until_s=event.until_s, lifted=False, touched=True, error=""),
        )
        if epoch:
            _may_be_asked(node, entry)
            cluster.tell("fence.storage.done", host=node, epoch=epoch, cluster=cut.fsid)
            if node.id not in cluster.hosts:
                tell_left(cluster, node, cut)
    _settle(cluster, node)


# Letting in again


def plan_lift(cluster: Cluster, node: HostNode) -> Reason | None:
    """One look at a host that no incident is about: what it is shut out of, and for how long yet."""
    waiting: Reason | None = None
    for cut in node.record.cuts:
        waiting = _lift(cluster, node, cut) or waiting
    return waiting


def _lift(cluster: Cluster, node: HostNode, cut: StorageCut) -> Reason | None:
    open_orders = _still_open(cluster, (*cut.asked, *cut.lifting))
    if not open_orders and not cut.may_stand:
        drop_cut(node, cut)
        cluster.changed_hosts.add(node.id)
        return None
    shut_out = None if cut.lifted else reason("host.shut_out", cluster=cut.fsid)
    if cluster.hold is not None or not _is_back(cluster, node, cut):
        return shut_out
    must = {one.host_id for one in open_orders}
    chosen, _ = _choose_helper(
        cluster, node, cut.fsid, cut.lifting, first=must, only=must if cut.lifted else None
    )
    if chosen is None:
        return shut_out
    boot = node.record.boot
    assert boot is not None
    set_cut(node, replace(cut, lifting=_with(cut.lifting, chosen)))
    _note_asked(cluster, node, chosen)
    cluster.changed_hosts.add(node.id)
    cluster.order(
        StorageLetIn(
            host_id=node.id,
            boot=cut.boot,
            runs=boot,
            order_id=chosen.order_id,
            fsid=cut.fsid,
            helper=chosen.host_id,
            helper_boot=chosen.boot,
            domain_id=chosen.domain_id,
            addresses=cut.addresses,
            until_s=cut.until_s,
        )
    )
    return shut_out


def _is_back(cluster: Cluster, node: HostNode, cut: StorageCut) -> bool:
    """Another boot of it is known to run (P4), nothing of the one that was shut out may live, and nothing shuts out this one."""
    record = node.record
    if node.verdict is not Verdict.ALIVE or record.incident is not None:
        return False
    if node.sessions.get(ProcessKind.AGENT) != record.boot:
        return False
    if any(one.boot == record.boot for one in record.cuts if one.fsid == cut.fsid):
        return False
    held = (copy for vm in cluster.vms_held_by(node.id) for copy in vm.record.copies)
    return not any(one.host_id == node.id and one.boot == cut.boot for one in held)


def storage_opened(cluster: Cluster, event: StorageOpened) -> None:
    node, cut, entry = _answered(cluster, event, lifting=True)
    if node is None or cut is None or entry is None:
        return
    if event.result is Result.OK:
        _is_over(node, cut.fsid, entry)
        _may_be_asked(node, entry)
        cut = next(one for one in node.record.cuts if _same(one, cut))
        if not cut.lifted:
            cluster.tell(
                "fence.storage.lifted", host=node, cluster=cut.fsid, left=", ".join(event.left)
            )
        set_cut(node, replace(cut, lifted=True, epoch=0, error=""))
    else:
        if event.result is Result.REFUSED:
            cut = replace(cut, lifting=_without(cut.lifting, entry))
        _note_error(cluster, node, cut, event.error or event.result.value)
    _settle(cluster, node)


# Helpers


def _choose_helper(
    cluster: Cluster,
    node: HostNode,
    fsid: str,
    asked: tuple[AskedHelper, ...],
    *,
    first: set[HostId],
    only: set[HostId] | None = None,
) -> tuple[AskedHelper | None, Reason]:
    """Whom to ask now, with a new order; or why nobody. ``first``: whose answer is needed anyway, so every second time."""
    sent, at_ms = node.cutting.sent, node.cutting.asked
    latest = max(at_ms, key=lambda one: (at_ms[one], one), default=None)
    if latest in first and only is None:
        first = set()
    for entry in asked:
        asked_ms = sent.get(entry.order_id)
        if asked_ms is not None and cluster.now - asked_ms < HELPER_MS:
            cluster.wake_host(node, asked_ms + HELPER_MS)
            return None, reason("fence.storage.waiting", helper=cluster.host_name(entry.host_id))
    found: list[tuple[tuple[bool, int, bool, int], HostNode, StorageDomainId]] = []
    soonest: int | None = None
    for helper, domain_id, able in _helpers(cluster, node, fsid):
        if only is not None and helper.id not in only:
            continue
        last_ms = at_ms.get(helper.id)
        if last_ms is not None and cluster.now - last_ms < HELPER_MS:
            soonest = min(soonest or last_ms + HELPER_MS, last_ms + HELPER_MS)
            continue
        rank = (helper.id not in first, last_ms or -1, not able, helper.config.number)
        found.append((rank, helper, domain_id))
    if not found:
        if soonest is not None:
            cluster.wake_host(node, soonest)
        else:
            cluster.wake_host(node, cluster.now + HELPER_MS)
        return None, reason("fence.storage.no_helper", cluster=fsid)
    _, helper, domain_id = min(found, key=lambda one: (one[0], one[1].id))
    boot = helper.record.boot
    assert boot is not None
    same = [one for one in _open_entries(node, fsid) if one.host_id == helper.id]
    if same and same[0].boot == boot:
        domain_id = same[0].domain_id  # in the worker that may be at the former order yet
    entry = AskedHelper(
        order_id=cluster.next_order(), host_id=helper.id, boot=boot, domain_id=domain_id
    )
    return entry, reason("fence.storage.waiting", helper=helper.config.name)


def _helpers(
    cluster: Cluster, node: HostNode, fsid: str
) -> Iterator[tuple[HostNode, StorageDomainId, bool]]:
    """Hosts that live and can use a domain of that cluster right now; and whether the key may do it, as far as it told: one that was not
    permitted may be by now, and is asked when nobody else is left."""
    for host_id in sorted(cluster.present):
        helper = cluster.hosts[host_id]
        boot, survey = helper.record.boot, helper.survey
        if helper is node or survey is None or survey.boot != boot:
            continue
        if helper.record.incident is not None or shut_out_of(helper):
            continue
        if helper.sessions.get(ProcessKind.AGENT) != boot:
            continue
        domains = sorted(
            (bool(one.lacks), one.domain_id)
            for one in seen_by_ceph(helper, boot)
            if one.fsid == fsid and one.domain_id in survey.storage_domains
        )
        if domains:
            lacks, domain_id = domains[0]
            yield helper, domain_id, not lacks


def _open_entries(node: HostNode, fsid: str) -> Iterator[AskedHelper]:
    for cut in node.record.cuts:
        if cut.fsid == fsid:
            yield from cut.lifting
            yield from cut.asked


def _may_let_in(cluster: Cluster, node: HostNode, fsid: str) -> list[AskedHelper]:
    """Whoever was asked to and may do so yet."""
    asked = [one for cut in node.record.cuts if cut.fsid == fsid for one in cut.lifting]
    return _still_open(cluster, asked)


def _still_open(cluster: Cluster, asked: Iterable[AskedHelper]) -> list[AskedHelper]:
    return [one for one in asked if not _is_gone(cluster, one)]


def _is_gone(cluster: Cluster, entry: AskedHelper) -> bool:
    """What that worker was at is over with its host's boot. A host that is only shut out of its storage still talks to
    monitors; one that was removed tells nothing."""
    helper = cluster.hosts.get(entry.host_id)
    if helper is None:
        return False
    incident = helper.record.incident
    if incident is not None and incident.boot == entry.boot:
        return any(proof.kind is not ProofKind.STORAGE_FENCE for proof in incident.proofs)
    return helper.record.boot != entry.boot and entry.boot in helper.record.dead_boots


def _with(asked: tuple[AskedHelper, ...], entry: AskedHelper) -> tuple[AskedHelper, ...]:
    """An earlier order to that very worker is over when the later one is."""
    others = tuple(one for one in asked if not _same_worker(one, entry))
    return (*others, entry)


def _without(asked: tuple[AskedHelper, ...], entry: AskedHelper) -> tuple[AskedHelper, ...]:
    return tuple(one for one in asked if one.order_id != entry.order_id)


def _same_worker(one: AskedHelper, other: AskedHelper) -> bool:
    return (one.host_id, one.boot, one.domain_id) == (other.host_id, other.boot, other.domain_id)


def _is_over(node: HostNode, fsid: str, entry: AskedHelper) -> None:
    """That worker has carried out ``entry``: all that it was asked before is over."""
    node.set(
        cuts=tuple(
            replace(
                cut,
                asked=tuple(one for one in cut.asked if not _same_worker(one, entry)),
                lifting=tuple(one for one in cut.lifting if not _same_worker(one, entry)),
            )
            if cut.fsid == fsid
            else cut
            for cut in node.record.cuts
        )
    )


def _may_be_asked(node: HostNode, entry: AskedHelper) -> None:
    """For something else, at once: it did what it was asked, and nobody asks for the same again."""
    asked = {key: at for key, at in node.cutting.asked.items() if key != entry.host_id}
    node.cutting = replace(node.cutting, asked=asked)


def _note_asked(cluster: Cluster, node: HostNode, entry: AskedHelper) -> None:
    known = {one.order_id for cut in node.record.cuts for one in (*cut.asked, *cut.lifting)}
    sent = {key: at_ms for key, at_ms in node.cutting.sent.items() if key in known}
    now = Millis(cluster.now)
    node.cutting = replace(
        node.cutting,
        sent={**sent, entry.order_id: now},
        asked={**node.cutting.asked, entry.host_id: now},
    )
    cluster.wake_host(node, now + HELPER_MS)


def _answered(
    cluster: Cluster, event: StorageFenced | StorageOpened, *, lifting: bool
) -> tuple[HostNode | None, StorageCut | None, AskedHelper | None]:
    """Whose order of which cut that is the answer to; also of a host that was removed meanwhile."""
    node = cluster.hosts.get(event.host_id)
    if node is None and is_removed(cluster, event.host_id):
        node = node_of(cluster, event.host_id)
        if event.host_id in cluster.cut_removed:
            node.cutting = cluster.cut_removed[event.host_id].asking
    if node is None:
        return None, None, None
    for cut in node.record.cuts:
        for entry in cut.lifting if lifting else cut.asked:
            if (entry.order_id, entry.host_id) == (event.order_id, event.helper):
                sent = {k: v for k, v in node.cutting.sent.items() if k != entry.order_id}
                node.cutting = replace(node.cutting, sent=sent)
                return node, cut, entry
    return None, None, None  # of an order that a later one has replaced


def _note_error(cluster: Cluster, node: HostNode, cut: StorageCut, error: str) -> None:
    if error and error != cut.error:
        cluster.tell("fence.storage.failed", host=node, detail=error)
    set_cut(node, replace(cut, error=error or cut.error))


def _settle(cluster: Cluster, node: HostNode) -> None:
    if node.id in cluster.hosts:
        refresh_target(cluster, node)
        cluster.touch(node)
    else:
        keep(cluster, node)
        cluster.cut_removed[node.id] = CutRemoved(asking=node.cutting, due_ms=cluster.now)
