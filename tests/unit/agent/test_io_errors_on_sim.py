"""An agent resumes what an I/O error paused: only on storage that can be read and written, and only what still stands for it (S6)."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from agent_bench import ALWAYS, HOST, INSTALLATION, OTHER, WEB1, Bench, prepared, runs
from msgspec.structs import replace

from virtha.agent import new_disk
from virtha.agent.disk_proof import DiskProver
from virtha.agent.storage import VmHeader, claim_incarnation, prepare_storage
from virtha.model.facts import Result
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, DiskId, HostId, Incarnation, VmId
from virtha.model.orders import PauseVm
from virtha.model.policy import IoErrorPolicy, Policy
from virtha.model.vm import Vm

pytestmark = pytest.mark.req("S6")
QUICK = Policy(io_error=IoErrorPolicy(check_interval_ms=500, delay_ms=0))


async def started(bench: Bench, vm: Vm) -> Path:
    """Returns its disk."""
    await prepared(bench)
    disk = Path(bench.storage.path, "disks", "web1.qcow2")
    disk.write_bytes(b"\0" * 65_536)
    bench.agent.on_settings(bench.settings(vm, revision=2, policy=QUICK))
    assert (await bench.start(vm)).result is Result.OK
    return disk


def io_error(bench: Bench) -> None:
    bench.hypervisor.libvirt.io_error(WEB1)


def reasons(bench: Bench) -> list[str]:
    record = bench.agent.loop.record(WEB1)
    assert record is not None
    return [why.code for why in record.reasons]


def happened(bench: Bench) -> list[str]:
    return [str(getattr(fact.body, "code", "")) for fact in bench.facts()]


def test_it_goes_on_once_its_storage_can_be_read_and_written(bench: Bench) -> None:
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        disk = await started(bench, vm)
        away = disk.with_name("away")
        disk.rename(away)
        io_error(bench)
        await bench.until(lambda: "io_error.waiting.storage" in reasons(bench))
        assert not runs(bench)
        # Its disk is back, and nothing can be written.
        in_the_way = Path(bench.storage.path, ".virtha", "answers", f"{HOST}.json")
        in_the_way.mkdir(parents=True)
        away.rename(disk)
        prover = DiskProver(bench.agent.host)
        assert "ds1" in str(await prover.objection(WEB1, False))
        assert not runs(bench)
        in_the_way.rmdir()
        await bench.until(lambda: runs(bench))
        await bench.until(lambda: "vm.io_error.resumed" in happened(bench))

    bench.run(story)


def test_one_of_two_storage_domains_is_not_enough(bench: Bench) -> None:
    other = StorageDomain(
        id=OTHER, name="ds2", cluster_id=bench.storage.cluster_id, path=bench.storage.path + "-2"
    )
    second = replace(bench.disk(), id=DiskId("d2"), name="data", storage_domain_id=OTHER)
    vm = bench.vm(disks=(bench.disk(), second))

    async def story() -> None:
        await prepared(bench)
        Path(other.path).mkdir()
        prepare_storage(other, INSTALLATION, bench.files)
        for domain in (bench.storage, other):
            Path(domain.path, "disks", "web1.qcow2").write_bytes(b"\0" * 65_536)
        domains = (bench.storage, other)
        settings = bench.settings(vm, revision=2, policy=QUICK, storage_domains=domains)
        bench.agent.on_settings(settings)
        await bench.until(lambda: len(bench.agent.host.storage_domains()) == len(domains))
        assert (await bench.start(vm)).result is Result.OK
        header = Path(other.path, ".virtha", "domain.json")
        header.rename(header.with_name("away"))
        io_error(bench)
        await bench.until(lambda: "io_error.waiting.storage" in reasons(bench))
        objection = await DiskProver(bench.agent.host).objection(WEB1, False)
        assert objection is not None
        assert other.path in objection
        assert not runs(bench)
        header.with_name("away").rename(header)
        await bench.until(lambda: runs(bench))

    bench.run(story)


def test_a_full_storage_domain_has_to_have_room_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await started(bench, vm)
        prover = DiskProver(bench.agent.host)
        assert await prover.objection(WEB1, True) is None
        monkeypatch.setattr("virtha.agent.disk_proof.ROOM_BYTES_MIN", 1 << 62)
        assert "left" in str(await prover.objection(WEB1, True))
        assert await prover.objection(WEB1, False) is None
        assert new_disk.ROOM_BYTES_MIN < 1 << 62

    bench.run(story)


def test_without_the_lease_on_its_storage_it_stays_paused(bench: Bench) -> None:
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await started(bench, vm)
        bench.permit(0)
        io_error(bench)
        await bench.until(lambda: "io_error.waiting.storage" in reasons(bench))
        assert not runs(bench)
        bench.permit(ALWAYS)
        await bench.until(lambda: runs(bench))

    bench.run(story)


@pytest.mark.parametrize("what", ["lease", "pause", "outside"])
def test_what_comes_between_the_look_and_the_resume_is_heeded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await started(bench, vm)
        libvirt = bench.hypervisor.libvirt
        ask: Callable[[VmId], Awaitable[object]] = bench.hypervisor.domain

        async def meanwhile(vm_id: VmId) -> object:
            """The first thing that is done under the lock."""
            monkeypatch.setattr(bench.hypervisor, "domain", ask)
            if what == "lease":
                bench.permit(0)
            elif what == "outside":
                libvirt.run(vm_id)
                libvirt.pause(vm_id)
            return await ask(vm_id)

        if what == "pause":
            # It has the VM's lock before the agent has looked at the storage.
            lock = bench.agent.host.locks.of(WEB1)
            await lock.acquire()
            io_error(bench)
            await bench.until(lambda: "io_error.waiting.result" in reasons(bench))
            one = Incarnation(1)
            order = bench.order(PauseVm(vm_id=WEB1, incarnation=one, by="ann"))
            bench.agent.on_order(order)
            lock.release()
            await bench.until(lambda: bool(bench.outcomes(order)))
        else:
            monkeypatch.setattr(bench.hypervisor, "domain", meanwhile)
            io_error(bench)
        if what == "lease":
            await bench.until(lambda: "vm.io_error.resume_failed" in happened(bench))
        else:
            theirs = {"pause": "vm.paused.as_ordered", "outside": "vm.paused.outside"}[what]
            await bench.until(lambda: reasons(bench)[0] == theirs)
        assert not runs(bench)

    bench.run(story)


@pytest.mark.req("G4")
def test_one_whose_storage_names_a_later_start_stays_paused(bench: Bench) -> None:
    """Nobody may have told this host, which may be cut off: the storage does."""
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await started(bench, vm)
        prover = DiskProver(bench.agent.host)
        assert await prover.objection(WEB1, False) is None
        later = VmHeader(
            installation_id=INSTALLATION,
            vm_id=WEB1,
            incarnation=Incarnation(2),
            host_id=HostId("h2"),
            boot=BootId("b"),
        )
        claim_incarnation(bench.storage, later, bench.files)
        io_error(bench)
        await bench.until(lambda: "io_error.waiting.storage" in reasons(bench))
        assert "incarnation 2" in str(await prover.objection(WEB1, False))
        assert not runs(bench)

    bench.run(story)
