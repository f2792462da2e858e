"""What the shell offers for a parameter: names that the server knows now, words that the program knows, or files.

It asks the server that the command itself would ask. Where that does not answer at once, nothing is offered: a
pressed Tab neither waits nor complains.
"""

import re
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer._click.shell_completion import CompletionItem
from typer.core import TyperGroup

from virtha.cli.client import Client, find_target, ref
from virtha.cli.options import Options, Output

ANSWER_S = 2.0
OFFERED_MAX = 200
"""Of those that begin so, in the order of names: however many VMs there are."""
ALL = 1_000
"""As many as a list gives at once, of one that can't be searched."""
_ITS_OWN_SIGNS = re.compile(r'[\\*"]')
"""Of the search language, between quotation marks."""

Words = Callable[[Any, str], Iterable[str]]
"""Of a context and what was begun."""


def _listed(path: str, *keys: str) -> Words:
    """Names of a list of the API that can be searched by them; ``keys`` lead to the name in an item."""

    def words(ctx: Any, begun: str) -> Iterable[str]:
        params: dict[str, Any] = {"limit": OFFERED_MAX}
        if begun:
            params["search"] = f'name = "{_ITS_OWN_SIGNS.sub(_escaped, begun)}*"'
        return [str(_within(item, keys)) for item in _asked(ctx, path, **params)["items"]]

    return words


def _escaped(sign: re.Match[str]) -> str:
    return f"\\{sign[0]}"


