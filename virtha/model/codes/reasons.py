"""Reasons: why something was done, was not done, or what is awaited (X1). Numbers 5000 to 7999."""

from virtha.model.codes.entry import Code, Kind, Severity

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


def _reason(
    number: int, name: str, severity: Severity, template: str, *fields: str, help: str = ""
) -> Code:
    return Code(
        name=name,
        number=number,
        kind=Kind.REASON,
        severity=severity,
        template=template,
        fields=fields,
        help=help,
    )


REASONS: tuple[Code, ...] = (
    # 5000: a VM's state, as `virtha vm show` explains it
    _reason(5000, "vm.up.as_ordered", INFO, "runs since it was started by {by}", "by"),
    _reason(5001, "vm.up.restarted", INFO, "was restarted after: {cause}", "cause"),
    _reason(5002, "vm.down.as_ordered", INFO, "was stopped by {by}", "by"),
    _reason(5003, "vm.down.guest_shutdown", INFO, "its guest shut down by itself"),
    _reason(
        5004,
        "vm.down.destroyed_outside",
        INFO,
        "was destroyed with libvirt's own tools on {host}",
        "host",
    ),
    _reason(5005, "vm.down.host_shutdown", INFO, "its host {host} was shut down", "host"),
    _reason(5006, "vm.down.never_started", INFO, "has never been started"),
    _reason(5007, "vm.paused.watchdog", WARNING, "its watchdog paused it; resume it by hand"),
    _reason(5008, "vm.paused.as_ordered", INFO, "was paused by {by}", "by"),
    _reason(5009, "vm.paused.io_error", ERROR, "paused on an I/O error of its disk"),
    _reason(5010, "vm.adopted.running", INFO, "was running when it was adopted"),
    _reason(
        5011,
        "vm.up.started_outside",
        WARNING,
        "was started with libvirt's own tools on {host}",
        "host",
    ),
    _reason(
        5012,
        "vm.paused.start_unfinished",
        WARNING,
        "its start did not come to an end: created, but its processors never ran",
        help="Resume it, or power it off and start it again.",
    ),
    _reason(5013, "vm.paused.outside", INFO, "was paused with libvirt's own tools"),
    _reason(5014, "vm.down.failed", WARNING, "stopped unexpectedly: {cause}", "cause"),
    _reason(5015, "vm.down.moved", INFO, "was moved away or saved: {cause}", "cause"),
    _reason(5016, "vm.down.start_failed", ERROR, "did not start: {detail}", "detail"),
    _reason(5017, "vm.crashed.kept", ERROR, "its kernel panicked; its remains are kept"),
    # 5100: the sentinel's restarts
    _reason(5100, "restart.crash", INFO, "QEMU died"),
    _reason(5101, "restart.panic", INFO, "the guest's kernel panicked"),
    _reason(5102, "restart.watchdog_poweroff", INFO, "its watchdog powered it off"),
    _reason(5103, "restart.watchdog_shutdown", INFO, "its watchdog shut it down"),
    _reason(
        5110,
        "restart.waiting.delay",
        WARNING,
        "waits {delay_ms} ms before attempt {attempt}",
        "delay_ms",
        "attempt",
    ),
    _reason(5111, "restart.blocked.not_ha", INFO, "it is not marked as highly available"),
    _reason(5112, "restart.blocked.hold", WARNING, "automatic action is on hold"),
    _reason(
        5113,
        "restart.blocked.limit",
        ERROR,
        "{count} restarts within {window} are the limit",
        "count",
        "window",
    ),
    _reason(5114, "restart.blocked.host_shutting_down", INFO, "its host is shutting down"),
    _reason(
        5115,
        "restart.blocked.other_boot",
        WARNING,
        "its exit was not seen in this boot of the host; the server decides",
    ),
    _reason(
        5116, "restart.blocked.migrating", WARNING, "it is marked as migrating; the server decides"
    ),
    _reason(
        5117,
        "restart.blocked.superseded",
        ERROR,
        "incarnation {incarnation} is superseded by {current}",
        "incarnation",
        "current",
    ),
    _reason(
        5118,
        "restart.blocked.not_seen",
        WARNING,
        "its exit was not seen by this agent; the server decides",
    ),
    _reason(
        5119, "restart.blocked.policy", INFO, "the policy does not restart after {cause}", "cause"
    ),
    _reason(
        5120,
        "restart.blocked.stopped_on_purpose",
        INFO,
        "it was stopped on purpose: {cause}",
        "cause",
    ),
    _reason(5121, "restart.blocked.libvirt_lost", WARNING, "libvirt does not answer"),
    _reason(
        5122, "restart.waiting.result", INFO, "waits for the result of attempt {attempt}", "attempt"
    ),
    _reason(
        5123,
        "restart.blocked.outside",
        WARNING,
        "that copy was not started by virtha; the server decides",
    ),
    # 5200: why an order was refused by a host
    _reason(
        5200, "order.refused.term", ERROR, "term {term} is older than {current}", "term", "current"
    ),
    _reason(
        5201,
        "order.refused.boot",
        WARNING,
        "the order was for another boot of this host",
        "boot",
        "current",
    ),
    _reason(
        5202,
        "order.refused.incarnation",
        ERROR,
        "incarnation {incarnation} is not above {current}",
        "incarnation",
        "current",
    ),
    _reason(
        5203,
        "order.refused.grant_expired",
        WARNING,
        "the grant ran out before the VM could run",
        "late_ms",
    ),
    _reason(5204, "order.refused.running", WARNING, "it runs already", "current"),
    _reason(5205, "order.refused.not_here", WARNING, "this host does not have that VM"),
    _reason(
        5206,
        "order.refused.disk_active",
        ERROR,
        "disk {path} changed {quiet_ms} ms ago",
        "path",
        "quiet_ms",
    ),
    _reason(
        5207,
        "order.refused.storage_foreign",
        ERROR,
        "storage domain {name} belongs to another installation",
        "name",
    ),
    _reason(
        5209,
        "order.failed.shutdown_ignored",
        WARNING,
        "its guest did not shut down within {deadline_ms} ms; it runs on",
        "deadline_ms",
        help="Guests obey ACPI or their guest agent. 'virtha vm power-off' ends it at once.",
    ),
    _reason(
        5210,
        "order.unknown.interrupted",
        WARNING,
        "the agent was restarted while it carried the order out",
    ),
    # 5300: the gate
    _reason(
        5300,
        "gate.refused.no_grant",
        WARNING,
        "no grant for this start; use 'virtha vm start {vm}'",
        "vm",
    ),
    _reason(
        5301, "gate.refused.expired", WARNING, "the grant ran out; use 'virtha vm start {vm}'", "vm"
    ),
    _reason(
        5302,
        "gate.refused.other_boot",
        WARNING,
        "the grant is of an earlier boot; use 'virtha vm start {vm}'",
        "vm",
    ),
    _reason(
        5303, "gate.refused.disk", ERROR, "disk {path} belongs to a managed storage domain", "path"
    ),
    _reason(
        5304,
        "gate.refused.unreadable",
        ERROR,
        "the gate's records can't be read: {detail}",
        "detail",
    ),
    # 5400: placement of an ordered start, per host
    _reason(5400, "host.unfit.memory", WARNING, "{need} needed, {free} free", "need", "free"),
    _reason(5401, "host.unfit.disconnected", WARNING, "its agent is not connected"),
    _reason(5402, "host.unfit.storage", WARNING, "it has no storage domain {name}", "name"),
    _reason(
        5403,
        "host.unfit.watchdog",
        WARNING,
        "its libvirt does not accept watchdog {model}",
        "model",
    ),
    _reason(5404, "host.unfit.gate", WARNING, "its start gate is not in force"),
    _reason(5406, "host.unfit.libvirt", WARNING, "its libvirt does not answer"),
    _reason(5407, "host.unfit.bridge", WARNING, "it has no bridge {bridge}", "bridge"),
    _reason(5408, "host.unfit.arch", WARNING, "it is {arch}", "arch"),
    _reason(5410, "host.unfit.holder", WARNING, "{holder} may still hold a copy of it", "holder"),
    _reason(
        5411,
        "start.blocked.inventory",
        WARNING,
        "{host} has not reported its VMs since the restore",
        "host",
        help="A restored database may not know a copy that runs there. Bring the host back, or remove it.",
    ),
    # 5500: starts that skip the disk activity check (A5), and why
    _reason(5500, "disk_check.skipped.proven", INFO, "the previous copy's death is proved"),
    _reason(
        5501, "disk_check.skipped.local_restart", INFO, "this agent reaped the previous copy itself"
    ),
    _reason(5503, "disk_check.passed", INFO, "disks were quiet for {quiet_ms} ms", "quiet_ms"),
    # 5600: is it protected? one line each in `virtha status`
    _reason(5600, "protection.ok", INFO, "protected"),
    _reason(5601, "protection.no_ha", INFO, "not marked as highly available"),
    _reason(5602, "protection.agent_down", WARNING, "the agent of its host is down"),
    _reason(5603, "protection.host_unreachable", ERROR, "its host does not answer"),
    _reason(5604, "protection.hold", WARNING, "automatic action is on hold"),
    _reason(5605, "protection.exhausted", ERROR, "its restarts are used up"),
    _reason(
        5606, "protection.no_watchdog", WARNING, "it has no watchdog; a hung guest is not noticed"
    ),
    _reason(5607, "protection.gate", ERROR, "the start gate of its host is not in force"),
    _reason(5608, "protection.single_host", WARNING, "no other host could take it"),
    _reason(5610, "protection.policy", WARNING, "its cluster's policy has restarts turned off"),
    _reason(5611, "protection.not_running", ERROR, "it should run but does not"),
    _reason(5609, "protection.libvirt", ERROR, "libvirt of its host does not answer"),
)
