"""What a receiver's settings, secrets and addresses may be; every error names the field and the fix."""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from cryptography import x509

from virtha.alerts.addresses import forbidden_address
from virtha.model.errors import InvalidInput
from virtha.model.notification import (
    SECRET_NAMES,
    AlertmanagerSettings,
    MailSecurity,
    MailSettings,
    ReceiverSettings,
    SnmpAuthentication,
    SnmpPrivacy,
    SnmpSettings,
    SnmpVersion,
    WebhookSettings,
)
from virtha.model.own_addresses import is_own_name
from virtha.model.time import format_duration_ms

ADDRESS_LENGTH_MAX = 254
"""RFC 5321, erratum 1690."""
LOCAL_PART_LENGTH_MAX = 64
URL_LENGTH_MAX = 2_000
USER_LENGTH_MAX = 255
SNMP_USER_LENGTH_MAX = 32
"""RFC 3414: usmUserName."""
SNMP_PASSWORD_LENGTH_MIN = 8
"""RFC 3414, 11.2."""
SECRET_LENGTH_MAX = 1_000
PEM_LENGTH_MAX = 200_000
_RESOLVE_AFTER_MS = (600_000, 90 * 86_400_000)
_HOST_LENGTH_MAX = 253
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# The dot-atom of RFC 5322, and letters beyond ASCII (RFC 6531). No quoted strings: nobody has such an
# address, and they may hold line breaks.
_LOCAL_PART = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*")


def kind_of(settings: ReceiverSettings) -> str:
    """``mail``, ``snmp``, ``webhook`` or ``alertmanager``."""
    return str(type(settings).__struct_config__.tag)


def check_address(text: str, *, field: str) -> str:
    """An e-mail address, bare. Raises InvalidInput."""
    example = "write for example operators@example.org"
    if any(not one.isprintable() for one in text):
        # First of all: whatever follows would print it.
        raise InvalidInput(
            "holds a line break or another control character",
            field=field,
            fix=f"one address, in one line: {example}",
        )
    if len(text) > ADDRESS_LENGTH_MAX:
        raise InvalidInput(
            f"has {len(text)} characters", field=field, allowed=(f"at most {ADDRESS_LENGTH_MAX}",)
        )
    local, at, domain = text.rpartition("@")
    if not at:
        raise InvalidInput(f"'{text}' has no @", field=field, fix=example)
    if not _LOCAL_PART.fullmatch(local) or len(local.encode()) > LOCAL_PART_LENGTH_MAX:
        raise InvalidInput(
            f"'{text}' is no e-mail address: '{local}' can't stand before the @",
            field=field,
            fix=f"one bare address, without a name or spaces: {example}",
        )
    if not _is_host_name(domain) and not _is_bracketed_address(domain):
        raise InvalidInput(
            f"'{text}' is no e-mail address: '{domain}' is no domain", field=field, fix=example
        )
    return text


def check_settings(settings: ReceiverSettings) -> None:
    """Raises InvalidInput (field ``settings.…``)."""
    match settings:
        case MailSettings():
            _check_mail(settings)
        case SnmpSettings():
            _check_snmp(settings)
        case WebhookSettings():
            _check_url(settings, "write for example https://hooks.example.org/virtha")
        case AlertmanagerSettings():
            _check_alertmanager(settings)


def check_secrets(settings: ReceiverSettings, secrets: Mapping[str, str]) -> None:
    """Whether those that are set fit the settings. Raises InvalidInput (field ``secrets.…``)."""
    kind = kind_of(settings)
    allowed = SECRET_NAMES[kind]
    for name, secret in secrets.items():
        if name not in allowed:
            raise InvalidInput(
                f"a receiver of type {kind} has no such secret",
                code="problem.unknown_field",
                field=f"secrets.{name[:50]}",
                allowed=allowed,
            )
        _check_secret(name, secret)
    needed = _needed_secrets(settings)
    for name, why in needed.items():
        if name not in secrets:
            raise InvalidInput(f"is missing: {why}", field=f"secrets.{name}", fix="give it")
    if isinstance(settings, AlertmanagerSettings):
        _check_alertmanager_secrets(settings, secrets)
    for name in secrets:
        if name not in needed and kind != "webhook" and name != "token":
            raise InvalidInput(
                f"is not used: {_UNUSED[name]}",
                field=f"secrets.{name}",
                fix="leave it out, or take it away (null)",
            )


