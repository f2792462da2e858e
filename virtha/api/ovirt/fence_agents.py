"""``/hosts/{id}/fenceagents``: a host's power devices by oVirt's names (F5, F6).

oVirt's ``order`` is our level, and agents of one order are concurrent. ``ipmilan`` and its like, and ``redfish``, are drivers of
our own; any other type is the fence agent of that name.
"""

from msgspec.structs import replace

from virtha.api.ovirt.fault import require
from virtha.api.ovirt.host_node import (
    AGENT_PREFIX,
    IPMI_OPTIONS,
    IPMI_TYPES,
    REDFISH_TYPE,
    agent_node,
    agent_options,
    agent_type,
)
from virtha.api.ovirt.hosts import HOST, the_host
from virtha.api.ovirt.route import ADMINISTRATOR, Call, Reply, Route, delete, get, post, put
from virtha.api.ovirt.scalars import from_text
from virtha.api.ovirt.shape import Node, Scalar
from virtha.control.power_views import HostPowerView, PowerPut
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.host import Host
from virtha.model.power_settings import (
    LEVELS_MAX,
    CertificateCheck,
    IpmiPrivilege,
    PowerDriver,
    PowerSettings,
)

AGENTS = f"{HOST}/fenceagents"
SHAPE = "agent"


async def _own(call: Call, host: Host) -> tuple[HostPowerView, ...]:
    """Those that the host has of its own: what its cluster alone says has no address."""
    return tuple(one for one in await call.control.power.of_host(host.id) if one.power is not None)


async def _the_agent(call: Call, host: Host) -> HostPowerView:
    for one in await _own(call, host):
        if one.power is not None and one.power.id == call.path["agent"]:
            return one
    raise NotFound(f"{host.name} has no fence agent '{call.path['agent'][:64]}'")


async def list_agents(call: Call) -> Reply:
    host = (await the_host(call)).host
    return Reply(shape=SHAPE, body=[agent_node(host.id, one) for one in await _own(call, host)])


async def get_agent(call: Call) -> Reply:
    host = (await the_host(call)).host
    return Reply(shape=SHAPE, body=agent_node(host.id, await _the_agent(call, host)))


async def add_agent(call: Call) -> Reply:
    host, body = (await the_host(call)).host, call.body
    require(SHAPE, body, "address", "order", "type", "username", "password")
    taken = {one.name for one in await call.control.power.of_host(host.id)}
    nothing = PowerSettings()
    wanted = PowerPut(settings=_settings(body, nothing, nothing), secrets=_secrets(body))
    view = await call.control.power.put_of_host(
        call.caller, host.id, _free_name(body["type"], taken), wanted, None
    )
    return Reply(shape=SHAPE, body=agent_node(host.id, view), status=201)


async def change_agent(call: Call) -> Reply:
    """What is left out stays as it is."""
    host = (await the_host(call)).host
    present = await _the_agent(call, host)
    assert present.power is not None, "_own gives no other"
    settings = _settings(call.body, present.power.settings, present.whole)
    secrets = _secrets(call.body)
    if settings == present.power.settings and not secrets:
        return Reply(shape=SHAPE, body=agent_node(host.id, present))
    wanted = PowerPut(settings=settings, secrets=secrets)
    view = await call.control.power.put_of_host(
        call.caller, host.id, present.name, wanted, present.power.revision
    )
    return Reply(shape=SHAPE, body=agent_node(host.id, view))


async def remove_agent(call: Call) -> Reply:
    host = (await the_host(call)).host
    present = await _the_agent(call, host)
    await call.control.power.delete_of_host(call.caller, host.id, present.name, None)
    return Reply()


def _free_name(wanted: str, taken: set[str]) -> str:
    """Ours have names: the type, and a number behind it where there are several."""
    base = wanted.replace("_", "-")
    numbers = range(2, len(taken) + 3)
    return next(name for name in (base, *(f"{base}-{it}" for it in numbers)) if name not in taken)


def _secrets(body: Node) -> dict[str, str | None]:
    return {"password": body["password"]} if body.get("password") else {}


