"""Requests that mean anything, most of them well formed, of every route of the table, in XML and JSON, with parameters:
whatever they ask for, no answer is a fault of the server's."""

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from ovirtsdk4 import reader
from test_ovirt_requests import ROOT, one_vm, send

from virtha.api.ovirt import json_codec, xml_codec
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.shape import Scalar
from virtha.api.ovirt.table import ROUTES
from virtha.api.route import JSON

Play = Callable[..., Any]
World = Any
ROUNDS = 300
FUZZ_S = float(os.environ.get("VIRTHA_FUZZ_S", "0"))
"""`make verify` has ten minutes of it, of other bodies each time."""
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


class Requests:
    """By chance; their bodies of a type's own fields, and so most of them none that reading refuses."""

    def __init__(self, seed: int, known: list[str]) -> None:
        self.chance = random.Random(seed)
        self.texts = (*TEXTS, *known)

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
        if self.chance.random() < 0.3:
            node["id"] = self.chance.choice(self.texts)
        for field_name, field in shape.fields.items():
            of = shape.type_of(field_name)
            if of is Scalar.TIME or self.chance.random() > (0.5 if depth == 3 else 0.3):
                continue
            if isinstance(of, Scalar):
                made = [self.scalar(of) for _ in range(self.chance.randint(0, 2))]
                node[field_name] = made if field.many else self.scalar(of)
            elif depth:
                made = [self.node(of, depth - 1) for _ in range(self.chance.randint(0, 2))]
                node[field_name] = made if field.many else self.node(of, depth - 1)
        return node

    def path(self, path: str, ids: dict[str, str]) -> str:
        """Mostly of things that are there."""

        def part(found: re.Match[str]) -> str:
            if self.chance.random() < 0.8:
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


async def known_ids(world: World) -> dict[str, str]:
    """What the routes' parts may stand for: things that are there."""
    vm_id = await one_vm(world)
    host = (await world.ok("GET", "/v1/hosts"))["items"][0]["host"]
    await world.ok("POST", "/v1/storage-domains", {"name": "ds1", "path": "/srv/ds1"})
    storage = (await world.ok("GET", "/v1/storage-domains"))["items"][0]["domain"]
    user = (await world.ok("GET", "/v1/users"))["items"][0]
    agent = "<agent><address>127.0.0.1</address><order>1</order><type>ipmilan</type><username>u</username><password>p</password></agent>"
    added = await send(world, "POST", f"/hosts/{host['id']}/fenceagents", agent)
    nic = await send(world, "GET", f"/vms/{vm_id}/nics")
    return {
        "vm": vm_id,
        "vms": vm_id,
        "watchdog": vm_id,
        "host": host["id"],
        "hosts": host["id"],
        "cluster": host["cluster_id"],
        "data_center": host["cluster_id"],
        "storage_domain": storage["id"],
        "user": user["id"],
        "agent": re.search(r' id="([^"]*)"', added.text)[1],
        "nic": re.search(r' id="([^"]*)"', nic.text)[1],
        "disk": storage["id"],
    }


async def fuzz(world: World, seed: int, more: Callable[[int], bool]) -> Counter[tuple[str, int]]:
    """How many answers there were of each method and status."""
    ids = await known_ids(world)
    requests = Requests(seed, list(ids.values()))
    # A fence of a device that is not there takes its minute.
    routes = [one for one in ROUTES if not one.path.endswith("/fence")]
    found: Counter[tuple[str, int]] = Counter()
    while more(found.total()):
        route = requests.chance.choice(routes)
        raw, headers = requests.body(route.reads)
        # Else there would soon be nothing left to be asked about.
        there = {} if route.method == "DELETE" and requests.chance.random() < 0.7 else ids
        full = ROOT + requests.path(route.path, there) + requests.parameters()
        if route.method != "GET":
            full += ("&" if "?" in full else "?") + "async=true"
        answer = await world.call(route.method, full, raw=raw, headers=headers)
        told = (seed, found.total(), route.method, full, headers, raw, answer.text[:2_000])
        assert answer.status_code < 500 or answer.status_code == 503, told
        check_read(answer, told)
        found[route.method, answer.status_code] += 1
    return found


def check_read(answer: Any, told: object) -> None:
    """What is answered is what it says it is; the stock SDK reads the XML."""
    if not answer.text:
        return
    if answer.headers["content-type"] == JSON:
        assert isinstance(answer.json(), dict), told
    elif "<capabilities>" not in answer.text:
        assert reader.Reader.read(answer.text) is not None, told


@pytest.mark.bad_input("wrong value in a body")
@pytest.mark.timeout(300 + FUZZ_S * 3)
def test_no_request_is_answered_with_a_fault_of_the_server(play: Play) -> None:
    async def story(world: World) -> None:
        until = time.monotonic() + FUZZ_S
        seed = time.time_ns() if FUZZ_S else 1
        found = await fuzz(world, seed, lambda done: done < ROUNDS or time.monotonic() < until)
        for method, wanted in (
            ("GET", {200, 400, 404}),
            ("POST", {400}),
            ("PUT", {400}),
            ("DELETE", {400, 404}),
        ):
            assert {status for it, status in found if it == method} >= wanted, found
        assert any(status < 300 for it, status in found if it != "GET"), found

    play(story)
