"""Problems: errors that API and CLI return (RFC 9457 types). Numbers 8000 to 9499."""

from virtha.model.codes.entry import Code, Kind, Severity


def _problem(number: int, name: str, template: str, *, help: str = "") -> Code:
    return Code(
        name=name,
        number=number,
        kind=Kind.PROBLEM,
        severity=Severity.ERROR,
        template=template,
        help=help,
    )


PROBLEMS: tuple[Code, ...] = (
    _problem(8000, "problem.failed", "It was tried and did not work"),
    _problem(8001, "problem.invalid", "The request is wrong"),
    _problem(8002, "problem.not_found", "No such thing"),
    _problem(8003, "problem.conflict", "It clashes with what is there"),
    _problem(8004, "problem.stale", "It was changed by somebody else in the meantime"),
    _problem(8005, "problem.gone", "That revision is too old to be followed; load the list again"),
    _problem(8006, "problem.refused", "Policy or safety refuses it"),
    _problem(8007, "problem.unauthenticated", "Sign in first"),
    _problem(8008, "problem.forbidden", "Your role may not do that"),
    _problem(8009, "problem.unavailable", "It can't be reached now"),
    _problem(8010, "problem.unknown_field", "There is no such field"),
    _problem(8011, "problem.too_large", "The request is too large"),
    _problem(8012, "problem.method", "That method is not allowed here"),
    _problem(8020, "problem.name_taken", "The name is taken"),
    _problem(8021, "problem.watchdog.second", "A VM has at most one watchdog"),
    _problem(8022, "problem.watchdog.model", "The watchdog model does not fit"),
    _problem(8023, "problem.watchdog.action", "The watchdog action is missing or unknown"),
    _problem(8024, "problem.disk.outside", "The disk's path is outside its storage domain"),
    _problem(8025, "problem.disk.in_use", "The disk belongs to another VM"),
    _problem(8026, "problem.memory.beyond", "No host has that much memory"),
    _problem(8027, "problem.no_host_fits", "No host can take it"),
    _problem(8028, "problem.vm.state", "Not possible in the VM's present state"),
    _problem(8029, "problem.host.busy", "The host still has VMs"),
    _problem(8030, "problem.database.locked", "The database is locked by another program"),
    _problem(8031, "problem.disk.full", "No space left on the disk"),
    _problem(8032, "problem.schema.newer", "The database was made by a newer version"),
    _problem(8033, "problem.journal.foreign", "It is no journal of an engine"),
    _problem(8034, "problem.journal.newer", "The journal was written by a newer version"),
    _problem(8035, "problem.journal.damaged", "The journal is damaged or cut short"),
    _problem(8036, "problem.journal.differs", "This version decides differently"),
    _problem(8040, "problem.password.wrong", "User name or password is wrong"),
    _problem(8041, "problem.token.unknown", "The token is unknown"),
    _problem(8042, "problem.token.expired", "The token has expired"),
    _problem(8043, "problem.token.used", "The token was used already"),
    _problem(8044, "problem.authority.wrong", "The server's authority is not the one in the token"),
    _problem(8045, "problem.sign_in.limited", "Too many failed sign-ins"),
    _problem(8046, "problem.operation.open", "Another operation on it is under way"),
    _problem(8047, "problem.administrator.last", "The last administrator must stay"),
    _problem(8048, "problem.mac.in_use", "The MAC address belongs to another VM"),
    _problem(8055, "problem.console.busy", "The console is in use"),
    _problem(8060, "wire.refused.version", "The peer speaks another major version"),
    _problem(
        8061, "wire.refused.certificate", "The certificate is not of this installation's authority"
    ),
    _problem(8062, "wire.refused.frame_size", "A frame is larger than allowed"),
    _problem(8063, "wire.refused.message", "An unknown message type"),
    _problem(8064, "wire.refused.malformed", "A frame can't be decoded"),
    _problem(8065, "wire.refused.sequence", "A sequence number goes backwards or leaves a gap"),
    _problem(8066, "wire.refused.identity", "The hello names another host than its certificate"),
    _problem(8067, "wire.refused.revoked", "The certificate was revoked"),
    _problem(8068, "wire.refused.unexpected", "A message that is not allowed in this state"),
    _problem(8069, "wire.closed.silent", "The peer fell silent"),
    _problem(8070, "wire.closed.replaced", "A newer session of the same host took over"),
    _problem(8071, "wire.closed.shutdown", "The peer is shutting down"),
    _problem(8072, "wire.closed.overload", "The peer does not read its messages"),
    _problem(8073, "wire.refused.term", "The server's term is older than one seen before"),
    _problem(8074, "wire.refused.instance", "Another server instance is live for this host"),
    _problem(8075, "wire.refused.unavailable", "The server can't take sessions at present"),
    _problem(8076, "wire.closed.lost", "The connection broke"),
    _problem(8077, "wire.closed.unreachable", "No connection could be made"),
    _problem(
        8078, "wire.refused.overtaken", "Another boot of the host was heard first: connect again"
    ),
    _problem(8079, "wire.closed.finished", "The channel was ended by who used it"),
)
