"""Machines with a bare Debian 12 whose process 1 is systemd: what the pages of the guide are followed on.

Each has a network namespace of its own on a switch that leads nowhere, a disk of its own (an overlay above one debootstrap), a
boot id per boot, and as a host a BMC (ipmi_sim), a watchdog outside of it and a FUSE mount of the shared storage. Only
while a page's own installation lines run is the machine's network there. All processes are in the machines' network
namespaces and all mounts in mount namespaces of theirs, so that ``lab.down`` finds what a killed run left behind.
The journals of the server are on its machine's disk (``Machine.changes``), where the tests of the guide replay them.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from terminal import Answers, Said, at_terminal

from virtha.lab import lab, network, state
from virtha.lab.bmc import CHASSIS, PORT, holds_udp_port, ipmi_command, write_ipmi_files
from virtha.lab.commands import run
from virtha.lab.namespaces import (
    ProcessId,
    identify,
    inner_pid,
    kill,
    processes_in_network,
    processes_with_init,
    wait_gone,
)
from virtha.lab.node import wait_until

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / ".cache/debian-12-systemd"
MIRROR = "http://deb.debian.org/debian"
BASE_PACKAGES = "systemd-sysv,dbus,iproute2,ca-certificates"
"""What a Debian 12 that boots has besides minbase."""
BOOT_TIMEOUT_S = 120.0
INSTALL_TIMEOUT_S = 1_800.0
LINES_TIMEOUT_S = 300.0
STORAGE = "/srv/vms"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WATCHDOG = "/run/host-watchdog"
"""Outside of /run/virtha, which systemd makes."""

_BEGIN = """set -eu
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$DISK/changes,workdir=$DISK/work" "$DISK/root"
if [ -n "$SHARED" ]; then
  bindfs -f -o fsname=virtha-lab "$SHARED" "$DISK/shared" &
  until mountpoint -q "$DISK/shared"; do sleep 0.02; done
fi
exec systemd-nspawn --quiet --directory="$DISK/root" --register=no $KEEP_UNIT --link-journal=no \\
  --resolv-conf=off --timezone=off --capability=all --hostname="$NAME" --machine="$NAME" "$@"