def _settings(body: Node, present: PowerSettings, whole: PowerSettings) -> PowerSettings:
    """``present`` with what the body says that is not so by now. ``whole``: as it is shown, with what its cluster says:
    to write that back leaves it the cluster's. Another driver begins anew: options of one are nothing to another."""
    wanted = body.get("type")
    if wanted is not None and not _is_of_type(wanted, whole):
        present = whole = _of_type(wanted, present)
    order = body.get("order")
    if order is not None and not 1 <= order <= LEVELS_MAX:
        raise InvalidInput(
            f"{order} is out of range", field="agent.order", allowed=(f"1 to {LEVELS_MAX}",)
        )
    shown = {"level": whole.level or 1, "user": whole.user or ""}
    said = {
        "level": order,
        "address": body.get("address"),
        "port": body.get("port"),
        "user": body.get("username"),
    }
    changed = {
        name: value
        for name, value in said.items()
        if value not in (None, shown.get(name, getattr(whole, name)))
    }
    made = replace(present, **changed)
    if "options" not in body or _given(body["options"]) == _given(agent_options(whole)):
        return made
    return _with_options(made, whole, body["options"])


def _is_of_type(wanted: str, settings: PowerSettings) -> bool:
    """Of oVirt's many names for IPMI each is the same driver."""
    if settings.driver is PowerDriver.IPMI:
        return wanted in IPMI_TYPES
    return settings.driver is not None and wanted.removeprefix(AGENT_PREFIX) == agent_type(settings)


def _given(options: list[Node]) -> dict[str, str]:
    return {str(one.get("name", "")): str(one.get("value", "")) for one in options}


def _of_type(wanted: str, present: PowerSettings) -> PowerSettings:
    plain = PowerSettings(
        level=present.level,
        address=present.address,
        user=present.user,
        asked_from=present.asked_from,
    )
    if wanted in IPMI_TYPES:
        return replace(plain, driver=PowerDriver.IPMI)
    if wanted == REDFISH_TYPE:
        return replace(plain, driver=PowerDriver.REDFISH)
    agent = AGENT_PREFIX + wanted.removeprefix(AGENT_PREFIX)
    return replace(plain, driver=PowerDriver.FENCE_AGENT, agent=agent)


def _with_options(
    settings: PowerSettings, whole: PowerSettings, options: list[Node]
) -> PowerSettings:
    """All of them: those that are not given are none any more. Raises InvalidInput."""
    given = _given(options)
    settings = replace(settings, plug=given.pop("plug", None))
    match whole.driver:
        case PowerDriver.IPMI:
            return _ipmi(settings, given)
        case PowerDriver.REDFISH:
            insecure = given.pop("ssl_insecure", "0")
            _refuse_others(given, ("plug", "ssl_insecure"))
            if insecure in ("1", "true"):
                return replace(settings, certificate=CertificateCheck.NONE)
            if whole.certificate is CertificateCheck.NONE:
                return replace(settings, certificate=CertificateCheck.FULL)
            return settings  # which of the two checks is not oVirt's to say
        case PowerDriver.FENCE_AGENT:
            return replace(settings, parameters=given)
        case _:
            _refuse_others(given, ())
            return settings


def _ipmi(settings: PowerSettings, given: dict[str, str]) -> PowerSettings:
    given.pop("lanplus", None)  # always: IPMI 1.5 has no protection at all
    cipher, privilege = given.pop("cipher", None), given.pop("privlvl", None)
    _refuse_others(given, (*IPMI_OPTIONS, "lanplus"))
    if privilege is not None and privilege.lower() not in tuple(IpmiPrivilege):
        raise InvalidInput(
            f"'{privilege[:64]}' is no value",
            field="agent.options.privlvl",
            allowed=tuple(IpmiPrivilege),
        )
    number = None
    if cipher is not None:
        number = int(from_text(Scalar.INTEGER, cipher, field="agent.options.cipher"))
    return replace(
        settings,
        cipher=number,
        privilege=IpmiPrivilege(privilege.lower()) if privilege is not None else None,
    )


def _refuse_others(given: dict[str, str], allowed: tuple[str, ...]) -> None:
    for name in given:
        raise InvalidInput(
            "is no option of this type", field=f"agent.options.{name[:64]}", allowed=allowed
        )


ROUTES: tuple[Route, ...] = (
    get(AGENTS, list_agents),
    post(AGENTS, add_agent, SHAPE, ADMINISTRATOR),
    get(f"{AGENTS}/{{agent}}", get_agent),
    put(f"{AGENTS}/{{agent}}", change_agent, SHAPE, ADMINISTRATOR),
    delete(f"{AGENTS}/{{agent}}", remove_agent, ADMINISTRATOR),
)
