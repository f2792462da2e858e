"""How an attempt to tell somebody ended: reasons 7800 to 7899, one for each receipt of a receiver."""

from virtha.model.codes.entry import Code, Severity, reason

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


NOTIFICATION_REASONS: tuple[Code, ...] = (
    reason(7800, "notify.accepted", INFO, "the receiver accepted it"),
    reason(
        7801,
        "notify.sent",
        INFO,
        "sent; nobody acknowledges a trap, so nobody knows whether it came",
        help="Informs are acknowledged, and repeated until they came.",
    ),
    # 7810: the way to the receiver, whatever it is
    reason(
        7810,
        "notify.unresolved",
        WARNING,
        "the receiver's name has no address",
        help="Check the receiver's host name and the server's DNS.",
    ),
    reason(
        7811,
        "notify.unreachable",
        WARNING,
        "the receiver can't be reached",
        help="Check its address and port, whether it runs, and the firewalls between.",
    ),
    reason(
        7812,
        "notify.no_answer",
        WARNING,
        "the receiver gave no complete answer in time",
        help="Check whether it hangs, or whether a firewall drops what is sent. SNMP managers do not answer a wrong "
        "community or privacy password at all.",
    ),
    reason(
        7813,
        "notify.connection_lost",
        WARNING,
        "the receiver ended the connection without an answer",
        help="Its own log says why.",
    ),
    reason(
        7814,
        "notify.certificate",
        WARNING,
        "the receiver's certificate is not trusted",
        help="Check that it is valid, is made for the name that the receiver is reached by, and that its authority is "
        "known: the system's, or the one given with the receiver.",
    ),
    reason(
        7815,
        "notify.tls_failed",
        WARNING,
        "no encrypted connection came about",
        help="Check that the port speaks TLS from the first byte (587 usually wants starttls, 465 tls) and that the "
        "receiver knows TLS 1.2 or newer.",
    ),
    reason(
        7816,
        "notify.sign_in_refused",
        WARNING,
        "the receiver refused our user or password",
        help="Set the receiver's user and password anew, then run: virtha notify test.",
    ),
    reason(
        7817,
        "notify.unusable_settings",
        WARNING,
        "the receiver's settings can't be used",
        help="The detail names the field. Set it anew, then run: virtha notify test.",
    ),
    reason(
        7818,
        "notify.not_its_protocol",
        WARNING,
        "what answers there does not speak the receiver's protocol",
        help="Check host and port.",
    ),
    reason(
        7819,
        "notify.busy",
        WARNING,
        "the receiver takes nothing at the moment",
        help="It asked for a pause: too much was sent, or it is being maintained.",
    ),
    # 7830: mail
    reason(
        7830,
        "notify.mail.no_starttls",
        WARNING,
        "the mail server offers no STARTTLS, and without it nothing is sent",
        help="Enable TLS there, or set the receiver's security to tls, or to none if the way to it is trusted.",
    ),
    reason(
        7831,
        "notify.mail.no_sign_in",
        WARNING,
        "the mail server offers no sign-in that is known here",
        help="Known are CRAM-MD5, PLAIN and LOGIN. Many servers offer it on port 587 or 465 only.",
    ),
    reason(
        7832,
        "notify.mail.sender_refused",
        WARNING,
        "the mail server refused the sender",
        help="Set a sender that it accepts mail from.",
    ),
    reason(
        7833,
        "notify.mail.recipient_refused",
        ERROR,
        "the mail server refused the recipient",
        help="Check the address of the subscription or of the user.",
    ),
    reason(
        7834,
        "notify.mail.recipient_later",
        WARNING,
        "the mail server does not take mail for the recipient yet",
        help="Greylisting or a full mailbox. It is tried again.",
    ),
    reason(
        7835,
        "notify.mail.refused",
        ERROR,
        "the mail server refused the mail",
        help="Its words are in the detail; often a filter for spam or size.",
    ),
    reason(
        7836,
        "notify.mail.later",
        WARNING,
        "the mail server does not take this mail yet",
        help="Its words are in the detail. It is tried again.",
    ),
    reason(
        7837,
        "notify.mail.acceptance_unknown",
        WARNING,
        "the connection ended while the mail went over: it may have been accepted",
        help="It is sent again under the same Message-ID; mailboxes that look at it show it once.",
    ),
    reason(
        7838,
        "notify.mail.address_unusable",
        ERROR,
        "that is no address that mail can be sent to",
        help="Correct the address of the subscription or of the user.",
    ),
    # 7850: SNMP
    reason(
        7850,
        "notify.snmp.unknown_user",
        WARNING,
        "the SNMP manager does not know our user",
        help="Create the user there (snmptrapd: createUser and authUser), or set the receiver's user.",
    ),
    reason(
        7851,
        "notify.snmp.wrong_keys",
        WARNING,
        "the SNMP manager could not check or decrypt what was sent",
        help="Both passwords and both algorithms must be the same on both sides.",
    ),
    reason(
        7852,
        "notify.snmp.refused",
        ERROR,
        "the SNMP manager answered with an error",
        help="Its words are in the detail.",
    ),
    reason(
        7853,
        "notify.snmp.clock",
        WARNING,
        "the SNMP manager says that the message is outside of its time window",
        help="Tried again, it is sent with the manager's own time. If it stays, restart the manager.",
    ),
    # 7870: webhooks
    reason(
        7870,
        "notify.webhook.address_forbidden",
        WARNING,
        "the URL leads to a loopback, link-local, private or otherwise reserved address",
        help="If that is meant, allow private addresses for this receiver.",
    ),
    reason(
        7871,
        "notify.webhook.redirected",
        WARNING,
        "the receiver sends us to another URL, and redirects are not followed",
        help="Set the receiver's URL to the final one.",
    ),
    reason(
        7872,
        "notify.webhook.refused",
        ERROR,
        "the receiver refused it",
        help="Status and answer are in the detail. 401 and 403: check the secret on both sides; 404: check the URL.",
    ),
    reason(
        7873,
        "notify.webhook.later",
        WARNING,
        "the receiver could not handle it",
        help="Status and answer are in the detail. It is tried again.",
    ),
)
