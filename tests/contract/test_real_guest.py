"""A real guest: its agent answers, its card fires, its kernel panics, and we are told each time."""

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import libvirt_qemu
import pytest
from own_libvirtd import OwnLibvirtd

from virtha.domainxml.build import build_domain
from virtha.domainxml.host_defaults import HostDefaults, Rng
from virtha.drivers.guest_agent import LibvirtGuestAgent
from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.lab.image import tiny_image
from virtha.model.domain import DomainEvent, DomainEventKind, DomainState
from virtha.model.ids import ClusterId, DiskId, StorageDomainId, VmId
from virtha.model.vm import Disk, Vm
from virtha.model.watchdog import parse_watchdog
from virtha.ports.hypervisor import HypervisorError

VM_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-eeeeeeeeeeee")
STORE = StorageDomainId("store")
BOOTSTATUS = "/sys/class/watchdog/watchdog0/bootstatus"
SLOW_S = 90.0
"""TCG on a busy machine: 9 s are usual."""

VM = Vm(
    id=VM_ID,
    name="real-guest",
    cluster_id=ClusterId("c"),
    memory_bytes=128 << 20,
    watchdog=parse_watchdog("i6300esb:reset"),
    disks=(
        Disk(
            id=DiskId("d15c0000-0000-4000-8000-0000000000ee"),
            name="root",
            storage_domain_id=STORE,
            path="root.qcow2",
            size_bytes=1,
        ),
    ),
)


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SLOW_S
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def in_guest(host: LibvirtHost, command: str) -> None:
    """Only begins it: it may be the guest's last."""
    arguments = {"path": "/bin/sh", "arg": ["-c", command]}
    request = json.dumps({"execute": "guest-exec", "arguments": arguments})
    await host.with_guest(
        "run in",
        VM_ID,
        lambda domain: libvirt_qemu.qemuAgentCommand(domain, request, 10, 0),
        deadline_ms=15_000,
    )


@pytest.mark.lab
@pytest.mark.timeout(400)
@pytest.mark.req("W6", "W11", "W12", "A3", "A4")
def test_a_real_guest_fires_its_card_and_panics(own_libvirtd: OwnLibvirtd) -> None:
    store = own_libvirtd.directory / "store"
    serial = own_libvirtd.directory / "serial"
    for directory in (store, serial):
        directory.mkdir(exist_ok=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(tiny_image()), "-F", "qcow2",
         str(store / "root.qcow2")],
        check=True,
    )  # fmt: skip
    defaults = HostDefaults(
        domain_type="qemu",
        rng=Rng(),
        serial_directory=str(serial),
        storage_paths={STORE: str(store)},
    )

    async def run() -> None:
        events: list[DomainEvent] = []
        host = LibvirtHost(own_libvirtd.uri, domain_type="qemu")
        agent = LibvirtGuestAgent(host)
        host.subscribe(events.append, lambda _connected: None)
        await host.start()
        await until(lambda: host.connected and host.side_connected, "libvirt")

        def seen(kind: DomainEventKind, detail: str) -> bool:
            return DomainEvent(vm_id=VM_ID, kind=kind, detail=detail) in events

        try:
            await host.define(build_domain(VM, defaults))
            await host.start_paused(VM_ID)
            assert not await agent.ping(VM_ID, deadline_ms=1_000)
            await host.run(VM_ID)
            await until(lambda: seen(DomainEventKind.AGENT, "connected"), "the guest agent")
            assert await agent.ping(VM_ID, deadline_ms=10_000)
            assert await agent.read_file(VM_ID, BOOTSTATUS, deadline_ms=10_000) == b"0\n"
            assert await agent.read_file(VM_ID, "/no/such/file", deadline_ms=10_000) is None
            events.clear()
            await in_guest(host, "kill -9 $(pidof watchdog)")
            await until(lambda: seen(DomainEventKind.WATCHDOG, "reset"), "the card")
            await until(lambda: seen(DomainEventKind.AGENT, "connected"), "the rebooted guest")
            kinds = [event.kind for event in events]
            assert kinds.index(DomainEventKind.WATCHDOG) < kinds.index(DomainEventKind.REBOOTED)
            assert DomainEventKind.STOPPED not in kinds
            # WDIOF_CARDRESET: what an agent that missed the firing reads afterwards.
            assert await agent.read_file(VM_ID, BOOTSTATUS, deadline_ms=10_000) == b"32\n"
            events.clear()
            with suppress(HypervisorError):  # it may end before its agent has answered
                await in_guest(host, "echo c > /proc/sysrq-trigger")
            await until(lambda: seen(DomainEventKind.STOPPED, "crashed"), "the panic's end")
            assert seen(DomainEventKind.PANICKED, "panicked")
            report = await host.domain(VM_ID)
            assert (report.state, report.reason) == (DomainState.SHUTOFF, "crashed")
            assert b"sysrq" in (serial / f"{VM_ID}.log").read_bytes().lower()
        finally:
            await host.destroy(VM_ID)
            await host.undefine(VM_ID)
            await host.close()

    asyncio.run(asyncio.wait_for(run(), 380))
