"""One machine of the lab: its directories, its configuration, its boot, its power cut.

A node is a network namespace that lives as long as the lab, and per boot one process 1 with its own
mount, UTS, IPC and PID namespaces (``hostinit.py``). Killing that process is a power cut: the kernel
ends all that ran inside at once, and every mount goes with it.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from virtha.lab import network
from virtha.lab.emulator import install_emulator, set_firmware_wait
from virtha.lab.namespaces import (
    ProcessId,
    command_line,
    identify,
    inner_pid,
    kill,
    processes_with_init,
    wait_gone,
)
from virtha.lab.state import LabState, NodeState
from virtha.model.errors import Failed, Unavailable

PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_TIMEOUT_S = 60.0
SERVICE_S = 120.0
"""On a machine with other work a program needs half a minute to begin, the first time."""
STORAGE_NAME = "ds1"
WATCHDOG_MODULE = "virtha.lab.watchdog_standin"
_BASE_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net")

LIBVIRTD_CONF = """\
host_uuid = "{host_uuid}"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
listen_tls = 0
log_level = 3
log_outputs = "3:stderr"
"""
QEMU_CONF = """\
# No cgroups, no security labels, no private /dev: the host's own namespaces are the fence here.
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
"""


def wait_until(
    condition: Callable[[], bool], what: str, *, timeout_s: float, pause_s: float = 0.02
) -> None:
    """Poll until true. Raises Failed that says what did not come about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout_s:g} s")
        time.sleep(pause_s)


def qemu_guest(words: Sequence[str]) -> str | None:
    """The VM of a QEMU, by libvirt's `-name guest=NAME,…` of its command line; None: it is no QEMU."""
    if not words or "qemu" not in Path(words[0]).name or "-name" not in words:
        return None
    return words[words.index("-name") + 1].removeprefix("guest=").partition(",")[0]


