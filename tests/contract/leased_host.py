"""A host in a PID namespace: process 1 reaps, one guardian, one sleeping stand-in for a QEMU that keeps writing.

Run as ``python leased_host.py ROOT PORTION``. The guardian is the real process without a server: a session is said to be
there once, so that the watchdog is armed. ``PORTION``: ``init`` (makes the others, and starts the guardian again when it
was ended) or ``guardian``. All of it comes before what else the machine computes, as a guardian does by its unit.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from virtha.agent.files import Files
from virtha.agent.guardian_lease import LeaseKit
from virtha.agent.guardian_process import GuardianProcess, lock_memory
from virtha.agent.host_clock import read_boot_id
from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import hold_lock
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.standin_watchdog import StandinWatchdog
from virtha.model.host import StorageDomain
from virtha.model.ids import HostId, InstallationId
from virtha.sentinel.guardian import Welcomed
from virtha.sentinel.lease_events import HostNature

INSTALLATION, HOST = InstallationId("ours"), HostId("h1")
VM = "50000000-0000-4000-8000-00000000d0a1"
"""No other test's: guardians outside see this host's processes."""
QEMU_NAME = "qemu-system-x86_64"
SIGN_MS = 20
QEMU = f"""
import os, sys, time
while True:
    with open(sys.argv[1] + "/alive.new", "w") as file:
        file.write(str(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000))
    os.replace(sys.argv[1] + "/alive.new", sys.argv[1] + "/alive")
    time.sleep({SIGN_MS / 1_000})
"""
"""Says every ``SIGN_MS`` that it lives, with this machine's boot-time clock, in the file ``alive``."""


def comes_first(pid: int) -> None:
    """As virtha-guardian.service says of its process, whose children follow it. Where the kernel gives a container no
    real-time processes at all: as much before all others as it does give."""
    try:
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        os.setpriority(os.PRIO_PROCESS, pid, -20)


async def guardian(root: Path) -> None:
    paths = AgentPaths(root=str(root))
    hold_lock(paths, "guardian")
    watchdog = StandinWatchdog(root / "watchdog.sock")

    def slots_of(domain: StorageDomain) -> DirectoryDomain:
        return DirectoryDomain(domain.path, installation_id=INSTALLATION, domain_id=domain.id)

    process = GuardianProcess(
        paths=paths,
        boot=read_boot_id(),
        clock=MachineClock(),
        files=Files(),
        lease_kit=LeaseKit(
            installation_id=INSTALLATION,
            host_id=HOST,
            index=0,
            nature=HostNature(is_virtual=False, suspend_blocked=True),
            watchdog=watchdog,
            reset=watchdog,
            slots_of=slots_of,
        ),
    )
    assert process.lease is not None
    process.lease.tell(Welcomed(beat_interval_ms=1_000))
    lock_memory()
    await process.run()


def init(root: Path) -> None:
    comes_first(os.getpid())
    me = [sys.executable, __file__, str(root)]
    subprocess.Popen([QEMU_NAME, "-c", QEMU, str(root), "-uuid", VM], executable=sys.executable)
    first = subprocess.Popen([*me, "guardian"])
    (root / "guardian.pid").write_text(str(first.pid))
    while True:
        pid, _ = os.wait()
        if pid == first.pid and not (root / "no-guardian").exists():
            first = subprocess.Popen([*me, "guardian"])
            (root / "guardian.pid").write_text(str(first.pid))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    match sys.argv[2]:
        case "init":
            init(where)
        case "guardian":
            asyncio.run(guardian(where))
