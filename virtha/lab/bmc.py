"""The BMC of a lab host: Debian's ``ipmi_sim``, a real IPMI-over-LAN server, with an address of its own beside the lab's server.

It outlives its host, as a BMC on standby power does. What its chassis is told to do, ``chassis.py`` does.
"""

import secrets
import subprocess
from enum import StrEnum
from pathlib import Path

import msgspec

from virtha.lab import network
from virtha.lab.namespaces import ProcessId, identify, kill, wait_gone
from virtha.lab.node import Node, wait_until
from virtha.model.errors import Failed
from virtha.model.value import Value

PORT = 623
USER = "admin"
_BEGINS_S = 60.0
_ENDS_S = 60.0

_LAN = """name "bmc"
set_working_mc 0x20
  startlan 1
    addr {address} {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid {guid}
  endlan
  chassis_control "{chassis} 0x20"
  user 1 true "" "" user 10 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
_MACHINE = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
mc_enable 0x20
"""
CHASSIS = """#!/usr/bin/python3 -IS
# Called by ipmi_sim: `chassis 0x20 get power`, `chassis 0x20 set power 0`.
import os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect(os.path.join(os.path.dirname(sys.argv[0]), "chassis.sock"))
    line.sendall(" ".join(sys.argv[2:]).encode())
    line.shutdown(socket.SHUT_WR)
    answer = line.recv(200).decode()
if answer == "no":
    sys.exit(1)
print(answer)
"""


class BmcFault(StrEnum):
    """What a BMC does wrong. A dead one is no matter of its chassis: ``faults.kill_bmc``."""

    NONE = "none"
    SLOW = "slow"
    """Each answer and each order takes ``BmcManners.slow_ms`` longer: an order may strike long after its asker gave up."""
    LIAR = "liar"
    """It says off, takes every order, and does nothing."""
    IDLE = "idle"
    """It takes every order, does nothing, and tells the truth when it is asked."""


class BmcManners(Value, frozen=True, kw_only=True):
    """On disk, read anew at each request."""

    fault: BmcFault = BmcFault.NONE
    slow_ms: int = 0
    hold: str = ""
    """Words of a request that it stops at until it has other manners; what comes meanwhile waits behind it."""
    hold_nth: int = 1
    """The first such request, or a later one."""
    hold_after: bool = False
    """Stops when it has carried it out, before it answers; else before it does."""


class BmcRequest(Value, frozen=True, kw_only=True):
    """What the chassis was asked for. ``at_ms``: this machine's clock since its boot, when it was carried out."""

    at_ms: int
    words: str
    """As ipmi_sim says it: ``get power``, ``set power 0``."""
    found_on: bool
    """Whether the host was on then."""
    done: bool
    """False: its fault kept it from doing it."""

    @property
    def order(self) -> str:
        """``off``, ``off!`` for one that found the host on, ``on``, ``blink``; other words as they are; '' for a question."""
        match self.words.split():
            case ["get", *_]:
                return ""
            case ["set", "power", "0"]:
                return "off!" if self.found_on else "off"
            case ["set", "power", "1"]:
                return "on"
            case ["set", "identify", *_]:
                return "blink"
        return self.words


class Bmc:
    """Of one host, running or not. Keeps nothing itself: what it knows is on disk."""

    def __init__(self, host: Node, server: Node) -> None:
        self.host = host
        self.address = network.bmc_address(host.state.number)
        self.directory = host.directory / "bmc"
        self.chassis_socket = self.directory / "chassis.sock"
        self.held_file = self.directory / "held"
        self._namespace = server.namespace

    @property
    def password(self) -> str:
        return (self.directory / "password").read_text()

    def make_files(self) -> None:
        self.directory.mkdir(mode=0o700)
        password = self.directory / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(8))
        self.begin_anew()
        write_ipmi_files(
            self.directory,
            address=self.address,
            port=PORT,
            guid=self.host.firmware_uuid.hex,
            password=self.password,
            chassis=CHASSIS,
        )

    def start(self) -> ProcessId:
        """Returns its process when it answers on its address."""
        network.set_extra_address(self._namespace, self.address, there=True)
        with (self.host.logs / "bmc.log").open("ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self._namespace}", *ipmi_command(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )

        def answers() -> bool:
            if process.poll() is not None:
                raise Failed(f"the BMC of {self.host.name} ended: {self.host.last_words('bmc')}")
            return holds_udp_port(process.pid, self.address, PORT)

        wait_until(answers, f"the BMC of {self.host.name} answers", timeout_s=_BEGINS_S)
        found = identify(process.pid)
        if found is None:
            raise Failed(f"the BMC of {self.host.name} ended: {self.host.last_words('bmc')}")
        process.returncode = 0  # it outlives this command on purpose: `down` ends it
        return found

    def stop(self) -> None:
        """Nothing answers on its address from here on, not even the machine behind it."""
        process = self.host.state.bmc
        network.set_extra_address(self._namespace, self.address, there=False)
        if process is not None:
            kill(process)
            if wait_gone([process], timeout_s=_ENDS_S):
                raise Failed(f"the BMC of {self.host.name} (process {process.pid}) does not end")

    def behave(self, manners: BmcManners) -> None:
        new = self.directory / "manners.new"
        new.write_bytes(msgspec.json.encode(manners))
        new.replace(self.directory / "manners")

    @property
    def is_held(self) -> bool:
        """It stands at what it was last told to stop at."""
        try:
            return self.held_file.read_bytes() == msgspec.json.encode(self.manners())
        except FileNotFoundError:
            return False

    def manners(self) -> BmcManners:
        return msgspec.json.decode((self.directory / "manners").read_bytes(), type=BmcManners)

    def note(self, request: BmcRequest) -> None:
        with (self.directory / "requests").open("ab") as log:
            log.write(msgspec.json.encode(request) + b"\n")

    def begin_anew(self) -> None:
        """Honest, and nothing was ever asked."""
        self.behave(BmcManners())
        (self.directory / "requests").write_bytes(b"")

    def requests(self) -> list[BmcRequest]:
        """All since it began anew, oldest first."""
        lines = (self.directory / "requests").read_bytes().splitlines()
        return [msgspec.json.decode(line, type=BmcRequest) for line in lines]

    def orders(self, after: int = 0) -> list[str]:
        """``BmcRequest.order`` of all but questions, from the ``after``-th request on."""
        return [one.order for one in self.requests()[after:] if one.order]


def ipmi_command(directory: Path) -> list[str]:
    """With the files that ``write_ipmi_files`` wrote there."""
    files = ("-c", directory / "lan.conf", "-f", directory / "emu", "-s", directory / "state")
    return ["ipmi_sim", *map(str, files), "-n"]


def write_ipmi_files(
    directory: Path, *, address: str, port: int, guid: str, password: str, chassis: str
) -> None:
    """All that ipmi_sim needs. ``guid``: 32 digits. ``password``: at most 20 bytes, without blanks and double quotes. ``chassis``:
    the program that is asked ``get power`` and told ``set power 0``."""
    program = directory / "chassis"
    program.write_text(chassis)
    program.chmod(0o755)
    (directory / "state").mkdir(exist_ok=True)
    (directory / "emu").write_text(_MACHINE)
    configuration = directory / "lan.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        _LAN.format(
            address=address, port=port, guid=guid, chassis=program, user=USER, password=password
        )
    )


def holds_udp_port(pid: int, address: str, port: int) -> bool:
    """In the network namespace of that process."""
    digits = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    try:
        return f"{digits}:{port:04X}" in Path(f"/proc/{pid}/net/udp").read_text()
    except OSError:
        return False
