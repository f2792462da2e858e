"""Talks to a guest of the lab through libvirt's socket of its host, from outside the host.

An own road on purpose: what the lab does to a guest, and what it finds there, must not pass through
the agent that is being tested.
"""

import base64
import contextlib
import json
import time
from collections.abc import Iterator

import libvirt
import libvirt_qemu

from virtha.lab.node import Node
from virtha.model.errors import Failed, Unavailable
from virtha.model.value import Value

AGENT_TIMEOUT_S = 5


class GuestLook(Value, frozen=True, kw_only=True):
    """What the inside of a tiny guest shows."""

    boots: int
    """The counter on its disk: one more for each boot."""
    uptime_s: float
    bootstatus: int | None
    """Bit 32: its watchdog card did the last reset. None: no card of the kernel's watchdog class."""


def silence_libvirt() -> None:
    """libvirt prints each error on standard error besides raising it; raising is enough."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


@contextlib.contextmanager
def domain_of(node: Node, vm: str) -> Iterator[libvirt.virDomain]:
    """The VM's libvirt domain on this host. Raises Unavailable."""
    silence_libvirt()
    try:
        connection = libvirt.open(node.libvirt_uri())
    except libvirt.libvirtError as error:
        raise Unavailable(f"libvirt on {node.name} does not answer: {error}") from error
    try:
        yield connection.lookupByName(vm)
    except libvirt.libvirtError as error:
        raise Unavailable(f"{vm} on {node.name}: {error}") from error
    finally:
        connection.close()


def agent_answers(node: Node, vm: str) -> bool:
    try:
        with domain_of(node, vm) as domain:
            libvirt_qemu.qemuAgentCommand(domain, '{"execute":"guest-ping"}', 1, 0)
    except Unavailable:
        return False
    return True


def wait_for_agent(node: Node, vm: str, *, timeout_s: float) -> float:
    """Seconds until the guest agent answered. Raises Failed."""
    begin = time.monotonic()
    while not agent_answers(node, vm):
        if time.monotonic() - begin > timeout_s:
            raise Failed(f"the guest agent of {vm} does not answer within {timeout_s:g} s")
        time.sleep(0.1)
    return time.monotonic() - begin


def execute(node: Node, vm: str, command: str, *, timeout_s: float = 10.0) -> str:
    """Run a shell command in the guest and return what it wrote. Raises Unavailable, Failed."""
    with domain_of(node, vm) as domain:
        started = _ask(
            domain,
            "guest-exec",
            {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True},
        )
        deadline = time.monotonic() + timeout_s
        while True:
            status = _ask(domain, "guest-exec-status", {"pid": started["pid"]})
            if status["exited"]:
                return base64.b64decode(str(status.get("out-data", ""))).decode(errors="replace")
            if time.monotonic() > deadline:
                raise Failed(f"{vm}: '{command}' still runs after {timeout_s:g} s")
            time.sleep(0.05)


def begin(node: Node, vm: str, command: str) -> None:
    """Run a shell command in the guest and don't wait for it: it may be the guest's last."""
    with domain_of(node, vm) as domain:
        _ask(domain, "guest-exec", {"path": "/bin/sh", "arg": ["-c", command]})


def look(node: Node, vm: str) -> GuestLook:
    text = execute(
        node,
        vm,
        "cat /run/boots /proc/uptime; cat /sys/class/watchdog/watchdog0/bootstatus 2>/dev/null",
    )
    words = text.split()
    return GuestLook(
        boots=int(words[0]),
        uptime_s=float(words[1]),
        bootstatus=int(words[3]) if len(words) > 3 else None,
    )


def _ask(domain: libvirt.virDomain, name: str, arguments: dict[str, object]) -> dict[str, object]:
    text = libvirt_qemu.qemuAgentCommand(
        domain, json.dumps({"execute": name, "arguments": arguments}), AGENT_TIMEOUT_S, 0
    )
    answer = json.loads(text)["return"]
    if not isinstance(answer, dict):
        raise Failed(f"the guest agent answered {name} with no object")
    return answer
