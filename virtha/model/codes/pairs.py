"""Which event ends which trouble, of the same object: the one source for messages, routes and receivers that close alerts."""

_DOWN_UNTIL_PROOF = (
    "fence.capped",
    "fence.held_by_disks",
    "fence.left_alone",
    "fence.orders_late",
    "fence.withheld",
)
"""A host is judged dead and is not powered off: over when it is back, or all of its VMs are seen to."""
_LEASE_LOST = ("host.lease.lost", "host.lease.cleared")
"""On one domain. A host that reset itself takes its leases anew, and tells nothing of the old ones."""
_NOT_STARTED = (
    "vm.recovery_failed",
    "vm.recovery_blocked",
    "vm.start_overdue",
    "vm.start_unclear",
    "vm.migration_lost",
)
_KEPT_DOWN = (*_NOT_STARTED, "vm.quarantined", "vm.recovery_given_up", "vm.restart.blocked")
_CRASHED = ("vm.crashed", "vm.panicked", "vm.stopped_unexpectedly")
_DOWN = (
    *_CRASHED,
    *_KEPT_DOWN,
    "vm.start_failed",
    "vm.restart.failed",
    "vm.restart.exhausted",
    "vm.not_recovered",
)
_IO_PAUSE = ("vm.io_error.paused", "vm.io_error.resume_failed", "vm.io_error.given_up")
_STANDS_STILL = (*_IO_PAUSE, "vm.guest_frozen")
"""Of one run of the VM."""

SOLVES: dict[str, tuple[str, ...]] = {
    "hold.lifted": ("hold.set",),
    "notify.receiver_back": ("notify.receiver_away",),
    "notify.receiver.changed": ("notify.receiver_away",),
    "host.agent.up": ("host.agent.down",),
    "host.reachable": ("host.unreachable",),
    "host.libvirt.back": ("host.libvirt.lost",),
    "host.gate.proved": ("host.gate.missing",),
    "host.answers_again": ("host.suspected", "host.isolated"),
    "host.returned": (
        "host.suspected",
        "host.judged_dead",
        "host.proven_dead",
        "fence.began",
        "fence.failed",
        "fence.on_failed",
        "fence.not_back",
        *_DOWN_UNTIL_PROOF,
        *_LEASE_LOST,
    ),
    "host.incident_over": (
        "host.suspected",
        "host.isolated",
        "host.judged_dead",
        "host.proven_dead",
        "fence.began",
        "fence.failed",
        "fence.on_failed",
        "fence.not_back",
        *_DOWN_UNTIL_PROOF,
        *_LEASE_LOST,
    ),
    "host.lease.held_again": _LEASE_LOST,
    "storage.lease_again": ("storage.outage",),
    "storage.shared_again": ("storage.not_shared",),
    "storage.removed": ("storage.outage", "storage.not_shared"),
    "host.watchdog.armed": ("host.watchdog.unarmed", "host.watchdog.broken"),
    "fence.brake.lifted": ("fence.brake.tripped",),
    "fence.storage.lifted": (
        "fence.storage.ordered",
        "fence.storage.done",
        "fence.storage.failed",
        "host.lives_cut_off",
    ),
    "power.test.mended": ("power.test.broke",),
    "power.test.passed": ("power.test.broke",),
    "power.settings.removed": ("power.test.broke",),
    "vm.agent.connected": ("vm.agent.lost",),
    "vm.stopped": ("vm.agent.lost", "vm.migration_keeps_failing", *_STANDS_STILL),
    "vm.restarted": (*_CRASHED, "vm.restart.failed", "vm.restart.blocked", *_STANDS_STILL),
    "vm.started": (*_DOWN, *_STANDS_STILL),
    # Nobody misses it any more.
    "vm.unwanted": (*_DOWN, *_STANDS_STILL),
    # Those that left it paused.
    "vm.resumed": ("vm.start_failed", "vm.restart.failed"),
    # Perhaps its old host told in between that it starts it no more.
    "vm.recovered": (*_NOT_STARTED, "vm.restart.blocked", *_STANDS_STILL),
    "vm.freed": ("vm.quarantined", "vm.recovery_given_up"),
    # Its source may end before anybody knows that all was sent.
    "vm.migrated": ("vm.migration_keeps_failing", "vm.restart.blocked", *_CRASHED),
    "vm.migration_cancelled": ("vm.migration_keeps_failing",),
    "vm.io_error.resumed": _IO_PAUSE,
    "vm.guest_thawed": ("vm.guest_frozen",),
}
"""By the event that tells the end. One that names no part (a domain, a device) ends those of all parts."""

REPLACES: dict[str, tuple[str, ...]] = {
    # Whether its agent is up is asked anew when the host is there again, and told then if it is not.
    "host.unreachable": ("host.agent.down",),
    "vm.not_recovered": _NOT_STARTED,
    # It may run, where nobody had thought.
    "vm.lives_after_all": (*_KEPT_DOWN, "vm.start_failed", "vm.not_recovered"),
}
"""By a problem that takes the place of others of its object: those are over, and it goes on."""

_ENDED = {**SOLVES, **REPLACES}
SOLVED_BY: dict[str, tuple[str, ...]] = {
    problem: tuple(sorted(end for end, ended in _ENDED.items() if problem in ended))
    for problem in sorted({code for codes in _ENDED.values() for code in codes})
}
"""By the problem: whichever of these comes first ends it."""

ENDS_ALL_OF: dict[str, str] = {
    "cluster.deleted": "cluster",
    "host.removed": "host",
    "notify.receiver.removed": "receiver",
    "vm.deleted": "vm",
    "vm.released": "vm",
}
"""With the object all its troubles are over: nobody waits for their end any more."""

MAY_RUN_TWICE: frozenset[str] = frozenset(
    {
        "fence.contradicted",
        "fence.disks_written",
        "fence.failed_host_lives",
        "fence.struck_another",
        "host.alive_though_proven_dead",
        "host.guardian.kill_unconfirmed",
        "host.lives_cut_off",
        "vm.cut_off_copy_lives",
        "vm.migration_contradicted",
        "vm.superseded",
        "vm.superseded_copy_lives",
        "vm.unmanaged_copy",
    }
)
"""What says that a VM may run twice, or that a proof was wrong: told at once, whatever is silenced, explained by another
problem, or quiet for the night."""

RECOVERY_ENDED: frozenset[str] = frozenset(
    {"vm.quarantined", "vm.recovery_blocked", "vm.recovery_given_up"}
)
"""What says that nobody starts the VM any more, or that it can't be started now: no other problem explains that, for with the host
that died all others start. A silence keeps it back until it ends."""
