"""The start gate on a real libvirtd: what it refuses, what it lets through, and how that is proved."""

import asyncio
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from own_libvirtd import OwnLibvirtd

from virtha.agent.files import Files
from virtha.agent.gate import PROOF_VM_ID, GateRecords, install_gate, uninstall_gate
from virtha.agent.gate_proof import GateProver
from virtha.agent.host_clock import read_boot_id
from virtha.agent.paths import AgentPaths
from virtha.domainxml.build import build_domain
from virtha.domainxml.host_defaults import HostDefaults
from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.drivers.machine_clock import MachineClock
from virtha.model.domain import DomainState
from virtha.model.host import StorageDomain
from virtha.model.ids import ClusterId, Incarnation, InstallationId, StorageDomainId, Term, VmId
from virtha.model.machine import MachineType
from virtha.model.orders import HeldVm, HostSettings
from virtha.model.vm import Vm
from virtha.ports.hypervisor import GateRefused

pytestmark = [pytest.mark.lab, pytest.mark.req("A8")]

VM_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-bbbbbbbbbbbb")
FOREIGN_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-cccccccccccc")
OUTSIDER_ID = VmId("6f1c2b52-8f43-4a8c-9a5e-dddddddddddd")
VM = Vm(
    id=VM_ID,
    name="gated",
    cluster_id=ClusterId("c"),
    memory_bytes=32 << 20,
    machine=MachineType.PC,
)


def plain_xml(vm_id: VmId, name: str, disk: str = "") -> str:
    """A domain that virtha never saw: no mark of ours."""
    device = (
        f"<disk type='file' device='disk'><source file='{disk}'/><target dev='hda'/></disk>"
        if disk
        else ""
    )
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{vm_id}</uuid><memory unit='MiB'>32</memory>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{device}</devices></domain>"
    )


class GatedHost:
    def __init__(self, libvirtd: OwnLibvirtd, root: Path) -> None:
        self.libvirtd = libvirtd
        self.paths = AgentPaths(root=str(root))
        self.paths.make_directories()
        self.files = Files()
        self.gate = GateRecords(self.paths, self.files, boot=read_boot_id())
        self.storage = root / "ds1"
        self.storage.mkdir(exist_ok=True)
        self.clock = MachineClock()
        self.defaults = HostDefaults(domain_type="qemu", serial_directory=str(self.paths.serial))
        self.gate.write(
            HostSettings(
                revision=1,
                installation_id=InstallationId("i"),
                term=Term(1),
                storage_domains=(
                    StorageDomain(
                        id=StorageDomainId("d"),
                        name="ds1",
                        cluster_id=ClusterId("c"),
                        path=str(self.storage),
                    ),
                ),
                vms=(HeldVm(vm=VM, incarnation=Incarnation(1), wanted_up=True),),
                foreign_vms=(FOREIGN_ID,),
            )
        )

    def run(self, story: Callable[[LibvirtHost], Awaitable[None]]) -> None:
        async def live() -> None:
            host = LibvirtHost(self.libvirtd.uri, domain_type="qemu")
            connected = asyncio.Event()
            host.subscribe(lambda _event: None, lambda up: connected.set() if up else None)
            await host.start()
            try:
                await asyncio.wait_for(connected.wait(), 60)
                await story(host)
            finally:
                while not host.connected:  # a test may have ended libvirtd just now
                    await asyncio.sleep(0.05)
                for vm_id in (VM_ID, FOREIGN_ID, OUTSIDER_ID):
                    report = {d.vm_id: d for d in await host.domains()}.get(vm_id)
                    if report is not None:
                        await host.destroy(vm_id)
                        await host.undefine(vm_id)
                await host.close()

        asyncio.run(live())

    def virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["virsh", "-q", "-c", self.libvirtd.uri, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )


