"""The host's watchdog behind its port: the kernel's as far as files go, and the stand-in with a real process to end."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtha.agent.host_nature import SLEEPS, read_nature
from virtha.drivers.kernel_watchdog import FIRST_PID_NAMESPACE, KernelWatchdog, SysrqReset
from virtha.drivers.standin_watchdog import StandinWatchdog
from virtha.lab.namespaces import ProcessId, identify
from virtha.lab.watchdog_standin import Standin

pytestmark = pytest.mark.req("F1")


class Host:
    """A process that is ended in a host's place, and the stand-in that watches over it."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        who = identify(self.process.pid)
        assert who is not None
        program = [sys.executable, "-m", "virtha.lab.watchdog_standin"]
        self.standin = subprocess.Popen(
            [*program, str(path), str(who.pid), str(who.start_ticks)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        self.watchdog = StandinWatchdog(path)
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            self.watchdog.feed()  # refused, as nothing is armed; by whom counts
        return self.watchdog._socket is not None

    def close(self) -> None:
        self.watchdog.close()
        for process in (self.process, self.standin):
            process.kill()
            process.wait(60)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "sock")
    yield made
    made.close()


def test_the_standin_of_a_host_that_is_gone_bites_nobody_who_has_its_id_now(tmp_path: Path) -> None:
    other = identify(os.getpid())
    assert other is not None
    gone = ProcessId(pid=other.pid, start_ticks=other.start_ticks - 1)
    with pytest.raises(ProcessLookupError):
        Standin(tmp_path / "sock", gone)


def test_the_standin_bites_only_a_host_that_armed_it_and_stopped_feeding(host: Host) -> None:
    watchdog = host.watchdog
    assert watchdog.runs_ms() == 0
    with pytest.raises(OSError, match="not now: feed"):
        watchdog.feed()
    armed = watchdog.arm(4_500)
    assert (armed.timeout_ms, armed.no_way_out) == (5_000, True)
    assert watchdog.runs_ms() == 5_000
    fed = time.monotonic()
    for _ in range(30):
        time.sleep(0.2)  # longer in all than its timeout, which its own process counts in real time
        before, fed = fed, time.monotonic()
        if fed - before > 4:
            pytest.skip("this machine stood still for as long as the watchdog waits")
        watchdog.feed()
    assert host.process.poll() is None
    with pytest.raises(OSError, match="not now: disarm"):
        watchdog.disarm()
    assert host.process.wait(60) == -9
    assert time.monotonic() - fed > 4.5
    assert host.standin.wait(60) == 0


def test_the_standin_bites_at_once_when_asked_and_no_feeding_undoes_it(host: Host) -> None:
    host.watchdog.arm(10_000)
    host.watchdog.reset()
    assert host.process.wait(60) == -9
    host.standin.wait(60)
    with pytest.raises(OSError, match=r"does not answer|refused"):
        host.watchdog.feed()


def test_the_standin_runs_on_when_its_guardian_is_gone(host: Host, tmp_path: Path) -> None:
    host.watchdog.arm(1_000)
    host.watchdog.close()
    other = StandinWatchdog(tmp_path / "sock")
    assert other.runs_ms() == 1_000
    other.close()
    assert host.process.wait(60) == -9


def test_no_standin_is_no_watchdog(tmp_path: Path) -> None:
    watchdog = StandinWatchdog(tmp_path / "none")
    assert watchdog.runs_ms() == 0
    with pytest.raises(FileNotFoundError):
        watchdog.arm(5_000)
    with pytest.raises(FileNotFoundError):
        watchdog.reset()


def test_the_kernels_watchdog_says_whether_it_runs(tmp_path: Path) -> None:
    about = tmp_path / "watchdog0"
    watchdog = KernelWatchdog(tmp_path / "none", about)
    assert watchdog.runs_ms() == 0
    about.mkdir()
    (about / "state").write_text("active\n")
    (about / "timeout").write_text("10\n")
    assert watchdog.runs_ms() == 10_000
    (about / "state").write_text("inactive\n")
    assert watchdog.runs_ms() == 0
    with pytest.raises(FileNotFoundError):
        watchdog.arm(10_000)
    with pytest.raises(OSError, match="not open"):
        watchdog.feed()


def test_a_host_that_is_no_machine_of_its_own_does_not_reset_the_machine(tmp_path: Path) -> None:
    """A lab's host has the same kernel as its neighbours. Never tried on the real file."""
    trigger, namespace = tmp_path / "sysrq-trigger", tmp_path / "pid"
    trigger.write_bytes(b"")
    namespace.symlink_to("pid:[4026532291]")
    with pytest.raises(PermissionError, match="no machine of its own"):
        SysrqReset(trigger, namespace).reset()
    assert trigger.read_bytes() == b""
    namespace.unlink()
    namespace.symlink_to(FIRST_PID_NAMESPACE)
    SysrqReset(trigger, namespace).reset()
    assert trigger.read_bytes() == b"b"


def machine(root: Path, *, flags: str = "fpu vme", state: str = "freeze mem") -> Path:
    for name in ("proc", "sys/power", "etc/systemd/system"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    (root / "sys/power/state").write_text(f"{state}\n")
    return root


def test_what_a_hosts_watchdog_is_worth(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert read_nature(root).is_virtual is False
    assert read_nature(root).suspend_blocked is False
    for name in SLEEPS:
        (root / f"etc/systemd/system/{name}.target").symlink_to("/dev/null")
    assert read_nature(root).suspend_blocked is True
    assert read_nature(machine(tmp_path, flags="fpu hypervisor")).is_virtual is True
    assert read_nature(machine(tmp_path, flags="")).is_virtual is None
    (root / f"etc/systemd/system/{SLEEPS[0]}.target").unlink()
    assert read_nature(machine(tmp_path, state="")).suspend_blocked is True
    (root / "proc/cpuinfo").unlink()
    assert read_nature(root, watchdog_is_real_because="it is").is_virtual is None


def test_a_device_that_takes_no_timeout_is_not_left_running(tmp_path: Path) -> None:
    """Opening it starts it: nobody would feed it, and it would reset the host."""
    device = tmp_path / "watchdog"
    device.touch()
    watchdog = KernelWatchdog(device, tmp_path)
    with pytest.raises(OSError):
        watchdog.arm(5_000)
    assert device.read_bytes() == b"V", "the way out"
    with pytest.raises(OSError, match="not open"):
        watchdog.feed()
