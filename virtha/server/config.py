"""``/etc/virtha/server.toml``, its overrides from the environment, and where things are below the root."""

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from virtha.model.errors import Failed, InvalidInput, NotFound
from virtha.model.value import Request

LOG_LEVELS = ("debug", "info", "warning", "error")
ENVIRONMENT_PREFIX = "VIRTHA_"


class ServerConfig(Request, frozen=True, kw_only=True):
    """Addresses are ``HOST:PORT``; port 0 takes a free one. ``database`` is a URL of the store."""

    listen: str = "0.0.0.0:8443"
    gateway_listen: str = "0.0.0.0:8250"
    database: str = ""
    """Empty: SQLite in the state directory."""
    names: tuple[str, ...] = ()
    """DNS names and addresses that the server's certificate carries."""
    origins: tuple[str, ...] = ()
    """Under which browsers reach the server through a proxy that gives it another Host: ``https://ha.example.org``."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies, whose ``X-Forwarded-For`` is believed: where a request came from counts for the brake on
    guessing, and is in the audit log."""
    reference_addresses: tuple[str, ...] = ()
    """``HOST:PORT`` of what stands beyond this server's network: while one of them answers it is not the server that is cut off (J4).
    Of this server and not of a cluster's policy: what can be reached depends on where one stands."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        split_address(self.listen, field="listen")
        split_address(self.gateway_listen, field="gateway_listen")
        if self.gateway_listen == self.listen and not self.listen.endswith(":0"):
            raise InvalidInput(
                f"'{self.gateway_listen}' is what listen says, too",
                field="gateway_listen",
                fix="give each a port of its own: 8443 and 8250 by default",
            )
        for origin in self.origins:
            _check_origin(origin)
        for proxy in self.proxies:
            _check_proxy(proxy)
        for address in self.reference_addresses:
            _check_reference_address(address)
        if self.log_level not in LOG_LEVELS:
            raise InvalidInput(
                f"'{self.log_level}' is no log level", field="log_level", allowed=LOG_LEVELS
            )


_LISTS = {
    "names": 'write names = ["server1", "192.0.2.1"]',
    "origins": 'write origins = ["https://ha.example.org"]',
    "proxies": 'write proxies = ["192.0.2.10"]',
    "reference_addresses": 'write reference_addresses = ["192.0.2.1:443", "[2001:db8::1]:22"]',
}
"""Settings that are lists, and how they are written."""


def _check_origin(text: str) -> None:
    """Raises InvalidInput: browsers send none that is written like this."""
    try:
        parts = urlsplit(text)
        own = f"{parts.scheme}://{parts.netloc}"
        sound = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
    except ValueError:
        sound = own = ""
    if not sound or own != text or text != text.lower() or "@" in own:
        raise InvalidInput(
            f"'{text[:200]}' is no origin",
            field="origins",
            allowed=("https://HOST or https://HOST:PORT, in lower case, without a path",),
            fix=_LISTS["origins"],
        )


def _check_proxy(text: str) -> None:
    """Raises InvalidInput: what is none would be believed nothing in silence, and all addresses would be anybody's word."""
    try:
        sound = ip_network(text).prefixlen > 0
    except ValueError:
        sound = False
    if not sound:
        raise InvalidInput(
            f"'{text[:200]}' is no address of a proxy",
            field="proxies",
            allowed=(
                "an address, or a network without bits of its hosts: 192.0.2.10, 2001:db8::/64",
            ),
            fix=_LISTS["proxies"],
        )


_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
"""As the last part of a name it makes an address of it, in a spelling of old: 127.1, 0x7f.1."""


def _check_reference_address(text: str) -> None:
    """Raises InvalidInput: this machine would answer itself, cut off or not; and what can't be asked would never answer."""
    why = _no_reference_address(text)
    if why:
        raise InvalidInput(
            f"'{text[:200]}' is no reference address: {why}",
            field="reference_addresses",
            allowed=(
                "HOST:PORT of another machine, with a port from 1 to 65535; an IPv6 address in brackets",
            ),
            fix=_LISTS["reference_addresses"],
        )


def _no_reference_address(text: str) -> str:
    """Why not; empty: it is one. A name of this machine shows only when it is looked up."""
    try:
        host, port = split_address(text, field="reference_addresses")
    except InvalidInput:
        return "it is not HOST:PORT"
    if port == 0:
        return "port 0 is none"
    try:
        address = ip_address(host)
    except ValueError:
        labels = host.rstrip(".").split(".")
        if len(host) > 253 or not _NAME.fullmatch(host) or _NUMBER.fullmatch(labels[-1]):
            return "it names no host"
        own = labels[-1].lower() in ("localhost", "localdomain")
        return "that is this machine itself" if own else ""
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if address.is_loopback:
        return "that is this machine itself"
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        return "that is no one machine"
    return ""


