"""Bodies that mean anything, most of them well formed: whatever they ask for, no answer is a fault of the server's."""

import os
import random
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from ovirtsdk4 import reader
from test_ovirt_requests import ROOT, XML, one_vm, send

from virtha.api.ovirt import xml_codec
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.shape import Scalar
from virtha.api.ovirt.table import ROUTES

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


class Bodies:
    """Nodes by chance, of a type's own fields, and so none that reading refuses."""

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


async def fuzz(world: World, seed: int, more: Callable[[int], bool]) -> dict[int, int]:
    """How many answers there were of each status."""
    ids = await known_ids(world)
    bodies = Bodies(seed, list(ids.values()))
    # A removal would end the test of the rest; what they read is nothing.
    writing = [one for one in ROUTES if one.reads and not one.path.endswith("/fence")]
    statuses: dict[int, int] = {}
    done = 0
    while more(done):
        route = bodies.chance.choice(writing)
        path = re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], "nothing"), route.path)
        raw = bodies.torn(xml_codec.encode_one(SHAPES[route.reads], bodies.node(route.reads), ""))
        full = f"{ROOT}{path}?async=true"
        answer = await world.call(route.method, full, raw=raw, headers=XML)
        told = (seed, done, full, raw, answer.text)
        assert answer.status_code < 500 or answer.status_code == 503, told
        if answer.text:
            assert reader.Reader.read(answer.text) is not None
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        done += 1
    return statuses


@pytest.mark.bad_input("wrong value in a body")
@pytest.mark.timeout(300 + FUZZ_S * 3)
def test_no_body_is_answered_with_a_fault_of_the_server(play: Play) -> None:
    async def story(world: World) -> None:
        until = time.monotonic() + FUZZ_S
        seed = time.time_ns() if FUZZ_S else 1
        statuses = await fuzz(world, seed, lambda done: done < ROUNDS or time.monotonic() < until)
        assert {400, 409} <= set(statuses), statuses

    play(story)
