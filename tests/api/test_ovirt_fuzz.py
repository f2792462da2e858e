"""Requests that mean anything, most of them well formed, of every route of the table, in XML and JSON, with parameters:
whatever they ask for, no answer is a fault of the server's."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from filled_installation import VM, ObedientHosts
from ovirtsdk4 import reader
from test_ovirt_requests import ROOT, XML, send

from virtha.api.ovirt import json_codec, operations, xml_codec
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.route import Route
from virtha.api.ovirt.shape import Scalar
from virtha.api.ovirt.table import ROUTES
from virtha.api.route import JSON
from virtha.model.host import HostState

World = Any
Answers = Counter[tuple[str, str, int]]
"""How many there were of each method, path of the table and status."""
ROUNDS, ROUNDS_OF_A_LONG_RUN = 300, 700
"""Of one world. The longer it goes on the more of what is asked about was deleted or filled up."""
LOOKED_AT_AFTER = 100
"""Rounds: then the ids are those of what there is by now."""
FUZZ_S = float(os.environ.get("VIRTHA_FUZZ_S", "0"))
"""`make verify` has ten minutes of it: world after world, of other bodies each time."""
SEED = os.environ.get("VIRTHA_FUZZ_SEED")
"""Of one world that failed, to see it again: with VIRTHA_FUZZ_S=1, as it was a long run's."""
UNAVAILABLE_HERE: tuple[str, ...] = (
    "POST /hosts/{host}/activate",
    "POST /hosts/{host}/deactivate",
    "POST /hosts/{host}/fence",
    "POST /vms/{vm}/migrate",
    "POST /vms/{vm}/cancelmigration",
)
"""No engine leads in this installation, and no server switches power: 503 is the right answer."""
TEXTS = (
    *(
        "",
        " ",
        "web1",
        "default",
        "Blank",
        "br0",
        "ds1",
        "reset",
        "i6300esb",
        "ipmilan",
        "redfish",
        "apc_snmp",
    ),
    *(
        "true",
        "0",
        "x" * 300,
        "../../etc/passwd",
        "name with blanks",
        "ünï",
        "a\nb",
        "';--",
        "00:11:22:33:44:55",
    ),
    *(
        "00000000-0000-0000-0000-000000000000",
        "watchdog_event",
        "virtio",
        "cow",
        "smtp",
        "/srv/ds2",
        "posixfs",
    ),
    *("start", "stop", "status", "q35", "q35_sea_bios", "auto_resume", "s390x", "vnc", "127.0.0.1"),
)
NUMBERS = (0, 1, 2, 64, -1, 1 << 20, 1 << 30, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63) + 1)


PARAMETERS = {
    "max": ("0", "1", "-1", "2", "9223372036854775807", "9" * 30, "x", ""),
    "search": (
        *(
            "name=web1",
            "name=web* sortby name desc page 2",
            "Clusters.name=default",
            "watchdog=null",
        ),
        *("last_event > yesterday", "colour=red", "(((", 'name="', "';drop table vm--", "*" * 200),
    ),
    "follow": (
        *("cluster", "nics.vnic_profile", "disk_attachments.disk", "permissions.user", "watchdogs"),
        *("template", "host", "statistics", "colour", "..", "vm.cluster.data_center.clusters"),
    ),
    "case_sensitive": ("true", "false", "maybe"),
    "async": ("true", "false", "x"),
    "from": ("0", "1", "-1", "99999999999999999999", "x"),
    "detach_only": ("true", "false", "x"),
    "clone": ("true", "x"),
    "nonsense": ("", "x" * 5_000),
}


SOUND: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/vms"): {
        "name": "",
        "cluster": {"name": "default"},
        "template": {"name": "Blank"},
    },
    ("PUT", "/vms/{vm}"): {"description": "fuzzed"},
    ("POST", "/vms/{vm}/watchdogs"): {"action": "reset", "model": "i6300esb"},
    ("PUT", "/vms/{vm}/watchdogs/{watchdog}"): {"action": "pause"},
    ("PUT", "/clusters/{cluster}"): {"description": "fuzzed"},
    ("POST", "/vms/{vm}/start"): {},
    ("POST", "/vms/{vm}/stop"): {},
    ("DELETE", "/vms/{vm}/watchdogs/{watchdog}"): {},
}
"""Of some routes, what they take."""
GOOD = [
    one for one in ROUTES if (one.method, one.path) in SOUND or one.path == "/vms/{vm}/watchdogs"
]


