"""Process 1 of a lab host: sets the host up, starts its services, reaps its dead, takes orders.

Run by path with `python -I -S`, inside new mount, UTS, IPC and PID namespaces and the host's network
namespace, so it imports nothing of virtha and uses the standard library only. Its one argument is a
JSON file (written by ``node.py``):

    hostname      name of the host
    directory     the host's own directory; `control.sock`, `boot-id` and `ready` are made there
    binds         [[from, to] …], bind mounts, in order
    tmpfs         [path …], mounted empty: what must vanish at boot
    devices       [name …] of /dev; the host sees no others
    environment   variables of every service, PATH among them
    services      [{name, command, log, wait_for?, enabled?}] in the order of starting;
                  wait_for: a path that must exist before the next one is started

Orders come over `control.sock`, one JSON object per line, answered by one:

    {"do": "status"} {"do": "start", "name": …} {"do": "signal", "name": …, "signal": 9}

A process that ends is reaped at once, by a thread that does nothing else: under an init that doesn't,
killed QEMUs stay as zombies and libvirt waits for them for ever; under one that dawdles, libvirt finds
a zombie at its first look and sleeps 200 ms before the next (virProcessKillPainfully). Nothing is
restarted by itself: a lab's user killed it for a reason.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

WAIT_FOR_S = 60.0
LINE_BYTES_MAX = 65_536


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, stdin=subprocess.DEVNULL)


class Init:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.directory = Path(config["directory"])
        self.services: dict[str, dict[str, Any]] = {s["name"]: s for s in config["services"]}
        self.running: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        """Service -> wait status of its last process."""
        self.lock = threading.Lock()
        self.born = threading.Event()
        """There may be children to wait for."""

    # The host itself

    def set_up(self) -> None:
        # A boot id of its own: all lab hosts share the kernel's.
        (self.directory / "boot-id").write_text(f"{uuid4()}\n")
        socket.sethostname(self.config["hostname"])
        mount("--make-rprivate", "/")
        for path in self.config["tmpfs"]:
            mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", path)
        for source, target in self.config["binds"]:
            mount("--bind", source, target)
        self._own_devices()
        # /sys as this network namespace sees it; cgroups stay away from the machine's own.
        subprocess.run(["umount", "-l", "/sys"], check=True)
        mount("-t", "sysfs", "sysfs", "/sys")
        mount("-t", "proc", "proc", "/proc")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def _own_devices(self) -> None:
        """A /dev with only what a host is given: so "this host has no KVM" is a matter of a list."""
        staging = self.directory / "dev"
        staging.mkdir(exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(staging))
        for name in self.config["devices"]:
            source, target = Path("/dev", name), staging / name
            if not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                target.touch()
            mount("--bind", str(source), str(target))
        (staging / "shm").mkdir()
        mount("-t", "tmpfs", "tmpfs", str(staging / "shm"))
        # Terminals of its own: QEMU's serial ports are such, and the machine's may be restricted.
        (staging / "pts").mkdir()
        options = "newinstance,ptmxmode=0666,mode=0620,gid=5"
        mount("-t", "devpts", "-o", options, "devpts", str(staging / "pts"))
        (staging / "ptmx").symlink_to("pts/ptmx")
        for link, to in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1")):
            (staging / link).symlink_to(to)
        (staging / "stderr").symlink_to("fd/2")
        mount("--move", str(staging), "/dev")

    # Services

    def start(self, name: str) -> int:
        """Its process id, whether it ran already or not."""
        service = self.services[name]
        with self.lock:  # held until its id is known: it may end before Popen returns
            if name in self.running:
                return self.running[name]
            # Each start appends: what came before a crash is what one wants to read.
            with Path(service["log"]).open("ab") as log:
                process = subprocess.Popen(
                    service["command"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={"HOME": "/root", **self.config["environment"]},
                    cwd="/",
                    start_new_session=True,
                )
            self.running[name] = process.pid
            # Reaped below, together with everybody's orphans; Popen must not wait for it too.
            process.returncode = 0
        self.born.set()
        return process.pid

    def start_all(self) -> None:
        for name, service in self.services.items():
            if not service.get("enabled", True):
                continue
            self.start(name)
            wait_for = service.get("wait_for")
            deadline = time.monotonic() + WAIT_FOR_S
            while wait_for and not self._is_there(wait_for):
                if not self.is_running(name):
                    raise SystemExit(f"{name} ended at once; see {service['log']}")
                if time.monotonic() > deadline:
                    raise SystemExit(f"{name} is not up after {WAIT_FOR_S:g} s ({wait_for})")
                time.sleep(0.01)

    @staticmethod
    def _is_there(path: str) -> bool:
        if path.endswith("/"):  # a directory: something must be mounted on it
            return os.path.ismount(path)
        return Path(path).exists()

    def is_running(self, name: str) -> bool:
        with self.lock:
            return name in self.running

    def reap_for_ever(self) -> None:
        while True:
            self.born.wait()
            self.born.clear()
            while True:
                try:
                    pid, status = os.waitpid(-1, 0)
                except ChildProcessError:
                    break  # none left; the next start wakes us
                with self.lock:
                    for name, running in list(self.running.items()):
                        if running == pid:
                            del self.running[name]
                            self.ended[name] = status

    # Orders

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        match order:
            case {"do": "status"}:
                with self.lock:
                    return {"running": dict(self.running), "ended": dict(self.ended)}
            case {"do": "start", "name": str(name)} if name in self.services:
                return {"pid": self.start(name)}
            case {"do": "signal", "name": str(name), "signal": int(number)}:
                # A service that has just been reaped leaves its id free for microseconds, no more.
                with self.lock:
                    if name not in self.running:
                        return {"error": f"{name} is not running"}
                    try:
                        os.kill(self.running[name], number)
                    except ProcessLookupError:
                        return {"error": f"{name} has just ended"}
                    return {"pid": self.running[name]}
        return {"error": f"unknown order or name; services: {', '.join(self.services)}"}

    def serve(self) -> None:
        """Take orders, one at a time; never returns."""
        path = self.directory / "control.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(8)
        (self.directory / "ready").write_text(f"{time.monotonic():.3f}\n")
        while True:
            self._one_order(listener.accept()[0])

    def _one_order(self, connection: socket.socket) -> None:
        """One line in, one line out; a caller that dawdles must not keep the next one waiting."""
        with connection:
            connection.settimeout(2.0)
            try:
                line = b""
                while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
                    part = connection.recv(4096)
                    if not part:
                        break
                    line += part
                reply = self.answer(json.loads(line))
            except (OSError, ValueError) as error:
                reply = {"error": str(error)}
            try:
                connection.sendall(json.dumps(reply).encode() + b"\n")
            except OSError as error:
                sys.stdout.write(f"init: an answer was not taken: {error}\n")
                sys.stdout.flush()


def main() -> None:
    init = Init(json.loads(Path(sys.argv[1]).read_text()))
    (init.directory / "ready").unlink(missing_ok=True)
    init.set_up()
    # Not before: set_up waits for its own commands.
    threading.Thread(target=init.reap_for_ever, name="reaper", daemon=True).start()
    init.start_all()
    init.serve()


if __name__ == "__main__":
    main()
