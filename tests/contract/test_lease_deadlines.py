"""The deadline of P2 on real processes: whatever freezes, the last sign of a VM comes before what its slot promised.

Each host is a PID namespace of its own with the real guardian, a sleeping stand-in for its QEMU, its storage through FUSE,
and its watchdog's stand-in outside. Times are of this machine's one clock, so nothing is allowed for drift. All that a
deadline hangs on comes before what else the machine computes, and lies in memory: as much is promised of a host, whose
guardian is a real-time process and whose watchdog is a device. When this test itself gets round to look matters to no bound.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest
from hasty_policy import hasty_policy
from leased_host import HOST, INSTALLATION, QEMU_NAME, SIGN_MS, VM, comes_first
from msgspec.structs import replace
from storage_mounts import DIES_WITH_US, FuseMount, MemoryMount, Mount

from virtha.agent.files import Files
from virtha.agent.gate import GateRecords
from virtha.agent.paths import AgentPaths
from virtha.agent.records import SettingsStore
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.lab.namespaces import (
    ProcessId,
    command_line,
    identify,
    inner_pid,
    processes_with_init,
)
from virtha.model.host import StorageDomain
from virtha.model.ids import (
    BootId,
    ClusterId,
    DiskId,
    Incarnation,
    StorageDomainId,
    Term,
    VmId,
)
from virtha.model.orders import HeldVm, HostSettings
from virtha.model.policy import (
    LeasePolicy,
)
from virtha.model.slot import Mailbox, Poison, Slot
from virtha.model.vm import Disk, Vm

pytestmark = [pytest.mark.lab, pytest.mark.req("F1"), pytest.mark.timeout(400)]

DOMAIN, CLUSTER, BOOT = StorageDomainId("ds1"), ClusterId("c1"), BootId("boot-1")
LEASE = LeasePolicy(
    renew_ms=200, self_fence_after_ms=2_500, kill_ms=3_000, watchdog_ms=4_000, read_period_ms=200
)
PATIENT = replace(LEASE, self_fence_after_ms=60_000)
"""However slow the machine: the next guardian is there before the lease of the one before ran out."""


class LeasedHost:
    def __init__(self, mounted: Path, lease: LeasePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        """``mounted``: where its storage is to be. ``monkeypatch``: until its end the boot id is the host's here too."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._end = ExitStack()
        memory = MemoryMount()
        self._end.callback(memory.close)
        self._end.callback(self._reap)
        self.root = memory.path
        self.backing = Mount(self.root / "backing").path
        try:
            self.storage = FuseMount(mounted, self.backing)
            # Before the processes are waited for: what waits for the storage is reaped when it is back.
            self._end.callback(self.storage.close)
            comes_first(self.storage.pid)
            self.blocks().prepare(0, HOST)
            monkeypatch.setenv("VIRTHA_BOOT_ID_FILE", str(self.root / "boot-id"))
            (self.root / "boot-id").write_text(f"{BOOT}\n")
            self.paths = AgentPaths(root=str(self.root))
            self._make_files(lease)
            self._begin()
            until(lambda: self.is_ready() and (self.root / "alive").exists())
            (self.vm,) = (each for each in self._inside() if is_qemu(each))
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self.unshare = self._start(
            "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--propagation",
            "private", sys.executable, str(Path(__file__).with_name("leased_host.py")),
            str(self.root), "init",
        )  # fmt: skip
        self._end.callback(self.unshare.kill)
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children")
        until(lambda: bool(children.read_text().split()))
        who = identify(int(children.read_text()))
        assert who is not None
        self.init = who
        self.watchdog_log = self.root / "watchdog.log"
        with self.watchdog_log.open("wb") as log:
            standin = self._start(
                sys.executable, "-m", "virtha.lab.watchdog_standin",
                str(self.root / "watchdog.sock"), str(who.pid), str(who.start_ticks), log=log,
            )  # fmt: skip
        comes_first(standin.pid)

    def _start(self, *command: str, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*DIES_WITH_US, *command], stdout=log, cwd=Path(__file__).parents[2]
        )
        self._processes.append(process)
        return process

    def _make_files(self, lease: LeasePolicy) -> None:
        self.paths.make_directories()
        disk = Disk(
            id=DiskId("d"), name="root", storage_domain_id=DOMAIN, path="d", size_bytes=1 << 20
        )
        vm = Vm(id=VmId(VM), name="web1", cluster_id=CLUSTER, memory_bytes=128 << 20, disks=(disk,))
        domain = StorageDomain(
            id=DOMAIN, name="ds1", cluster_id=CLUSTER, path=str(self.storage.path)
        )
        settings = HostSettings(
            revision=1,
            installation_id=INSTALLATION,
            term=Term(1),
            policy=hasty_policy(lease),
            storage_domains=(domain,),
            vms=(HeldVm(vm=vm, incarnation=Incarnation(1), wanted_up=True),),
        )
        gate = GateRecords(self.paths, Files(), boot=BOOT)
        gate.write(settings)
        gate.restored()
        gate.hold(VmId(VM), Incarnation(1))
        SettingsStore(self.paths.settings, Files()).save(settings)

    def blocks(self) -> DirectoryDomain:
        """As another host sees them, by its own mount."""
        return DirectoryDomain(str(self.backing), installation_id=INSTALLATION, domain_id=DOMAIN)

    def slot(self) -> Slot | None:
        slot = self.blocks().read_slot(0)
        return slot if isinstance(slot, Slot) else None

    def is_ready(self) -> bool:
        slot = self.slot()
        return slot is not None and slot.declaration.armed and slot.good_ms is not None

    def guardian(self) -> int:
        """Its number out here."""
        number = int((self.root / "guardian.pid").read_text())
        (found,) = (each for each in self._inside() if inner_pid(each) == number)
        return found.pid

    def _inside(self) -> list[ProcessId]:
        return processes_with_init(self.init)

    def alive_ms(self) -> int:
        """The VM's last sign."""
        return int((self.root / "alive").read_text())

    def bites(self) -> list[str]:
        return [line for line in self.watchdog_log.read_text().splitlines() if "bites" in line]

    def wait_for_death(self) -> int:
        """Of its VM: when its last sign was."""
        until(lambda: not self.vm.is_alive())
        return self.alive_ms()

    def close(self) -> None:
        """All of it, whatever fails meanwhile."""
        self._end.close()

    def _reap(self) -> None:
        for process in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)


