"""What becomes of an event at a route: why it was told, waits, or was not told. Reasons 7200 to 7299.

``notify.why.*`` are fates of events (``virtha notify why``), ``notify.told.*`` say why a message goes out now,
``notify.route.*`` what is remarkable about a route.
"""

from virtha.model.codes.entry import Code, Severity, reason

INFO, WARNING = Severity.INFO, Severity.WARNING

ROUTING_REASONS: tuple[Code, ...] = (
    reason(7200, "notify.why.told", INFO, "went out in a message"),
    reason(
        7201, "notify.why.waits", INFO, "waits for what belongs to it; then one message tells all"
    ),
    reason(7202, "notify.why.quiet_hours", INFO, "waits for the end of the route's quiet hours"),
    reason(
        7203,
        "notify.why.silenced",
        INFO,
        "a silence fits; it is told if it is not over when the silence ends",
        help="'virtha notify silence show' says who set it and why; 'virtha notify silence end' ends it.",
    ),
    reason(
        7204,
        "notify.why.silenced_for_good",
        INFO,
        "a silence fitted, and it has no end to wait for",
    ),
    reason(
        7205,
        "notify.why.inhibited",
        INFO,
        "this route told of a problem that explains it; it is told if it outlasts that",
        help="'virtha notify inhibition list' shows the rules.",
    ),
    reason(
        7206,
        "notify.why.inhibited_for_good",
        INFO,
        "this route told of a problem that explains it, and it has no end to wait for",
    ),
    reason(7207, "notify.why.same_again", INFO, "this route told the same a short while before"),
    reason(7208, "notify.why.solved_untold", INFO, "it was over before it might be told"),
    reason(
        7209,
        "notify.why.counted",
        INFO,
        "its group has more events than are kept: the message tells how many",
    ),
    reason(
        7210, "notify.why.dropped", INFO, "its route was removed or switched off while it waited"
    ),
    reason(
        7211,
        "notify.why.told_plainly",
        WARNING,
        "went out by itself, whatever the route says: routing failed inside the server",
        help="A fault of virtha's own; the server's log has it. Report it.",
    ),
    reason(7220, "notify.why.not_looked_at", INFO, "the routes have not come to it yet"),
    reason(
        7221, "notify.why.switched_off", INFO, "the route, its receiver or its user is switched off"
    ),
    reason(7222, "notify.why.before", INFO, "it happened before the route began"),
    reason(7223, "notify.why.severity", INFO, "it is less severe than the route wants"),
    reason(7224, "notify.why.code", INFO, "the route does not want its code"),
    reason(7225, "notify.why.cluster", INFO, "the route is about another cluster"),
    reason(7226, "notify.why.host", INFO, "the route is about another host"),
    reason(7227, "notify.why.vm", INFO, "the route is about another VM"),
    reason(7228, "notify.why.label", INFO, "a label of it differs from what the route wants"),
    reason(7229, "notify.why.own", INFO, "it is about the very receiver that the route leads to"),
    reason(
        7230,
        "notify.why.forgotten",
        INFO,
        "the route wants such events; what became of this one is no longer known",
        help="Kept for as long as setting notification.retention says.",
    ),
    reason(
        7231,
        "notify.why.unseen",
        INFO,
        "the route leads to a user who may not see that cluster",
        help="'virtha user grants USER' shows what they see; or let the route lead to an address.",
    ),
    reason(7240, "notify.told.alone", INFO, "the route tells each event by itself"),
    reason(7241, "notify.told.first", INFO, "the first message of its group"),
    reason(7242, "notify.told.more", INFO, "more came since the last message of its group"),
    reason(7243, "notify.told.worse", INFO, "something worse than all that was told came"),
    reason(7244, "notify.told.well", INFO, "all problems of its group are over"),
    reason(7245, "notify.told.repeat", INFO, "problems of its group still go on"),
    reason(
        7250,
        "notify.route.matches_nothing",
        WARNING,
        "none of the last {events} events would have gone this way",
        "events",
        help="Look whether codes, severity and subject are meant so: 'virtha notify why EVENT' says of one event why "
        "it does not go this way.",
    ),
    reason(
        7251,
        "notify.route.matches_everything",
        WARNING,
        "it matches every event: {messages} messages for the last {events} events, about {per_day} a day",
        "events",
        "messages",
        "per_day",
        help="Set --severity, --code, or group the events (--group cause).",
    ),
    reason(
        7252,
        "notify.route.weight",
        INFO,
        "{matched} of the last {events} events, {messages} messages, about {per_day} a day",
        "events",
        "matched",
        "messages",
        "per_day",
    ),
)
