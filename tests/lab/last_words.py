"""What a lab has to say when a test of it fails, before the next one mends it: its hosts and logs are gone by the time that
somebody reads of the failure."""

import json
from collections.abc import Iterator
from pathlib import Path

from virtha.agent.paths import AgentPaths
from virtha.lab.lab import Lab
from virtha.lab.node import Node
from virtha.model.errors import VirthaError

LINES = {"agent": 15, "libvirtd": 6, "guardian": 4, "watchdog": 4}
SERVER_LINES = 15
GUEST_LINES = 12
EVENTS = 15
WIDTH = 400
ASK_S = 10.0
"""Whoever hangs may be what failed."""


def last_words(lab: Lab) -> str:
    """Never raises VirthaError or OSError: what can't be asked is said to have no answer."""
    parts = list(_open_operations(lab))
    for host in lab.hosts:
        parts += _of_host(host)
    parts += ["-- server", lab.server.last_words("server", SERVER_LINES)]
    parts += _newest_events(lab)
    return "\n".join(line[:WIDTH] for part in parts for line in part.splitlines())


def _open_operations(lab: Lab) -> Iterator[str]:
    yield "-- operations that go on"
    try:
        with lab.api() as api:
            for one in api.get("/v1/operations")["items"]:
                if not one["ended"]:
                    yield json.dumps(one)
    except (VirthaError, OSError) as error:
        yield f"no answer: {error}"


def _newest_events(lab: Lab) -> Iterator[str]:
    yield "-- events"
    try:
        with lab.api() as api:
            for event in api.events()[-EVENTS:]:
                yield json.dumps(event)
    except (VirthaError, OSError) as error:
        yield f"no answer: {error}"


def _of_host(host: Node) -> Iterator[str]:
    running, vms = list[str](), list[str]()
    try:
        running += host.running_services()
        vms += host.qemus()
    except (VirthaError, OSError) as error:
        yield f"-- {host.name}: no answer: {error}"  # it is off, or hangs
    yield f"-- {host.name}: services {', '.join(running) or 'none'}"
    for vm in vms:
        yield f"QEMU of {vm}"
        for question in (["virsh", "domstate", "--reason", vm], ["virsh", "domjobinfo", vm]):
            try:
                answer = host.run(question, timeout_s=ASK_S)
                yield (answer.stdout + answer.stderr).strip()
            except (VirthaError, OSError) as error:
                yield f"no answer: {error}"
    # Also of guests that moved away: what a kernel said last tells a guest that fell from one that was slow.
    for path in sorted(Path(AgentPaths(root=str(host.root)).serial).glob("*.log")):
        yield f"-- {host.name}: serial port of {path.stem}"
        yield "\n".join(path.read_text(errors="replace").splitlines()[-GUEST_LINES:])
    for log, lines in LINES.items():
        yield f"-- {host.name}: {log}"
        yield host.last_words(log, lines)
