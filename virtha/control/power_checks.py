"""What the settings of a power device may be; every error names the field and the fix."""

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from socket import inet_aton, inet_ntoa

from msgspec.structs import fields, replace

from virtha.control.receiver_checks import check_host, check_pem
from virtha.model.command_syntax import SYNTAX_LENGTH_MAX, action_words, check_syntax, variables_of
from virtha.model.errors import InvalidInput
from virtha.model.own_addresses import is_own_address, is_own_name
from virtha.model.power_settings import (
    LEVELS_MAX,
    OUR_PARAMETERS,
    OWN_FIELDS,
    SYNTAX,
    PowerDriver,
    PowerSettings,
)
from virtha.ports.power import AgentForm, AgentParameter

USER_LENGTH_MAX = 255
SECRET_LENGTH_MAX = 1_000
IPMI_USER_BYTES_MAX = 16
IPMI_PASSWORD_BYTES_MAX = 20
"""IPMI 2.0, sections 22.28 and 22.30."""
CIPHERS = tuple(range(20))
CIPHERS_UNPROTECTED = (0, 1, 6, 15)
"""IPMI 2.0, table 22-20: without integrity, so whoever is on the device's network can answer in its place."""
PARAMETERS_MAX = 100
_USUAL_PORTS = {PowerDriver.IPMI: 623, PowerDriver.REDFISH: 443}
_ACTIONS = ("stop", "start", "reboot", "blink", "test", "status")
_COMMON = frozenset({"driver", "level", "address", "port", "plug", "user", "asked_from"})
_OF_DRIVER: dict[PowerDriver, frozenset[str]] = {
    PowerDriver.COMMAND: _COMMON
    | {"executable", "syntax", "status_on", "status_off", "password_by", *_ACTIONS},
    PowerDriver.IPMI: _COMMON - {"plug"} | {"cipher", "privilege"},
    PowerDriver.REDFISH: _COMMON | {"certificate", "authority_pem"},
    PowerDriver.FENCE_AGENT: _COMMON | {"agent", "parameters"},
}


def check_given(given: PowerSettings, *, of_cluster: bool) -> None:
    """What a cluster or a host says, each field by itself. Raises InvalidInput."""
    if of_cluster:
        for name in OWN_FIELDS:
            if getattr(given, name) is not None:
                raise InvalidInput(
                    "is each host's own, and never a cluster's",
                    field=f"settings.{name}",
                    fix="set it for each host",
                )
    _check_number(given.level, "level", 1, LEVELS_MAX)
    _check_number(given.port, "port", 1, 65_535)
    _check_number(given.cipher, "cipher", CIPHERS[0], CIPHERS[-1])
    if given.address:
        check_host(given.address, field="settings.address")
    for name in ("user", "plug", "agent", "executable", *_ACTIONS, "status_on", "status_off"):
        _check_line(getattr(given, name), name)
    if given.executable and not given.executable.startswith("/"):
        raise InvalidInput(
            f"'{given.executable}' is no absolute path",
            field="settings.executable",
            fix="such as /usr/local/sbin/switch-power",
        )
    if given.syntax:
        check_syntax(given.syntax, field="settings.syntax")
    for name in _ACTIONS:
        action_words(getattr(given, name) or "", field=f"settings.{name}")
    if given.status_on and given.status_on == given.status_off:
        raise InvalidInput("is the same as status_on", field="settings.status_off")
    check_pem(given.authority_pem or None)
    for name, value in (given.parameters or {}).items():
        if name in OUR_PARAMETERS:
            raise InvalidInput(
                "is not to be set: virtha sets it",
                field=f"settings.parameters.{name}",
                fix="set plug, for each host" if name in ("plug", "port") else "leave it out",
            )
        _check_line(name, "parameters")
        _check_line(value, f"parameters.{name}")
    if given.driver is not None:
        _check_fits(given, given.driver)


