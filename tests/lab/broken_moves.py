"""Stops a live migration from h1 to h2 at one point of its way, and lets it go on.

By conditions alone: a hook of libvirt that waits, processes that are stopped and go on, what waits in a socket.
"""

import signal
from enum import StrEnum

from moving_guest import PATIENCE_S, slowly

from virtha.lab.api import Json
from virtha.lab.namespaces import ProcessId, command_line, kill
from virtha.lab.node import Node, wait_until
from virtha.lab.story import Story
from virtha.model.orders import MoveDestination

TARGET_PORT = MoveDestination().port
WORD_BYTES = 300
"""More than keep-alive, less than libvirt's *finish* with its cookie."""
PAUSE, PAUSED = "/run/lab-pause", "/run/lab-paused"
HOOK = f"""\
#!/bin/sh
[ "$2 $3" = "started begin" ] && [ -e {PAUSE} ] || exit 0
touch {PAUSED}
n=0
while [ -e {PAUSE} ] && [ $n -lt 600 ]; do sleep 0.05; n=$((n+1)); done
exit 0
"""


class Phase(StrEnum):
    PREPARED = "prepared"
    """The target's QEMU waits, nothing was copied."""
    COPYING = "copying"
    SENT = "sent"
    """All of it; the source stands still, the word to run was not given."""
    WORD = "word"
    """Given, and not yet heard."""
    SWITCHED = "switched"
    """It runs on the target, and the source has not heard that."""
    SETTLED = "settled"


class StoppedMove:
    """What was stopped to keep it where it is."""

    def __init__(self, story: Story, vm: str) -> None:
        self._story = story
        self._vm = vm
        self.operation: Json = {}
        self._mover: ProcessId | None = None
        self._libvirtd_stopped = False

    @property
    def source(self) -> Node:
        return self._story.lab.host("h1")

    @property
    def target(self) -> Node:
        return self._story.lab.host("h2")

    def reach(self, phase: Phase) -> None:
        if phase is Phase.PREPARED:
            self._prepare()
            return
        self.operation = slowly(self._story, self._vm)
        if phase is Phase.COPYING:
            return
        if phase is Phase.SETTLED:
            self.hurry()
            ended = self._story.api.finish(self.operation, timeout_s=PATIENCE_S)
            assert ended["state"] == "done", ended
            return
        self._send_all()
        if phase is not Phase.SENT:
            self._give_word()
        if phase is Phase.SWITCHED:
            self._let_run()

    def go_on(self) -> None:
        """Whatever of it still lives."""
        if self._mover is not None:
            kill(self._mover, signal.SIGCONT)
        if self.target.is_on():
            self.target.path_inside(PAUSE).unlink(missing_ok=True)
            if self._libvirtd_stopped and "libvirtd" in self.target.running_services():
                self.target.signal_service("libvirtd", signal.SIGCONT)

    def end_mover(self) -> None:
        assert kill(self._leader())

    def _leader(self) -> ProcessId:
        (found,) = (
            process
            for process in self.source.processes()
            if "virtha.drivers.libvirt_mover" in command_line(process)
        )
        return found

    def _prepare(self) -> None:
        hook = self.target.directory / "libvirt/etc/hooks/qemu.d/zz-lab-pause"
        hook.write_text(HOOK)
        hook.chmod(0o755)
        self.target.path_inside(PAUSED).unlink(missing_ok=True)
        self.target.path_inside(PAUSE).touch()
        self.operation = self._story.api.post(f"/v1/vms/{self._vm}/migrate", {"host": "h2"})
        wait_until(self.target.path_inside(PAUSED).exists, "h2 is prepared", timeout_s=60.0)

    def _send_all(self) -> None:
        self._mover = self._leader()
        assert kill(self._mover, signal.SIGSTOP)
        self.hurry()
        wait_until(
            lambda: self._state(self.source) == "paused", "the source stands", timeout_s=60.0
        )

    def hurry(self) -> None:
        """Where it still copies."""
        if self.source.is_on():
            self.source.run(["virsh", "migrate-setspeed", self._vm, "1000"])

    def _give_word(self) -> None:
        """It waits in the socket of the target's libvirt, which is stopped."""
        self.target.signal_service("libvirtd", signal.SIGSTOP)
        self._libvirtd_stopped = True
        before = _unread_bytes(self.target)
        assert self._mover is not None
        kill(self._mover, signal.SIGCONT)
        wait_until(
            lambda: _unread_bytes(self.target) > before + WORD_BYTES,
            "the word to run is given",
            timeout_s=60.0,
        )

    def _let_run(self) -> None:
        assert self._mover is not None
        kill(self._mover, signal.SIGSTOP)
        self.target.signal_service("libvirtd", signal.SIGCONT)
        self._libvirtd_stopped = False
        wait_until(lambda: self._state(self.target) == "running", "it runs on h2", timeout_s=60.0)

    def _state(self, host: Node) -> str:
        return host.run(["virsh", "-q", "domstate", self._vm]).stdout.strip()


def _unread_bytes(host: Node) -> int:
    """Of all connections to its libvirt's TLS port."""
    found = 0
    for name in ("tcp", "tcp6"):
        for line in host.path_inside("/proc/1/net").joinpath(name).read_text().splitlines()[1:]:
            words = line.split()
            if int(words[1].rpartition(":")[2], 16) == TARGET_PORT and words[3] == "01":
                found += int(words[4].partition(":")[2], 16)
    return found