def _check_alertmanager_secrets(settings: AlertmanagerSettings, secrets: Mapping[str, str]) -> None:
    if settings.user is not None and "token" in secrets:
        raise InvalidInput("excludes a user", field="secrets.token", fix="sign in with one of them")
    if secrets and not settings.url.lower().startswith("https://"):
        raise InvalidInput(
            "the password or token would cross the network in the clear",
            field="settings.url",
            allowed=("https://…",),
        )


_UNUSED = {
    "password": "there is no user to sign in with it",
    "community": "SNMP version 3 has none",
    "authentication_password": "there is no authentication",
    "privacy_password": "there is no privacy",
}


def _check_secret(name: str, secret: str) -> None:
    """What it is must be in no error."""
    field = f"secrets.{name}"
    if not secret:
        raise InvalidInput("is empty", field=field, fix="give it, or leave it out")
    if len(secret) > SECRET_LENGTH_MAX:
        raise InvalidInput("is too long", field=field, allowed=(f"at most {SECRET_LENGTH_MAX}",))
    if any(not one.isprintable() for one in secret):
        raise InvalidInput("holds control characters", field=field, fix="one line of text")
    if name == "token" and not secret.isascii():
        raise InvalidInput(
            "holds letters beyond ASCII, which no header can",
            field=field,
            fix="copy it anew from whoever gave it out",
        )
    if name == "token" and " " in secret:
        raise InvalidInput(
            "holds a space, which no token has (RFC 6750)",
            field=field,
            fix="copy it anew, without what is around it",
        )
    if name in ("authentication_password", "privacy_password") and (
        len(secret) < SNMP_PASSWORD_LENGTH_MIN
    ):
        raise InvalidInput(
            "is too short",
            field=field,
            allowed=(f"{SNMP_PASSWORD_LENGTH_MIN} to {SECRET_LENGTH_MAX} characters (RFC 3414)",),
        )


def _needed_secrets(settings: ReceiverSettings) -> dict[str, str]:
    """By name: what for."""
    match settings:
        case MailSettings():
            return {"password": f"user {settings.user} signs in"} if settings.user else {}
        case SnmpSettings(version=SnmpVersion.V2C):
            return {"community": "SNMP version 2c"}
        case SnmpSettings():
            needed = {}
            if settings.authentication is not SnmpAuthentication.NONE:
                needed["authentication_password"] = f"authentication {settings.authentication}"
            if settings.privacy is not SnmpPrivacy.NONE:
                needed["privacy_password"] = f"privacy {settings.privacy}"
            return needed
        case AlertmanagerSettings():
            return {"password": f"user {settings.user} signs in"} if settings.user else {}
        case WebhookSettings():
            return {}


def _check_mail(settings: MailSettings) -> None:
    check_host(settings.host, field="settings.host")
    _check_port(settings.port)
    check_address(settings.sender, field="settings.sender")
    if settings.reply_to is not None:
        check_address(settings.reply_to, field="settings.reply_to")
    if settings.user is not None:
        _check_user(settings.user, USER_LENGTH_MAX)
        if settings.security is MailSecurity.NONE:
            raise InvalidInput(
                "the password would cross the network in the clear",
                field="settings.security",
                allowed=(MailSecurity.STARTTLS.value, MailSecurity.TLS.value),
                fix="encrypt the connection, or send without a user",
            )
    check_pem(settings.authority_pem)


def _check_snmp(settings: SnmpSettings) -> None:
    check_host(settings.host, field="settings.host")
    _check_port(settings.port)
    if settings.version is SnmpVersion.V2C:
        if settings.user is not None:
            raise InvalidInput("version 2c has no user", field="settings.user", fix="leave it out")
    elif settings.user is None:
        raise InvalidInput("is missing", field="settings.user", fix="version 3 needs a user")
    else:
        _check_user(settings.user, SNMP_USER_LENGTH_MAX)
    if (
        settings.version is SnmpVersion.V3
        and settings.privacy is not SnmpPrivacy.NONE
        and settings.authentication is SnmpAuthentication.NONE
    ):
        raise InvalidInput(
            "privacy needs authentication (RFC 3414)",
            field="settings.authentication",
            allowed=tuple(one.value for one in SnmpAuthentication if one != "none"),
        )
    if settings.engine_id is not None and not re.fullmatch(
        r"(?:[0-9A-Fa-f]{2}){5,32}", settings.engine_id
    ):
        raise InvalidInput(
            f"'{settings.engine_id[:70]}' is no engine id",
            field="settings.engine_id",
            allowed=("10 to 64 hexadecimal digits, an even number of them",),
        )