class Requests:
    """By chance; their bodies of a type's own fields, and so most of them none that reading refuses."""

    def __init__(self, seed: int, known: list[str]) -> None:
        self.chance = random.Random(seed)
        self.texts = (*TEXTS, *known)
        self.dense = 0.5
        """The share of a type's fields that a body has."""
        self.names = itertools.count()

    def scalar(self, of: Scalar) -> Any:
        match of:
            case Scalar.BOOLEAN:
                return self.chance.random() < 0.5
            case Scalar.INTEGER | Scalar.TIME:
                return self.chance.choice(NUMBERS)
            case Scalar.DECIMAL:
                return self.chance.random()
            case _:
                return self.chance.choice(self.texts)

    def node(self, name: str, depth: int = 3) -> dict[str, Any]:
        shape, node = SHAPES[name], {}
        if depth == 3:
            self.dense = self.chance.choice((0.05, 0.2, 0.5))
        if self.chance.random() < 0.3:
            node["id"] = self.chance.choice(self.texts)
        for field_name, field in shape.fields.items():
            of = shape.type_of(field_name)
            if of is Scalar.TIME or self.chance.random() > (self.dense if depth == 3 else 0.3):
                continue
            if isinstance(of, Scalar):
                made = [self.scalar(of) for _ in range(self.chance.randint(0, 2))]
                node[field_name] = made if field.many else self.scalar(of)
            elif depth:
                made = [self.node(of, depth - 1) for _ in range(self.chance.randint(0, 2))]
                node[field_name] = made if field.many else self.node(of, depth - 1)
        return node

    def path(self, path: str, ids: dict[str, str], *, sure: bool = False) -> str:
        """Mostly of things that are there; ``sure``: always."""

        def part(found: re.Match[str]) -> str:
            if sure or self.chance.random() < 0.8:
                return ids.get(found[1], "nothing")
            return quote(self.chance.choice(self.texts) or "x", safe="")

        return re.sub(r"\{(\w+)\}", part, path)

    def parameters(self) -> str:
        """In the query, or in the path's own manner."""
        names = self.chance.sample(sorted(PARAMETERS), self.chance.choice((0, 0, 1, 2, 3)))
        pairs = [f"{name}={quote(self.chance.choice(PARAMETERS[name]))}" for name in names]
        if not pairs:
            return ""
        return ";" + ";".join(pairs) if self.chance.random() < 0.2 else "?" + "&".join(pairs)

    def body(self, reads: str) -> tuple[bytes, dict[str, str]]:
        """And the headers that go with it."""
        json = self.chance.random() < 0.4
        codec = json_codec if json else xml_codec
        headers = {"Content-Type": JSON if json else "application/xml"}
        if self.chance.random() < 0.2:
            headers["Accept"] = self.chance.choice(
                (JSON, JSON, "application/xml", "*/*", "text/csv;q=x")
            )
        if not reads:
            return (b"" if self.chance.random() < 0.9 else b"<action/>"), headers
        return self.torn(codec.encode_one(SHAPES[reads], self.node(reads), "")), headers

    def sound(self, route: Route) -> dict[str, Any] | None:
        """A body that is good; None: none is known for that route."""
        body = SOUND.get((route.method, route.path))
        if body is None or "name" not in body:
            return body
        return {**body, "name": f"fuzz{next(self.names)}"}

    def good(self, route: Route, ids: dict[str, str]) -> tuple[str, bytes, dict[str, str]]:
        """Path, body and headers of a request that is to be carried out, as far as what was done before lets it."""
        path, body = self.path(route.path, ids, sure=True), self.sound(route)
        if body is None or not route.reads:
            return path, b"", XML
        return path, xml_codec.encode_one(SHAPES[route.reads], body, ""), XML

    def any(self, route: Route, ids: dict[str, str]) -> tuple[str, bytes, dict[str, str]]:
        """The same of one that may be refused."""
        raw, headers = self.asked(route)
        # Else there would soon be nothing left to be asked about.
        there = {} if route.method == "DELETE" and self.chance.random() < 0.7 else ids
        full = self.path(route.path, there) + self.parameters()
        if route.method != "GET" and self.chance.random() < 0.7:
            full += ("&" if "?" in full else "?") + "async=true"
        return full, raw, headers

    def asked(self, route: Route) -> tuple[bytes, dict[str, str]]:
        """The body and its headers."""
        if route.reads and self.chance.random() < 0.4 and (body := self.sound(route)) is not None:
            return xml_codec.encode_one(SHAPES[route.reads], body, ""), XML
        if route.path.endswith("/fence"):
            kind = self.chance.choice(("", "manual", "reboot", "off", "x" * 300, "START", "0"))
            node = {**self.node(route.reads), "fence_type": kind}
            return xml_codec.encode_one(SHAPES[route.reads], node, ""), XML
        return self.body(route.reads)

    def torn(self, raw: bytes) -> bytes:
        """One in five: cut, with a byte changed, or with a part of it twice."""
        at, other = (self.chance.randrange(len(raw)) for _ in range(2))
        match self.chance.randrange(15):
            case 0:
                return raw[:at]
            case 1:
                return raw[:at] + bytes([self.chance.randrange(256)]) + raw[at + 1 :]
            case 2:
                return raw[:at] + raw[min(at, other) : max(at, other)] + raw[at:]
            case _:
                return raw


