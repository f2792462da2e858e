"""One suite for the simulated and the real libvirt: same calls, same answers, same events in order.

Where libvirt itself may or may not send an event, both may: the guest agent's channel opens and closes
with QEMU, a killed QEMU may still say that it got a signal, and SeaBIOS answers one reset with another.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from own_libvirtd import OwnLibvirtd

from virtha.domainxml.build import build_domain
from virtha.domainxml.host_defaults import HostDefaults
from virtha.domainxml.plugging import find_device, plug_xml
from virtha.domainxml.running import read_hardware
from virtha.drivers.guest_agent import LibvirtGuestAgent
from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.model.domain import DomainEvent, DomainEventKind, DomainState
from virtha.model.ids import ClusterId, DiskId, StorageDomainId, VmId
from virtha.model.machine import MachineType
from virtha.model.vm import Disk, DiskFormat, Vm
from virtha.model.watchdog import WatchdogModel, parse_watchdog
from virtha.ports.hypervisor import (
    DomainMissing,
    GateRefused,
    HypervisorFailed,
    HypervisorTimeout,
    HypervisorUnavailable,
)
from virtha.sim.hypervisor import SimHypervisor

VM_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-aaaaaaaaaaaa")
VM = Vm(
    id=VM_ID,
    name="contract",
    cluster_id=ClusterId("c"),
    memory_bytes=32 << 20,
    machine=MachineType.PC,
    watchdog=parse_watchdog("i6300esb:reset"),
)
REFUSAL = "virtha: no grant for this VM; ask the server"
SETTLE_S = 60.0


class Rig:
    """One hypervisor under test, and the hands that break it."""

    def __init__(self, host: SimHypervisor | LibvirtHost, xml: str) -> None:
        self.host = host
        self.xml = xml
        self.events: list[DomainEvent] = []
        self.connection: list[bool] = []
        host.subscribe(self.events.append, self.connection.append)

    def kill_qemu(self) -> None:
        raise NotImplementedError

    def terminate_qemu(self) -> None:
        raise NotImplementedError

    def refuse_starts(self) -> None:
        raise NotImplementedError

    def allow_starts(self) -> None:
        raise NotImplementedError

    def lose(self) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        raise NotImplementedError

    def clean(self) -> None:
        """After the test."""

    async def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SETTLE_S
        while not holds():
            assert time.monotonic() < deadline, (self.words(), self.connection)
            await asyncio.sleep(0.01)

    def words(self) -> list[str]:
        """`started booted`, without what libvirt may leave out or add (see above)."""
        words: list[str] = []
        for event in self.events:
            text = f"{event.kind.value} {event.detail}".strip()
            again = words and words[-1] == text and event.kind is DomainEventKind.REBOOTED
            if event.kind is not DomainEventKind.AGENT and not again:
                words.append(text)
        return [
            word
            for word, following in zip(words, [*words[1:], ""], strict=False)
            if not (word == "shutdown host" and following == "stopped destroyed")
        ]

    async def expect(self, *expected: str) -> None:
        """Exactly these, in this order; then forgets them."""
        # The last one too: before it comes, what may be left out can't be told from what may not.
        await self.until(
            lambda: len(self.words()) >= len(expected) and self.words()[-1] == expected[-1]
        )
        assert self.words() == list(expected)
        self.events.clear()


class SimRig(Rig):
    def __init__(self, xml: str) -> None:
        self._refuses = False
        self._sim = SimHypervisor(gate=lambda _vm_id: REFUSAL if self._refuses else None)
        super().__init__(self._sim, xml)

    def kill_qemu(self) -> None:
        self._sim.libvirt.kill_qemu(VM_ID)

    def terminate_qemu(self) -> None:
        self._sim.libvirt.terminate_qemu(VM_ID)

    def refuse_starts(self) -> None:
        self._refuses = True

    def allow_starts(self) -> None:
        self._refuses = False

    def lose(self) -> None:
        self._sim.lose()

    def heal(self) -> None:
        self._sim.heal()


class RealRig(Rig):
    def __init__(self, libvirtd: OwnLibvirtd, xml: str) -> None:
        self._libvirtd = libvirtd
        super().__init__(LibvirtHost(libvirtd.uri, domain_type="qemu"), xml)

    def kill_qemu(self) -> None:
        os.kill(self._libvirtd.pid_of(f"guest={VM.name}"), signal.SIGKILL)

    def terminate_qemu(self) -> None:
        os.kill(self._libvirtd.pid_of(f"guest={VM.name}"), signal.SIGTERM)

    def refuse_starts(self) -> None:
        self._libvirtd.gate.write_text(
            f'#!/bin/sh\n[ "$2" != prepare ] || {{ echo "{REFUSAL}" >&2; exit 1; }}\n'
        )
        self._libvirtd.gate.chmod(0o755)

    def allow_starts(self) -> None:
        self._libvirtd.gate.unlink(missing_ok=True)

    def lose(self) -> None:
        self._libvirtd.kill_libvirtd()

    def heal(self) -> None:
        self._libvirtd.restart_libvirtd()

    def clean(self) -> None:
        self._libvirtd.gate.unlink(missing_ok=True)
        self._libvirtd.restart_libvirtd()


@pytest.fixture(params=["sim", pytest.param("real", marks=pytest.mark.lab)])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "sim":
        yield SimRig(build_domain(VM, HostDefaults(domain_type="qemu")))
        return
    libvirtd: OwnLibvirtd = request.getfixturevalue("own_libvirtd")
    serial = libvirtd.directory / "serial"
    serial.mkdir(exist_ok=True)
    real = RealRig(
        libvirtd,
        build_domain(VM, HostDefaults(domain_type="qemu", serial_directory=str(serial))),
    )
    yield real
    real.clean()


def play(rig: Rig, story: Callable[[Rig], Awaitable[None]], *, define: bool = True) -> None:
    async def run() -> None:
        await rig.host.start()
        await rig.until(lambda: rig.connection == [True])
        try:
            if define:
                await rig.host.define(rig.xml)
            await story(rig)
        finally:
            with contextlib.suppress(DomainMissing):
                await rig.host.destroy(VM_ID)
            await rig.host.undefine(VM_ID)
            await rig.host.close()

    asyncio.run(asyncio.wait_for(run(), 250))


async def boot(rig: Rig) -> None:
    await rig.host.start_paused(VM_ID)
    await rig.host.run(VM_ID)
    await rig.expect("started booted", "suspended paused", "resumed unpaused")


@pytest.mark.req("W6", "A8")
def test_start_pause_run_destroy(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        report = await rig.host.domain(VM_ID)
        assert (report.name, report.state, report.persistent) == (
            "contract",
            DomainState.SHUTOFF,
            True,
        )
        await rig.host.start_paused(VM_ID)
        await rig.expect("started booted", "suspended paused")
        assert (await rig.host.domain(VM_ID)).state is DomainState.PAUSED
        await rig.host.run(VM_ID)
        await rig.expect("resumed unpaused")
        assert (await rig.host.domain(VM_ID)).state is DomainState.RUNNING
        await rig.host.pause(VM_ID)
        await rig.expect("suspended paused")
        report = await rig.host.domain(VM_ID)
        assert (report.state, report.reason) == (DomainState.PAUSED, "user")
        await rig.host.run(VM_ID)
        await rig.expect("resumed unpaused")
        await rig.host.destroy(VM_ID)
        await rig.expect("stopped destroyed")
        report = await rig.host.domain(VM_ID)
        assert (report.state, report.reason) == (DomainState.SHUTOFF, "destroyed")

    play(rig, story)


@pytest.mark.req("A8")
def test_a_killed_qemu_fails_and_starts_again(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        await boot(rig)
        rig.kill_qemu()
        await rig.expect("stopped failed")
        report = await rig.host.domain(VM_ID)
        assert (report.state, report.reason) == (DomainState.SHUTOFF, "crashed")
        await boot(rig)

    play(rig, story)


@pytest.mark.req("A8")
def test_a_terminated_qemu_says_that_its_host_did_it(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        await boot(rig)
        rig.terminate_qemu()
        await rig.expect("shutdown host", "stopped shutdown")
        report = await rig.host.domain(VM_ID)
        assert (report.state, report.reason) == (DomainState.SHUTOFF, "shutdown")

    play(rig, story)


@pytest.mark.req("W6")
def test_a_reset_reboots_the_guest_and_nothing_else(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        await boot(rig)
        await rig.host.reset(VM_ID)
        await rig.expect("rebooted")
        assert (await rig.host.domain(VM_ID)).state is DomainState.RUNNING

    play(rig, story)


@pytest.mark.req("A8")
def test_destroying_what_does_not_run_is_done_already(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        await rig.host.destroy(VM_ID)
        await boot(rig)
        await rig.host.destroy(VM_ID)
        await rig.host.destroy(VM_ID)
        await rig.expect("stopped destroyed")

    play(rig, story)


@pytest.mark.req("A8")
def test_undefining_a_running_domain_leaves_it_running(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        await boot(rig)
        await rig.host.undefine(VM_ID)
        await rig.expect("undefined")
        report = await rig.host.domain(VM_ID)
        assert (report.state, report.persistent) == (DomainState.RUNNING, False)
        await rig.host.destroy(VM_ID)
        await rig.until(lambda: "stopped destroyed" in rig.words())
        with pytest.raises(DomainMissing):
            await rig.host.domain(VM_ID)
        await rig.host.undefine(VM_ID)

    play(rig, story)


@pytest.mark.req("A8")
def test_what_is_not_there(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        assert VM_ID not in {report.vm_id for report in await rig.host.domains()}
        for call in (
            rig.host.start_paused,
            rig.host.run,
            rig.host.pause,
            rig.host.shutdown,
            rig.host.reset,
            rig.host.domain,
            rig.host.xml,
            rig.host.destroy,
        ):
            with pytest.raises(DomainMissing):
                await call(VM_ID)
        with pytest.raises(DomainMissing):
            await rig.host.domain(VmId("no uuid at all"))
        await rig.host.undefine(VM_ID)

    play(rig, story, define=False)


@pytest.mark.req("A8")
def test_bad_definitions_are_refused_and_change_nothing(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        before = await rig.host.xml(VM_ID)
        for bad in (
            "",
            "<domain",
            "<network><name>n</name></network>",
            "<domain type='qemu'><uuid>6f1c2b52-8f43-4a8c-9a5e-bbbbbbbbbbbb</uuid></domain>",
            rig.xml.replace(VM_ID, "6f1c2b52-8f43-4a8c-9a5e-bbbbbbbbbbbb"),
        ):
            with pytest.raises(HypervisorFailed):
                await rig.host.define(bad)
        assert await rig.host.xml(VM_ID) == before
        assert [report.vm_id for report in await rig.host.domains()] == [VM_ID]

    play(rig, story)


@pytest.mark.req("A8")
def test_wrong_moments_are_refused(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        for call in (rig.host.run, rig.host.pause, rig.host.reset, rig.host.shutdown):
            with pytest.raises(HypervisorFailed):
                await call(VM_ID)
        await boot(rig)
        with pytest.raises(HypervisorFailed):
            await rig.host.start_paused(VM_ID)
        assert (await rig.host.domain(VM_ID)).state is DomainState.RUNNING

    play(rig, story)


@pytest.mark.req("A8")
def test_the_gate_refuses_in_its_own_words(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        rig.refuse_starts()
        with pytest.raises(GateRefused) as caught:
            await rig.host.start_paused(VM_ID)
        assert caught.value.message == REFUSAL
        report = await rig.host.domain(VM_ID)
        assert (report.state, report.reason) == (DomainState.SHUTOFF, "failed")
        # Nothing ran, so nothing is told; the next start's events are the first ones.
        rig.allow_starts()
        await boot(rig)

    play(rig, story)


@pytest.mark.req("A8")
def test_autostart_is_shown_and_turned_off(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        assert not (await rig.host.domain(VM_ID)).autostart
        await rig.host.set_autostart(VM_ID, True)
        assert (await rig.host.domain(VM_ID)).autostart
        assert [report.autostart for report in await rig.host.domains()] == [True]
        await rig.host.set_autostart(VM_ID, False)
        assert not (await rig.host.domain(VM_ID)).autostart

    play(rig, story)


@pytest.mark.req("A8", "W7")
@pytest.mark.bad_input("libvirtd gone and back")
def test_losing_libvirt_touches_no_vm_and_is_told(rig: Rig) -> None:
    async def story(rig: Rig) -> None:
        await boot(rig)
        rig.lose()
        await rig.until(lambda: rig.connection == [True, False])
        with pytest.raises(HypervisorUnavailable):
            await rig.host.domains()
        rig.heal()
        await rig.until(lambda: rig.connection == [True, False, True])
        assert (await rig.host.domain(VM_ID)).state is DomainState.RUNNING
        rig.events.clear()
        # Events flow again over the new connection.
        await rig.host.pause(VM_ID)
        await rig.expect("suspended paused")

    play(rig, story)


# What only the real one has


@pytest.fixture
def real(own_libvirtd: OwnLibvirtd) -> Iterator[RealRig]:
    serial = own_libvirtd.directory / "serial"
    serial.mkdir(exist_ok=True)
    rig = RealRig(
        own_libvirtd,
        build_domain(VM, HostDefaults(domain_type="qemu", serial_directory=str(serial))),
    )
    yield rig
    rig.clean()


def begins_with(path: Path, expected: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(expected)) == expected


@pytest.mark.lab
@pytest.mark.req("W12")
def test_evidence_is_a_picture_a_dump_and_a_console_log(
    real: RealRig, own_libvirtd: OwnLibvirtd
) -> None:
    async def story(rig: Rig) -> None:
        host = rig.host
        assert isinstance(host, LibvirtHost)
        await boot(rig)
        picture = Path(await host.screenshot(VM_ID, str(own_libvirtd.directory / "screen")))
        assert begins_with(picture, {".png": b"\x89PNG\r\n\x1a\n", ".ppm": b"P6\n"}[picture.suffix])
        assert not list(own_libvirtd.directory.glob("*.part"))
        dump = own_libvirtd.directory / "core"
        await host.dump(VM_ID, str(dump))
        assert begins_with(dump, b"\x7fELF")
        assert dump.stat().st_size > VM.memory_bytes
        dump.unlink()
        await host.destroy(VM_ID)
        with pytest.raises(HypervisorFailed):
            await host.screenshot(VM_ID, str(own_libvirtd.directory / "late"))
        assert not list(own_libvirtd.directory.glob("late*"))
        # virtlogd keeps it over the restart: append, never truncated by the next start.
        log = own_libvirtd.directory / "serial" / f"{VM_ID}.log"
        log.write_text("the tail before the crash\n")
        await rig.until(lambda: rig.words()[-1:] == ["stopped destroyed"])
        rig.events.clear()  # what the dump made of it, too
        await boot(rig)
        assert log.read_text().startswith("the tail before the crash\n")

    play(real, story)


@pytest.mark.lab
@pytest.mark.req("A3", "W11")
def test_a_guest_without_agent_does_not_answer(real: RealRig) -> None:
    async def story(rig: Rig) -> None:
        assert isinstance(rig.host, LibvirtHost)
        agent = LibvirtGuestAgent(rig.host)
        assert not await agent.ping(VM_ID, deadline_ms=1_000)
        await boot(rig)
        assert not await agent.ping(VM_ID, deadline_ms=1_000)
        assert await agent.read_file(VM_ID, "/etc/hostname", deadline_ms=1_000) is None
        with pytest.raises(DomainMissing):
            await agent.ping(VmId("6f1c2b52-8f43-4a8c-9a5e-cccccccccccc"), deadline_ms=1_000)

    play(real, story)


@pytest.mark.lab
@pytest.mark.req("W2", "A2")
def test_capabilities_are_what_libvirt_and_qemu_accept(
    real: RealRig, own_libvirtd: OwnLibvirtd
) -> None:
    async def story(rig: Rig) -> None:
        cache = own_libvirtd.directory / "cache-of-probes"
        host = LibvirtHost(own_libvirtd.uri, domain_type="qemu", cache_directory=cache)
        await host.start()
        try:
            await rig.until(lambda: host.side_connected)
            found = await host.capabilities()
            assert found.libvirt_connected
            assert found.architecture == "x86_64"
            assert found.domain_type == "qemu"
            assert {"pc", "q35"} <= set(found.machine_types)
            assert {WatchdogModel.I6300ESB, WatchdogModel.IB700} <= set(found.watchdog_models)
            # s390x's card fits no machine here; itco came with libvirt 9.1.
            assert WatchdogModel.DIAG288 not in found.watchdog_models
            assert (WatchdogModel.ITCO in found.watchdog_models) == (
                found.libvirt_version >= 9_001_000
            )
            assert found.memory_bytes > 1 << 28
            assert found.cpus >= 1
            assert [file.name for file in cache.iterdir()] == ["hypervisor-probe.json"]
            assert await host.capabilities() == found
            assert await host.domains() == ()
        finally:
            await host.close()

    play(real, story, define=False)


@pytest.mark.lab
@pytest.mark.req("F9")
def test_a_libvirt_that_hangs_is_noticed_by_its_pulse(
    real: RealRig, own_libvirtd: OwnLibvirtd
) -> None:
    async def answers(rig: Rig, *, deadline_ms: int = 60_000) -> bool:
        assert isinstance(rig.host, LibvirtHost)
        try:
            await rig.host.answers(deadline_ms=deadline_ms)
        except HypervisorUnavailable:
            return False
        return True

    async def until_it_answers(rig: Rig) -> None:
        async with asyncio.timeout(60):
            while not await answers(rig):
                await asyncio.sleep(0.02)

    async def story(rig: Rig) -> None:
        await until_it_answers(rig)
        libvirtd = own_libvirtd.libvirtd_pid()
        os.kill(libvirtd, signal.SIGSTOP)
        try:
            with pytest.raises(HypervisorTimeout):
                await answers(rig, deadline_ms=200)
            assert not await answers(rig, deadline_ms=200), "the question before hangs"
        finally:
            os.kill(libvirtd, signal.SIGCONT)
        await until_it_answers(rig)

    play(real, story, define=False)


@pytest.mark.lab
@pytest.mark.req("A8")
def test_a_managed_save_is_never_resumed(real: RealRig, own_libvirtd: OwnLibvirtd) -> None:
    async def story(rig: Rig) -> None:
        await boot(rig)
        saving = await asyncio.create_subprocess_exec(
            "virsh", "-q", "-c", own_libvirtd.uri, "managedsave", VM_ID
        )
        assert await saving.wait() == 0
        await rig.until(lambda: "stopped saved" in rig.words())
        assert (await rig.host.domain(VM_ID)).managed_save
        assert [report.managed_save for report in await rig.host.domains()] == [True]
        rig.events.clear()
        await boot(rig)
        assert not (await rig.host.domain(VM_ID)).managed_save

    play(real, story)


@pytest.mark.req("A8")
def test_a_plugged_disk_is_in_the_live_xml_only(rig: Rig, tmp_path: Path) -> None:
    """And what is defined meanwhile does not show there."""
    disk = Disk(
        id=DiskId("d1"),
        name="data",
        storage_domain_id=StorageDomainId("s"),
        path="data.raw",
        format=DiskFormat.RAW,
        size_bytes=1 << 20,
    )
    defaults = HostDefaults(
        domain_type="qemu",
        storage_paths={disk.storage_domain_id: str(tmp_path)},
        # Temporary directories need not take O_DIRECT.
        buffered_storage=(disk.storage_domain_id,),
    )
    with (tmp_path / "data.raw").open("wb") as file:
        file.truncate(disk.size_bytes)

    async def story(rig: Rig) -> None:
        await boot(rig)
        live = await rig.host.xml(VM_ID, inactive=False)
        assert find_device(live, disk, defaults) is None
        await rig.host.attach(VM_ID, plug_xml(live, VM, disk, defaults))
        found = find_device(await rig.host.xml(VM_ID, inactive=False), disk, defaults)
        assert found is not None
        assert find_device(await rig.host.xml(VM_ID), disk, defaults) is None
        await rig.host.define(rig.xml.replace(">1</vcpu>", ">2</vcpu>"))
        hardware = read_hardware(await rig.host.xml(VM_ID, inactive=False), VM, defaults)
        assert hardware is not None
        assert (hardware.vcpus, len(hardware.disks), hardware.watchdog) == (1, 1, VM.watchdog)
        assert hardware.memory_bytes == VM.memory_bytes
        other = found.replace("data.raw", "other.raw").replace("vda", "vdz")
        with pytest.raises(HypervisorFailed):
            await rig.host.detach(VM_ID, other)

    play(rig, story)
