"""What the record of an incident says beside the events of the log: reasons 6300 to 6339."""

from virtha.model.codes.entry import Code, Severity, reason

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

INCIDENT_REASONS: tuple[Code, ...] = (
    # 6300: the host
    reason(6300, "incident.last_sign", INFO, "last direct sign of life of {host}", "host"),
    reason(6301, "incident.opened", WARNING, "the engine holds {host} for dead", "host"),
    reason(
        6302,
        "incident.host_removed",
        INFO,
        "{host} is not configured any more, and its VMs wait for it no longer",
        "host",
    ),
    reason(6303, "incident.ended", INFO, "the engine's dealings with this failure ended"),
    reason(6304, "incident.closed", INFO, "closed: nothing of it is open any more"),
    # 6310: its proof
    reason(
        6310,
        "incident.fence.intended",
        WARNING,
        "{action} at level {level}, attempt {attempt}, is on record, and goes out now: {devices}",
        "action",
        "level",
        "attempt",
        "devices",
        "order",
        "known_off",
    ),
    reason(
        6311,
        "incident.fence.sent",
        WARNING,
        "order handed to the power device {device}: {action}",
        "device",
        "action",
        "order",
    ),
    reason(
        6312,
        "incident.fence.accepted",
        INFO,
        "power device {device} took the order, which proves nothing yet",
        "device",
    ),
    reason(
        6313,
        "incident.fence.read_off",
        INFO,
        "power device {device} reads off, for the first time since",
        "device",
    ),
    reason(
        6314,
        "incident.fence.confirmed",
        INFO,
        "power device {device} reads off a second time",
        "device",
    ),
    reason(
        6315,
        "incident.fence.reading_lost",
        WARNING,
        "the reading *off* of power device {device} counts no more",
        "device",
    ),
    reason(
        6316, "incident.fence.on_taken", INFO, "the order to switch {host} on was taken", "host"
    ),
    reason(6317, "incident.poisoned", WARNING, "its slots are poisoned: its lease runs out"),
    reason(6318, "incident.storage_fenced", WARNING, "it is to be shut out of its storage"),
    reason(
        6319,
        "incident.proof",
        INFO,
        "one more proof that it is dead: {proof} ({detail})",
        "proof",
        "detail",
    ),
    # 6330: its VMs
    reason(6330, "incident.vm.lost", WARNING, "{vm} is lost with {host}", "vm", "host"),
    reason(6331, "incident.vm.ready", INFO, "nobody can hold {vm} any more: it may start", "vm"),
    reason(
        6332,
        "incident.vm.unharmed",
        INFO,
        "{vm} was not lost: it is where it was, or moves on",
        "vm",
    ),
    reason(6333, "incident.vm.found", WARNING, "{vm} is held by a host that nobody ordered", "vm"),
    reason(
        6334,
        "incident.vm.stays_down",
        WARNING,
        "{vm} is not started: it was ended there on purpose, or is not to be recovered",
        "vm",
    ),
    reason(6335, "incident.vm.deleted", INFO, "{vm} was deleted", "vm"),
)