def check_whole(
    given: PowerSettings, whole: PowerSettings, secrets: Mapping[str, str], form: AgentForm | None
) -> None:
    """What holds for a host, with its cluster's. ``form``: of its fence agent. Raises InvalidInput."""
    driver = whole.driver
    if driver is None:
        raise _missing("driver", allowed=tuple(PowerDriver))
    _check_fits(given, driver)
    match driver:
        case PowerDriver.COMMAND:
            _check_command(whole)
        case PowerDriver.IPMI:
            _need(whole, "address")
            if len((whole.user or "").encode()) > IPMI_USER_BYTES_MAX:
                raise InvalidInput(
                    f"IPMI takes at most {IPMI_USER_BYTES_MAX} bytes", field="settings.user"
                )
        case PowerDriver.REDFISH:
            _need(whole, "address")
            _need(whole, "user")
        case PowerDriver.FENCE_AGENT:
            _need(whole, "agent")
            assert form is not None
            _check_agent(whole, form, secrets)
    _check_secrets(whole, secrets, form)
    check_led_elsewhere(whole)


def check_led_elsewhere(whole: PowerSettings) -> None:
    """From each host an address of its own leads to another machine: to the host that is asked itself. Raises InvalidInput."""
    if whole.from_agents and whole.address and _is_askers_own(whole.address):
        raise InvalidInput(
            f"{whole.address} is each host's own: with asked_from=agents it would lead to the host that asks",
            field="settings.address",
            fix="give the address that other hosts reach the device at, or set asked_from=server",
        )


def _is_askers_own(address: str) -> bool:
    if is_own_name(address):
        return True
    try:
        return is_own_address(ip_address(_spelled(address)))
    except ValueError:
        return False  # a name; what it leads to on a host, that host looks at


def same_address(one: PowerSettings, other: PowerSettings) -> bool:
    if not one.address or not other.address:
        return False
    return _spelled(one.address) == _spelled(other.address)


def same_place(one: PowerSettings, other: PowerSettings) -> bool:
    """Whether two whole settings reach one machine, as far as they tell (P1). Their ports count where they are not their protocols' own (several simulated BMCs may
    share an address), so IPMI and Redfish of one BMC are one place."""
    if not one.address and not other.address:
        return _told(one) == _told(other)
    if not same_address(one, other) or _own_port(one) != _own_port(other):
        return False
    # Redfish without a plug is the only system there is: another's plug can name no other machine.
    only = any(each.driver is PowerDriver.REDFISH and not each.plug for each in (one, other))
    return only or (one.plug or "") == (other.plug or "")


def _told(settings: PowerSettings) -> PowerSettings:
    """All that a device without an address is told, and so all that could say which machine it is to switch."""
    return replace(settings, level=None, user=None, plug=settings.plug or None, asked_from=None)


def _own_port(settings: PowerSettings) -> int | None:
    usual = settings.port == _USUAL_PORTS.get(settings.driver or PowerDriver.COMMAND)
    return None if usual else settings.port


def _spelled(address: str) -> str:
    """One spelling for each address, as far as that can be told without asking for names."""
    plain = address.lower().rstrip(".")
    with suppress(ValueError):
        number = ip_address(plain)
        return str((number.version == 6 and number.ipv4_mapped) or number)
    with suppress(OSError):
        return inet_ntoa(inet_aton(plain))  # 010.0.0.1, 167772161: what resolvers take for numbers
    return plain


def secret_names(whole: PowerSettings, form: AgentForm | None) -> tuple[str, ...]:
    if form is None:
        return ("password",)
    own = {one.name for one in form.parameters if one.secret} - {form.password_name}
    return ("password", *sorted(own))


def check_no_secrets(given: PowerSettings, form: AgentForm) -> None:
    """A parameter is kept in the clear and shown to every viewer. Raises InvalidInput."""
    secret = {one.name for one in form.parameters if one.secret}
    for name in given.parameters or {}:
        if name in secret:
            raise InvalidInput(
                "is a secret",
                field=f"settings.parameters.{name}",
                fix=f"send it as secrets.{'password' if name == form.password_name else name}",
            )


def _check_fits(given: PowerSettings, driver: PowerDriver) -> None:
    for one in fields(given):
        if getattr(given, one.name) is not None and one.name not in _OF_DRIVER[driver]:
            raise InvalidInput(
                f"a device of driver {driver.value} has none",
                field=f"settings.{one.name}",
                allowed=tuple(sorted(_OF_DRIVER[driver])),
            )


def _check_command(whole: PowerSettings) -> None:
    _need(whole, "executable")
    _need(whole, "stop")
    if "IPMI_HOST" in variables_of(whole.syntax or SYNTAX):
        _need(whole, "address")


