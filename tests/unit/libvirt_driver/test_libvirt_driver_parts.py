"""The parts of the libvirt driver that need no libvirtd: lanes, words, errors, probes' parsing."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from virtha.drivers import libvirt_probe
from virtha.drivers.guest_agent import LibvirtGuestAgent
from virtha.drivers.libvirt_connection import translated
from virtha.drivers.libvirt_driver import LibvirtHost, _runtime_directory
from virtha.drivers.libvirt_probe import Guest, Probed, fastest_domain_type, probe, read_guest
from virtha.drivers.libvirt_words import (
    agent_event,
    disk_target,
    io_error_event,
    lifecycle_event,
    state_words,
    watchdog_event,
)
from virtha.drivers.libvirt_workers import Lane
from virtha.model.domain import DomainEvent, DomainEventKind, DomainState
from virtha.model.ids import VmId
from virtha.model.watchdog import WatchdogModel
from virtha.ports.hypervisor import (
    DomainMissing,
    GateRefused,
    HypervisorError,
    HypervisorFailed,
    HypervisorTimeout,
    HypervisorUnavailable,
)

VM_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-0000000000dd")


# Lanes


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@pytest.mark.req("A8")
def test_a_hung_call_blocks_no_other_and_too_many_fail_fast() -> None:
    async def run() -> None:
        lane = Lane("test", threads_max=2)
        thaw = threading.Event()
        with pytest.raises(HypervisorTimeout, match="may yet happen"):
            await lane.call("hang", thaw.wait, deadline_ms=1_000)
        assert lane.stuck == 1
        assert await lane.call("other", lambda: 7, deadline_ms=60_000) == 7
        with pytest.raises(HypervisorTimeout):
            await lane.call("hang too", thaw.wait, deadline_ms=1_000)
        # Longer than a test may take: it must not wait for that.
        with pytest.raises(HypervisorUnavailable, match="2 earlier calls hang"):
            await lane.call("third", lambda: 8, deadline_ms=600_000)
        thaw.set()
        await until(lambda: lane.stuck == 0)
        assert await lane.call("again", lambda: 9, deadline_ms=60_000) == 9
        lane.close()
        with pytest.raises(HypervisorUnavailable, match="closed"):
            await lane.call("late", lambda: 1, deadline_ms=100)

    asyncio.run(run())


@pytest.mark.req("A8")
def test_a_call_that_did_not_begin_never_will() -> None:
    async def run() -> None:
        lane = Lane("test", threads_max=1, waiting_max=1)
        thaw = threading.Event()
        done: list[str] = []
        first = asyncio.create_task(lane.call("first", thaw.wait, deadline_ms=60_000))
        await asyncio.sleep(0)
        with pytest.raises(HypervisorUnavailable, match="not begun"):
            await lane.call("second", lambda: done.append("second"), deadline_ms=50)
        # The given up one still stands in line until a thread looks at it; the line is bounded.
        with pytest.raises(HypervisorUnavailable, match="wait already"):
            await lane.call("third", lambda: None, deadline_ms=50)
        thaw.set()
        assert await first
        # The thread still has to throw the given up one out of the line.
        async with asyncio.timeout(60):
            while not done:
                with contextlib.suppress(HypervisorUnavailable):
                    await lane.call("fourth", lambda: done.append("fourth"), deadline_ms=5_000)
                await asyncio.sleep(0)
        assert done == ["fourth"]
        lane.close()

    asyncio.run(run())


@pytest.mark.req("A8")
def test_what_a_call_raises_reaches_its_caller() -> None:
    async def run() -> None:
        lane = Lane("test", threads_max=1)

        def fail() -> None:
            raise GateRefused("no")

        with pytest.raises(GateRefused, match="no"):
            await lane.call("fail", fail, deadline_ms=60_000)
        lane.close()

    asyncio.run(run())


@pytest.mark.req("A8")
def test_an_answer_that_came_while_the_agent_stood_still_is_one() -> None:
    """Stopped past the deadline it finds both: the answer counts, and is no error that nobody awaits."""

    async def run() -> None:
        lane = Lane("test", threads_max=1)
        came = threading.Event()
        asking = asyncio.create_task(lane.call("asked", lambda: came.set() or 7, deadline_ms=20))
        await asyncio.sleep(0)
        assert came.wait(60)
        while not asyncio.get_running_loop()._ready:
            time.sleep(0.01)
        time.sleep(
            0.05
        )  # the loop's clock passes the deadline meanwhile: that is what stands still here
        assert await asking == 7
        lane.close()

    asyncio.run(run())


@pytest.mark.req("A8")
def test_a_call_that_comes_back_as_it_is_given_up_holds_no_thread_for_ever() -> None:
    async def run() -> None:
        lane = Lane("test", threads_max=1)
        thaw = threading.Event()
        asking = asyncio.create_task(lane.call("asked", thaw.wait, deadline_ms=20))

        def late() -> None:
            thaw.set()
            end = time.monotonic() + 60
            while lane._idle == 0:  # its thread is done before anybody notes that it was given up
                assert time.monotonic() < end
                time.sleep(0.001)

        asyncio.get_running_loop().call_later(0.02, late)
        await asyncio.sleep(0)
        time.sleep(0.05)  # so that both are due in one turn of the loop
        with contextlib.suppress(HypervisorTimeout):
            await asking
        await until(lambda: lane.stuck == 0)
        assert await lane.call("again", lambda: 9, deadline_ms=60_000) == 9
        lane.close()

    asyncio.run(run())


@pytest.mark.req("A8")
def test_without_libvirt_nothing_waits() -> None:
    async def run() -> None:
        host = LibvirtHost("qemu+unix:///system?socket=/nonexistent/libvirt-sock")
        changes: list[bool] = []
        host.subscribe(lambda _event: None, changes.append)
        await host.start()
        with pytest.raises(HypervisorUnavailable, match="no connection to libvirt"):
            await host.start_paused(VM_ID)
        with pytest.raises(HypervisorUnavailable):
            await LibvirtGuestAgent(host).ping(VM_ID, deadline_ms=1_000)
        await host.close()
        assert changes == []

    asyncio.run(run())


# Words


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("RUNNING", "RUNNING_BOOTED", (DomainState.RUNNING, "booted")),
        ("RUNNING", "RUNNING_UNPAUSED", (DomainState.RUNNING, "unpaused")),
        ("PAUSED", "PAUSED_IOERROR", (DomainState.PAUSED, "ioerror")),
        ("PAUSED", "PAUSED_WATCHDOG", (DomainState.PAUSED, "watchdog")),
        ("PAUSED", "PAUSED_STARTING_UP", (DomainState.PAUSED, "starting_up")),
        ("SHUTDOWN", "SHUTDOWN_USER", (DomainState.SHUTTING_DOWN, "user")),
        ("SHUTOFF", "SHUTOFF_CRASHED", (DomainState.SHUTOFF, "crashed")),
        ("SHUTOFF", "SHUTOFF_DESTROYED", (DomainState.SHUTOFF, "destroyed")),
        ("SHUTOFF", "SHUTOFF_FAILED", (DomainState.SHUTOFF, "failed")),
        ("CRASHED", "CRASHED_PANICKED", (DomainState.CRASHED, "panicked")),
        ("PMSUSPENDED", "PMSUSPENDED_UNKNOWN", (DomainState.PMSUSPENDED, "unknown")),
    ],
)
@pytest.mark.req("A8")
def test_states(state: str, reason: str, expected: tuple[DomainState, str]) -> None:
    numbers = vars(libvirt)
    got = state_words(numbers[f"VIR_DOMAIN_{state}"], numbers[f"VIR_DOMAIN_{reason}"])
    assert got == expected


@pytest.mark.parametrize(
    ("event", "detail", "kind", "word"),
    [
        ("STARTED", "STARTED_BOOTED", DomainEventKind.STARTED, "booted"),
        ("STARTED", "STARTED_FROM_SNAPSHOT", DomainEventKind.STARTED, "from_snapshot"),
        ("SUSPENDED", "SUSPENDED_PAUSED", DomainEventKind.SUSPENDED, "paused"),
        ("SUSPENDED", "SUSPENDED_API_ERROR", DomainEventKind.SUSPENDED, "api_error"),
        ("SUSPENDED", "SUSPENDED_WATCHDOG", DomainEventKind.SUSPENDED, "watchdog"),
        ("RESUMED", "RESUMED_UNPAUSED", DomainEventKind.RESUMED, "unpaused"),
        ("SHUTDOWN", "SHUTDOWN_GUEST", DomainEventKind.SHUTDOWN, "guest"),
        ("SHUTDOWN", "SHUTDOWN_HOST", DomainEventKind.SHUTDOWN, "host"),
        ("SHUTDOWN", "SHUTDOWN_FINISHED", DomainEventKind.SHUTDOWN, "finished"),
        ("STOPPED", "STOPPED_FAILED", DomainEventKind.STOPPED, "failed"),
        ("STOPPED", "STOPPED_CRASHED", DomainEventKind.STOPPED, "crashed"),
        ("STOPPED", "STOPPED_SAVED", DomainEventKind.STOPPED, "saved"),
        ("CRASHED", "CRASHED_PANICKED", DomainEventKind.PANICKED, "panicked"),
        ("UNDEFINED", "UNDEFINED_REMOVED", DomainEventKind.UNDEFINED, ""),
    ],
)
@pytest.mark.req("W6", "A8")
def test_lifecycle_events(event: str, detail: str, kind: DomainEventKind, word: str) -> None:
    numbers = vars(libvirt)
    got = lifecycle_event(
        VM_ID, numbers[f"VIR_DOMAIN_EVENT_{event}"], numbers[f"VIR_DOMAIN_EVENT_{detail}"]
    )
    assert got == DomainEvent(vm_id=VM_ID, kind=kind, detail=word)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("NONE", "none"),
        ("PAUSE", "pause"),
        ("RESET", "reset"),
        ("POWEROFF", "poweroff"),
        ("SHUTDOWN", "shutdown"),
        ("DEBUG", "debug"),
        ("INJECTNMI", "inject-nmi"),
    ],
)
@pytest.mark.req("W6", "W7")
def test_watchdog_actions(name: str, word: str) -> None:
    got = watchdog_event(VM_ID, vars(libvirt)[f"VIR_DOMAIN_EVENT_WATCHDOG_{name}"])
    assert got == DomainEvent(vm_id=VM_ID, kind=DomainEventKind.WATCHDOG, detail=word)


@pytest.mark.req("W7", "A8")
def test_numbers_of_a_newer_libvirt_are_unknown_and_no_error() -> None:
    assert state_words(99, 99) == (DomainState.NOSTATE, "unknown")
    assert state_words(libvirt.VIR_DOMAIN_RUNNING, 99) == (DomainState.RUNNING, "unknown")
    assert lifecycle_event(VM_ID, 99, 0) is None
    assert lifecycle_event(VM_ID, libvirt.VIR_DOMAIN_EVENT_DEFINED, 0) is None
    stopped = lifecycle_event(VM_ID, libvirt.VIR_DOMAIN_EVENT_STOPPED, 99)
    assert stopped is not None
    assert stopped.detail == "unknown"
    assert watchdog_event(VM_ID, 99).detail == "unknown"
    assert agent_event(VM_ID, 99).detail == "unknown"
    assert agent_event(VM_ID, 1).detail == "connected"
    assert agent_event(VM_ID, 2).detail == "disconnected"


@pytest.mark.parametrize(
    ("alias", "target"),
    [
        ("virtio-disk0", "vda"),
        ("virtio-disk25", "vdz"),
        ("virtio-disk26", "virtio-disk26"),
        ("scsi0-0-0-1", "scsi0-0-0-1"),
        ("ua-mine", "ua-mine"),
        ("virtio-disk", "virtio-disk"),
    ],
)
@pytest.mark.req("A8")
def test_io_errors_name_the_disk(alias: str, target: str) -> None:
    assert disk_target(alias) == target
    assert io_error_event(VM_ID, alias, "").detail == target
    assert io_error_event(VM_ID, alias, "enospc").detail == f"{target} no-room"


# Errors


def libvirt_error(code: int, domain: int, text: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError("call failed")
    error.err = (code, domain, text, 2, None, None, None, -1, -1)
    return error


HOOK = (
    "Hook script execution failed: internal error: Child process (LC_ALL=C "
    "/etc/libvirt/hooks/qemu web1 prepare begin -) unexpected exit status 1: {said}"
)


@pytest.mark.parametrize(
    ("code", "domain", "text", "changes", "kind", "message"),
    [
        ("ERR_NO_DOMAIN", "FROM_QEMU", "gone", True, DomainMissing, "start: gone"),
        (
            "ERR_HOOK_SCRIPT_FAILED",
            "FROM_HOOK",
            HOOK.format(said="virtha: no grant\nask the server\n"),
            True,
            GateRefused,
            "virtha: no grant\nask the server",
        ),
        (
            "ERR_HOOK_SCRIPT_FAILED",
            "FROM_HOOK",
            HOOK.format(said=""),
            True,
            GateRefused,
            HOOK.format(said="").strip(),
        ),
        (
            "ERR_SYSTEM_ERROR",
            "FROM_RPC",
            "Cannot recv data: Connection reset by peer",
            True,
            HypervisorTimeout,
            "start: libvirt was lost in the middle (Cannot recv data: Connection reset by peer)",
        ),
        (
            "ERR_INTERNAL_ERROR",
            "FROM_NONE",
            "internal error: client socket is closed",
            False,
            HypervisorUnavailable,
            "start: libvirt was lost (internal error: client socket is closed)",
        ),
        (
            "ERR_OPERATION_INVALID",
            "FROM_QEMU",
            "domain is already running",
            True,
            HypervisorFailed,
            "start: domain is already running",
        ),
    ],
)
@pytest.mark.req("A8")
def test_errors(
    code: str,
    domain: str,
    text: str,
    changes: bool,
    kind: type[HypervisorError],
    message: str,
) -> None:
    numbers = vars(libvirt)
    error = libvirt_error(numbers[f"VIR_{code}"], numbers[f"VIR_{domain}"], text)
    got = translated(error, "start", changes=changes)
    assert type(got) is kind
    assert got.message == message


# Probes


CAPABILITIES = """<capabilities>
  <host><cpu><arch>x86_64</arch></cpu></host>
  <guest><os_type>hvm</os_type><arch name='i686'><emulator>/bin/i386</emulator>
    <machine>pc-old</machine><domain type='qemu'/></arch></guest>
  <guest><os_type>hvm</os_type><arch name='x86_64'><emulator>{emulator}</emulator>
    <machine maxCpus='255'>pc-i440fx-7.2</machine>
    <machine canonical='pc-i440fx-7.2'>pc</machine>
    <machine canonical='pc-q35-7.2'>q35</machine>
    <domain type='qemu'/><domain type='kvm'><machine>q35</machine></domain></arch></guest>
