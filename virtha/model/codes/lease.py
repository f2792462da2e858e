"""What guardian and engine say of storage leases: events 1440 to 1459, reasons 5420 to 5449."""

from virtha.model.codes.entry import Code, Severity, event, reason

INFO, WARNING, ERROR, ALERT = Severity.INFO, Severity.WARNING, Severity.ERROR, Severity.ALERT


LEASE_EVENTS: tuple[Code, ...] = (
    event(
        1440,
        "host.lease.lost",
        ALERT,
        "{name} lost its lease on {domain} ({cause}): VMs with disks there are killed",
        "name",
        "domain",
        "cause",
        help="It could not write there for lease.self_fence_after, or it was poisoned by a server that "
        "took it for dead.",
    ),
    event(
        1441,
        "host.lease.killed_vm",
        ALERT,
        "{vm} on {name} killed: the lease on {domain} is lost",
        "name",
        "vm",
        "domain",
        "pid",
        help="It is started elsewhere. Find out why this host lost its storage.",
    ),
    event(
        1442,
        "host.lease.cleared",
        WARNING,
        "No VM with a disk on {domain} is left on {name}",
        "name",
        "domain",
    ),
    event(1443, "host.lease.held_again", INFO, "{name} holds {domain} again", "name", "domain"),
    event(
        1444,
        "host.lease.poisoned",
        ALERT,
        "{name} was taken for dead and poisoned on {domain}; it kills all its VMs",
        "name",
        "domain",
        help="Its VMs are started elsewhere. It takes none before it was rebooted.",
    ),
    event(
        1445,
        "host.lease.reset",
        ALERT,
        "{name} resets itself: {count} VMs on {domain} did not end within the kill time",
        "name",
        "domain",
        "count",
        help="QEMU hung in its storage. If the host does not come back, look at its console.",
    ),
    event(
        1446,
        "host.lease.waived",
        WARNING,
        "{name} keeps its VMs though {domain} fails: the server waived the lease",
        "name",
        "domain",
    ),
    event(
        1447,
        "host.lease.unreadable",
        ERROR,
        "{name} can't use its slot on {domain}: {fault}",
        "name",
        "domain",
        "fault",
        help="Look at the storage domain on that host. Until it can use its slot, its lease proves nothing.",
    ),
    event(
        1448,
        "storage.outage",
        ALERT,
        "{domain} is out for {hosts} hosts, {seeing} see it: the {hosts} keep their VMs, which wait for it",
        "domain",
        "hosts",
        "seeing",
        help="Their leases are waived: killing the VMs would help nobody, for no host could start them. While that "
        "stands an expired lease of these hosts is no proof.",
    ),
    event(
        1449,
        "storage.lease_again",
        INFO,
        "{host} keeps its lease on {domain} again",
        "host",
        "domain",
    ),
    event(
        1458,
        "storage.outage_over",
        INFO,
        "The outage of {domain} is over: each host whose lease was waived keeps it again, has booted, or was removed",
        "domain",
    ),
    event(
        1450,
        "host.watchdog.armed",
        INFO,
        "Host watchdog of {name} armed with {timeout_ms} ms",
        "name",
        "timeout_ms",
        "no_way_out",
    ),
    event(
        1451,
        "host.watchdog.unarmed",
        WARNING,
        "Host watchdog of {name} stays off: {reason}",
        "name",
        "reason",
        help="Without it an expired lease of this host is evidence, never proof: its VMs wait for its "
        "power interface or for an operator.",
    ),
    event(
        1452,
        "host.watchdog.broken",
        ALERT,
        "Host watchdog of {name} can't be fed: {detail}",
        "name",
        "detail",
        help="The host may be reset by it at any time. Move its VMs away.",
    ),
    event(
        1453,
        "storage.not_shared",
        ALERT,
        "{domain} is not the same storage for all: {reader} does not see there what {writer} writes",
        "domain",
        "reader",
        "writer",
        help="Compare its mount on both hosts (findmnt): one has probably nothing mounted there, or another export. Until "
        "they see the same, no VM with disks there is started by itself.",
    ),
    event(
        1454, "storage.shared_again", INFO, "{domain} is the same storage for all again", "domain"
    ),
)

LEASE_REASONS: tuple[Code, ...] = (
    # 5420: a poisoned lease as proof (P2)
    reason(5420, "lease.waits", INFO, "its lease is proof in {wait_ms} ms", "wait_ms"),
    reason(5421, "lease.expired", INFO, "its poisoned lease expired"),
    reason(
        5422,
        "lease.not_proof.no_watchdog",
        WARNING,
        "its slot declares no armed watchdog: evidence, not proof",
    ),
    reason(
        5423,
        "lease.not_proof.way_out",
        WARNING,
        "its watchdog can be stopped: evidence, not proof",
        help="Load the watchdog's driver with nowayout=1.",
    ),
    reason(
        5424,
        "lease.not_proof.other_feeder",
        WARNING,
        "its watchdog is fed by another process than the one that renews: evidence, not proof",
    ),
    reason(
        5425,
        "lease.not_proof.cached_io",
        WARNING,
        "it reads and writes its slot through a cache: evidence, not proof",
        help="The file system of that storage domain can't do direct I/O.",
    ),
    reason(5426, "lease.not_proof.waived", WARNING, "its lease was waived and proves nothing"),
    reason(
        5427, "lease.not_proof.unreadable", WARNING, "its slot can't be read ({fault})", "fault"
    ),
    reason(5428, "lease.not_proof.other_boot", INFO, "its slot is of another boot"),
    reason(5429, "lease.not_proof.not_poisoned", INFO, "its slot has not been read as poisoned"),
    reason(5430, "lease.not_proof.unread", INFO, "nobody has read its slot yet"),
    reason(
        5431,
        "lease.not_proof.own_write",
        WARNING,
        "the reader does not see its own write: it reads from a cache, or the storage fails",
    ),
    reason(
        5432,
        "lease.not_proof.no_control",
        WARNING,
        "the reader saw no other host's slot go on: it may read from a cache",
    ),
    reason(5433, "lease.not_proof.cached_round", WARNING, "the reader can't read past its caches"),
    # 5440: why a host's watchdog is not armed
    reason(
        5440, "host.watchdog.unarmed.absent", WARNING, "it has none, or another program holds it"
    ),
    reason(
        5441,
        "host.watchdog.unarmed.virtual",
        WARNING,
        "the host is itself a VM, and nothing says that its watchdog is real",
        help="A paused or migrated host stands still together with its watchdog.",
    ),
    reason(5442, "host.watchdog.unarmed.unknown", WARNING, "whether the host is a VM is unknown"),
    reason(
        5443,
        "host.watchdog.unarmed.suspend",
        WARNING,
        "the host can be suspended",
        help="Mask systemd's sleep targets.",
    ),
    reason(
        5444,
        "host.watchdog.unarmed.too_slow",
        WARNING,
        "its timeout leaves no room for a late renewal before the host must be down",
        help="Lower lease.watchdog, or raise lease.self_fence_after.",
    ),
    reason(
        5445,
        "host.storage.not_shared",
        ERROR,
        "{domain} is not the same storage for all: {reader} does not see there what {writer} writes; compare its mount on "
        "both (findmnt)",
        "domain",
        "reader",
        "writer",
    ),
)
