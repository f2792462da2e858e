"""A fence agent's metadata (XML, ``fence-agents``' own format) read as a form; and settings checked against it."""

from collections.abc import Mapping
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtha.model.errors import Failed
from virtha.ports.power import AgentForm, AgentParameter

METADATA_BYTES_MAX = 400_000
_SECRET_WORDS = ("passw", "community", "hexadecimal_kg", "secret", "token", "apikey", "api_key")
_HIDDEN = frozenset(
    {"action", "help", "version", "debug", "debug_file", "verbose", "verbose_level"}
)
"""Nobody sets these for us: the action is ours, the others print to somewhere else."""

_NEEDED = ("off", "status")
_NO_POWER = frozenset({"fence_dummy", "fence_evacuate", "fence_sbd"})
"""Their metadata looks like a power device's: a file, OpenStack's list of services, and a message that nobody need have
obeyed."""


def agent_form(name: str, xml: str) -> AgentForm:
    """Raises Failed."""
    try:
        root = fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Failed(
            f"the metadata of {name} can't be read: {error}", fix="install its package anew"
        ) from None
    if root.tag != "resource-agent":
        raise Failed(f"{name} gave no metadata of a fence agent", fix="check what it is")
    parameters = tuple(
        _parameter(one)
        for one in root.iterfind("parameters/parameter")
        if one.get("deprecated") != "1" and one.get("name", "") not in _HIDDEN
    )
    actions = {one.get("name", ""): one for one in root.iterfind("actions/action")}
    return AgentForm(
        name=name,
        title=root.get("shortdesc", ""),
        help=_text(root.find("longdesc")),
        parameters=parameters,
        actions=tuple(actions),
        unfit=_unfit(name, actions, parameters),
    )


def _unfit(
    name: str, actions: Mapping[str, Element], parameters: tuple[AgentParameter, ...]
) -> str:
    """Why its *off* proves nothing (P1)."""
    missing = [one for one in _NEEDED if one not in actions]
    if missing:
        return f"it can't do {' and '.join(missing)}"
    # Fence agents' API: what is switched on by itself at a node's start is its access to storage or network.
    if name in _NO_POWER or ("on" in actions and actions["on"].get("automatic") == "1"):
        return "its off is not that of a machine's power"
    if any(one.name == "missing_as_off" and one.default == "1" for one in parameters):
        return "it says off of a machine that it can't find"
    return ""


def _parameter(element: Element) -> AgentParameter:
    name = element.get("name", "")
    content = element.find("content")
    default = content.get("default") if content is not None else None
    return AgentParameter(
        name=name,
        kind=content.get("type", "string") if content is not None else "string",
        help=_text(element.find("shortdesc")),
        # One with a default has what it requires.
        required=element.get("required") == "1" and default is None,
        default=default,
        options=tuple(
            one.get("value", "")
            for one in (content.iterfind("option") if content is not None else ())
        ),
        secret=is_secret(name),
    )


def is_secret(name: str) -> bool:
    return any(word in name for word in _SECRET_WORDS) and not name.endswith("_script")


def _text(element: Element | None) -> str:
    return " ".join((element.text or "").split()) if element is not None else ""


def stdin_of(values: Mapping[str, str]) -> bytes:
    """As fence agents read their options: one ``name=value`` a line."""
    return "".join(f"{name}={value}\n" for name, value in values.items()).encode()
