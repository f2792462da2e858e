"""What the engine says of a failing host and of its VMs: events 3000 to 3199, reasons 6000 to 6299."""

from virtha.model.codes.entry import Code, Kind, Severity

INFO, WARNING, ERROR, ALERT = Severity.INFO, Severity.WARNING, Severity.ERROR, Severity.ALERT


def _code(
    kind: Kind, number: int, name: str, severity: Severity, template: str, *fields: str, help: str
) -> Code:
    return Code(
        name=name,
        number=number,
        kind=kind,
        severity=severity,
        template=template,
        fields=fields,
        help=help,
    )


def _event(
    number: int, name: str, severity: Severity, template: str, *fields: str, help: str = ""
) -> Code:
    return _code(Kind.EVENT, number, name, severity, template, *fields, help=help)


def _reason(
    number: int, name: str, severity: Severity, template: str, *fields: str, help: str = ""
) -> Code:
    return _code(Kind.REASON, number, name, severity, template, *fields, help=help)


FAILOVER_EVENTS: tuple[Code, ...] = (
    # 3000: what is thought of a host
    _event(3000, "host.suspected", WARNING, "{host} fell silent; witnesses are asked", "host"),
    _event(3001, "host.answers_again", INFO, "{host} answers again", "host"),
    _event(
        3002,
        "host.isolated",
        WARNING,
        "{host} is out of our reach, but {witness} sees it alive: its VMs stay where they are",
        "host",
        "witness",
        help="Look at the network between this server and the host.",
    ),
    _event(
        3003,
        "host.judged_dead",
        ERROR,
        "{host} is judged dead after {silent_ms} ms of silence; proof is sought",
        "host",
        "silent_ms",
    ),
    _event(3004, "host.alive_after_all", WARNING, "{host} lives: seen by {via}", "host", "via"),
    _event(
        3005,
        "host.proven_dead",
        WARNING,
        "{host} is proven dead by {proof} ({detail}) {after_ms} ms after it fell silent",
        "host",
        "proof",
        "detail",
        "after_ms",
    ),
    _event(
        3006,
        "host.rebooted_unseen",
        WARNING,
        "{host} rebooted before it was judged; its VMs went down with it",
        "host",
    ),
    _event(3007, "host.returned", INFO, "{host} is back after its failure", "host"),
    _event(
        3008,
        "host.alive_though_proven_dead",
        ALERT,
        "{host} was proven dead, and now gives a sign of life by {via}",
        "host",
        "via",
        help="What it still runs was started elsewhere: its guardian ends those copies. Find out why the "
        "proof was wrong (swapped addresses of power devices?) before anything else.",
    ),
    _event(
        3009,
        "host.confirmation_refused",
        WARNING,
        "{by} confirmed {host} as dead; refused: {why}",
        "by",
        "host",
        "why",
    ),
    # 3040: fencing
    _event(3040, "fence.began", WARNING, "Fencing {host}: {action}", "host", "action"),
    _event(3041, "fence.blinked", INFO, "The identify light of {host} was lit", "host"),
    _event(
        3042,
        "fence.level_failed",
        WARNING,
        "Fencing {host}: level {level}, attempt {attempt} failed: {why}",
        "host",
        "level",
        "attempt",
        "why",
    ),
    _event(
        3043,
        "fence.failed",
        ALERT,
        "{host} could not be fenced by any of its power devices; its VMs stay down until there is proof",
        "host",
        help="Make sure that it is off, then confirm it; or mend its power devices: they are tried again.",
    ),
    _event(
        3044,
        "fence.failed_host_lives",
        ALERT,
        "{host} was ordered off and lives on: {detail}",
        "host",
        "detail",
    ),
    _event(
        3045,
        "fence.contradicted",
        ALERT,
        "The power device of {host} said off, and the host then gave a sign of life by {via}",
        "host",
        "via",
        help="The device may belong to another host. It proves nothing until it is tested again.",
    ),
    _event(
        3046,
        "fence.device_of_another",
        ALERT,
        "Power device {device} of {host} names another machine",
        "device",
        "host",
        help="Correct its address, then test it.",
    ),
    _event(
        3047,
        "fence.brake.tripped",
        ALERT,
        "{hosts} hosts fell silent at once (limit {limit}): power orders wait",
        "hosts",
        "limit",
        help="Look for a common cause: a switch, a power feed, the storage, this server's own network.",
    ),
    _event(3048, "fence.brake.lifted", INFO, "Power orders go out again: {by}", "by"),
    # 3080: VMs
    _event(
        3080,
        "vm.not_recovered",
        WARNING,
        "{vm} went down with its host and is not highly available",
        "vm",
    ),
    _event(
        3081,
        "vm.recovery_started",
        INFO,
        "{vm} is started on {host}, attempt {attempt}",
        "vm",
        "host",
        "attempt",
    ),
    _event(
        3082,
        "vm.recovered",
        INFO,
        "{vm} runs on {host}, {after_ms} ms after it was lost",
        "vm",
        "host",
        "after_ms",
    ),
    _event(
        3083,
        "vm.recovery_failed",
        WARNING,
        "{vm} could not be started on {host} (attempt {attempt}): {why}",
        "vm",
        "host",
        "attempt",
        "why",
    ),
    _event(
        3084,
        "vm.start_overdue",
        WARNING,
        "The start of {vm} on {host} takes too long and is taken back",
        "vm",
        "host",
    ),
    _event(
        3085,
        "vm.recovery_given_up",
        ALERT,
        "{vm} stays down after {attempts} failed starts",
        "vm",
        "attempts",
        help="Find out why, then free it.",
    ),
    _event(
        3086,
        "vm.quarantined",
        ALERT,
        "{vm} was on {hosts} hosts that died within the hour: it is held back",
        "vm",
        "hosts",
        help="If it is not what kills them, free it.",
    ),
    _event(3087, "vm.freed", INFO, "{vm} was freed by {by}", "vm", "by"),
    _event(3088, "vm.found", WARNING, "{vm} runs on {host}, which nobody ordered", "vm", "host"),
)