class ServerPaths:
    """Every path of the server below one root (``--root``, ``VIRTHA_ROOT``)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "etc/virtha/server.toml"
        self.state = root / "var/lib/virtha/server"
        self.database = self.state / "virtha.db"
        self.authority = self.state / "authority"
        self.authority_certificate = self.authority / "authority.crt"
        self.authority_key = self.authority / "authority.key"
        self.server_certificate = self.authority / "server.crt"
        self.server_key = self.authority / "server.key"
        self.secrets_key = self.state / "secrets.key"
        """What the receivers' secrets in the database are encrypted with."""
        self.journals = self.state / "journals"
        """Of the engines, one directory per cluster."""
        self.lock = self.state / "server.lock"
        self.run = root / "run/virtha"
        self.socket = self.run / "server.sock"
        self.ready = self.run / "server.json"
        """The addresses really bound, for scripts (ports may be 0 in the configuration)."""

    def database_url(self, config: ServerConfig) -> str:
        return config.database or f"sqlite:///{self.database}"


def split_address(text: str, *, field: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT``; raises InvalidInput naming ``field``."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not colon
        or not host
        or (":" in host and not bracketed)
        or not (port.isascii() and port.isdigit() and len(port) <= len("65535"))
        or int(port) > 65_535
    ):
        raise InvalidInput(
            f"'{text}' is no address to listen on",
            field=field,
            allowed=("HOST:PORT with a port from 0 to 65535",),
            fix="write for example 0.0.0.0:8443 or [::]:8443",
        )
    return (host[1:-1] if bracketed else host), int(port)


def read_config(paths: ServerPaths, environment: Mapping[str, str] | None = None) -> ServerConfig:
    """Raises NotFound before `virtha server init`, InvalidInput for anything that isn't understood."""
    try:
        text = paths.config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{paths.config} is not UTF-8 text (byte {error.start})",
            field="server.toml",
            fix="save it as UTF-8",
        ) from None
    except FileNotFoundError:
        raise NotFound(
            f"there is no {paths.config}", fix="set the server up first: virtha server init"
        ) from None
    except OSError as error:
        fix = "look at its rights, and whether --root is the installation's"
        if isinstance(error, PermissionError) and os.geteuid() != 0:
            fix = "run it as root"
        raise Failed(f"can't read {paths.config}: {error.strerror}", fix=fix) from error
    environ = os.environ if environment is None else environment
    return parse_config(text, where=str(paths.config), overriding=overrides(environ))


def parse_config(
    text: str, *, where: str, overriding: Mapping[str, object] | None = None
) -> ServerConfig:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            f"{where}: {error}",
            field="server.toml",
            fix='write KEY = "VALUE", one a line, and a # before a remark',
        ) from None
    return build_config({**values, **(overriding or {})}, where=where)


def build_config(values: Mapping[str, object], *, where: str) -> ServerConfig:
    known = [field.name for field in msgspec.structs.fields(ServerConfig)]
    for name in values:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            raise InvalidInput(
                f"{where} has no such setting",
                code="problem.unknown_field",
                field=name,
                allowed=tuple(known),
                fix=f"did you mean {nearest[0]}?" if nearest else "remove it",
            )
    try:
        return msgspec.convert(dict(values), ServerConfig)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        field = path.strip("`$.").partition("[")[0]
        raise InvalidInput(
            f"{where}: {message}",
            field=field or None,
            fix=_LISTS.get(field, f'write {field} = "…"'),
        ) from None


def overrides(environment: Mapping[str, str]) -> dict[str, object]:
    """``VIRTHA_LISTEN`` and so on, one per key; lists are separated by commas."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(ServerConfig):
        text = environment.get(ENVIRONMENT_PREFIX + field.name.upper())
        if text is None:
            continue
        found[field.name] = (
            tuple(part.strip() for part in text.split(",") if part.strip())
            if field.name in _LISTS
            else text
        )
    return found


def config_text(config: ServerConfig) -> str:
    """The file as `init` writes it. TOML's basic strings are JSON's for what is allowed here."""
    names = ", ".join(msgspec.json.encode(name).decode() for name in config.names)
    lines = [
        "# virtha server. Overridden by VIRTHA_LISTEN, VIRTHA_GATEWAY_LISTEN and so on.",
        f"listen = {msgspec.json.encode(config.listen).decode()}",
        f"gateway_listen = {msgspec.json.encode(config.gateway_listen).decode()}",
        "# names and addresses under which users and hosts reach this server",
        f"names = [{names}]",
        f"log_level = {msgspec.json.encode(config.log_level).decode()}",
    ]
    if config.origins:
        origins = ", ".join(msgspec.json.encode(one).decode() for one in config.origins)
        lines.append(f"origins = [{origins}]")
    if config.proxies:
        proxies = ", ".join(msgspec.json.encode(one).decode() for one in config.proxies)
        lines.append(f"proxies = [{proxies}]")
    if config.reference_addresses:
        addresses = ", ".join(
            msgspec.json.encode(one).decode() for one in config.reference_addresses
        )
        lines.append(f"reference_addresses = [{addresses}]")
    if config.database:
        lines.append(f"database = {msgspec.json.encode(config.database).decode()}")
    return "\n".join(lines) + "\n"
