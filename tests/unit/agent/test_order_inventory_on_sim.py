"""Orders about what is defined: changed, forgotten, found, adopted, given back."""

from pathlib import Path

import msgspec
import pytest
from agent_bench import (
    CLUSTER,
    FOREIGN_XML,
    WEB1,
    WEB2,
    Bench,
    SimHost,
    prepared,
    run_foreign,
    runs,
    stop,
)

from virtha.agent.gate import read_grant
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import (
    AdoptVm,
    CreateDisk,
    DefineVm,
    ForgetVm,
    ReleaseVm,
    ScanForeign,
)
from virtha.ports.hypervisor import HypervisorFailed, HypervisorTimeout


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
    domain = run_foreign(bench)
    domain.autostart = True
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


@pytest.mark.req("X1")
def test_a_vm_that_ends_while_it_is_adopted_is_not_reported_running(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SimHost.define

    async def define(host: SimHost, xml: str) -> None:
        await real(host, xml)
        host.libvirt.kill_qemu(WEB2)
        await bench.stepped()  # its event comes before the adoption is told

    async def story() -> None:
        await bench.listed()
        await bench.configured()
        run_foreign(bench)
        monkeypatch.setattr(SimHost, "define", define)
        vm = bench.vm(WEB2, "old", ha=False)
        assert (await bench.do(AdoptVm(vm=vm, incarnation=Incarnation(1)))).result is Result.OK
        await bench.until(lambda: bench.state(WEB2) == "down")

    bench.run(story)


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (HypervisorFailed("read-only file system"), Result.FAILED),
        (HypervisorTimeout("no answer"), Result.UNKNOWN),
    ],
)
def test_a_failed_adoption_is_undone_or_not_called_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, result: Result
) -> None:
    async def fails(_host: SimHost, _vm_id: VmId, on: bool) -> None:
        if not on:
            raise error

    async def story() -> None:
        await bench.listed()
        await bench.configured()
        run_foreign(bench)
        bench.hypervisor.libvirt.domain(WEB2).autostart = True
        before = bench.hypervisor.libvirt.domain(WEB2).xml
        with monkeypatch.context() as patch:
            patch.setattr(SimHost, "set_autostart", fails)
            outcome = await bench.do(AdoptVm(vm=bench.vm(WEB2, "old"), incarnation=Incarnation(1)))
        assert outcome.result is result
        undone = "virtha.dev" not in bench.hypervisor.libvirt.domain(WEB2).xml
        assert undone == (result is Result.FAILED)
        assert "virtha.dev" not in before
        assert bench.agent.loop.record(WEB2) is None
        assert runs(bench, WEB2)

    bench.run(story)