@pytest.fixture(scope="module")
def gated() -> Iterator[GatedHost]:
    with (
        tempfile.TemporaryDirectory(prefix="vg-", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        libvirtd = OwnLibvirtd(Path(directory) / "l")
        # Nothing but what virtha installs: else libvirt would have found a hook of somebody else's.
        (libvirtd.directory / "etc" / "hooks" / "qemu").unlink()
        patch.setenv("VIRTHA_LIBVIRT_HOOKS", str(libvirtd.directory / "etc" / "hooks"))
        host = GatedHost(libvirtd, Path(directory) / "r")
        libvirtd.start()
        try:
            yield host
        finally:
            libvirtd.stop()


def prove(gated: GatedHost) -> tuple[bool, str]:
    found: list[tuple[bool, str]] = []

    async def story(host: LibvirtHost) -> None:
        proof = await GateProver(host, host, gated.paths).prove(
            domain_type="qemu", architecture="x86_64"
        )
        assert proof is not None
        found.append((proof.in_force, proof.detail))
        assert PROOF_VM_ID not in {domain.vm_id for domain in await host.domains()}

    gated.run(story)
    return found[0]


def test_the_gate_is_in_force_only_when_libvirtd_has_loaded_it(gated: GatedHost) -> None:
    uninstall_gate(gated.paths)
    in_force, detail = prove(gated)
    assert not in_force
    assert "missing" in detail
    assert install_gate(gated.paths, gated.files)
    in_force, detail = prove(gated)
    # The hook lies there, but this libvirtd started before it did.
    assert not in_force
    assert "restart libvirtd" in detail
    gated.libvirtd.kill_libvirtd()
    gated.libvirtd.restart_libvirtd()
    assert prove(gated) == (True, "")
    assert not install_gate(gated.paths, gated.files)


def test_virsh_start_needs_a_grant(gated: GatedHost) -> None:
    async def story(host: LibvirtHost) -> None:
        await host.define(build_domain(VM, gated.defaults))
        refused = gated.virsh("start", "gated")
        assert refused.returncode != 0
        assert "gate.refused.no_grant" in refused.stderr
        assert "virtha vm start gated" in refused.stderr
        with pytest.raises(GateRefused, match=r"gate\.refused\.no_grant"):
            await host.start_paused(VM_ID)
        now = gated.clock.monotonic_ms()
        gated.gate.grant(VM_ID, Incarnation(1), until_ms=now - 1)
        assert "gate.refused.expired" in gated.virsh("start", "gated").stderr
        gated.gate.grant(VM_ID, Incarnation(1), until_ms=now + 60_000)
        await host.start_paused(VM_ID)
        gated.gate.hold(VM_ID, Incarnation(1))
        await host.run(VM_ID)
        assert (await host.domain(VM_ID)).state is DomainState.RUNNING
        await host.destroy(VM_ID)
        # A grant that was used up starts nothing, though its file is still there.
        assert "gate.refused.no_grant" in gated.virsh("start", "gated").stderr
        gated.gate.revoke(VM_ID)

    gated.run(story)


def test_a_running_vm_survives_libvirtd_and_stops_without_asking_the_gate(gated: GatedHost) -> None:
    async def story(host: LibvirtHost) -> None:
        await host.define(build_domain(VM, gated.defaults))
        gated.gate.grant(VM_ID, Incarnation(1), until_ms=gated.clock.monotonic_ms() + 60_000)
        await host.start_paused(VM_ID)
        await host.run(VM_ID)
        gated.gate.revoke(VM_ID)  # the worst case for "reconnect": no grant at all any more
        await asyncio.to_thread(gated.libvirtd.kill_libvirtd)
        await asyncio.to_thread(gated.libvirtd.restart_libvirtd)
        # libvirt names its state from a file at first. What is destroyed before it has its monitor again ends all the same,
        # and is called an error.
        query = ("qemu-monitor-command", "gated", "--hmp", "info status")
        async with asyncio.timeout(60):
            while (asked := await asyncio.to_thread(gated.virsh, *query)).returncode:
                await asyncio.sleep(0.1)
        assert "running" in asked.stdout
        destroyed = gated.virsh("destroy", "gated")
        assert destroyed.returncode == 0, destroyed.stderr

    gated.run(story)


def test_a_managed_save_is_not_restored_without_a_grant(gated: GatedHost) -> None:
    async def story(host: LibvirtHost) -> None:
        await host.define(build_domain(VM, gated.defaults))
        gated.gate.grant(VM_ID, Incarnation(1), until_ms=gated.clock.monotonic_ms() + 60_000)
        await host.start_paused(VM_ID)
        await host.run(VM_ID)
        saved = await asyncio.to_thread(gated.virsh, "managedsave", "gated")
        assert saved.returncode == 0, saved.stderr
        gated.gate.revoke(VM_ID)
        refused = gated.virsh("start", "gated")
        assert refused.returncode != 0
        assert "gate.refused.no_grant" in refused.stderr
        assert (await host.domain(VM_ID)).managed_save

    gated.run(story)


def test_a_vm_of_another_host_and_a_disk_of_ours_are_refused(gated: GatedHost) -> None:
    disk = gated.storage / "disks.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    sneaky = f"{gated.storage.parent}/elsewhere/../ds1/disks.qcow2"

    async def story(host: LibvirtHost) -> None:
        await host.define(plain_xml(FOREIGN_ID, "elsewhere"))
        assert "gate.refused.no_grant" in gated.virsh("start", "elsewhere").stderr
        for path in (str(disk), sneaky):
            await host.define(plain_xml(OUTSIDER_ID, "outsider", path))
            refused = gated.virsh("start", "outsider")
            assert "gate.refused.disk" in refused.stderr, refused.stderr
        await host.define(plain_xml(OUTSIDER_ID, "outsider"))
        started = gated.virsh("start", "outsider", "--paused")
        assert started.returncode == 0, started.stderr

    gated.run(story)


def test_a_transient_domain_is_no_way_around(gated: GatedHost, tmp_path: Path) -> None:
    xml = tmp_path / "transient.xml"
    xml.write_text(build_domain(VM, gated.defaults))
    refused = gated.virsh("create", str(xml))
    assert refused.returncode != 0
    assert "gate.refused.no_grant" in refused.stderr


def test_autostart_after_a_boot_starts_nothing(gated: GatedHost) -> None:
    async def story(host: LibvirtHost) -> None:
        await host.define(build_domain(VM, gated.defaults))
        await host.set_autostart(VM_ID, True)
        # libvirtd autostarts once per boot, told by a mark below its run directory.
        marks = list((gated.libvirtd.directory / "run").rglob("autostarted"))
        assert marks
        for mark in marks:
            mark.unlink()
        await asyncio.to_thread(gated.libvirtd.kill_libvirtd)
        await asyncio.to_thread(gated.libvirtd.restart_libvirtd)
        # libvirtd says in its log why an autostart failed.
        log = gated.libvirtd.directory / "init.log"
        async with asyncio.timeout(60):
            while "gate.refused.no_grant" not in log.read_text():
                await asyncio.sleep(0.05)
        assert gated.virsh("domstate", "gated").stdout.strip() == "shut off"

    gated.run(story)
