"""Which test covers what: read from the `req` and `bad_input` markers in the test files' syntax trees."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

BAD_INPUT: dict[str, str] = {
    "second watchdog": "A second watchdog for a VM or template that has one",
    "model that does not fit the machine": "A watchdog model that does not fit the machine type",
    "missing action": "A watchdog without an action",
    "name taken": "A name that is taken",
    "disk path outside the domain": "A disk path outside its storage domain",
    "image name of two files": "A VM from an image of whose name there are two files",
    "disk of another VM": "A disk path that another VM uses already",
    "disk that can't be told": "A domain of which it can't be told whether it opens an image of a managed Ceph pool",
    "slot of a foreign cluster": "A storage domain in whose heartbeat file another cluster's hosts have their places",
    "memory beyond any host": "More memory than any host has",
    "start with no host that fits": "A start with no host that fits: says per host why not",
    "wrong password": "A wrong password",
    "expired token": "A join token that has expired",
    "used token": "A join token that was used already",
    "wrong authority": "A server that is not of the authority that was promised",
    "certificate of another authority": "A host certificate of another authority",
    "hello of a future major version": "A hello of a future major version",
    "frame of 1 GiB": "A frame of 1 GiB",
    "half a frame, then silence": "Half a frame, then silence",
    "truncated outbox": "An agent's outbox that was truncated",
    "full disk": "A full disk: the server's, the host's, the storage's",
    "record of a newer version": "A record with a word that only a later version knows",
    "locked database": "A database that another program has locked",
    "server with its clock back": "A server that starts with its clock a day back",
    "second agent or server": "An agent, guardian or server that is started twice",
    "program as another user": "A program of ours started by somebody who is not root",
    "unit that is missing": "A systemd unit of ours that is missing, or an older version's",
    "agent with a wrong clock": "An agent whose clock is hours off",
    "libvirtd gone and back": "libvirtd goes and comes back",
    "properties without final newline": "agent.properties without a final newline",
    "properties with CRLF": "agent.properties with CRLF line ends",
    "properties with a duplicate key": "agent.properties with a key that stands twice",
    "role that may not": "A role that may not do it",
    "role that may not in that cluster": "A role that may not do it in that cluster",
    "id of a cluster that the user may not see": "An id or name in a cluster that the user may not see",
    "unknown role": "A role or a cluster that there is not, in a grant",
    "expired access token": "An access token that has expired",
    "token for what its user has no more": "An access token for a role or cluster that its user no longer has",
    "person of a provider without a role here": "A person whom the provider of sign-ins gives no role here",
    "person of a provider with a local user's name": "A person of the provider who is called as a local user is",
    "sign-in code used twice": "A code of the provider that is used twice",
    "sign-in with another's state": "A code or state of another sign-in, a sign-in that was tampered with",
    "redirect to elsewhere": "A sign-in that would send the browser elsewhere",
    "token of a provider that is not right": "A token of the provider with a wrong issuer, audience, nonce or time",
    "token of a provider that is not signed by it": "A token that the provider did not sign: alg none, its public key as a password",
    "provider of sign-ins that is away": "A provider of sign-ins that is away",
    "provider of sign-ins that answers garbage": "A provider of sign-ins that answers garbage",
    "provider of sign-ins that tells of another person": "A provider of sign-ins that tells of another person",
    "provider of sign-ins whose certificate is not trusted": "A provider of sign-ins whose certificate is of another authority, of another name, or expired",
    "settings of a provider of sign-ins that are none": "Settings of a provider of sign-ins that can't be",
    "unknown field": "An unknown field",
    "truncated journal": "A journal that was cut short",
    "damaged journal": "A journal with a flipped bit",
    "newer journal": "A journal of a newer version",
    "foreign journal": "A file that is no journal",
    "broken story": "A story for the simulator with an unknown host, VM or command, or a file that is none",
    "wrong seeds": "Seeds that are no range",
    "foreign run file": "A resume file of another range, another version or something else",
    "unwritable picture": "A picture where it can't be written",
    "address with a line break": "An e-mail address with a line break (a header smuggled in)",
    "lost secrets key": "A server whose secrets.key is missing or another one",
    "mail server that drops or stalls": "A mail server that accepts and drops, stalls, or puts off (greylisting)",
    "receiver with a wrong certificate": "A receiver with a wrong certificate: another authority or name, expired",
    "SNMP keys that differ": "SNMP v3 with wrong keys",
    "webhook into our own network": "A webhook that leads or redirects to loopback, link-local or private addresses",
    "template of a running VM": "A template of a VM that runs",
    "watchdog of a template that takes none": "A watchdog for a template that there is not, or that is being made or deleted",
    "template in use": "A template that goes while a VM's thin disk needs it",
    "snapshot of a running VM": "A snapshot of a VM that runs and whose guest can't be frozen, or lets go, or whose host's agent dies",
    "disk that is to shrink": "A disk that is to shrink, or to grow with snapshots inside",
    "host that can't take a move": "A migration to a host without the storage, with another CPU, without room, in maintenance, to where it runs",
    "death in a move": "Source, target, their libvirts or agents, or the server dying in a migration",
    "queue of 100,000 messages": "A queue of 100,000 messages that wait",
    "a route that matches nothing, or everything": "A notification route that matches nothing, or everything: told with its weight",
    "options of a route that can't be": "Waits, repeats, labels and time zones of a route that can't be",
    "quiet hours that leave no time": "Quiet hours that leave no time to tell anything",
    "a silence that ends before it begins": "A silence that ends before it begins, or has ended, or names nothing",
    "a cycle of inhibitions": "Rules of inhibition that silence each other in a circle",
    "an unknown label, with near words": "A label that no event has: told with the nearest",
    "deletion of a VM that may run": "A deletion of the data of a VM that may run, that others need, or that is cut half way",
    "cancel of what is done": "An operation taken back that is over, or that a host may have carried out",
    "incident that is none": "The id of an incident that is none, is unknown, or is another thing's",
    "two edits at once": "Two edits of a VM at once",
    "name of a VM or disk": "A name with unicode, spaces, 300 characters or a path",
    "device of a VM": "A disk or network card that can't be",
    "inventory with a cycle": "An inventory whose VMs wait for each other in a circle",
    "power address of something else": "The address of a power device answers something else",
    "power address of the host that asks": "A power device asked from agents at an address that is each host's own: loopback, link-local",
    "power device with TLS errors": "A power device with TLS errors",
    "wrong power password": "A wrong password of a power device",
    "IPMI cipher mismatch": "A BMC that refuses the cipher suite",
    "port without IPMI": "A port where no IPMI is spoken",
    "power script that prints megabytes": "A power script that prints megabytes",
    "power script that hangs": "A power script that hangs",
    "power script that forks": "A power script that forks",
    "power script that fails with 0": "A power script that exits 0 having failed",
    "power syntax with an unknown variable": "An execution syntax with an unknown variable",
    "storage that isn't shared": "A storage domain that isn't shared after all: two hosts see two under one name",
    "storage that is read-only": "A storage domain that is mounted read-only, or exported so",
    "storage that is nearly full": "A storage domain that is nearly full",
    "XML bomb": "XML that grows out of its entities, at the oVirt façade",
    "external entity": "XML with an external entity",
    "XML nested too deeply": "XML nested too deeply, or of too many elements",
    "wrong content type": "A body of another content type than it says, or of one that is not read",
    "body of 100 MB": "A body of 100 MB",
    "huge max": "A huge `max`, or one that is no number",
    "wrong value in a body": "A value that can't be, in an oVirt body",
    "some of a VM's disks": "A snapshot of some of a VM's disks, or going back with some",
    "protection that is not kept": "A setting of oVirt's that would protect, and is not kept here",
    "body of a removal": "A DELETE with a body, as version 3 of oVirt's API had it, or with a parameter that is none",
    "request from another site": "A request that a browser sends for another site, with what it knows of its user",
    "sign-in form of 1 MiB": "A sign-in form of 1 MiB, or of 100,000 fields",
    "metacharacters in a power password": "Shell metacharacters in the password of a power device",
    "search that can't be read": "A search with an unknown field, relation, value or object, or half a parenthesis",
    "search that asks too much": "A search of 100,000 parentheses, a flood of wildcards or conditions, or one that would look at everything",
    "key of another request": "An Idempotency-Key that came with another request before, or that is none",
    "cursor of another list": "A cursor of another list or of another search, cut off, or none; a page of more than 1,000",
    "condition that nobody looks at": "If-Match where nothing is compared, a stale one, one of a list; If-None-Match that is no list of ETags",
    "stream from nowhere": "An event stream from a revision that is no longer kept, or from one that is not reached",
    "search that smuggles": "A search with quotation marks, semicolons, comments and LIKE's own wildcards in it (SQL injection)",
}
"""The list of bad input, by the name that `bad_input` markers use. Each line is proved twice: where it is
cheapest to catch, and as a user meets it (`story=True`): through the real API, by a command against a
real server process, or by two real programs over a real connection."""


class Marked(NamedTuple):
    """One name that a marker gives to a test."""

    name: str
    is_story: bool


def _marked(node: ast.AST, marker: str) -> Iterator[Marked]:
    """The names of every `pytest.mark.<marker>("W7", …, story=…)` inside ``node``."""
    for call in ast.walk(node):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == marker
        ):
            is_story = any(
                keyword.arg == "story"
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is True
                for keyword in call.keywords
            )
            for argument in call.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield Marked(argument.value, is_story)


def covered(marker: str) -> dict[Marked, list[str]]:
    """What a marker names -> `file::test`, sorted. A module's `pytestmark` counts for all its tests."""
    found: dict[Marked, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        of_module = [
            each
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
            for each in _marked(node.value, marker)
        ]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = [each for deco in node.decorator_list for each in _marked(deco, marker)]
                for each in (*of_module, *own):
                    found[each].add(f"{path.relative_to(ROOT)}::{node.name}")
    return {each: sorted(tests) for each, tests in found.items()}


def _order(requirement: str) -> tuple[str, int, str]:
    digits = requirement[1:]
    return requirement[:1], int(digits) if digits.isdigit() else 0, requirement


def coverage_markdown() -> str:
    lines = [
        "# Requirements and the tests that cover them",
        "",
        "Generated from the `req` markers by `make docs`. A row that is missing has no test yet.",
        "",
    ]
    tests = {marked.name: found for marked, found in covered("req").items()}
    for requirement in sorted(tests, key=_order):
        lines += [f"## {requirement}", ""]
        lines += [f"- `{test}`" for test in tests[requirement]]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def bad_input_markdown() -> str:
    lines = [
        "# Bad input and the tests that prove its answer",
        "",
        "Generated from the `bad_input` markers by `make docs`. Each line: a clear error that names the",
        "field and the way out, and nothing lost or changed. *Story*: as a user meets it, through real",
        "programs; *part*: where it is cheapest to catch. A line without either fails the tests.",
        "",
    ]
    tests = covered("bad_input")
    for name, text in BAD_INPUT.items():
        lines += [f"## {text}", ""]
        for kind, is_story in (("story", True), ("part", False)):
            lines += [f"- {kind}: `{test}`" for test in tests.get(Marked(name, is_story), ())]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