FAILOVER_REASONS: tuple[Code, ...] = (
    # 6000: what is known of a host
    _reason(6000, "host.not_heard_yet", INFO, "not heard since this server began to watch"),
    _reason(6001, "host.agent_down", WARNING, "its guardian beats, its agent does not answer"),
    _reason(
        6002,
        "host.suspect.silent",
        WARNING,
        "silent for {silent_ms} ms; judged dead at {dead_after_ms} ms",
        "silent_ms",
        "dead_after_ms",
    ),
    _reason(
        6003,
        "host.suspect.guardian_silent",
        WARNING,
        "its guardian is silent for {silent_ms} ms, its agent's connection stands",
        "silent_ms",
    ),
    _reason(
        6004,
        "host.suspect.disks_change",
        WARNING,
        "the disks of its VMs changed {quiet_ms} ms ago: it lives",
        "quiet_ms",
    ),
    _reason(
        6005,
        "host.suspect.checking_disks",
        WARNING,
        "{quiet} of {needed} looks at its VMs' disks were quiet",
        "quiet",
        "needed",
    ),
    _reason(6006, "host.isolated.seen", WARNING, "out of our reach; {witness} sees it", "witness"),
    _reason(
        6007, "host.dead.unproven", ERROR, "silent for {silent_ms} ms; not proven", "silent_ms"
    ),
    _reason(
        6008, "host.dead.proven", ERROR, "proven dead by {proof} ({detail})", "proof", "detail"
    ),
    _reason(6009, "host.maintenance", INFO, "in maintenance, by {by}", "by"),
    # 6050: why it is not fenced, or what fencing waits for
    _reason(6050, "fence.blocked.hold", WARNING, "automatic action is on hold: {why}", "why"),
    _reason(6051, "fence.blocked.maintenance", INFO, "in maintenance, by {by}", "by"),
    _reason(
        6052,
        "fence.blocked.action_nothing",
        WARNING,
        "the policy's fencing action is `nothing`, which proves nothing",
        help="Confirm the host as dead, or set fencing.action.",
    ),
    _reason(
        6053,
        "fence.blocked.action_blink",
        WARNING,
        "the policy's fencing action is `blink`, which proves nothing",
        help="Confirm the host as dead, or set fencing.action.",
    ),
    _reason(
        6054,
        "fence.blocked.grade",
        WARNING,
        "the grade of permission is `{grade}`; fencing needs `fence`",
        "grade",
    ),
    _reason(6055, "fence.blocked.quiet_time", WARNING, "quiet time for {left_ms} ms", "left_ms"),
    _reason(
        6056,
        "fence.blocked.no_device",
        ERROR,
        "it has no power device",
        help="Configure one, or confirm the host as dead.",
    ),
    _reason(6057, "fence.blocked.not_needed", INFO, "no highly available VM would gain by it"),
    _reason(6058, "fence.blocked.own_host", ERROR, "this server runs on it"),
    _reason(
        6059,
        "fence.blocked.observer",
        ERROR,
        "this server reaches only {reached} of {others} other hosts: it may be cut off itself",
        "reached",
        "others",
    ),
    _reason(6060, "fence.blocked.brake", ERROR, "{hosts} hosts fell silent at once", "hosts"),
    _reason(
        6061,
        "fence.blocked.cap",
        ERROR,
        "{count} hosts were powered down within {window}: that is the limit",
        "count",
        "window",
    ),
    _reason(
        6062,
        "fence.blocked.own_lease",
        WARNING,
        "this server's leadership ends in {left_ms} ms, before an order would",
        "left_ms",
    ),
    _reason(
        6070,
        "fence.waiting.order",
        INFO,
        "ordered off by level {level}, attempt {attempt}",
        "level",
        "attempt",
    ),
    _reason(6071, "fence.waiting.readings", INFO, "reading back level {level}", "level"),
    _reason(
        6072,
        "fence.waiting.retry",
        ERROR,
        "all power devices failed {rounds} times; again in {pause_ms} ms",
        "rounds",
        "pause_ms",
    ),
    _reason(6073, "fence.waiting.former_orders", INFO, "a former leader's orders may still arrive"),
    # 6090: how a power device failed
    _reason(6090, "power.failed", ERROR, "the device refused or failed"),
    _reason(6091, "power.no_answer", ERROR, "the device did not answer"),
    _reason(6092, "power.still_on", ERROR, "the device took the order, and the host stayed on"),
    # 6100: why readings *off* prove nothing
    _reason(
        6100, "proof.blocked.contradicted", ERROR, "the host gave a sign after it was read as off"
    ),
    _reason(6101, "proof.blocked.no_status", ERROR, "{device} can't tell its state", "device"),
    _reason(
        6102,
        "proof.blocked.untested",
        ERROR,
        "{device} neither names its host nor passed a power test",
        "device",
        help="Test it while the host is up.",
    ),
    _reason(
        6103,
        "proof.blocked.swapped",
        ERROR,
        "{other} fell silent at the same moment, and the device does not name its host",
        "other",
        help="Their power devices may be swapped.",
    ),
    _reason(
        6104,
        "proof.blocked.disks_change",
        ERROR,
        "disks of its VMs changed {quiet_ms} ms ago, after it was read as off",
        "quiet_ms",
    ),
    _reason(
        6105,
        "proof.waiting.others",
        INFO,
        "{other} must give a sign first: the device does not name its host",
        "other",
    ),
    _reason(6120, "confirm.refused.other_incident", WARNING, "it is about another failure or boot"),
    _reason(6121, "confirm.refused.proven_already", INFO, "it is proven dead already"),
    _reason(6122, "confirm.refused.life_seen", ERROR, "a witness saw it alive within a minute"),
    _reason(6123, "confirm.refused.power_on", ERROR, "its power device says on"),
    # 6150: why a VM is not started yet
    _reason(
        6150,
        "recovery.waiting.proof",
        WARNING,
        "waits for proof that {hosts} can't run it any more",
        "hosts",
    ),
    _reason(6151, "recovery.waiting.delay", INFO, "next attempt in {delay_ms} ms", "delay_ms"),
    _reason(
        6152,
        "recovery.waiting.inventory",
        WARNING,
        "waits until {hosts} told what they run",
        "hosts",
    ),
    _reason(
        6153, "recovery.waiting.cancel", WARNING, "{host} must give its start back first", "host"
    ),
    _reason(6154, "recovery.starting", INFO, "is being started on {host}", "host"),
    _reason(6160, "recovery.blocked.hold", WARNING, "automatic action is on hold: {why}", "why"),
    _reason(
        6161,
        "recovery.blocked.grade",
        WARNING,
        "the grade of permission is `{grade}`; starting elsewhere needs `move`",
        "grade",
    ),
    _reason(
        6162,
        "recovery.blocked.quarantine",
        ERROR,
        "two hosts died within the hour with it on them",
        help="If it is not what kills them, free it.",
    ),
    _reason(
        6163,
        "recovery.blocked.attempts",
        ERROR,
        "{count} starts failed, which is the limit",
        "count",
    ),
    _reason(6170, "start.failed", ERROR, "the host could not start it"),
    _reason(6171, "start.cancelled", WARNING, "its start was taken back"),
)