async def known_ids(world: World, hosts: ObedientHosts) -> dict[str, str]:
    """What the routes' parts may stand for: things that are there. They are made where there are none any more."""

    async def listed(collection: str, part: str | None = None) -> list[Any]:
        items = (await world.ok("GET", f"/v1/{collection}"))["items"]
        return [one if part is None else one[part] for one in items]

    async def made(collection: str, body: dict[str, Any], part: str | None = None) -> Any:
        """The first that there is."""
        if not await listed(collection, part):
            hosts.beat()
            await world.ok("POST", f"/v1/{collection}", body)
            await hosts.obey()
        return (await listed(collection, part))[0]

    async def able() -> list[Any]:
        """Hosts that VMs may run on: none is any more that was removed, or said to be dead."""
        views = await listed("hosts")
        return [one["host"] for one in views if one["status"]["state"] == HostState.UP]

    if not await able():
        cluster = await made("clusters", {"name": "default"})  # whatever it is called by now
        await hosts.join(f"h{len(hosts.sequences) + 1}", cluster["id"])
    host = (await able())[0]
    path = {"name": "ds1", "path": "/srv/ds1", "cluster": host["cluster_id"]}
    storage = await made("storage-domains", path, "domain")
    of_all = {"cluster": host["cluster_id"], "storage_domain": storage["id"]}
    vms = [one for one in await listed("vms", "vm") if one["disks"] and one["nics"]]
    if not vms:
        name = f"made{sum(hosts.sequences.values())}"
        hosts.beat()  # a slow machine may have taken long since the last one
        await world.ok("POST", "/v1/vms", {**VM, **of_all, "name": name})
        await hosts.obey()
        vms = [one for one in await listed("vms", "vm") if one["name"] == name]
    vm = vms[0]
    hosts.beat()
    base = await world.call("POST", "/v1/templates", {"vm": vm["id"], "name": "base"})
    assert base.status_code < 500, base.text
    await hosts.obey()
    templates = await listed("templates", "template")
    agent = "<agent><address>127.0.0.1</address><order>1</order><type>ipmilan</type><username>u</username><password>p</password></agent>"
    agents = f"/hosts/{host['id']}/fenceagents"
    if " id=" not in (await send(world, "GET", agents)).text:
        await send(world, "POST", agents, agent)
    return {
        **dict.fromkeys(("vm", "vms", "watchdog"), vm["id"]),
        **dict.fromkeys(("host", "hosts"), host["id"]),
        **dict.fromkeys(("cluster", "data_center"), host["cluster_id"]),
        **{name: templates[0]["id"] for name in ("template", "templates") if templates},
        "storage_domain": storage["id"],
        "user": (await listed("users"))[0]["id"],
        "disk": vm["disks"][0]["id"],
        "nic": vm["nics"][0]["id"],
        "job": (await listed("operations"))[0]["id"],
        **dict(re.findall(r'<(agent) [^>]*id="([^"]*)"', (await send(world, "GET", agents)).text)),
    }


