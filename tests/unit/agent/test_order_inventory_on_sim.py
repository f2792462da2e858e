# ruff: noqa: ASYNC240 - small files of a test
"""Orders about what is defined: changed, forgotten, found, adopted, given back."""

from pathlib import Path

import msgspec
import pytest
from agent_bench import CLUSTER, WEB1, WEB2, Bench, prepared, stop

from virtha.agent.gate import read_grant
from virtha.model.facts import Result
from virtha.model.ids import Incarnation
from virtha.model.orders import (
    AdoptVm,
    CreateDisk,
    DefineVm,
    ForgetVm,
    ReleaseVm,
    ScanForeign,
)

FOREIGN_XML = (
    f"<domain type='qemu'><name>old</name><uuid>{WEB2}</uuid><memory unit='MiB'>64</memory>"
    "<vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>"
    "<on_crash>restart</on_crash><devices/></domain>"
)


def test_forgetting_removes_domain_disks_and_traces(bench: Bench) -> None:
    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        await bench.start(bench.vm(disks=(bench.disk(),)))
        forget = ForgetVm(vm_id=WEB1, disks=(bench.disk(),))
        running = await bench.do(forget)
        assert (running.result, running.code) == (Result.REFUSED, "order.refused.running")
        await bench.do(stop())
        assert (await bench.do(forget)).result is Result.OK
        assert bench.hypervisor.libvirt.find(WEB1) is None
        assert not Path(bench.storage.path, "disks", "web1.qcow2").exists()
        assert not Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json").exists()
        assert bench.agent.loop.record(WEB1) is None
        assert (await bench.do(forget)).result is Result.OK  # absent is done already

    bench.run(story)


def test_define_changes_the_definition(bench: Bench) -> None:
    async def story() -> None:
        outcome = await bench.do(DefineVm(vm=bench.vm(description="the shop")))
        assert outcome.result is Result.OK
        assert "the shop" in bench.hypervisor.libvirt.domain(WEB1).xml

    bench.run(story)


@pytest.mark.req("A8")
def test_an_existing_vm_is_found_adopted_running_and_given_back(bench: Bench) -> None:
    libvirt = bench.hypervisor.libvirt
    domain = libvirt.define(FOREIGN_XML)
    domain.autostart = True
    libvirt.start_paused(WEB2)
    libvirt.run(WEB2)
    pid = domain.report().pid

    async def story() -> None:
        (found,) = (await bench.do(ScanForeign())).foreign
        assert found.vm is not None
        assert found.name == "old"
        assert any("autostart" in change for change in found.changes)
        vm = msgspec.structs.replace(found.vm, cluster_id=CLUSTER, adopted=True)
        adopt = AdoptVm(vm=vm, incarnation=Incarnation(1), dry_run=True)
        dry = await bench.do(adopt)
        assert dry.changes == found.changes
        assert domain.autostart
        assert domain.xml == FOREIGN_XML
        real = await bench.do(AdoptVm(vm=vm, incarnation=Incarnation(1)))
        assert real.changes == found.changes
        assert not domain.autostart
        assert "virtha" in domain.xml
        assert read_grant(bench.paths.grant(WEB2)) is not None
        # Again: the kept original must stay the original.
        await bench.do(AdoptVm(vm=vm, incarnation=Incarnation(1)))
        assert (bench.paths.adopted / f"{WEB2}.xml").read_text() == FOREIGN_XML
        assert (await bench.do(ScanForeign())).foreign == ()
        back = await bench.do(ReleaseVm(vm_id=WEB2))
        assert back.result is Result.OK
        assert "virtha.dev" not in domain.xml
        assert "<on_crash>restart</on_crash>" in domain.xml
        assert domain.autostart
        assert (await bench.do(ReleaseVm(vm_id=WEB2))).result is Result.OK

    bench.run(story)
    assert domain.report().pid == pid  # through all of it, nothing was stopped


def test_adopting_what_is_not_there(bench: Bench) -> None:
    async def story() -> None:
        outcome = await bench.do(AdoptVm(vm=bench.vm(adopted=True), incarnation=Incarnation(1)))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.not_here")

    bench.run(story)
