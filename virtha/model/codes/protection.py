"""Is a VM protected? One reason each, as `virtha status` shows them."""

from virtha.model.codes.entry import Code, Severity, reason

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

PROTECTION_REASONS: tuple[Code, ...] = (
    reason(5600, "protection.ok", INFO, "protected"),
    reason(
        5601,
        "protection.no_ha",
        INFO,
        "not marked as highly available",
        help="If it is to come back by itself: virtha vm edit NAME --ha.",
    ),
    reason(
        5602,
        "protection.agent_down",
        WARNING,
        "the agent of its host is down",
        help="Start it there: systemctl start virtha-agent; its log says why it ended.",
    ),
    reason(
        5603,
        "protection.host_unreachable",
        ERROR,
        "its host does not answer",
        help="virtha host show HOST says what is known of it and what is waited for.",
    ),
    reason(
        5604,
        "protection.hold",
        WARNING,
        "automatic action is on hold",
        help="Let it run again: virtha unhold.",
    ),
    reason(
        5605,
        "protection.exhausted",
        ERROR,
        "its restarts are used up",
        help="Find out why it keeps failing, then start it: virtha vm start NAME.",
    ),
    reason(
        5606,
        "protection.no_watchdog",
        WARNING,
        "it has no watchdog; a hung guest is not noticed",
        help="Give it one: virtha vm edit NAME --watchdog i6300esb:reset; something in the guest must feed it.",
    ),
    reason(
        5607,
        "protection.gate",
        ERROR,
        "the start gate of its host is not in force",
        help="On the host: virtha agent check says why; virtha agent install-gate writes it anew.",
    ),
    reason(
        5608,
        "protection.single_host",
        WARNING,
        "no other host could take it",
        help="virtha doctor names what other hosts lack; an adopted VM's definition is on its own host only.",
    ),
    reason(
        5610,
        "protection.policy",
        WARNING,
        "its cluster's policy has restarts turned off",
        help="Set restart.enabled and restart.restarts_max: virtha policy set.",
    ),
    reason(
        5611,
        "protection.not_running",
        ERROR,
        "it should run but does not",
        help="virtha vm show NAME says why; or start it: virtha vm start NAME.",
    ),
    reason(
        5612,
        "protection.ignored",
        WARNING,
        "its grade takes it out of all automatic action: it is watched, and nothing is done",
        help="virtha vm edit VM --grade, and for its whole cluster recovery.grade: virtha policy set.",
    ),
    reason(
        5613,
        "protection.grade",
        WARNING,
        "its grade is `{grade}`: it is restarted on its host after a crash, and nowhere after its host has failed",
        "grade",
        help="If it is to come back then, too: virtha vm edit VM --grade, and for its whole cluster recovery.grade: virtha policy set.",
    ),
    reason(
        5609,
        "protection.libvirt",
        ERROR,
        "libvirt of its host does not answer",
        help="On the host: systemctl status libvirtd, then virtha agent check.",
    ),
)
