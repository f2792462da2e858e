"""net-snmp's snmptrapd on a loopback port of its own, away from the machine's: its users, its MIBs, its log."""

import asyncio
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from free_port import free_port

import virtha.alerts

MIBS = Path(__file__).parent / "mibs"
OUR_MIB = Path(virtha.alerts.__file__).with_name("VIRTHA-MIB.txt")
AUTHENTICATION_PASSWORD = "auth-Pass/phrase"
PRIVACY_PASSWORD = "priv-Pass/phrase"
ENGINE_ID = "80001f88050102030405"
START_S = 60.0
_PAIR = re.compile(r"VIRTHA-MIB::(\w+)\.0 = (.*)")


class OwnTrapDaemon:
    """``users``: name to (authentication, privacy) in snmptrapd's words. ``within``: the words before a command
    that is to run elsewhere, in a network namespace for example."""

    def __init__(
        self,
        users: dict[str, tuple[str, str]],
        *,
        port: int | None = None,
        within: Sequence[str] = (),
    ) -> None:
        self._within = within
        self._directory = tempfile.TemporaryDirectory(prefix="vt-snmp-")
        self._users = users
        self.port = port or free_port(socket.SOCK_DGRAM)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "OwnTrapDaemon":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._directory.cleanup()

    def start(self) -> None:
        directory = Path(self._directory.name)
        (directory / "state").mkdir(exist_ok=True)
        (directory / "conf").write_text(self._configuration())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._within,
                    *("snmptrapd", "-f", "-Lo", "-C", "-c", str(directory / "conf"), "-OQ"),
                    *("-M", f"{MIBS}:{OUR_MIB.parent}", "-m", "VIRTHA-MIB:SNMPv2-MIB"),
                    f"udp:127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "SNMP_PERSISTENT_DIR": str(directory / "state"),
                    "SNMPCONFPATH": str(directory),
                },
            )
        self._until_bound()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def notices(self) -> list[dict[str, str]]:
        """What was sent, decoded with the MIB; beside the objects ``notification``.

        An inform whose acknowledgement is late is sent again as it is, and snmptrapd shows each: here it is one. A new
        sending comes from another port, or has another time (its first object, in hundredths of a second)."""
        text = self._log.read_text(errors="replace")
        # What is still being written has no end yet.
        lines = [line for line in text.split("\n")[:-1] if line.startswith("NOTICE")]
        return [_notice(line) for line in dict.fromkeys(lines)]

    async def until(self, count: int) -> list[dict[str, str]]:
        """The notices, once there are so many."""
        async with asyncio.timeout(60):
            while len(self.notices()) < count:
                await asyncio.sleep(0.02)
        return self.notices()

    @property
    def _log(self) -> Path:
        return Path(self._directory.name) / "log"

    def _configuration(self) -> str:
        lines = ["disableAuthorization no", "authCommunity log public", r"format2 NOTICE\t%b\t%v\n"]
        for user, (authentication, privacy) in self._users.items():
            keys = f'{user} {authentication} "{AUTHENTICATION_PASSWORD}" {privacy} "{PRIVACY_PASSWORD}"'
            # The first for traps, of which the sender is the authority; the second for informs.
            lines += [f"createUser -e 0x{ENGINE_ID} {keys}", f"createUser {keys}"]
            lines.append(f"authUser log {user} priv")
        return "\n".join(lines) + "\n"

    def _until_bound(self) -> None:
        wanted = f"0100007F:{self.port:04X}"
        deadline = time.monotonic() + START_S
        assert self._process is not None
        # As it sees the network: it may be in one of its own.
        bound = Path(f"/proc/{self._process.pid}/net/udp")
        while self._process.poll() is not None or wanted not in bound.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)


def _notice(line: str) -> dict[str, str]:
    parts = line.split("\t")[1:]  # from where it came
    notice = {"notification": parts[2].partition(" = ")[2].removeprefix("VIRTHA-MIB::")}
    for part in parts[3:]:
        match = _PAIR.fullmatch(part)
        assert match is not None, part
        notice[match[1]] = match[2]
    return notice
