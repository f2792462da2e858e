"""Events about notifications, and the reasons that the queue itself gives. Events 1100 to 1199, reasons 7700 to 7799.

None of these events goes through the receiver that it is about: what can't be told there would be told
there for ever (``alerts/match.py``).
"""

from virtha.model.codes.entry import Code, Severity, event, reason

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

NOTIFICATION_EVENTS: tuple[Code, ...] = (
    event(
        1100,
        "notify.receiver.created",
        INFO,
        "Receiver {receiver} ({kind}) created",
        "receiver",
        "receiver_id",
        "kind",
    ),
    event(
        1101,
        "notify.receiver.changed",
        INFO,
        "Receiver {receiver} changed",
        "receiver",
        "receiver_id",
    ),
    event(
        1102,
        "notify.receiver.removed",
        INFO,
        "Receiver {receiver} removed",
        "receiver",
        "receiver_id",
    ),
    event(
        1103,
        "notify.subscription.created",
        INFO,
        "Subscription {subscription} to receiver {receiver} created",
        "subscription",
        "receiver",
        "receiver_id",
    ),
    event(
        1104,
        "notify.subscription.changed",
        INFO,
        "Subscription {subscription} to receiver {receiver} changed",
        "subscription",
        "receiver",
        "receiver_id",
    ),
    event(
        1105,
        "notify.subscription.removed",
        INFO,
        "Subscription {subscription} to receiver {receiver} removed",
        "subscription",
        "receiver",
        "receiver_id",
    ),
    event(
        1110,
        "notify.test_asked",
        INFO,
        "Test of receiver {receiver}: nothing happened, somebody wants to know whether this arrives",
        "receiver",
        "receiver_id",
        help="Nothing to do. Asked for by 'virtha notify test'.",
    ),
    event(
        1111,
        "notify.receiver_away",
        ERROR,
        "Receiver {receiver} can't be reached, its messages wait: {reason}",
        "receiver",
        "receiver_id",
        "reason",
        "detail",
        help="Told once. 'virtha notify receiver show' has its own words; messages wait until they expire "
        "(setting notification.expiry).",
    ),
    event(
        1112,
        "notify.receiver_back",
        INFO,
        "Receiver {receiver} takes messages again; away for {away_ms} ms",
        "receiver",
        "receiver_id",
        "away_ms",
    ),
    event(
        1113,
        "notify.refused",
        WARNING,
        "Receiver {receiver} refused the message about {event_code} for good: {reason}",
        "receiver",
        "receiver_id",
        "delivery",
        "event_code",
        "reason",
        "detail",
        help="'virtha notify show' has the receiver's words. Mend the cause, then 'virtha notify retry'.",
    ),
    event(
        1114,
        "notify.expired",
        ERROR,
        "{count} messages to receiver {receiver} expired undelivered",
        "receiver",
        "receiver_id",
        "count",
        help="'virtha notify list --state expired' shows them; 'virtha notify retry' sends one all the same.",
    ),
    event(
        1115,
        "notify.secrets_unreadable",
        ERROR,
        "The receivers' secrets can't be read: {detail}",
        "detail",
        help="Restore secrets.key from a backup of this installation and restart the server; without one: "
        "'virtha server new-secrets-key', restart, and give each receiver its secrets anew.",
    ),
    event(
        1116,
        "notify.silence.set",
        WARNING,
        "{user} silenced notifications until {until}: {reason}",
        "user",
        "until",
        "reason",
        "silence",
    ),
    event(
        1117,
        "notify.silence.ended",
        INFO,
        "{user} ended a silence ({reason}) before its time",
        "user",
        "reason",
        "silence",
    ),
    event(
        1118,
        "notify.inhibition.created",
        INFO,
        "Rule of inhibition {inhibition} created",
        "inhibition",
    ),
    event(
        1119,
        "notify.inhibition.removed",
        INFO,
        "Rule of inhibition {inhibition} removed",
        "inhibition",
    ),
    event(
        1120,
        "notify.record_unreadable",
        ERROR,
        "The record of {kind} {name} can't be read: messages go out without what it says",
        "kind",
        "name",
        help="A later version wrote it, or it was damaged. Run the version that wrote it, restore a backup, or remove "
        "and add it anew; the server's log has the record's fault.",
    ),
)

QUEUE_REASONS: tuple[Code, ...] = (
    reason(
        7700,
        "notify.queue.expired",
        ERROR,
        "could not be delivered before it expired (setting notification.expiry)",
    ),
    reason(7701, "notify.queue.event_gone", WARNING, "its event is no longer kept"),
    reason(
        7702, "notify.queue.dropped", INFO, "its subscription or receiver is gone or switched off"
    ),
    reason(
        7703,
        "notify.queue.no_address",
        WARNING,
        "its user has no e-mail address",
        help="Give the user one: virtha user edit USER --email ADDRESS; then 'virtha notify retry'.",
    ),
    reason(
        7704,
        "notify.queue.deadline",
        WARNING,
        "no answer within the deadline",
        help="The receiver is slow, or a firewall swallows what is sent (setting notification.deadline).",
    ),
    reason(
        7705,
        "notify.queue.failed",
        ERROR,
        "an error inside the server; its log has more",
    ),
    reason(
        7706,
        "notify.queue.secrets",
        ERROR,
        "the receiver's secrets can't be read",
        help="See notify.secrets_unreadable.",
    ),
)