class Node:
    """A host or a server of the lab. Holds no state of its own but what ``lab`` says."""

    def __init__(self, lab: LabState, state: NodeState) -> None:
        self.lab = lab
        self.state = state
        self.name = state.name
        self.namespace = f"{lab.id}-{state.name}"
        self.switch = f"{lab.id}-sw"
        self.directory = Path(lab.directory, state.name)
        self.root = self.directory / "root"
        """What VIRTHA_ROOT is on this node."""
        self.logs = self.directory / "logs"
        self.watchdog_socket = self.directory / "watchdog.sock"

    @property
    def address(self) -> str:
        number = self.state.number
        is_host = self.state.kind == "host"
        return network.host_address(number) if is_host else network.server_address(number)

    @property
    def firmware_uuid(self) -> uuid.UUID:
        """By which host and BMC are known to be one machine."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"virtha-lab:{self.directory}")

    @property
    def shared(self) -> Path:
        """Where each host sees the shared storage, by its own FUSE mount."""
        return Path(self.lab.directory, "shared")

    @property
    def storage(self) -> Path:
        """The storage domain: a part of what is shared, so that there can be files besides it."""
        return self.shared / STORAGE_NAME

    @property
    def _programs(self) -> Path:
        return self.directory / "programs"

    @property
    def _is_emulating(self) -> bool:
        return self.state.kind == "host" and self.lab.accelerator != "kvm"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "VIRTHA_ROOT": str(self.root),
            "VIRTHA_BOOT_ID_FILE": str(self.directory / "boot-id"),
            "VIRTHA_HOST_WATCHDOG": str(self.watchdog_socket),
            "VIRTHA_FIRMWARE_DIRECTORY": str(self.directory / "firmware"),
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
            # A lab of a copy of the sources runs that copy.
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        }

    def set_firmware_wait(self, wait_ms: int) -> None:
        """Its guests boot so much later from now on, where they are emulated (`virtha.lab.emulator`); 0: at once."""
        if self._is_emulating:
            set_firmware_wait(self._programs, wait_ms)

    # Making

    def make_files(self) -> None:
        for name in ("root/run", "root/etc/virtha", "logs", "empty"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if self.state.kind == "host":
            self._make_host_files()

    def _make_host_files(self) -> None:
        for name in ("etc", "lib", "cache", "log"):
            (self.directory / "libvirt" / name).mkdir(parents=True, exist_ok=True)
        etc = self.directory / "libvirt/etc"
        (etc / "hooks/qemu.d").mkdir(parents=True, exist_ok=True)
        (etc / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(host_uuid=self.firmware_uuid))
        firmware = self.directory / "firmware"
        firmware.mkdir()
        (firmware / "product_uuid").write_text(f"{self.firmware_uuid}\n")
        (firmware / "product_serial").write_text(f"{self.namespace}\n")
        (etc / "qemu.conf").write_text(QEMU_CONF)
        if self._is_emulating:
            install_emulator(self._programs)
        (etc / "virtlogd.conf").write_text("max_clients = 64\n")
        (self.root / "etc/virtha/agent.properties").write_text(
            f"# Written by the lab, which measured it once for all its hosts.\n"
            f"hypervisor.type={self.lab.accelerator}\n"
            "# So that guests have numbers to boot with at once.\n"
            "vm.rng.enable=true\n"
        )

    def make_network(self) -> None:
        network.make_node(self.switch, self.namespace, self.name, self.address)

    def services(self) -> list[dict[str, Any]]:
        virtha = [sys.executable, "-m", "virtha.cli.main"]
        run = self.root / "run/virtha"
        if self.state.kind == "server":
            return [{"name": "server", "command": [*virtha, "server", "run"]}]
        shared = str(self.shared)
        backing = str(Path(self.lab.directory, "storage"))
        return [
            {
                "name": "storage",
                "command": ["bindfs", "-f", "-o", "fsname=virtha-lab", backing, shared],
                "wait_for": f"{shared}/",
            },
            {
                "name": "virtlogd",
                "command": ["virtlogd"],
                "wait_for": "/run/libvirt/virtlogd-sock",
            },
            {
                "name": "libvirtd",
                "command": ["libvirtd", "--listen"],
                "wait_for": "/run/libvirt/libvirt-sock",
            },
            {
                "name": "guardian",
                "command": [*virtha, "guardian"],
                "wait_for": str(run / "guardian.sock"),
            },
            {"name": "agent", "command": [*virtha, "agent", "run"]},
        ]

    def _write_init_config(self, services_on: Sequence[str] | None) -> Path:
        own = self.directory / "libvirt"
        is_host = self.state.kind == "host"
        services = self.services()
        for service in services:
            service["log"] = str(self.logs / f"{service['name']}.log")
            service["enabled"] = services_on is None or service["name"] in services_on
        programs = [str(self._programs), PROGRAM_PATH] if self._is_emulating else [PROGRAM_PATH]
        kvm = ("kvm",) if self.lab.accelerator == "kvm" else ()
        config = {
            "hostname": self.name,
            "directory": str(self.directory),
            "tmpfs": ["/run", str(self.root / "run")] if is_host else ["/run"],
            "binds": [
                [str(own / "etc"), "/etc/libvirt"],
                [str(own / "lib"), "/var/lib/libvirt"],
                [str(own / "cache"), "/var/cache/libvirt"],
                [str(own / "log"), "/var/log/libvirt"],
            ]
            if is_host
            else [],
            "devices": [*_BASE_DEVICES, *kvm],
            "environment": {**self.environment, "PATH": ":".join(programs)},
            "services": services,
        }
        path = self.directory / "init.json"
        path.write_text(json.dumps(config, indent=1))
        return path

    # Power

    def is_on(self) -> bool:
        return self.state.init is not None and self.state.init.is_alive()

    def boot(
        self, services_on: Sequence[str] | None = None, *, wait_ready: bool = True
    ) -> ProcessId:
        """Power on, with all services or only those named; returns its process 1.

        Raises Failed with the last lines of its log when it doesn't come up.
        """
        if self.is_on():
            raise Failed(f"{self.name} is on already")
        config = self._write_init_config(services_on)
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        program = Path(__file__).with_name("hostinit.py")
        command = ["nsenter", f"--net=/run/netns/{self.namespace}"]
        command += ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        command += ["--propagation", "private", "--", "/usr/bin/python3", "-I", "-S"]
        with (self.directory / "init.log").open("ab") as log:
            parent = subprocess.Popen(
                [*command, str(program), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        init = self._wait_for_init(parent)
        # It lives as long as the host and outlives this command on purpose: not ours to wait for.
        parent.returncode = 0
        if self.state.kind == "host":
            self._start_watchdog(init)
        self.state = msgspec.structs.replace(self.state, init=init)
        if wait_ready:
            self.wait_ready()
        return init

    def _start_watchdog(self, init: ProcessId) -> None:
        """Outside of the host's PID namespace, so that nothing that freezes in there stops it; in its network namespace, so
        that `down` finds it. Bites only once the host's guardian has armed it."""
        self.watchdog_socket.unlink(missing_ok=True)
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", sys.executable, "-m"]
        command += [WATCHDOG_MODULE, str(self.watchdog_socket)]
        with (self.logs / "watchdog.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, str(init.pid), str(init.start_ticks)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        process.returncode = 0  # it ends with the host

    def was_bitten(self) -> bool:
        """Its watchdog ended it, and it was not booted, or has not armed it, since."""
        return " bites: " in self.last_words("watchdog", lines=1)

    def _wait_for_init(self, parent: subprocess.Popen[bytes]) -> ProcessId:
        """The child of `unshare`: found through its parent, the only place that knows both."""
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            if parent.poll() is not None:
                raise Failed(f"{self.name} ended while it booted: {self.last_words('init')}")
            try:
                pids = children.read_text().split()
            except OSError:
                pids = []
            for pid in pids:
                process = identify(int(pid))
                # `unshare` forks, and only then becomes our program: what we want is process 1.
                if process is not None and inner_pid(process) == 1:
                    return process
            time.sleep(0.005)
        raise Failed(f"{self.name} made no process 1")

    def wait_ready(self) -> None:
        awaited = [self.directory / "ready"]
        if self.state.kind == "host":
            awaited.append(self.watchdog_socket)
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while not all(path.exists() for path in awaited):
            if not self.is_on():
                raise Failed(f"{self.name} ended while it booted: {self.last_words('init')}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} is not up: {self.last_words('init')}")
            time.sleep(0.02)

    def power_cut(self, *, silent: bool) -> None:
        """End it at once. ``silent``: its cable goes first, so that nobody hears a goodbye; else
        the kernel closes its connections politely, which makes noticing it free."""
        if silent:
            self.set_cable(up=False)
        everything = self.processes()
        init = self.state.init
        if init is not None:
            kill(init)
        left = wait_gone(everything, timeout_s=60.0)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise Failed(f"{self.name}: processes {pids} did not die")

    def set_cable(self, *, up: bool) -> None:
        network.set_cable(self.switch, self.name, up=up)

    # Looking and acting inside

    def require_on(self) -> ProcessId:
        if self.state.init is None or not self.state.init.is_alive():
            raise Unavailable(f"{self.name} is off", fix=f"run 'virtha lab boot-host {self.name}'")
        return self.state.init

    def processes(self) -> list[ProcessId]:
        return [] if self.state.init is None else processes_with_init(self.state.init)

    def path_inside(self, path: str | Path) -> Path:
        """The node's view of a path, reachable from here."""
        return Path(f"/proc/{self.require_on().pid}/root{path}")

    def libvirt_uri(self) -> str:
        """Its libvirt, spoken to from outside."""
        inside = self.path_inside("/run/libvirt/libvirt-sock")
        return f"qemu+unix:///system?socket={inside}"

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs ``words`` inside."""
        init = self.require_on()
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        path = f"PATH={Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        enter = ["nsenter", "-t", str(init.pid), "-m", "-u", "-i", "-n", "-p", "-w/"]
        return [*enter, "--", "env", path, *variables, *words]

    def run(
        self,
        words: Sequence[str],
        *,
        timeout_s: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end, whatever its exit code is."""
        try:
            return subprocess.run(
                self.command(words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                env={**os.environ, **environment} if environment else None,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(
                f"{self.name}: {shlex.join(words)}: still not done after {timeout_s:g} s"
            ) from error

    def run_checked(self, words: Sequence[str], *, timeout_s: float = 60.0) -> str:
        done = self.run(words, timeout_s=timeout_s)
        if done.returncode != 0:
            text = (done.stderr or done.stdout).strip()
            raise Failed(f"{self.name}: {shlex.join(words)}: exit code {done.returncode}: {text}")
        return done.stdout

    def order(self, **order: Any) -> dict[str, Any]:
        """Give process 1 an order and return its answer. Raises Failed with its error."""
        self.require_on()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10.0)
            try:
                connection.connect(str(self.directory / "control.sock"))
                connection.sendall(json.dumps(order).encode() + b"\n")
                with connection.makefile("rb") as lines:
                    reply = json.loads(lines.readline(65_536) or b"{}")
            except (OSError, ValueError) as error:
                raise Failed(f"{self.name}: process 1 does not answer: {error}") from error
        if not isinstance(reply, dict) or "error" in reply or not reply:
            raise Failed(f"{self.name}: {reply.get('error', 'no answer')}")
        return reply

    def start_service(self, name: str) -> None:
        self.order(do="start", name=name)
        for service in self.services():
            path = service.get("wait_for")
            if service["name"] == name and path and not path.endswith("/"):
                self._wait_for_service(name, path)

    def _wait_for_service(self, name: str, path: str) -> None:
        def is_up() -> bool:
            if name not in self.running_services():
                raise Failed(f"{self.name}: {name} ended at once: {self.last_words(name)}")
            return self.path_inside(path).exists()

        wait_until(is_up, f"{self.name}: {name} makes {path}", timeout_s=SERVICE_S)

    def signal_service(self, name: str, number: int) -> None:
        self.order(do="signal", name=name, signal=number)

    def kill_service(self, name: str) -> None:
        """kill -9, and wait until process 1 has reaped it."""
        self.signal_service(name, signal.SIGKILL)
        wait_until(
            lambda: name not in self.running_services(),
            f"{self.name}: end of {name}",
            timeout_s=60.0,
            pause_s=0.005,
        )

    def running_services(self) -> dict[str, int]:
        """Service -> its process id inside."""
        running = self.order(do="status")["running"]
        return {str(name): int(pid) for name, pid in running.items()}

    def qemu_of(self, vm: str) -> ProcessId | None:
        """The QEMU that runs this VM here: by what runs, not by what libvirt thinks."""
        return self.qemus().get(vm)

    def qemus(self) -> dict[str, ProcessId]:
        """VM name -> its QEMU."""
        found = {}
        for process in self.processes():
            name = qemu_guest(command_line(process))
            if name is not None:
                found[name] = process
        return found

    def last_words(self, log: str, lines: int = 8) -> str:
        path = self.directory / "init.log" if log == "init" else self.logs / f"{log}.log"
        try:
            text = path.read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.strip().splitlines()[-lines:])
