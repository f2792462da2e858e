"""A power device per lab host, outside of all its namespaces: what a program at the end of a ``command`` device talks to."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.lab import Lab
from virtha.lab.story import Story, no_restart_limit
from virtha.model.errors import VirthaError

READ_DEADLINE_MS = 4_500
_SWITCH = """#!/usr/bin/python3
import os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect(os.path.join(os.path.dirname(sys.argv[0]), sys.argv[1]))
    line.sendall(sys.argv[2].encode())
    line.shutdown(socket.SHUT_WR)
    answer = line.recv(200).decode()
print(answer)
sys.exit(0 if answer in ("on", "off", "done") else 1)
"""


class LabBmc:
    """Of one host. ``asked``: in order; an off that found the host on is 'off!'."""

    def __init__(self, lab: Lab, host: str, directory: Path) -> None:
        self.path = directory / f"{host}.bmc"
        self.asked: list[str] = []
        self._lab = lab
        self._host = host
        self._line = socket.socket(socket.AF_UNIX)
        self._line.bind(str(self.path))
        self._line.listen(8)
        threading.Thread(target=self._serve, name=f"bmc of {host}", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._line.accept()
            except OSError:
                return  # closed
            with peer, contextlib.suppress(OSError):
                wanted = peer.recv(100).decode()
                try:
                    answer = self._do(wanted)
                except (VirthaError, OSError) as error:
                    answer = str(error)
                peer.sendall(answer.encode())

    def _do(self, wanted: str) -> str:
        lab = Lab.open(self._lab.directory)
        is_on = lab.host(self._host).is_on()
        if wanted == "status":
            return "on" if is_on else "off"
        self.asked.append("off!" if wanted == "off" and is_on else wanted)
        if wanted == "off" and is_on:
            faults.kill_host(lab, self._host)
        elif wanted == "on" and not is_on:
            faults.boot_host(lab, self._host)
        return "done"


@contextlib.contextmanager
def bmcs(
    story: Story, directory: Path, *, lease: Json | None = None
) -> Iterator[dict[str, LabBmc]]:
    """All hosts have one, set up and tested; afterwards none. A loaded machine takes its time to run a program.

    ``lease``: that part of the policy; None: the default."""
    lab = story.lab
    policy: Json = {**no_restart_limit(), "fencing": {"read_deadline_ms": READ_DEADLINE_MS}}
    story.set_policy({**policy, **({} if lease is None else {"lease": lease})})
    switch = directory / "switch"
    switch.write_text(_SWITCH)
    switch.chmod(0o755)
    made = {host.name: LabBmc(lab, host.name, directory) for host in lab.hosts}
    try:
        for name, bmc in made.items():
            lab.virtha(
                *("host", "power", "set", name, "driver=command", f"executable={switch}"),
                *("syntax=$IPMI_EXEC $IPMI_HOST $IPMI_ACTION", f"address={bmc.path.name}"),
                *("stop=off", "start=on", "status=status"),
            )
            lab.virtha("host", "power", "test", name)
        yield made
    finally:
        for name, bmc in made.items():
            lab.virtha("host", "power", "remove", name, "--device", "bmc", "--yes")
            bmc.close()
        story.set_policy(no_restart_limit())
