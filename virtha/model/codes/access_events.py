"""Events of users, roles, sessions and whoever vouches for people. Numbers 1200 to 1299."""

from virtha.model.codes.entry import Code, Severity, event

INFO, WARNING = Severity.INFO, Severity.WARNING


ACCESS_EVENTS: tuple[Code, ...] = (
    event(1200, "user.signed_in", INFO, "{user} signed in", "user"),
    event(1201, "user.sign_in_failed", WARNING, "Sign-in as {user} failed", "user"),
    event(
        1202, "user.created", INFO, "User {user} created with role {role}", "user", "role", "after"
    ),
    event(1203, "user.changed", INFO, "User {user} changed", "user", "before", "after", "password"),
    event(1204, "user.deleted", INFO, "User {user} deleted", "user", "before"),
    event(
        1205, "token.created", INFO, "Join token created for cluster {cluster}", "cluster", "after"
    ),
    event(1206, "join.refused", WARNING, "A host was refused at joining: {reason}", "reason"),
    event(1207, "token.deleted", INFO, "Token {token} deleted", "token", "before"),
    event(
        1210,
        "user.locked_out",
        WARNING,
        "Sign-ins as {user} from {address} failed too often: no more for a minute",
        "user",
        "address",
        help="Ask the user whether that was them. It ends by itself; 'virtha user unlock USER' ends it at once.",
    ),
    event(1211, "user.unlocked", INFO, "{user} may sign in again", "user"),
    event(1212, "role.created", INFO, "Role {role} created", "role", "after"),
    event(1213, "role.changed", INFO, "Role {role} changed", "role", "before", "after"),
    event(1214, "role.deleted", INFO, "Role {role} deleted", "role", "before"),
    event(
        1215, "user.granted", INFO, "{user} has the role {role} in {where}", "user", "role", "where"
    ),
    event(
        1216,
        "user.revoked",
        INFO,
        "{user} has the role {role} no more in {where}",
        "user",
        "role",
        "where",
    ),
    event(
        1217,
        "session.ended",
        INFO,
        "A session of {user} was ended ({description})",
        "user",
        "description",
    ),
    event(
        1218,
        "session.token_created",
        INFO,
        "{user} made an access token ({description}), good for {role} in {where}",
        "user",
        "description",
        "role",
        "where",
        "after",
    ),
    event(
        1219,
        "sign_in.address_limited",
        WARNING,
        "Sign-ins from {address} failed too often, as whomever: no more from there for a minute",
        "address",
        help="Somebody there may be trying many names. Where it is a proxy, name it in server.toml (proxies): then those behind it are told apart.",
    ),
    event(
        1290,
        "sign_in_provider.changed",
        INFO,
        "Sign-ins by {issuer} are set up",
        "issuer",
        "before",
        "after",
        "secrets_changed",
    ),
    event(
        1291,
        "sign_in_provider.removed",
        INFO,
        "Sign-ins by {issuer} are no more",
        "issuer",
        "before",
    ),
    event(
        1292,
        "sign_in_provider.refused",
        WARNING,
        "A sign-in by {issuer} failed: {why}",
        "issuer",
        "why",
    ),
)
