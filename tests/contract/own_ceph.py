"""A Ceph of one monitor and one OSD in memory, on 127.0.0.1, with cephx; all of it below one directory. Needs no root.

``osd_client_watch_timeout`` is Ceph's own 30 s. Everything is started here and ended by its process id.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

BOUND_S = 120
PROFILES = {
    "virtha": ("profile rbd", "profile rbd pool=vms"),
    "narrow": ("allow r", "profile rbd pool=vms"),
    "blind": ("allow r", "allow r pool=other"),
}
"""Capabilities of users for the monitor and the OSDs. ``narrow`` may write images, and may not block any client."""


_BOUND = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdlib.h>
int connect(int fd, const struct sockaddr *there, socklen_t size) {
  static int (*real)(int, const struct sockaddr *, socklen_t);
  struct sockaddr_in here = {.sin_family = AF_INET};
  if (!real) real = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect");
  if (there->sa_family == AF_INET && inet_aton(getenv("BOUND_ADDRESS"), &here.sin_addr))
    bind(fd, (struct sockaddr *)&here, sizeof here);
  return real(fd, there, size);
}
"""


class OwnCeph:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.fsid = str(uuid4())
        self.monitor = f"127.0.0.1:{_free_port()}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(BOUND_S)

    def keyring(self, user: str) -> Path:
        return self.root / f"client.{user}.keyring"

    def from_address(self, address: str) -> dict[str, str]:
        """Environment of a program whose connections come from there, as another host's do; '': from where they come."""
        if not address:
            return {}
        library = self.root / "bound.so"
        if not library.exists():
            source = self.root / "bound.c"
            source.write_text(_BOUND)
            _run("gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl")
        return {"LD_PRELOAD": str(library), "BOUND_ADDRESS": address}

    def hang(self) -> None:
        self._processes["osd"].send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._processes["osd"].send_signal(signal.SIGCONT)

    def monitor_hangs(self) -> None:
        self._processes["mon"].send_signal(signal.SIGSTOP)

    def monitor_goes_on(self) -> None:
        self._processes["mon"].send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """From now on the pools are full, whatever is in them."""
        self._limits("0.00001", "0.00002", "0.00003")
        self._until(self._full)

    def empty(self) -> None:
        self._limits("0.85", "0.9", "0.95")
        self._until(lambda: not self._full())

    def _limits(self, *ratios: str) -> None:
        for name, ratio in zip(("nearfull", "backfillfull", "full"), ratios, strict=True):
            self.ceph("osd", f"set-{name}-ratio", ratio)

    def _full(self) -> bool:
        pools = json.loads(self.ceph("osd", "dump", "-f", "json"))["pools"]
        return any("full" in pool["flags_names"].split(",") for pool in pools)

    def _until(self, holds: Callable[[], bool]) -> None:
        until = time.monotonic() + BOUND_S
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.2)

    def ceph(self, *words: str) -> str:
        """As the administrator."""
        return self.run("ceph", *words)

    def run(self, program: str, *words: str, user: str = "admin", stdin: bytes = b"") -> str:
        command = [program, "--conf", str(self._conf), "--name", f"client.{user}", *words]
        done = subprocess.run(
            [*command, "--keyring", str(self.keyring(user))],
            input=stdin,
            capture_output=True,
            timeout=BOUND_S,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
        return done.stdout.decode()

    @property
    def _conf(self) -> Path:
        return self.root / "ceph.conf"

    def _begin(self) -> None:
        self._conf.write_text(_configuration(self.root, self.fsid, self.monitor))
        self._key("mon.", self.root / "mon.keyring", "mon", "allow *")
        self._key(
            "client.admin",
            self.keyring("admin"),
            "mon",
            "allow *",
            "osd",
            "allow *",
            "mgr",
            "allow *",
        )
        with (self.root / "mon.keyring").open("ab") as file:
            file.write(self.keyring("admin").read_bytes())
        _run(
            "monmaptool",
            "--create",
            "--fsid",
            self.fsid,
            "--addv",
            "a",
            f"[v2:{self.monitor}]",
            str(self.root / "monmap"),
        )
        here = ["--conf", str(self._conf)]
        _run(
            *("ceph-mon", *here, "--mkfs", "-i", "a", "--monmap", str(self.root / "monmap")),
            *("--keyring", str(self.root / "mon.keyring")),
        )
        self._processes["mon"] = _begun("ceph-mon", *here, "-f", "-i", "a")
        uuid = str(uuid4())
        self.ceph("osd", "new", uuid)
        key = json.loads(
            self.ceph(
                *("auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *"),
                *("-f", "json"),
            )
        )[0]["key"]
        (self.root / "osd").mkdir()
        (self.root / "osd/keyring").write_text(f"[osd.0]\n key = {key}\n")
        _run("ceph-osd", *here, "--mkfs", "-i", "0", "--osd-uuid", uuid)
        self.ceph("osd", "crush", "add-bucket", "here", "host", "root=default")
        self.ceph("osd", "crush", "add", "osd.0", "1", "host=here")
        self._processes["osd"] = _begun("ceph-osd", *here, "-f", "-i", "0")
        for pool in ("vms", "other"):
            self.ceph("osd", "pool", "create", pool, "8", "8")
            self.ceph("osd", "pool", "application", "enable", pool, "rbd")
        for user, (mon, osd) in PROFILES.items():
            text = self.ceph("auth", "get-or-create", f"client.{user}", "mon", mon, "osd", osd)
            self.keyring(user).write_text(text)
        self._until(lambda: json.loads(self.ceph("osd", "stat", "-f", "json"))["num_up_osds"] == 1)
        self.run("rbd", "pool", "init", "vms")

    def _key(self, name: str, path: Path, *caps: str) -> None:
        pairs = [
            word
            for kind, cap in zip(caps[::2], caps[1::2], strict=True)
            for word in ("--cap", kind, cap)
        ]
        _run("ceph-authtool", "--create-keyring", str(path), "--gen-key", "-n", name, *pairs)


def _configuration(root: Path, fsid: str, monitor: str) -> str:
    return f"""[global]
fsid = {fsid}
mon_host = [v2:{monitor}]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
osd_objectstore = memstore
osd_class_update_on_start = false
osd_crush_update_on_start = false
memstore_device_bytes = 268435456
osd_data = {root}/osd
mon_data = {root}/mon
log_file = {root}/$name.log
admin_socket = {root}/$name.asok
pid_file = {root}/$name.pid
run_dir = {root}
public_addr = 127.0.0.1
mon_osd_down_out_interval = 0
mon_osd_report_timeout = 86400
mon_data_avail_crit = 1
mon_data_avail_warn = 1
"""


def _free_port() -> int:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        port: int = there.getsockname()[1]
        return port


def _begun(*command: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "CEPH_ARGS": ""},
    )


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
