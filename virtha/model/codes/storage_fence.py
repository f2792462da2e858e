"""Hosts that are shut out of their storage (P3): events 3140 to 3146, reasons 6280 to 6289."""

from virtha.model.codes.entry import Code, Severity, event, reason

INFO, WARNING, ERROR, ALERT = Severity.INFO, Severity.WARNING, Severity.ERROR, Severity.ALERT

STORAGE_FENCE_EVENTS: tuple[Code, ...] = (
    event(
        3140,
        "fence.storage.ordered",
        WARNING,
        "{host} is to be shut out of its Ceph cluster: {addresses}",
        "host",
        "addresses",
    ),
    event(
        3141,
        "fence.storage.done",
        WARNING,
        "{host} is shut out of Ceph cluster {cluster} from map {epoch} on",
        "host",
        "cluster",
        "epoch",
        help="What runs there writes nothing more, and may still answer on the network. It is let in again after its next boot.",
    ),
    event(
        3142,
        "fence.storage.failed",
        ERROR,
        "{host} could not be shut out of its Ceph cluster, or let in again: {detail}",
        "host",
        "detail",
        help="It is tried again, by another host where there is one.",
    ),
    event(
        3143,
        "fence.storage.lifted",
        INFO,
        "{host} is let into Ceph cluster {cluster} again; left to others on its list: {left}",
        "host",
        "cluster",
        "left",
    ),
    event(
        3144,
        "fence.storage.left",
        WARNING,
        "{host} was removed while it is shut out of Ceph cluster {cluster}: {addresses}",
        "host",
        "cluster",
        "addresses",
        help="Nobody lets it in again. Once none of its VMs' old copies can run, remove these: 'ceph osd blocklist rm ADDRESS'.",
    ),
    event(
        3145,
        "host.lives_cut_off",
        ALERT,
        "{host} lives ({via}) and is shut out of its storage: what runs there writes nothing more",
        "host",
        "via",
        help="Reboot it: then it is let in again. Until then its old guests may still answer on the network.",
    ),
)

STORAGE_FENCE_REASONS: tuple[Code, ...] = (
    reason(
        6280,
        "fence.storage.unknown_addresses",
        ERROR,
        "it did not say, in this boot, by which addresses Ceph sees it, so {vm} (domain {domain}) is not helped by shutting it out",
        "vm",
        "domain",
        help="Its agent tells it with its look at the domain; 'virtha readiness' says so before it is needed.",
    ),
    reason(
        6281,
        "fence.storage.elsewhere",
        WARNING,
        "{vm} has a disk in domain {domain}, which is on no Ceph cluster: shutting its host out of one proves nothing",
        "vm",
        "domain",
    ),
    reason(
        6282,
        "fence.storage.two_clusters",
        WARNING,
        "{vm} has disks in two Ceph clusters: shutting its host out proves nothing",
        "vm",
    ),
    reason(
        6283,
        "fence.storage.untold",
        WARNING,
        "it may have been in another boot since the database was restored, so shutting one out proves nothing",
    ),
    reason(
        6284,
        "fence.storage.nothing",
        INFO,
        "no VM that it may hold has a disk on Ceph, so shutting it out proves nothing",
    ),
    reason(6285, "fence.storage.obstacle", ERROR, "it may not be shut out of Ceph: {why}", "why"),
    reason(
        6286,
        "fence.storage.shared_address",
        ERROR,
        "it may not be shut out of Ceph: {other} is seen with its address {address}, too",
        "address",
        "other",
    ),
    reason(
        6287,
        "fence.storage.no_helper",
        ERROR,
        "no other host that can use Ceph cluster {cluster} answers, so nobody can shut it out",
        "cluster",
    ),
    reason(6288, "fence.storage.waiting", INFO, "{helper} is to shut it out of Ceph", "helper"),
    reason(
        6289,
        "host.shut_out",
        WARNING,
        "it is shut out of Ceph cluster {cluster}, until another boot of it is known to run",
        "cluster",
        help="Reboot it: then it is let in again.",
    ),
)
