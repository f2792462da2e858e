"""Orders about devices of a running VM: only of the very copy that is meant, and never twice."""

from pathlib import Path

import msgspec
import pytest
from agent_bench import DOMAIN, WEB1, Bench, prepared, stop

from virtha.agent.storage import read_vm_header
from virtha.model.facts import Result, RunsWith
from virtha.model.ids import DiskId, Incarnation, NicId
from virtha.model.orders import CreateDisk, DefineVm, PlugDevice, UnplugDevice
from virtha.model.vm import Disk, Nic

NIC = Nic(id=NicId("n1"), bridge="br0", mac="52:54:00:00:00:77")
DATA = Disk(
    id=DiskId("60000000-0000-4000-8000-000000000002"),
    name="data",
    storage_domain_id=DOMAIN,
    path="disks/data.qcow2",
    size_bytes=1 << 20,
)


def plug(bench: Bench, incarnation: int = 1, **device: Disk | Nic) -> PlugDevice:
    return PlugDevice(
        vm=bench.vm(disks=(bench.disk(), DATA), nics=(NIC,)),
        incarnation=Incarnation(incarnation),
        **device,
    )


def unplug(
    incarnation: int = 1, *, deadline_ms: int = 60_000, **device: Disk | Nic
) -> UnplugDevice:
    return UnplugDevice(
        vm_id=WEB1, incarnation=Incarnation(incarnation), deadline_ms=deadline_ms, **device
    )


async def started(bench: Bench) -> None:
    await prepared(bench)
    await bench.listed()
    await bench.do(CreateDisk(disk=bench.disk()))
    await bench.do(CreateDisk(disk=DATA))
    assert (await bench.start(bench.vm(disks=(bench.disk(),)))).result is Result.OK


def live(bench: Bench) -> str:
    return bench.hypervisor.libvirt.domain(WEB1).live_xml


def hardware(bench: Bench) -> RunsWith | None:
    told = [fact.body for fact in bench.facts() if isinstance(fact.body, RunsWith)]
    return told[-1] if told else None


def test_devices_are_plugged_once_told_of_and_unplugged(bench: Bench) -> None:
    async def story() -> None:
        await started(bench)
        for _ in range(2):
            assert (await bench.do(plug(bench, nic=NIC))).result is Result.OK
            assert (await bench.do(plug(bench, disk=DATA))).result is Result.OK
        assert live(bench).count(NIC.mac) == 1
        assert live(bench).count(DATA.path) == 1
        assert 'dev="vdb"' in live(bench)
        await bench.until(
            lambda: (
                (told := hardware(bench)) is not None
                and len(told.hardware.disks) == 2
                and len(told.hardware.nics) == 1
            )
        )
        assert (await bench.do(unplug(nic=NIC))).result is Result.OK
        assert (await bench.do(unplug(disk=DATA))).result is Result.OK
        assert NIC.mac not in live(bench)
        assert DATA.path not in live(bench)
        assert Path(bench.storage.path, DATA.path).exists()
        assert (await bench.do(unplug(nic=NIC))).result is Result.OK  # absent is done already

    bench.run(story)


@pytest.mark.req("G1", "A8")
def test_what_was_unplugged_does_not_come_back_with_a_local_restart(bench: Bench) -> None:
    """Its file may be another VM's as soon as the server has heard of it."""

    async def story() -> None:
        await started(bench)
        await bench.do(plug(bench, disk=DATA))
        await bench.do(plug(bench, nic=NIC))
        await bench.do(DefineVm(vm=bench.vm(disks=(bench.disk(), DATA), nics=(NIC,))))
        assert DATA.path in bench.hypervisor.libvirt.domain(WEB1).xml
        assert (await bench.do(unplug(disk=DATA))).result is Result.OK
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restarted" in bench.codes())
        assert DATA.path not in live(bench)
        assert NIC.mac in live(bench)
        assert bench.disk().path in live(bench)

    bench.run(story)


def test_a_guest_that_keeps_a_device_is_told_of_within_the_deadline(bench: Bench) -> None:
    async def story() -> None:
        await started(bench)
        await bench.do(plug(bench, disk=DATA))
        bench.hypervisor.libvirt.domain(WEB1).keeps_devices = True
        outcome = await bench.do(unplug(disk=DATA, deadline_ms=200))
        assert (outcome.result, outcome.code) == (Result.FAILED, "order.failed.unplug_refused")
        assert outcome.fields["device"] == "data"
        assert DATA.path in live(bench)

    bench.run(story)


def test_a_device_that_is_gone_when_the_deadline_is_noticed_was_given_up(bench: Bench) -> None:
    """Also where asking alone took all the time: told as kept, it would stay in the VM's record."""

    async def story() -> None:
        await started(bench)
        await bench.do(plug(bench, disk=DATA))
        assert (await bench.do(unplug(disk=DATA, deadline_ms=0))).result is Result.OK
        assert DATA.path not in live(bench)

    bench.run(story)


def test_a_disk_that_is_not_there_may_be_on_its_way_and_is_not_given_up(bench: Bench) -> None:
    async def story() -> None:
        await started(bench)
        outcome = await bench.do(unplug(disk=DATA))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.not_plugged")

    bench.run(story)


def test_only_the_copy_that_is_meant_is_touched(bench: Bench) -> None:
    async def story() -> None:
        await started(bench)
        for order in (plug(bench, 2, disk=DATA), unplug(2, nic=NIC)):
            outcome = await bench.do(order)
            assert outcome.code == "order.refused.incarnation"
        await bench.do(stop())
        outcome = await bench.do(plug(bench, disk=DATA))
        assert outcome.result is Result.REFUSED
        assert DATA.path not in bench.hypervisor.libvirt.domain(WEB1).xml

    bench.run(story)


def test_a_disk_whose_storage_knows_a_later_start_is_not_plugged(bench: Bench) -> None:
    async def story() -> None:
        await started(bench)
        header = read_vm_header(bench.storage, WEB1)
        assert header is not None
        later = msgspec.structs.replace(header, incarnation=Incarnation(9))
        path = Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json")
        path.write_bytes(msgspec.json.encode(later))
        outcome = await bench.do(plug(bench, disk=DATA))
        assert outcome.result is Result.REFUSED
        assert DATA.path not in live(bench)

    bench.run(story)


def test_a_bus_that_takes_nothing_live_says_so(bench: Bench) -> None:
    async def story() -> None:
        await started(bench)
        outcome = await bench.do(plug(bench, disk=msgspec.structs.replace(DATA, bus="sata")))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "problem.disk.bus")

    bench.run(story)