"""


def base() -> Path:
    """A Debian 12 that boots, and nothing else; made once (a minute), kept in ``.cache``."""
    if not BASE.is_dir():
        BASE.parent.mkdir(exist_ok=True)
        half = BASE.with_name(f"{BASE.name}.{os.getpid()}")
        words = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm"]
        run([*words, half, MIRROR], timeout_s=1_200, fix="apt-get install debootstrap")
        for name in ("etc/machine-id", "etc/hostname"):
            (half / name).write_text("")  # each machine makes its own
        half.rename(BASE)
    return BASE


class Machine:
    """``layers``: directories of changes above the base, the lowest first; its own changes are in ``directory``."""

    def __init__(
        self, directory: Path, *, name: str, lab_id: str, number: int, layers: Sequence[Path] = ()
    ) -> None:
        self.name = name
        self.directory = directory
        self.namespace = f"{lab_id}-{name}"
        self.number = number
        self.changes = directory / "changes"
        self.address = network.server_address(1) if number == 0 else network.host_address(number)
        self.shared: Path | None = None
        self.init: ProcessId | None = None
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._switch = f"{lab_id}-sw"
        self._layers = [*layers]
        for part in ("changes", "work", "root", "shared", "logs"):
            (directory / part).mkdir(parents=True, exist_ok=True)

    def write(self, path: str, text: str) -> None:
        """A file of its disk; before it is booted."""
        target = self.changes / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def _start(self, *words: str, inside: bool) -> subprocess.Popen[bytes]:
        lower = ":".join(map(str, [*reversed(self._layers), base()]))
        environment = {
            "LOWER": lower,
            "DISK": str(self.directory),
            "SHARED": str(self.shared or ""),
            "NAME": self.name,
            "KEEP_UNIT": "" if _has_systemd() else "--keep-unit",
        }
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}"] if inside else []
        with (self.directory / "logs/machine").open("ab") as log:
            return subprocess.Popen(
                [
                    *(*enter, "unshare", "--mount", "--propagation=private"),
                    *("sh", "-c", _BEGIN, "begin", *words),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
                cwd="/",
            )

    def last_words(self) -> str:
        return (self.directory / "logs/machine").read_text(errors="replace")[-3_000:]

    def install(self, lines: str, files: Sequence[Path] = ()) -> None:
        """Run lines of a page as root, not booted, with this machine's network: for apt and pip only, with its mirrors."""
        root = self.changes / "root"
        root.mkdir(parents=True, exist_ok=True)
        for file in files:
            (root / file.name).write_bytes(file.read_bytes())
        (root / ".lines").write_text(lines)
        binds = [f"--bind-ro={path}" for path in _of_this_machine()]
        settings = [
            f"--setenv={name}={value}" for name, value in os.environ.items() if _for_pip(name)
        ]
        process = self._start(
            *(*binds, *settings, "--setenv=DEBIAN_FRONTEND=noninteractive"),
            *(f"--setenv=PATH={_PATH}", "--chdir=/root", "--as-pid2"),
            *("bash", "-e", "-o", "pipefail", "/root/.lines"),
            inside=False,
        )
        code = process.wait(INSTALL_TIMEOUT_S)
        assert code == 0, f"{self.name}: exit code {code} of\n{lines}\n{self.last_words()}"

    # Power

    def is_on(self) -> bool:
        return self.init is not None and self.init.is_alive()

    def boot(self) -> None:
        """Until systemd says that it is up."""
        network.set_cable(self._switch, self.name, up=True)
        binds = ["--bind=/dev/net/tun"]
        if self.shared is not None:
            binds.append(f"--bind={self.directory}/shared:{STORAGE}")
            watchdog = self.directory / "watchdog"
            watchdog.mkdir(exist_ok=True)
            binds.append(f"--bind={watchdog}:{_WATCHDOG}")
        process = self._start(
            *(*binds, f"--network-namespace-path=/run/netns/{self.namespace}"),
            *("--console=passive", "--boot"),
            inside=True,
        )
        threading.Thread(target=process.wait, daemon=True).start()
        self._nspawn = process
        self._await_boot()

    def _await_boot(self) -> None:
        process = self._nspawn
        assert process is not None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def begun() -> bool:
            assert process.returncode is None, f"{self.name} ended: {self.last_words()}"
            found = [identify(int(pid)) for pid in children.read_text().split()]
            inits = [one for one in found if one is not None and inner_pid(one) == 1]
            self.init = inits[0] if inits else None
            return bool(inits)

        wait_until(begun, f"{self.name} has a process 1", timeout_s=BOOT_TIMEOUT_S)
        if self.shared is not None:
            self._start_watchdog()
        wait_until(self._is_up, f"{self.name} is up", timeout_s=BOOT_TIMEOUT_S, pause_s=0.2)

    def _is_up(self) -> bool:
        said = self.ask("systemctl is-system-running")
        return said.stdout.strip() in ("running", "degraded")

    def _start_watchdog(self) -> None:
        assert self.init is not None
        with (self.directory / "logs/watchdog").open("ab") as log:
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{self.namespace}", sys.executable, "-m"),
                    *("virtha.lab.watchdog_standin", str(self.directory / "watchdog/socket")),
                    *(str(self.init.pid), str(self.init.start_ticks)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        threading.Thread(target=process.wait, daemon=True).start()

    def reboot(self) -> None:
        """As its administrator does it: systemd stops everything, the machine goes down and begins anew."""
        assert self.init is not None
        everything = processes_with_init(self.init)
        assert self.ask("systemctl reboot").returncode == 0
        assert wait_gone(everything, timeout_s=300.0) == []
        if _has_systemd():
            self._await_boot()  # nspawn itself begins it anew
            return
        # With --keep-unit nspawn ends, for whoever began it to begin it anew.
        process = self._nspawn
        assert process is not None
        wait_until(
            lambda: process.returncode is not None, f"{self.name} is down", timeout_s=BOOT_TIMEOUT_S
        )
        self._end_everything()
        self.boot()

    def cut_power(self) -> None:
        """Nobody hears a goodbye: its cable goes first."""
        network.set_cable(self._switch, self.name, up=False)
        if self.init is None:
            return
        self._end_everything()

    def _end_everything(self) -> None:
        """Its own processes, and what serves it from outside."""
        everything = processes_in_network([self.namespace])
        if self.init is not None:
            kill(self.init)  # and at once all below it
        for one in everything:
            kill(one)
        assert wait_gone(everything, timeout_s=60.0) == []
        self.init = None

    # What is done on it

    def inside(self, words: Sequence[str]) -> list[str]:
        assert self.init is not None
        enter = ["nsenter", "-t", str(self.init.pid), "-m", "-u", "-i", "-n", "-p", "-r", "-w/"]
        variables = [f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "COLUMNS=160"]
        return [*enter, "--", "env", "-i", "-C", "/root", *variables, *words]

    def ask(self, line: str, *, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """For the test's own looks, beside what a page says."""
        words = self.inside(["bash", "-c", line])
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def type(self, lines: str, answers: Answers = ()) -> Said:
        """As root at a terminal, one line after the other; the first that fails ends it."""
        return at_terminal(
            self.inside(["bash", "-e", "-o", "pipefail", "-c", lines]),
            answers,
            timeout_s=LINES_TIMEOUT_S,
        )

    def read(self, path: str) -> str:
        assert self.init is not None
        return Path(f"/proc/{self.init.pid}/root{path}").read_text()


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def _for_pip(name: str) -> bool:
    return name.startswith("PIP_") or name.lower() in ("http_proxy", "https_proxy", "no_proxy")


def _of_this_machine() -> list[Path]:
    """Where this machine's apt and pip get what they get: its resolver, its authorities, its mirrors."""
    found = [Path("/etc/resolv.conf"), Path("/etc/pip.conf")]
    said = " ".join(path.read_text() for path in found[1:] if path.exists()) + " ".join(
        value for name, value in os.environ.items() if _for_pip(name)
    )
    for word in said.replace("'", " ").replace("=", " ").split():
        path = Path(word.removeprefix("file://"))
        # The topmost directory below /: indexes link among their neighbours.
        if path.is_absolute() and path.exists():
            found.append(Path(*path.parts[:3]) if path.parts[1] == "opt" else path)
    return [path for path in dict.fromkeys(found) if path.exists()]


class Bmc:
    """Of one host, at an address in the server's network. Mains gone, it is gone, too."""

    def __init__(self, host: Machine, server: Machine, *, password: str) -> None:
        self.host = host
        self.address = network.bmc_address(host.number)
        self.asked: list[str] = []
        self._server = server
        self._directory = host.directory / "bmc"
        self._directory.mkdir()
        self._process: ProcessId | None = None
        self._line = socket.socket(socket.AF_UNIX)
        self._line.bind(str(self._directory / "chassis.sock"))
        self._line.listen(8)
        write_ipmi_files(
            self._directory,
            address=self.address,
            port=PORT,
            guid=firmware_uuid(host).hex,
            password=password,
            chassis=CHASSIS,
        )
        threading.Thread(target=self._serve, daemon=True).start()
        self.start()

    def start(self) -> None:
        network.set_extra_address(self._server.namespace, self.address, there=True)
        process = subprocess.Popen(
            [
                "nsenter",
                f"--net=/run/netns/{self._server.namespace}",
                *ipmi_command(self._directory),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process = identify(process.pid)
        threading.Thread(target=process.wait, daemon=True).start()
        wait_until(
            lambda: holds_udp_port(process.pid, self.address, PORT),
            f"the BMC of {self.host.name} answers",
            timeout_s=60.0,
        )

    def stop(self) -> None:
        network.set_extra_address(self._server.namespace, self.address, there=False)
        if self._process is not None:
            kill(self._process)
            assert wait_gone([self._process], timeout_s=60.0) == []

    def close(self) -> None:
        self.stop()
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
                peer.sendall(self._answer(peer.recv(200).decode()).encode())

    def _answer(self, words: str) -> str:
        is_on = self.host.is_on()
        match words.split():
            case ["get", "power"]:
                return f"power:{int(is_on)}"
            case ["set", "power", "0"]:
                self.asked.append("off!" if is_on else "off")
                self.host.cut_power()
            case ["set", "power", "1"]:
                self.asked.append("on")
                if not is_on:
                    self.host.boot()
            case ["set", "identify", *_]:
                self.asked.append("blink")
            case _:
                return "no"
        return "done"


def firmware_uuid(machine: Machine) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"virtha-machine:{machine.directory}")


class Machines:
    """One network of them. ``close`` leaves nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = state.lab_id(directory)
        lab.down(directory)
        directory.mkdir(parents=True)
        (directory / "VIRTHA-LAB").write_text("a virtha lab; 'virtha lab down' deletes this\n")
        state.register(directory)
        self.all: list[Machine] = []
        self.bmcs: dict[str, Bmc] = {}
        network.make_switch(f"{self.id}-sw")

    def layer(self, name: str, layers: Sequence[Path] = ()) -> Machine:
        """To install into; never booted."""
        return Machine(self.directory / name, name=name, lab_id=self.id, number=0, layers=layers)

    def server(self, name: str, layers: Sequence[Path]) -> Machine:
        return self._add(name, 0, layers)

    def host(self, number: int, layers: Sequence[Path], storage: Path) -> Machine:
        """With its share of the storage; its firmware and its watchdog are the lab's, as this machine has none for it."""
        made = self._add(f"h{number}", number, layers)
        made.shared = storage
        made.write("etc/firmware/product_uuid", f"{firmware_uuid(made)}\n")
        dropin = (
            "[Service]\n"
            "Environment=VIRTHA_FIRMWARE_DIRECTORY=/etc/firmware\n"
            f"Environment=VIRTHA_HOST_WATCHDOG={_WATCHDOG}/socket\n"
        )
        for unit in ("virtha-agent", "virtha-guardian"):
            made.write(f"etc/systemd/system/{unit}.service.d/machine.conf", dropin)
        libvirt = layers[-1] / "etc/libvirt"
        configured = (libvirt / "libvirtd.conf").read_text()
        made.write(
            "etc/libvirt/libvirtd.conf", f'{configured}host_uuid = "{firmware_uuid(made)}"\n'
        )
        # A container may not write to this machine's control groups but for the one of systemd.
        configured = (libvirt / "qemu.conf").read_text()
        made.write("etc/libvirt/qemu.conf", f"{configured}\ncgroup_controllers = []\n")
        return made

    def _add(self, name: str, number: int, layers: Sequence[Path]) -> Machine:
        made = Machine(
            self.directory / name, name=name, lab_id=self.id, number=number, layers=layers
        )
        network.make_node(f"{self.id}-sw", made.namespace, name, made.address)
        self.all.append(made)
        return made

    def boot(self) -> None:
        """All, with each other's names."""
        names = "127.0.0.1 localhost\n" + "".join(
            f"{one.address} {'virtha.example.org ' if one.number == 0 else ''}{one.name}\n"
            for one in self.all
        )
        for one in self.all:
            one.write("etc/hosts", names)
        for one in self.all:
            one.boot()

    def close(self) -> None:
        for bmc in self.bmcs.values():
            bmc.close()
        lab.down(self.directory)


def wait_for(machine: Machine, line: str, *, timeout_s: float = 120.0) -> str:
    """Until the line ends with 0 there; what it printed."""
    deadline = time.monotonic() + timeout_s
    while (said := machine.ask(line)).returncode != 0:
        if time.monotonic() > deadline:
            raise AssertionError(f"{machine.name}: {shlex.quote(line)}: {said.stdout}{said.stderr}")
        time.sleep(0.2)
    return said.stdout
