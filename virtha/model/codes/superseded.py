"""A host that was proven dead and lives (G4): events 3126 to 3128, reasons 6180 to 6182."""

from virtha.model.codes.entry import Code, Severity, event, reason

WARNING, ERROR, ALERT = Severity.WARNING, Severity.ERROR, Severity.ALERT

SUPERSEDED_EVENTS: tuple[Code, ...] = (
    event(
        3126,
        "vm.superseded_copy_lives",
        ALERT,
        "{vm} may run on {host} (incarnation {incarnation}), which was proven dead: it was started elsewhere (incarnation {newer})",
        "vm",
        "host",
        "incarnation",
        "newer",
        help="Both may have written to its disks. The older copy is ended as soon as its host can be reached; then check the "
        "guest's file systems. Find out why the proof was wrong before anything else.",
    ),
    event(
        3127,
        "vm.superseded_copy_ended",
        WARNING,
        "The older copy of {vm} on {host} (incarnation {incarnation}) is over",
        "vm",
        "host",
        "incarnation",
        help="Check the file systems in {vm}: two copies may have written to its disks.",
    ),
    event(
        3128,
        "vm.lives_after_all",
        WARNING,
        "{vm} may run on {host}, which was proven dead and lives: by that proof it was started nowhere else",
        "vm",
        "host",
    ),
)

SUPERSEDED_REASONS: tuple[Code, ...] = (
    reason(
        6180,
        "superseded.ending",
        WARNING,
        "{host} is told to end its older copy (incarnation {incarnation})",
        "host",
        "incarnation",
    ),
    reason(
        6181,
        "superseded.unreachable",
        ERROR,
        "{host} may run an older copy (incarnation {incarnation}), and can't be told to end it",
        "host",
        "incarnation",
        help="Switch that host off by hand, or reach it: until its agent is connected or it boots anew nothing else is done with this VM.",
    ),
    reason(
        6182,
        "superseded.held",
        ERROR,
        "{host} may run an older copy (incarnation {incarnation}); automatic action is held, so it is left as it is",
        "host",
        "incarnation",
        help="Lift the hold (or let virtha act on this VM again): it is ended then. Or end it on that host by hand.",
    ),
)