def _check_alertmanager(settings: AlertmanagerSettings) -> None:
    _check_url(settings, "write for example https://alertmanager.example.org:9093")
    if settings.url.rstrip("/").endswith("/api/v2/alerts"):
        raise InvalidInput(
            "is the address of its API",
            field="settings.url",
            fix="leave out /api/v2/alerts: it is added",
        )
    if "?" in settings.url:
        raise InvalidInput("holds a query", field="settings.url", fix="leave out what follows ?")
    if settings.user is not None:
        _check_user(settings.user, USER_LENGTH_MAX)
        if ":" in settings.user:
            raise InvalidInput("holds a colon", field="settings.user", fix="HTTP allows none in it")
    least, most = _RESOLVE_AFTER_MS
    if not least <= settings.resolve_after_ms <= most:
        raise InvalidInput(
            f"{settings.resolve_after_ms} ms is out of range",
            field="settings.resolve_after_ms",
            allowed=(f"{format_duration_ms(least)} to {format_duration_ms(most)}",),
        )


def _check_url(settings: WebhookSettings | AlertmanagerSettings, example: str) -> None:
    field, url = "settings.url", settings.url
    if len(url) > URL_LENGTH_MAX:
        raise InvalidInput(
            f"has {len(url)} characters", field=field, allowed=(f"at most {URL_LENGTH_MAX}",)
        )
    if not url.isascii() or any(one.isspace() or not one.isprintable() for one in url):
        raise InvalidInput(
            "holds spaces, line breaks or letters beyond ASCII",
            field=field,
            fix="encode them (%20, punycode)",
        )
    # What may hold a password is not shown: this error may be logged.
    shown = "it" if "@" in url else f"'{url}'"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput(f"{shown} is no URL", field=field, fix=example) from None
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            "no user name or password in the URL: it is shown to every viewer",
            field=field,
            fix="use the secret, which signs each body"
            if isinstance(settings, WebhookSettings)
            else "give settings.user and the secret password, or the secret token",
        )
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise InvalidInput(
            f"{shown} can't be called",
            field=field,
            allowed=("https://…", "http://…"),
            fix=example,
        )
    if port == 0:
        raise InvalidInput("port 0 can't be reached", field=field, allowed=("1 to 65535",))
    if parts.fragment:
        raise InvalidInput("a fragment is never sent", field=field, fix="leave out what follows #")
    check_host(parts.hostname, field=field)
    if not settings.private_addresses:
        _refuse_private(parts.hostname, field=field)
    check_pem(settings.authority_pem)


def _refuse_private(host: str, *, field: str) -> None:
    """What can be told without asking anybody; what a name leads to is looked at when it is used."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        private = is_own_name(host)
    else:
        private = forbidden_address(address)
    if private:
        raise InvalidInput(
            f"{host} is a loopback, link-local or private address",
            field=field,
            fix="if that is meant, set private_addresses (--private-addresses)",
        )


def check_host(text: str, *, field: str) -> None:
    if not text:
        raise InvalidInput("is missing", field=field, fix="give a host name or an address")
    if _is_host_name(text) or _is_address(text):
        return
    shown = text[:100] if text.isprintable() else "it"
    raise InvalidInput(
        f"'{shown}' is no host name and no address",
        field=field,
        fix="write for example mail.example.org, 192.0.2.1 or 2001:db8::1, without scheme and port",
    )


def _is_host_name(text: str) -> bool:
    """Letters beyond ASCII as they are: IDNA is the driver's business."""
    try:
        plain = text.rstrip(".").encode("idna").decode()
    except UnicodeError:
        return False
    return len(plain) <= _HOST_LENGTH_MAX and all(
        _LABEL.fullmatch(label) for label in plain.split(".")
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_bracketed_address(text: str) -> bool:
    """``[192.0.2.1]`` after an @."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    return _is_address(text[1:-1].removeprefix("IPv6:"))


def _check_port(port: int) -> None:
    if not 1 <= port <= 65_535:
        raise InvalidInput(f"{port} is no port", field="settings.port", allowed=("1 to 65535",))


def _check_user(user: str, length_max: int) -> None:
    if not user or len(user) > length_max or not user.isprintable():
        raise InvalidInput(
            "is empty, too long or holds control characters",
            field="settings.user",
            allowed=(f"1 to {length_max} printable characters",),
        )


def check_pem(pem: str | None, *, field: str = "settings.authority_pem") -> None:
    if pem is None:
        return
    try:
        if len(pem) > PEM_LENGTH_MAX or not x509.load_pem_x509_certificates(pem.encode()):
            raise ValueError
    except ValueError:
        raise InvalidInput(
            "is no certificate",
            field=field,
            fix="give the authority's certificate as PEM; without it the system's authorities are asked",
        ) from None
