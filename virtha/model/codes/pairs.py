"""Which event ends which trouble, of the same object: the one source for messages, routes and receivers that close alerts."""

_DOWN_UNTIL_PROOF = (
    "fence.capped",
    "fence.held_by_disks",
    "fence.left_alone",
    "fence.orders_late",
)
"""A host is judged dead and is not powered off: over when it is back, or all of its VMs are seen to."""

SOLVES: dict[str, tuple[str, ...]] = {
    "hold.lifted": ("hold.set",),
    "notify.receiver_back": ("notify.receiver_away",),
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
    ),
    "host.incident_over": (
        "host.suspected",
        "host.isolated",
        "host.judged_dead",
        "host.proven_dead",
        "host.rebooted_unseen",
        "fence.began",
        "fence.failed",
        "fence.on_failed",
        "fence.not_back",
        *_DOWN_UNTIL_PROOF,
    ),
    "host.lease.held_again": ("host.lease.lost", "host.lease.cleared"),
    "storage.lease_again": ("storage.outage",),
    "storage.shared_again": ("storage.not_shared",),
    "host.watchdog.armed": ("host.watchdog.unarmed", "host.watchdog.broken"),
    "fence.brake.lifted": ("fence.brake.tripped",),
    "fence.storage.lifted": (
        "fence.storage.ordered",
        "fence.storage.done",
        "fence.storage.failed",
        "host.lives_cut_off",
    ),
    "power.test.mended": ("power.test.broke",),
    "vm.agent.connected": ("vm.agent.lost",),
    "vm.restarted": ("vm.crashed", "vm.panicked", "vm.stopped_unexpectedly", "vm.restart.failed"),
    "vm.started": (
        "vm.crashed",
        "vm.panicked",
        "vm.stopped_unexpectedly",
        "vm.start_failed",
        "vm.restart.failed",
        "vm.restart.blocked",
        "vm.restart.exhausted",
        "vm.not_recovered",
    ),
    "vm.recovered": (
        "vm.recovery_failed",
        "vm.recovery_blocked",
        "vm.start_overdue",
        "vm.start_unclear",
        "vm.migration_lost",
    ),
    "vm.freed": ("vm.quarantined", "vm.recovery_given_up"),
    "vm.migrated": ("vm.migration_failed", "vm.migration_keeps_failing"),
    "vm.io_error.resumed": ("vm.io_error.resume_failed", "vm.io_error.given_up"),
    "vm.guest_thawed": ("vm.guest_frozen",),
}
"""By the event that tells the end."""

_MANY = {code for codes in SOLVES.values() for code in codes}
SOLVED_BY: dict[str, tuple[str, ...]] = {
    problem: tuple(sorted(end for end, ended in SOLVES.items() if problem in ended))
    for problem in sorted(_MANY)
}
"""By the problem: whichever of these comes first ends it."""

ENDS_ALL_OF: dict[str, str] = {
    "host.removed": "host",
    "vm.deleted": "vm",
    "vm.released": "vm",
}
"""With the object all its troubles are over: nobody waits for their end any more."""

MAY_RUN_TWICE: frozenset[str] = frozenset(
    {
        "fence.contradicted",
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