def is_qemu(process: ProcessId) -> bool:
    return command_line(process)[:1] == [QEMU_NAME]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def lease() -> LeasePolicy:
    return LEASE


@pytest.fixture
def host(
    tmp_path: Path, lease: LeasePolicy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LeasedHost]:
    made = LeasedHost(tmp_path / "ds1", lease, monkeypatch)
    yield made
    made.close()


def promised_ms(slot: Slot, from_ms: int | None) -> int:
    said = slot.declaration
    assert from_ms is not None
    return from_ms + said.self_fence_after_ms + said.kill_ms + said.watchdog_ms


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
def test_storage_that_is_gone_costs_the_vm_in_time(host: LeasedHost, trouble: str) -> None:
    if trouble == "hangs":
        host.storage.hang()
    else:
        host.storage.fail()
    last = host.wait_for_death()
    slot = host.slot()
    assert slot is not None
    # The slot that stands was submitted; the renewal that wrote it may have been the last good one, not later. And its VM
    # lived a little longer than it said.
    assert last + 10 * SIGN_MS >= (slot.good_ms or 0) + LEASE.self_fence_after_ms
    assert last < slot.submitted_ms + LEASE.self_fence_after_ms + LEASE.kill_ms
    assert host.bites() == []
    assert host.unshare.poll() is None  # the host lives: its VM ended in time


@pytest.mark.parametrize("storage", ["works", "hangs"])
def test_a_frozen_guardian_costs_the_host_in_time(host: LeasedHost, storage: str) -> None:
    if storage == "hangs":
        host.storage.hang()
    os.kill(host.guardian(), signal.SIGSTOP)
    last = host.wait_for_death()
    slot = host.slot()
    assert slot is not None
    assert last < promised_ms(slot, slot.submitted_ms)
    assert len(host.bites()) == 1


@pytest.mark.parametrize("lease", [PATIENT])
def test_a_killed_guardian_is_started_again_and_nothing_dies(host: LeasedHost) -> None:
    first = host.guardian()
    before = host.slot()
    assert before is not None
    os.kill(first, signal.SIGKILL)

    def goes_on() -> bool:
        slot = host.slot()
        return slot is not None and slot.counter > before.counter + 20

    until(goes_on)
    slot = host.slot()
    assert slot is not None and slot.boot == before.boot
    assert slot.declaration == before.declaration
    assert slot.good_ms is not None
    assert host.guardian() != first
    assert host.bites() == []
    assert host.alive_ms() > slot.good_ms - 1_000


def test_a_killed_guardian_that_does_not_come_back_costs_the_host_in_time(
    host: LeasedHost,
) -> None:
    (host.root / "no-guardian").touch()
    os.kill(host.guardian(), signal.SIGKILL)
    last = host.wait_for_death()
    slot = host.slot()
    assert slot is not None
    assert last < promised_ms(slot, slot.submitted_ms)
    assert len(host.bites()) == 1


def test_a_guardian_killed_while_its_storage_hangs_costs_the_host_in_time(
    host: LeasedHost,
) -> None:
    """What it left in the kernel may keep it from being reaped, and its lock with it; or the next one can't read what
    it promised. Neither feeds a watchdog."""
    host.storage.hang()
    time.sleep(0.5)  # its next renewal is in the kernel by then, where nobody outside sees it
    os.kill(host.guardian(), signal.SIGKILL)
    last = host.wait_for_death()
    slot = host.slot()
    assert slot is not None
    assert last < promised_ms(slot, slot.submitted_ms)
    assert len(host.bites()) == 1


def test_poison_ends_its_vms_and_the_slot_says_so(host: LeasedHost) -> None:
    blocks = host.blocks()
    clean = blocks.read_mailbox(0)
    assert isinstance(clean, Mailbox)
    poison = Poison(boot=BOOT, server="s1", term=Term(2), incident="7")
    blocks.write_mailbox(replace(clean, counter=clean.counter + 1, poison=poison))
    poisoned_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    last = host.wait_for_death()

    def acknowledged() -> bool:
        slot = host.slot()
        return slot is not None and slot.acknowledged_poison == clean.counter + 1

    until(acknowledged)
    assert last < poisoned_ms + LEASE.self_fence_after_ms
    assert host.bites() == []