async def fuzz(world: World, seed: int, rounds: int) -> tuple[Answers, int]:
    """The answers, and how many VMs were started."""
    hosts = ObedientHosts(world)
    ids = await known_ids(world, hosts)
    requests = Requests(seed, list(ids.values()))
    found: Answers = Counter()
    for done in range(1, rounds + 1):
        is_good = requests.chance.random() < 0.1
        route = requests.chance.choice(GOOD if is_good else ROUTES)
        path, raw, headers = (requests.good if is_good else requests.any)(route, ids)
        full = ROOT + path
        hosts.beat()
        answer = await world.call(route.method, full, raw=raw, headers=headers)
        told = (seed, done, route.method, full, headers, raw, answer.text[:2_000])
        assert answer.status_code < 500 or is_unavailable(route, answer), told
        check_read(answer, told)
        found[route.method, route.path, answer.status_code] += 1
        await hosts.obey()
        if done % LOOKED_AT_AFTER == 0 and done < rounds:
            ids = await known_ids(world, hosts)
    return found, len(hosts.incarnations)


def is_unavailable(route: Route, answer: Any) -> bool:
    named = route.name in UNAVAILABLE_HERE and answer.status_code == 503
    return named and "code: problem.unavailable" in answer.text


def check_read(answer: Any, told: object) -> None:
    """What is answered is what it says it is; the stock SDK reads the XML."""
    if not answer.text:
        return
    if answer.headers["content-type"] == JSON:
        assert isinstance(answer.json(), dict), told
    elif "<capabilities>" not in answer.text:
        assert reader.Reader.read(answer.text) is not None, told


def check_reached(found: Answers, started: int) -> None:
    """Of one world: that things were there to be asked about and changed, and that requests were refused."""
    for method, wanted in (
        ("GET", {200, 400, 404}),
        ("POST", {201, 400, 404, 409}),
        ("PUT", {200, 400, 404, 409}),
        ("DELETE", {200, 400, 404}),
    ):
        # What is added is there at once (201), or is under way (202).
        told = {201 if status == 202 else status for it, _, status in found if it == method}
        assert told >= wanted, found
    of_vm = sum(
        count
        for (_, path, status), count in found.items()
        if path.startswith("/vms/{vm}/") and status == 200
    )
    assert of_vm >= found.total() / 50 and started, (of_vm, started, found)


@pytest.mark.bad_input("wrong value in a body")
@pytest.mark.timeout(300 + FUZZ_S * 3)
def test_no_request_is_answered_with_a_fault_of_the_server(
    tmp_path: Path,
    fresh_database: Callable[[Path], None],
    open_installation: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operations, "ANSWER_WAIT_MS", 1)  # the host does it after the answer

    async def one_world(seed: int, rounds: int) -> None:
        with contextlib.ExitStack() as end:
            directory = tmp_path / str(seed)
            directory.mkdir()
            end.callback(shutil.rmtree, directory)
            fresh_database(directory)
            async with open_installation(directory) as world:
                found, started = await fuzz(world, seed, rounds)
        print(f"seed {seed}: {found.total()} requests, {share_done(found):.0%} done, {started} VMs")
        check_reached(found, started)

    until = time.monotonic() + FUZZ_S
    if SEED is not None or not FUZZ_S:
        asyncio.run(one_world(int(SEED or 1), ROUNDS_OF_A_LONG_RUN if FUZZ_S else ROUNDS))
        return
    while time.monotonic() < until:
        seed = time.time_ns()
        print(f"seed {seed}")  # what failed is seen again with it
        asyncio.run(one_world(seed, ROUNDS_OF_A_LONG_RUN))


def share_done(found: Answers) -> float:
    done = sum(count for (_, _, status), count in found.items() if status < 300)
    return done / found.total()