</capabilities>"""


@pytest.mark.req("W2")
def test_the_hosts_own_architecture_is_read() -> None:
    assert read_guest(CAPABILITIES.format(emulator="/bin/qemu")) == Guest(
        architecture="x86_64",
        emulator="/bin/qemu",
        machines=("pc-i440fx-7.2", "pc", "q35"),
        accelerators=("qemu", "kvm"),
    )
    with pytest.raises(ValueError, match="no guests of architecture sparc"):
        read_guest("<capabilities><host><cpu><arch>sparc</arch></cpu></host></capabilities>")


class FakeLibvirt:
    """Only what the probe asks; refuses ib700."""

    def __init__(self) -> None:
        self.version = 9_000_000
        self.asked = 0

    def getLibVersion(self) -> int:
        return self.version

    def getVersion(self) -> int:
        return 7_002_000

    def domainXMLToNative(self, _format: str, xml: str, _flags: int) -> str:
        self.asked += 1
        if "ib700" in xml:
            raise libvirt_error(
                libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_FROM_QEMU, "no ib700 here"
            )
        return "qemu"


@pytest.mark.req("W2")
def test_cards_are_our_table_and_libvirts_and_qemus(tmp_path: Path) -> None:
    emulator = tmp_path / "qemu"
    emulator.write_text("#!/bin/sh\necho 'name \"i6300esb\", bus PCI'\n")
    emulator.chmod(0o755)
    guest = Guest(
        architecture="x86_64", emulator=str(emulator), machines=("q35",), accelerators=("qemu",)
    )
    cache = tmp_path / "cache" / "probe.json"
    fake = FakeLibvirt()
    found = probe(fake, guest, wanted_type="auto", cache=cache)
    assert found.watchdog_models == (WatchdogModel.I6300ESB,)
    assert found.domain_type == "qemu"
    asked = fake.asked
    assert probe(fake, guest, wanted_type="auto", cache=cache) == found
    assert fake.asked == asked
    # A newer libvirt is asked anew, and knows q35's built-in card.
    fake.version = 9_001_000
    newer = probe(fake, guest, wanted_type="auto", cache=cache)
    assert newer.watchdog_models == (WatchdogModel.I6300ESB, WatchdogModel.ITCO)
    # A cache that is no cache only costs time.
    cache.write_text("{half")
    assert probe(fake, guest, wanted_type="auto", cache=cache) == newer
    assert probe(fake, guest, wanted_type="kvm", cache=None) == Probed(
        key=newer.key.replace("type=auto", "type=kvm"),
        domain_type="kvm",
        watchdog_models=newer.watchdog_models,
    )


@pytest.mark.req("A1")
@pytest.mark.parametrize(
    ("tcg_s", "kvm_s", "expected"),
    [(0.8, 0.1, "kvm"), (0.8, None, "qemu"), (None, None, "kvm")],
)
def test_kvm_is_taken_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, tcg_s: float | None, kvm_s: float | None, expected: str
) -> None:
    monkeypatch.setattr(libvirt_probe.Path, "exists", lambda _path: True)

    def measured(_emulator: str, accelerator: str, *, deadline_s: float) -> float | None:
        assert deadline_s > 0
        return {"tcg": tcg_s, "kvm": kvm_s}[accelerator]

    monkeypatch.setattr(libvirt_probe, "_loop_s", measured)
    guest = Guest(architecture="x86_64", emulator="qemu", machines=(), accelerators=("qemu", "kvm"))
    assert fastest_domain_type(guest) == expected
    without = Guest(architecture="x86_64", emulator="q", machines=(), accelerators=("qemu",))
    assert fastest_domain_type(without) == "qemu"


@pytest.mark.lab
@pytest.mark.req("A1")
def test_the_measured_loop_ends_under_tcg_and_a_short_deadline_cuts_it() -> None:
    assert libvirt_probe._loop_s("qemu-system-x86_64", "tcg", deadline_s=60.0) is not None
    assert libvirt_probe._loop_s("qemu-system-x86_64", "tcg", deadline_s=0.01) is None
    assert libvirt_probe._loop_s("/nonexistent/qemu", "tcg", deadline_s=1.0) is None


@pytest.mark.parametrize(
    ("uri", "directory"),
    [
        ("qemu:///system", "/run/libvirt/qemu"),
        ("qemu+unix:///system?socket=/run/l1/libvirt/libvirt-sock", "/run/l1/libvirt/qemu"),
    ],
)
@pytest.mark.req("A1")
def test_pid_files_are_beside_the_socket(uri: str, directory: str) -> None:
    assert _runtime_directory(uri) == Path(directory)
