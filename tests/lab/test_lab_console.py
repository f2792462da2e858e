"""What a real guest shows: its serial log and its screen, over the channels of a real agent."""

import os
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from virtha.cli.console_terminal import LEAVE, relay
from virtha.lab import faults
from virtha.lab.node import wait_until
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


def log_text(story: Story, name: str, query: str = "") -> str:
    log = story.api.get(f"/v1/vms/{name}/console-log{query}")
    return "".join(part["text"] for part in log["parts"])


def test_the_serial_log_and_the_screen_of_a_real_guest(story: Story) -> None:
    story.create_vm("shown1", host="h1")
    story.wait_agent("shown1")
    wait_until(
        lambda: "tiny: boot 1" in log_text(story, "shown1"), "the guest's words", timeout_s=60.0
    )
    assert "tiny: boot" in log_text(story, "shown1", "?contains=TINY:+BOOT&lines=1")
    picture = story.api.request("GET", "/v1/vms/shown1/screenshot").content
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert 320 <= width <= 4_096 and 200 <= height <= 4_096


def at_console(
    story: Story,
    name: str,
    kind: str,
    typed: bytes,
    until: bytes,
    *,
    amidst: Callable[[], object] | None = None,
) -> tuple[bytes, str]:
    """What was shown up to ``until`` over a ticket and the server's WebSocket, and why it ended. ``amidst``: then that is
    done, in place of leaving."""
    made = story.api.request("POST", f"/v1/vms/{name}/console-tickets", json={"kind": kind}).json()
    keyboard, keys = os.pipe()
    screen, sink = os.pipe()
    shown = bytearray()

    def look() -> None:
        while data := os.read(screen, 4096):
            shown.extend(data)
            if until in shown:
                if amidst is None:
                    os.write(keys, LEAVE)
                else:
                    amidst()
                return

    looking = threading.Thread(target=look)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        sock.connect(str(story.api._socket))
        os.write(keys, typed)
        looking.start()
        try:
            ended = relay(sock, made["ticket"], keyboard, sink)
        finally:
            os.close(sink)
            looking.join(60)
            for descriptor in (keyboard, keys, screen):
                os.close(descriptor)
    return bytes(shown), ended


def seen(story: Story, name: str, kind: str, typed: bytes, until: bytes) -> bytes:
    """By somebody who then leaves."""
    shown, ended = at_console(story, name, kind, typed, until)
    assert ended == "", ended
    return shown


def test_the_serial_console_and_vnc_of_a_real_guest(story: Story) -> None:
    story.create_vm("shown2", host="h1")
    story.wait_agent("shown2")
    assert b"RFB 003.008" in seen(story, "shown2", "vnc", b"", b"RFB 003.008\n")
    began = story.revision()
    # The guest's init waits for Enter, then there is its shell.
    assert b"# " in seen(story, "shown2", "serial", b"\recho vir''tha-$((40+2))\r", b"virtha-42")
    # The other's end may come late.
    wait_until(
        lambda: (
            [
                event["code"]
                for event in story.events("shown2", began, "vm.console.*")
                if event["fields"]["kind"] == "serial"
            ]
            == ["vm.console.opened", "vm.console.closed"]
        ),
        "who looked, from when to when",
        timeout_s=60.0,
    )


@pytest.mark.long
def test_consoles_are_free_again_after_each_kill(story: Story) -> None:
    """Agent and server are killed while somebody types; QEMU lets the next one in. And no port of its is open on the host."""
    story.create_vm("shown3", host="h1")
    story.wait_agent("shown3")
    host = story.lab.host("h1")
    qemu = host.qemus()["shown3"]
    listening = host.run_checked(["ss", "-Hltnp"])
    assert "qemu" not in listening, listening

    def h1_is_connected() -> bool:
        return bool(story.api.get("/v1/hosts/h1")["agent_connected"])

    kills: tuple[tuple[Callable[[], object], Callable[[], object]], ...] = (
        (
            lambda: faults.kill_agent(story.lab, "h1"),
            lambda: faults.start_agent(story.lab, "h1"),
        ),
        (
            lambda: faults.kill_server(story.lab),
            lambda: faults.start_server_again(story.lab),
        ),
    )
    for kill, mend in kills:
        for kind, typed, until in (("serial", b"\r", b"# "), ("vnc", b"", b"RFB 003.008\n")):
            _, ended = at_console(story, "shown3", kind, typed, until, amidst=kill)
            assert ended != ""
            mend()
            wait_until(h1_is_connected, "its agent is back", timeout_s=60.0)
            assert until in seen(story, "shown3", kind, typed, until)
    assert host.qemus()["shown3"].pid == qemu.pid