def _within(item: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        item = item[key]
    return item


def _unsorted(path: str, *keys: str, **params: Any) -> Words:
    def words(ctx: Any, begun: str) -> Iterable[str]:
        return [str(_within(item, keys)) for item in _asked(ctx, path, **params)["items"]]

    return words


def _asked(ctx: Any, path: str, **params: Any) -> Any:
    with Client(find_target(ctx.find_root().obj or Options())) as client:
        return client.call("GET", path, params=params, answer_s=ANSWER_S).body


def _given(ctx: Any, metavar: str) -> str:
    """What stands on the line already for the argument of that name, as a part of a path."""
    (param,) = (one for one in ctx.command.params if one.metavar == metavar)
    return ref(ctx.params[param.name], field=metavar)


def _snapshots(ctx: Any, begun: str) -> Iterable[str]:
    page = _asked(ctx, f"/v1/vms/{_given(ctx, 'VM')}/snapshots")
    return [item["name"] for item in page["items"]]


def _disks(ctx: Any, begun: str) -> Iterable[str]:
    return [disk["name"] for disk in _asked(ctx, f"/v1/vms/{_given(ctx, 'VM')}")["vm"]["disks"]]


def _macs(ctx: Any, begun: str) -> Iterable[str]:
    return [nic["mac"] for nic in _asked(ctx, f"/v1/vms/{_given(ctx, 'VM')}")["vm"]["nics"]]


def _power_devices(ctx: Any, begun: str) -> Iterable[str]:
    kinds = ("HOST", "hosts"), ("CLUSTER", "clusters")
    metavars = {one.metavar for one in ctx.command.params}
    ((metavar, kind),) = (pair for pair in kinds if pair[0] in metavars)
    page = _asked(ctx, f"/v1/{kind}/{_given(ctx, metavar)}/power")
    return [item["name"] for item in page["items"]]


def _fence_agents(ctx: Any, begun: str) -> Iterable[str]:
    return list(map(str, _asked(ctx, "/v1/power/agents")))


def _images(ctx: Any, begun: str) -> Iterable[str]:
    page = _asked(ctx, "/v1/storage-domains")
    return [image["name"] for item in page["items"] for image in item["images"]]


def _subjects(**kinds: Words) -> Words:
    """``vm/NAME`` and its like: first which kind, then which one."""

    def words(ctx: Any, begun: str) -> Iterable[str]:
        kind, slash, name = begun.partition("/")
        if not slash:
            return [f"{one}/" for one in kinds]
        return [f"{kind}/{one}" for one in kinds[kind](ctx, name)]

    return words


def _codes(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.codes import REGISTRY

    return REGISTRY


def _event_codes(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.codes import EVENTS

    codes = [code.name for code in EVENTS]
    return [*sorted({f"{code.rpartition('.')[0]}.*" for code in codes}), *codes]


def _policy_fields(ctx: Any, begun: str) -> Iterable[str]:
    """Fields, and of a field that has been written its words, where it has some."""
    from virtha.model.policy import FIELD_TABLE
    from virtha.model.policy.names import shown_path
    from virtha.model.policy.profiles import Profile

    words = {shown_path(path): _choices(field.kind) for path, field in FIELD_TABLE.items()}
    words["profile"] = list(Profile)
    name, equals, _ = begun.partition("=")
    return [f"{name}={word}" for word in words[name]] if equals else [f"{one}=" for one in words]


def _choices(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    return [str(one) for one in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _power_fields(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.cli.power import FIELDS
    from virtha.model.power_settings import PowerSettings

    name, equals, _ = begun.partition("=")
    if not equals:
        return [f"{one}=" for one in FIELDS]
    kinds = get_args(get_type_hints(PowerSettings)[name])
    return [f"{name}={word}" for kind in kinds for word in _choices(kind)]


def _power_field_names(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.cli.power import FIELDS

    return FIELDS


def _watchdogs(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.watchdog import WatchdogAction, WatchdogModel

    model, colon, _ = begun.partition(":")
    if not colon:
        return [f"{one}:" for one in WatchdogModel]
    return [f"{model}:{action}" for action in WatchdogAction]


def _output_formats(ctx: Any, begun: str) -> Iterable[str]:
    return Output


def _receiver_types(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.notification import SECRET_NAMES

    return SECRET_NAMES


def _nouns(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.cli.main import NOUNS

    return NOUNS


def _lab_nodes(ctx: Any, begun: str, *, kinds: tuple[str, ...] = ("host", "server")) -> list[str]:
    from virtha.lab.state import lab_directory, read_state

    state = read_state(lab_directory(ctx.params.get("directory")))
    return [node.name for node in state.nodes if node.kind in kinds]


def _lab_hosts(ctx: Any, begun: str) -> Iterable[str]:
    return _lab_nodes(ctx, begun, kinds=("host",))


def _property_keys(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.agent.property_table import PROPERTIES

    return PROPERTIES


VMS = _listed("/v1/vms", "vm", "name")
HOSTS = _listed("/v1/hosts", "host", "name")
CLUSTERS = _listed("/v1/clusters", "name")
STORAGE = _listed("/v1/storage-domains", "domain", "name")
RECEIVERS = _unsorted("/v1/receivers", "receiver", "name", limit=ALL)
SUBSCRIPTIONS = _unsorted("/v1/subscriptions", "subscription", "name", limit=ALL)
USERS = _listed("/v1/users", "name")
TEMPLATES = _listed("/v1/templates", "template", "name")
OPERATIONS = _unsorted("/v1/operations", "id", limit=50)
INCIDENTS = _unsorted("/v1/incidents", "id", limit=50)
SILENCES = _unsorted("/v1/silences", "silence", "id")
INHIBITIONS = _unsorted("/v1/inhibitions", "inhibition", "name")
DELIVERIES = _unsorted("/v1/deliveries", "id", limit=50)
TOKENS = _unsorted("/v1/tokens", "id", limit=OFFERED_MAX)
SETTINGS = _unsorted("/v1/settings", "key")

BY_METAVAR: dict[str, Words] = {
    "VM": VMS,
    "HOST": HOSTS,
    "CLUSTER": CLUSTERS,
    "STORAGE": STORAGE,
    "TEMPLATE": TEMPLATES,
    "RECEIVER": RECEIVERS,
    "SUBSCRIPTION": SUBSCRIPTIONS,
    "SILENCE": SILENCES,
    "INHIBITION": INHIBITIONS,
    "USER": USERS,
    "CODE": _codes,
    "SNAPSHOT": _snapshots,
    "DISK": _disks,
    "MAC": _macs,
    "MODEL:ACTION": _watchdogs,
    "FIELD=VALUE": _policy_fields,
    "TYPE": _receiver_types,
    "NOUN": _nouns,
    "FORMAT": _output_formats,
    "AGENT": _fence_agents,
    "host/NAME|vm/NAME": _subjects(vm=VMS, host=HOSTS),
    "[host/NAME|vm/NAME|cluster/NAME]": _subjects(vm=VMS, host=HOSTS, cluster=CLUSTERS),
}
BY_OPTION: dict[str, Words] = {
    "--vm": VMS,
    "--host": HOSTS,
    "--cluster": CLUSTERS,
    "--storage": STORAGE,
    "--template": TEMPLATES,
    "--receiver": RECEIVERS,
    "--subscription": SUBSCRIPTIONS,
    "--image": _images,
    "--device": _power_devices,
    "--code": _event_codes,
    "--source": _event_codes,
    "--target": _event_codes,
}
_POWER: dict[str, Words] = {"[FIELD=VALUE]...": _power_fields, "FIELD": _power_field_names}
BY_NOUN: dict[str, dict[str, Words]] = {
    "operation": {"ID": OPERATIONS},
    "incident": {"ID": INCIDENTS},
    "token": {"ID": TOKENS},
    "setting": {"KEY": SETTINGS},
    "notify": {"ID": DELIVERIES, "--user": USERS},
    "host": _POWER,
    "cluster": _POWER,
}
"""What a word means in one noun only."""
OF_PROGRAMS: dict[str, dict[str, Words]] = {
    "lab": {"HOST": _lab_hosts, "NODE": _lab_nodes},
    "agent": {"KEY": _property_keys},
}
"""In the nouns that run programs, whose words are their own: no server is asked."""
_OF_RECEIVERS = ("--host", "--user")
"""In the commands that make receivers: of a mail server, not of ours."""


def offer_names(noun: str, command: Any, *, is_program: bool = False) -> None:
    """Let every parameter below ``command`` that names something offer names, or files."""
    if isinstance(command, TyperGroup):
        for sub in command.commands.values():
            offer_names(noun, sub, is_program=is_program)
    own = OF_PROGRAMS.get(noun, {}) if is_program else BY_METAVAR | BY_NOUN.get(noun, {})
    options = {} if is_program else BY_OPTION | own
    foreign = _OF_RECEIVERS if any("--security" in one.opts for one in command.params) else ()
    for param in command.params:
        found = own.get(str(param.metavar or "").rstrip("…"))
        for option in param.opts:
            found = options.get(option) or found
        if any(option in foreign for option in param.opts):
            found = None
        if found is not None:
            param._custom_shell_complete = _silent(found)
        elif "FILE" in str(param.metavar) or "DIR" in str(param.metavar) or _is_path(param):
            kind = "dir" if str(param.metavar).strip("[]") == "DIR" else "file"
            param._custom_shell_complete = _paths(kind)


def _is_path(param: Any) -> bool:
    descriptor = getattr(param, "type_descriptor", None)
    return descriptor is not None and Path in (
        descriptor.annotation,
        *get_args(descriptor.annotation),
    )


def _paths(kind: str) -> Callable[[Any, Any, str], list[CompletionItem]]:
    return lambda ctx, param, begun: [CompletionItem(begun, type=kind)]


def _silent(words: Words) -> Callable[[Any, Any, str], list[str]]:
    def complete(ctx: Any, param: Any, begun: str) -> list[str]:
        already = ctx.params.get(param.name) if param.nargs == -1 else None
        try:
            fitting = [str(word) for word in words(ctx, begun) if str(word).startswith(begun)]
        except Exception:
            # Whatever it is, the command will say it; here it would tear the line that is being typed.
            return []
        return [word for word in fitting if word not in (already or ())]

    return complete
