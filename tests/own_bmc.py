"""A real IPMI-over-LAN server of our own: Debian's ``ipmi_sim`` (package openipmi), on loopback."""

import socket
import subprocess
import time
from pathlib import Path

from free_port import free_port

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
_IPMI_CONFIGURATION = """name "bmc"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid {guid}
  endlan
  chassis_control "{chassis} 0x20"
  user 1 true "" "" user 10 none md2 md5 straight
  user 2 true "admin" "{password}" admin 10 none md2 md5 straight
"""
_IPMI_MACHINE = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
mc_enable 0x20
"""


class IpmiSim:
    """Debian's ``ipmi_sim`` (package openipmi) on loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port(socket.SOCK_DGRAM)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, password: str = PASSWORD) -> None:
        place = self.directory
        (place / "chassis").write_text(_CHASSIS)
        (place / "chassis").chmod(0o755)
        for name, text in (("power", "1"), ("orders", "")):
            if not (place / name).exists():
                (place / name).write_text(text)
        (place / "state").mkdir(exist_ok=True)
        (place / "emu").write_text(_IPMI_MACHINE)
        (place / "lan.conf").write_text(
            _IPMI_CONFIGURATION.format(
                port=self.port,
                guid=UUID.replace("-", ""),
                chassis=place / "chassis",
                password=password,
            )
        )
        with (place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "ipmi_sim",
                    "-c",
                    place / "lan.conf",
                    "-f",
                    place / "emu",
                    "-s",
                    place / "state",
                    "-n",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until_s = time.monotonic() + 60
        while not _holds_udp_port(self.port):
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


def _holds_udp_port(port: int) -> bool:
    wanted = f"0100007F:{port:04X}"
    return wanted in Path("/proc/net/udp").read_text()