def _check_agent(whole: PowerSettings, form: AgentForm, secrets: Mapping[str, str]) -> None:
    if form.unfit:
        raise InvalidInput(
            f"{form.name} can't be a host's power device: {form.unfit}",
            field="settings.agent",
            fix="use one that switches the machine itself: virtha host power agent list",
        )
    known = {one.name: one for one in form.parameters}
    taken = {
        form.address_name: "address",
        form.user_name: "user",
        form.plug_name: "plug",
        form.port_name: "port",
    }
    given = whole.parameters or {}
    if len(given) > PARAMETERS_MAX:
        raise InvalidInput(f"more than {PARAMETERS_MAX}", field="settings.parameters")
    check_no_secrets(whole, form)
    for name, value in given.items():
        field = f"settings.parameters.{name}"
        if name in taken and name:
            raise InvalidInput(
                f"is set as {taken[name]}", field=field, fix=f"set {taken[name]} instead"
            )
        if name in OUR_PARAMETERS:
            raise InvalidInput("is not to be set: virtha sets it", field=field)
        if name not in known:
            offered = known.keys() - taken.keys() - OUR_PARAMETERS
            raise InvalidInput(
                f"{form.name} has no such parameter", field=field, allowed=tuple(sorted(offered))
            )
        _check_parameter(known[name], value, field)
    for one in form.parameters:
        own_field = taken.get(one.name)
        set_ = getattr(whole, own_field) if own_field else given.get(one.name)
        secret = "password" if one.name == form.password_name else one.name
        if one.required and one.name not in OUR_PARAMETERS and not set_ and secret not in secrets:
            raise _missing(own_field or f"parameters.{one.name}")
    if form.address_name:
        _need(whole, "address")


def _check_parameter(known: AgentParameter, value: str, field: str) -> None:
    if known.options and value not in known.options:
        raise InvalidInput(f"'{value}' is none of them", field=field, allowed=known.options)
    if known.kind in ("integer", "second") and not value.isdecimal():
        raise InvalidInput(f"'{value}' is no number", field=field)
    if known.kind == "boolean" and value not in ("0", "1", "true", "false", "yes", "no"):
        raise InvalidInput(f"'{value}' is neither", field=field, allowed=("1", "0"))


def _check_secrets(
    whole: PowerSettings, secrets: Mapping[str, str], form: AgentForm | None
) -> None:
    allowed = secret_names(whole, form)
    for name, secret in secrets.items():
        field = f"secrets.{name}"
        if name not in allowed:
            raise InvalidInput("there is no such secret here", field=field, allowed=allowed)
        if not secret:
            raise InvalidInput("is empty", field=field, fix="leave it out")
        if len(secret) > SECRET_LENGTH_MAX:
            raise InvalidInput(f"more than {SECRET_LENGTH_MAX} characters", field=field)
        if any(ord(one) < 32 for one in secret if one != "\t"):
            raise InvalidInput("has control characters, which no program is given", field=field)
        if whole.driver is PowerDriver.FENCE_AGENT and secret != secret.strip():
            raise InvalidInput(
                "begins or ends with a blank, which fence agents cut off",
                field=field,
                fix="choose another one",
            )
        if whole.driver is PowerDriver.IPMI and len(secret.encode()) > IPMI_PASSWORD_BYTES_MAX:
            raise InvalidInput(f"IPMI takes at most {IPMI_PASSWORD_BYTES_MAX} bytes", field=field)


def _check_number(value: int | None, name: str, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidInput(
            f"{value} is out of range", field=f"settings.{name}", allowed=(f"{least} to {most}",)
        )


def _check_line(value: str | None, name: str) -> None:
    if value is None:
        return
    if len(value) > SYNTAX_LENGTH_MAX or (
        name in ("user", "plug") and len(value) > USER_LENGTH_MAX
    ):
        raise InvalidInput("is too long", field=f"settings.{name}")
    if any(ord(one) < 32 for one in value):
        raise InvalidInput("has control characters", field=f"settings.{name}")


def _need(whole: PowerSettings, name: str) -> None:
    if not getattr(whole, name):
        raise _missing(name)


def _missing(name: str, allowed: tuple[str, ...] = ()) -> InvalidInput:
    where = "for this host" if name in OWN_FIELDS else "for this host or its cluster"
    return InvalidInput(
        "is missing", field=f"settings.{name}", allowed=allowed, fix=f"set it {where}"
    )
