"""A libvirtd of one's own: own mount, PID and network namespaces, own directories, a reaping init.

Run as a program (``python own_libvirtd.py DIRECTORY``) it is that init; ``OwnLibvirtd`` starts and
stops it. Nothing is killed but what runs inside the namespaces.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BINDS = {
    "run": "/run/libvirt",
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
QEMU = Path("/usr/bin/qemu-system-x86_64")
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
"""
LIBVIRTD_CONF = """\
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
host_uuid = "{uuid}"
"""


class OwnLibvirtd:
    def __init__(
        self,
        directory: Path,
        *,
        host_uuid: str = "6f1c2b52-8f43-4a8c-9a5e-0123456789ab",
        lacks: str = "",
    ) -> None:
        """``host_uuid``: libvirt moves nothing between two of the same. ``lacks``: a feature that a
        model of processor has not in there, as on an older machine ("Nehalem-x86_64-cpu.sse4.2")."""
        self.directory = directory
        self._init: subprocess.Popen[bytes] | None = None
        for name in BINDS:
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "etc" / "qemu.conf").write_text(QEMU_CONF)
        # libvirtd looks for hooks only when it starts, so this one is always there.
        self.gate = directory / "gate"
        hook = directory / "etc" / "hooks" / "qemu"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f'#!/bin/sh\n[ -x {self.gate} ] || exit 0\nexec {self.gate} "$@"\n')
        hook.chmod(0o755)
        (directory / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=host_uuid))

        if lacks:
            _older_machine(directory, lacks)

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "libvirt-sock"

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.socket}"

    def start(self) -> None:
        log = (self.directory / "init.log").open("ab")
        with log:
            self._init = subprocess.Popen(
                ["unshare", "-m", "-p", "-n", "-i", "-u", "-f", "--kill-child", "--mount-proc",
                 sys.executable, str(Path(__file__).resolve()), str(self.directory)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_for_socket()

    def wait_for_socket(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            asked = subprocess.run(
                ["virsh", "-q", "-c", self.uri, "version"], capture_output=True, check=False
            )
            if asked.returncode == 0:
                return
            assert self._init is not None
            if self._init.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"own libvirtd does not answer: {asked.stderr.decode()}\n"
                    + (self.directory / "init.log").read_text()
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """End init: with it the kernel ends everything inside its PID namespace."""
        if self._init is None:
            return
        for pid in self.inside():
            if "own_libvirtd.py" in _cmdline(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        try:
            self._init.wait(60)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.wait(60)
        self._init = None

    def inside(self) -> list[int]:
        """Processes in our PID namespace, by the numbers that are valid out here."""
        assert self._init is not None
        try:
            ours = Path(f"/proc/{self._init.pid}/ns/pid_for_children").readlink()
        except OSError:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "ns" / "pid").readlink() == ours:
                        found.append(int(entry.name))
        return found

    def pid_of(self, text: str) -> int:
        """The one process inside whose command line contains ``text``."""
        pids = [pid for pid in self.inside() if text in _cmdline(pid)]
        assert len(pids) == 1, (text, pids)
        return pids[0]

    def kill_libvirtd(self) -> None:
        """kill -9; init starts it again when ``restart_libvirtd`` says so."""
        (self.directory / "hold").touch()
        os.kill(self.libvirtd_pid(), signal.SIGKILL)

    def restart_libvirtd(self) -> None:
        (self.directory / "hold").unlink(missing_ok=True)
        self.wait_for_socket()

    def libvirtd_pid(self) -> int:
        return self.pid_of("/usr/sbin/libvirtd")


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _older_machine(directory: Path, lacks: str) -> None:
    """What stands for QEMU in there. The real one finds its files beside where it seems to lie."""
    prefix = directory / "qemu"
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    (prefix / "bin" / QEMU.name).touch()
    for name in ("share", "lib"):
        (prefix / name).symlink_to(f"/usr/{name}")
    program = prefix / "older"
    program.write_text(f'#!/bin/sh\nexec {prefix}/bin/{QEMU.name} -global {lacks}=off "$@"\n')
    program.chmod(0o755)


def _init(directory: Path) -> None:
    """PID 1: mounts, starts virtlogd and libvirtd, reaps, and ends all at SIGTERM."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    prefix = directory / "qemu"
    if prefix.exists():
        real = prefix / "bin" / QEMU.name
        subprocess.run(["mount", "--bind", str(QEMU), str(real)], check=True)
        subprocess.run(["mount", "--bind", str(prefix / "older"), str(QEMU)], check=True)
    for name, target in BINDS.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(directory / name), target], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "link", "add", "br-test", "type", "bridge"], check=True)
    ending = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)

    def spawn(program: str) -> int:
        pid_file = directory / f"{Path(program).name}.pid"
        pid_file.unlink(missing_ok=True)
        return os.posix_spawn(program, [program, "-p", str(pid_file)], dict(os.environ))

    spawn("/usr/sbin/virtlogd")
    libvirtd: int | None = spawn("/usr/sbin/libvirtd")
    while not ending:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if ended == libvirtd:
                    libvirtd = None
        if libvirtd is None and not (directory / "hold").exists():
            libvirtd = spawn("/usr/sbin/libvirtd")
        time.sleep(0.01)


if __name__ == "__main__":
    _init(Path(sys.argv[1]))
