"""A real IPMI-over-LAN server of our own: Debian's ``ipmi_sim`` (package openipmi), on loopback."""

import socket
import subprocess
import time
from pathlib import Path

from free_port import free_port

from virtha.lab.bmc import holds_udp_port, ipmi_command, write_ipmi_files

UUID = "4c4c4544-0042-3510-8050-b7c04f4d4d31"
PASSWORD = "p'a$HOME;`x`|&*"
"""At most 20 bytes, for IPMI; ipmi_sim's own file can't hold blanks and double quotes."""

_CHASSIS = """#!/bin/sh
cd "$(dirname "$0")" || exit 9
shift
case "$1 $2" in
"get power") echo "power:$(cat power)" ;;
"set power") echo "$3" >> orders; echo "$3" > power ;;
"set identify") echo blink >> orders ;;
esac
"""


class IpmiSim:
    """Debian's ``ipmi_sim`` (package openipmi) on loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port(socket.SOCK_DGRAM)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, password: str = PASSWORD) -> None:
        place = self.directory
        for name, text in (("power", "1"), ("orders", "")):
            if not (place / name).exists():
                (place / name).write_text(text)
        write_ipmi_files(
            place,
            address="127.0.0.1",
            port=self.port,
            guid=UUID.replace("-", ""),
            password=password,
            chassis=_CHASSIS,
        )
        with (place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ipmi_command(place), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until_s = time.monotonic() + 60
        while not holds_udp_port(self._process.pid, "127.0.0.1", self.port):
            assert self._process.poll() is None, (place / "log").read_text()
            assert time.monotonic() < until_s, "ipmi_sim did not begin"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, password: str) -> None:
        self.stop()
        self.start(password)
