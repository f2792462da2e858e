"""What the shell offers for a parameter: names that the server knows now, or words that the program knows.

It asks the server that the command itself would ask. Where that does not answer at once, nothing is offered: a
pressed Tab neither waits nor complains.
"""

from collections.abc import Callable, Iterable
from typing import Any

from typer.core import TyperGroup

from virtha.cli.client import Client, find_target
from virtha.cli.options import Options

ANSWER_S = 2.0
OFFERED_MAX = 200
"""From the one that was begun on, in the order of names: however many VMs there are."""
_HIGHEST = "\U0010ffff"

Words = Callable[[Any, str], Iterable[str]]
"""Of a context and what was begun."""


def _listed(path: str, *keys: str) -> Words:
    """Names of a list of the API that is sorted by them; ``keys`` lead to the name in an item."""

    def words(ctx: Any, begun: str) -> Iterable[str]:
        given = ctx.find_root().obj or Options()
        params: dict[str, Any] = {"limit": OFFERED_MAX}
        if begun:
            params["after"] = _just_below(begun)
        with Client(find_target(given)) as client:
            page = client.call("GET", path, params=params, answer_s=ANSWER_S).body
        return [str(_within(item, keys)) for item in page["items"]]

    return words


def _within(item: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        item = item[key]
    return item


def _just_below(begun: str) -> str:
    """Names that begin so come after it, and as few others as can be."""
    return begun[:-1] + chr(max(0, ord(begun[-1]) - 1)) + _HIGHEST


def _unsorted(path: str, key: str, **params: Any) -> Words:
    def words(ctx: Any, begun: str) -> Iterable[str]:
        with Client(find_target(ctx.find_root().obj or Options())) as client:
            page = client.call("GET", path, params=params, answer_s=ANSWER_S).body
        return [str(item[key]) for item in page["items"]]

    return words


def _images(ctx: Any, begun: str) -> Iterable[str]:
    with Client(find_target(ctx.find_root().obj or Options())) as client:
        page = client.call("GET", "/v1/storage-domains", answer_s=ANSWER_S).body
    return [image["name"] for item in page["items"] for image in item["images"]]


def _codes(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.codes import REGISTRY

    return REGISTRY


def _event_codes(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.codes import EVENTS

    codes = [code.name for code in EVENTS]
    return [*sorted({f"{code.rpartition('.')[0]}.*" for code in codes}), *codes]


def _policy_fields(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.policy import FIELD_TABLE
    from virtha.model.policy.names import shown_path

    return [f"{shown_path(path)}=" for path in FIELD_TABLE]


def _receiver_types(ctx: Any, begun: str) -> Iterable[str]:
    from virtha.model.notification import SECRET_NAMES

    return SECRET_NAMES


VMS = _listed("/v1/vms", "vm", "name")
HOSTS = _listed("/v1/hosts", "host", "name")
CLUSTERS = _listed("/v1/clusters", "name")
STORAGE = _listed("/v1/storage-domains", "domain", "name")
RECEIVERS = _listed("/v1/receivers", "receiver", "name")
SUBSCRIPTIONS = _listed("/v1/subscriptions", "subscription", "name")
USERS = _listed("/v1/users", "name")
OPERATIONS = _unsorted("/v1/operations", "id", limit=50)
INCIDENTS = _unsorted("/v1/incidents", "id", limit=50)
TOKENS = _unsorted("/v1/tokens", "id", limit=OFFERED_MAX)
SETTINGS = _unsorted("/v1/settings", "key")

BY_METAVAR: dict[str, Words] = {
    "VM": VMS,
    "HOST": HOSTS,
    "CLUSTER": CLUSTERS,
    "STORAGE": STORAGE,
    "RECEIVER": RECEIVERS,
    "SUBSCRIPTION": SUBSCRIPTIONS,
    "USER": USERS,
    "CODE": _codes,
    "FIELD=VALUE": _policy_fields,
    "TYPE": _receiver_types,
}
BY_OPTION: dict[str, Words] = {
    "--vm": VMS,
    "--host": HOSTS,
    "--cluster": CLUSTERS,
    "--storage": STORAGE,
    "--receiver": RECEIVERS,
    "--subscription": SUBSCRIPTIONS,
    "--image": _images,
}
BY_NOUN: dict[str, dict[str, Words]] = {
    "operation": {"ID": OPERATIONS},
    "incident": {"ID": INCIDENTS},
    "token": {"ID": TOKENS},
    "setting": {"KEY": SETTINGS},
    "notify": {"CODE": _event_codes, "--user": USERS},
    "event": {"--code": _event_codes},
}
"""What a word means in one noun only, or otherwise than elsewhere."""
_OF_RECEIVERS = ("--host", "--user")
"""In the commands that make receivers: of a mail server, not of ours."""


def offer_names(noun: str, command: Any) -> None:
    """Let every parameter below ``command`` that names something offer names."""
    if isinstance(command, TyperGroup):
        for sub in command.commands.values():
            offer_names(noun, sub)
    own = BY_NOUN.get(noun, {})
    foreign = _OF_RECEIVERS if any("--security" in one.opts for one in command.params) else ()
    for param in command.params:
        metavar = str(param.metavar or "").rstrip("…")
        found = own.get(metavar) or BY_METAVAR.get(metavar)
        for option in param.opts:
            found = own.get(option) or BY_OPTION.get(option) or found
        if found is not None and not any(option in foreign for option in param.opts):
            param._custom_shell_complete = _silent(found)


def _silent(words: Words) -> Callable[[Any, Any, str], list[str]]:
    def complete(ctx: Any, param: Any, begun: str) -> list[str]:
        try:
            return [word for word in words(ctx, begun) if word.startswith(begun)]
        except Exception:
            # Whatever it is, the command will say it; here it would tear the line that is being typed.
            return []

    return complete
