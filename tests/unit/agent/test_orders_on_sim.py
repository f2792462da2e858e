# ruff: noqa: ASYNC221, ASYNC230, ASYNC240 - small files of a test
"""Orders: checked, carried out once, answered with a code, and again when they come again."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from agent_bench import CLUSTER, DOMAIN, HOST, INSTALLATION, WEB1, WEB2, Bench

from virtha.agent.gate import read_grant
from virtha.model.facts import Outcome, Progress, Result
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, Incarnation, InstallationId, OperationId, Term
from virtha.model.orders import (
    AdoptVm,
    CreateDisk,
    DefineVm,
    DiskCheck,
    ForgetVm,
    Order,
    PauseVm,
    PrepareStorage,
    RebootMode,
    RebootVm,
    ReleaseVm,
    ResumeVm,
    ScanForeign,
    StartVm,
    StopMode,
    StopVm,
)
from virtha.ports.hypervisor import HypervisorTimeout

FOREIGN_XML = (
    f"<domain type='qemu'><name>old</name><uuid>{WEB2}</uuid><memory unit='MiB'>64</memory>"
    "<vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>"
    "<on_crash>restart</on_crash><devices/></domain>"
)


def stop(vm_id: object = WEB1, mode: StopMode = StopMode.POWER_OFF, **changes: object) -> StopVm:
    values: dict[str, object] = {"vm_id": vm_id, "incarnation": Incarnation(1), "by": "ann"}
    return StopVm(mode=mode, **{**values, **changes})  # type: ignore[arg-type]


def qemu(bench: Bench, vm_id: object = WEB1) -> object:
    domain = bench.hypervisor.libvirt.find(vm_id)  # type: ignore[arg-type]
    return domain.qemu if domain is not None else None


# Who may order what


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"term": Term(0)}, "order.refused.term"),
        ({"host_boot": BootId("boot-0")}, "order.refused.boot"),
        ({"operation_id": OperationId("../../etc/passwd")}, "problem.invalid"),
    ],
)
def test_an_order_of_another_time_is_refused(
    bench: Bench, change: dict[str, object], code: str
) -> None:
    async def story() -> None:
        bench.agent.on_settings(bench.settings())
        await bench.agent.host.settled.wait()
        start = StartVm(vm=bench.vm(), grant=bench.grant(), by="ann")
        outcome = await bench.do(start, **change)
        assert (outcome.result, outcome.code) == (Result.REFUSED, code)
        assert qemu(bench) is None
        # An order for a boot that is over: nothing of it can be left, the server may go elsewhere.
        assert bool(bench.released()) == (code == "order.refused.boot")

    bench.run(story)


def test_an_order_that_comes_again_is_answered_not_repeated(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        order = bench.order(
            RebootVm(vm_id=WEB1, incarnation=Incarnation(1), mode=RebootMode.RESET, by="ann")
        )
        first = await bench.give(order)
        await bench.until(lambda: "vm.rebooted" in bench.codes())
        assert await bench.give(order) == first
        assert bench.codes().count("vm.rebooted") == 1

    bench.run(story)


def test_an_answer_that_is_on_its_way_is_not_told_again(bench: Bench) -> None:
    async def story() -> None:
        order = bench.order(StartVm(vm=bench.vm(), grant=bench.grant(), by="ann"))
        await bench.give(order)
        for _ in range(3):
            bench.agent.on_order(order)
        # An order that came later has been answered, so those before it have been looked at.
        pause = bench.order(PauseVm(vm_id=WEB1, incarnation=Incarnation(1), by="ann"))
        bench.agent.on_order(pause)
        await bench.until(lambda: bool(bench.outcomes(pause)))
        assert len(bench.outcomes(order)) == 1

    bench.run(story)


def test_outcomes_outlive_the_agent(bench: Bench) -> None:
    orders: list[Order] = []

    async def first() -> None:
        orders.append(bench.order(StartVm(vm=bench.vm(), grant=bench.grant(), by="ann")))
        assert (await bench.give(orders[0])).result is Result.OK

    async def second() -> None:
        await bench.until(lambda: bench.agent.loop.record(WEB1) is not None)
        assert (await bench.give(orders[0])).result is Result.OK
        assert bench.codes().count("vm.started") == 1

    bench.run(first)
    bench.run(second)


def test_a_reset_that_was_cut_off_is_unknown_not_done_twice(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        order = bench.order(
            RebootVm(vm_id=WEB1, incarnation=Incarnation(1), mode=RebootMode.RESET, by="ann")
        )
        bench.agent.host.outcomes.begin(order.operation_id, order.step)  # and then kill -9
        outcome = await bench.give(order)
        assert (outcome.result, outcome.code) == (Result.UNKNOWN, "order.unknown.interrupted")

    bench.run(story)
    assert "vm.rebooted" not in bench.codes()


# Start


@pytest.mark.parametrize(
    ("duration_ms", "boot", "code"),
    [
        (-1, None, "order.refused.grant_expired"),
        (60_000, BootId("boot-0"), "order.refused.boot"),
    ],
)
def test_a_grant_that_does_not_hold_starts_nothing(
    bench: Bench, duration_ms: int, boot: BootId | None, code: str
) -> None:
    async def story() -> None:
        grant = bench.grant(duration_ms=duration_ms)
        if boot is not None:
            grant = type(grant)(
                vm_id=WEB1,
                incarnation=Incarnation(1),
                boot=boot,
                beat_monotonic_ms=grant.beat_monotonic_ms,
                duration_ms=duration_ms,
            )
        outcome = await bench.do(StartVm(vm=bench.vm(), grant=grant, by="ann"))
        assert (outcome.result, outcome.code) == (Result.REFUSED, code)
        assert qemu(bench) is None
        await bench.until(lambda: [fact.incarnation for fact in bench.released()] == [1])

    bench.run(story)


def test_a_lower_incarnation_is_refused_and_releases_nothing(bench: Bench) -> None:
    async def story() -> None:
        await bench.start(incarnation=5)
        await bench.do(stop(incarnation=Incarnation(5)))
        await bench.until(lambda: len(bench.released()) == 1)
        for lower in (4, 5):
            outcome = await bench.start(incarnation=lower)
            assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        assert qemu(bench) is None

    bench.run(story)


def test_a_higher_incarnation_does_not_start_over_a_running_copy(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.start(incarnation=2)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.running")
        assert bench.released() == []

    bench.run(story)


@pytest.mark.parametrize("grant_ms", [60_000, 400])
def test_a_start_that_was_cut_off_while_paused_is_carried_on_within_its_grant(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, grant_ms: int
) -> None:
    orders: list[Order] = []
    real_run = bench.hypervisor.run

    async def hang(vm_id: object) -> None:
        await asyncio.sleep(3_600)

    async def first() -> None:
        await bench.listed()
        monkeypatch.setattr(bench.hypervisor, "run", hang)
        start = StartVm(vm=bench.vm(), grant=bench.grant(duration_ms=grant_ms), by="ann")
        orders.append(bench.order(start))
        bench.agent.on_order(orders[0])
        await bench.until(lambda: qemu(bench) is not None)
        if grant_ms < 1_000:
            await asyncio.sleep(0.5)

    async def second() -> None:
        monkeypatch.setattr(bench.hypervisor, "run", real_run)
        await bench.listed()
        outcome = await bench.give(orders[0])
        if grant_ms < 1_000:
            assert (outcome.result, outcome.code) == (
                Result.REFUSED,
                "order.refused.grant_expired",
            )
            assert bench.hypervisor.libvirt.domain(WEB1).reason != "unpaused"
        else:
            assert outcome.result is Result.OK
            await bench.until(lambda: bench.state() == "running")

    bench.run(first)
    bench.run(second)
    assert bench.released() == []


def test_a_start_whose_answer_never_came_is_unknown_until_the_next_list(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(vm_id: object) -> None:
        raise HypervisorTimeout("no answer within 60 s")

    async def story() -> None:
        monkeypatch.setattr(bench.hypervisor, "start_paused", hang)
        outcome = await bench.start()
        assert outcome.result is Result.UNKNOWN
        # libvirt lists it as off: with its grant taken away, what may still come never starts.
        await bench.until(lambda: len(bench.released()) == 1)
        assert read_grant(bench.paths.grant(WEB1)) is None

    bench.run(story)


def test_a_start_that_fails_leaves_no_qemu_and_releases(bench: Bench) -> None:
    async def story() -> None:
        bench.hypervisor.libvirt.starts_that_fail = 1
        outcome = await bench.start()
        assert outcome.result is Result.FAILED
        assert qemu(bench) is None
        assert read_grant(bench.paths.grant(WEB1)) is None
        await bench.until(lambda: bool(bench.released()))
        assert len(bench.released()) == 1

    bench.run(story)


def test_a_grant_that_runs_out_while_qemu_is_made_ends_it_before_it_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    real_start, real_run = bench.hypervisor.start_paused, bench.hypervisor.run

    async def slow(vm_id: object) -> None:
        await real_start(vm_id)  # type: ignore[arg-type]
        await asyncio.sleep(0.6)

    async def run(vm_id: object) -> None:
        ran.append(vm_id)
        await real_run(vm_id)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.hypervisor, "start_paused", slow)
    monkeypatch.setattr(bench.hypervisor, "run", run)

    async def story() -> None:
        outcome = await bench.do(
            StartVm(vm=bench.vm(), grant=bench.grant(duration_ms=500), by="ann")
        )
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.grant_expired")
        assert qemu(bench) is None
        assert ran == []
        await bench.until(lambda: bool(bench.released()))

    bench.run(story)


# Stop and the rest of power


def test_a_shutdown_that_the_guest_ignores_fails_and_says_so(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.do(stop(mode=StopMode.SHUTDOWN, deadline_ms=300))
        assert (outcome.result, outcome.code) == (
            Result.FAILED,
            "order.failed.shutdown_ignored",
        )
        assert qemu(bench) is not None

    bench.run(story)


def test_a_power_off_overtakes_a_shutdown(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        slow = bench.order(stop(mode=StopMode.SHUTDOWN, deadline_ms=20_000))
        bench.agent.on_order(slow)
        await asyncio.sleep(0.1)
        assert (await bench.do(stop())).result is Result.OK
        await bench.until(lambda: bool(bench.outcomes(slow)))
        assert bench.outcomes(slow)[0].result is Result.OK

    bench.run(story)


def test_a_shutdown_that_the_guest_obeys(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        order = bench.order(stop(mode=StopMode.SHUTDOWN, deadline_ms=20_000))
        bench.agent.on_order(order)
        await asyncio.sleep(0.1)
        bench.hypervisor.libvirt.guest_shutdown(WEB1)
        await bench.until(lambda: bool(bench.outcomes(order)))
        assert bench.outcomes(order)[0].result is Result.OK
        await bench.until(lambda: len(bench.released()) == 1)

    bench.run(story)
    assert "vm.restart.ordered" not in bench.codes()


def test_stopping_what_is_stopped_is_done_and_what_is_not_here_refused(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        assert (await bench.do(stop())).result is Result.OK
        assert (await bench.do(stop())).result is Result.OK
        outcome = await bench.do(stop(WEB2))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.not_here")

    bench.run(story)


def test_pause_resume_and_what_is_not_running(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        one = Incarnation(1)
        assert (await bench.do(PauseVm(vm_id=WEB1, incarnation=one, by="ann"))).result is Result.OK
        await bench.until(lambda: bench.state() == "paused")
        assert (await bench.do(ResumeVm(vm_id=WEB1, incarnation=one, by="a"))).result is Result.OK
        await bench.until(lambda: bench.state() == "running")
        await bench.start(incarnation=1)
        older = await bench.do(PauseVm(vm_id=WEB1, incarnation=Incarnation(0), by="ann"))
        assert older.code == "order.refused.incarnation"
        await bench.do(stop())
        outcome = await bench.do(
            RebootVm(vm_id=WEB1, incarnation=one, mode=RebootMode.REBOOT, by="ann")
        )
        assert (outcome.result, outcome.code) == (Result.REFUSED, "problem.vm.state")

    bench.run(story)


# Storage


async def prepared(bench: Bench) -> Outcome:
    bench.agent.on_settings(bench.settings(bench.vm()))
    return await bench.do(PrepareStorage(domain=bench.storage, installation_id=INSTALLATION))


def test_storage_is_prepared_once_and_a_foreign_one_refused(bench: Bench) -> None:
    header = Path(bench.storage.path, ".virtha", "domain.json")

    async def story() -> None:
        assert (await prepared(bench)).result is Result.OK
        assert (await prepared(bench)).result is Result.OK
        assert Path(bench.storage.path, "images").is_dir()
        content = json.loads(header.read_text())
        assert content["installation_id"] == INSTALLATION
        header.write_text(json.dumps({**content, "installation_id": "somebody-else"}))
        outcome = await prepared(bench)
        assert (outcome.result, outcome.code) == (
            Result.REFUSED,
            "order.refused.storage_foreign",
        )
        assert json.loads(header.read_text())["installation_id"] == "somebody-else"
        disk = await bench.do(CreateDisk(disk=bench.disk()))
        assert disk.code == "order.refused.storage_foreign"
        other = await bench.do(
            PrepareStorage(domain=bench.storage, installation_id=InstallationId("x"))
        )
        assert other.code == "order.refused.storage_foreign"
        missing = StorageDomain(
            id=DOMAIN, name="ds2", cluster_id=CLUSTER, path=f"{bench.storage.path}/nowhere"
        )
        gone = await bench.do(PrepareStorage(domain=missing, installation_id=INSTALLATION))
        assert gone.result is Result.FAILED

    bench.run(story)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_disks_are_made_empty_or_copied_and_never_overwritten(bench: Bench) -> None:
    async def story() -> None:
        await prepared(bench)
        image = Path(bench.storage.path, "images", "tiny.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "4M"], check=True)
        assert (await bench.do(CreateDisk(disk=bench.disk()))).result is Result.OK
        target = Path(bench.storage.path, "disks", "web1.qcow2")
        before = target.stat().st_ino
        again = await bench.do(CreateDisk(disk=bench.disk()))
        assert (again.result, again.code) == (Result.REFUSED, "problem.disk.in_use")
        assert target.stat().st_ino == before
        copied = bench.disk("disks/web2.qcow2", size_bytes=8 << 20)
        assert (await bench.do(CreateDisk(disk=copied, image="tiny"))).result is Result.OK
        info = subprocess.run(
            ["qemu-img", "info", "--output=json", f"{bench.storage.path}/disks/web2.qcow2"],
            check=True,
            capture_output=True,
        )
        assert json.loads(info.stdout)["virtual-size"] == 8 << 20
        small = bench.disk("disks/web3.qcow2", size_bytes=1 << 20)
        refused = await bench.do(CreateDisk(disk=small, image="tiny"))
        assert refused.result is Result.REFUSED
        assert "larger than the disk" in refused.message
        assert not Path(bench.storage.path, "disks", "web3.qcow2").exists()
        nothing = await bench.do(CreateDisk(disk=small, image="huge"))
        assert nothing.result is Result.FAILED
        assert "no image 'huge'" in nothing.message
        assert list(Path(bench.storage.path, "disks").glob(".*")) == []

    bench.run(story)
    assert any(isinstance(fact.body, Progress) for fact in bench.facts())


def test_a_disk_made_just_before_a_crash_is_recognised(bench: Bench) -> None:
    async def story() -> None:
        await prepared(bench)
        order = bench.order(CreateDisk(disk=bench.disk()))
        assert (await bench.give(order)).result is Result.OK
        # As if the agent had died after the file was there and before its outcome was kept.
        for path in bench.paths.outcomes.glob(f"{order.operation_id}*"):
            path.unlink()
        bench.agent.host.outcomes.begin(order.operation_id, order.step)
        assert (await bench.give(order)).result is Result.OK

    bench.run(story)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "disks/../../x", "", "disks//x", ".virtha/domain.json", "l/x"]
)
def test_a_path_outside_the_domain_is_refused(bench: Bench, path: str) -> None:
    async def story() -> None:
        await prepared(bench)
        link = Path(bench.storage.path, "l")
        link.symlink_to("/tmp")
        outcome = await bench.do(CreateDisk(disk=bench.disk(path)))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "problem.disk.outside")
        kept = await bench.do(ForgetVm(vm_id=WEB1, disks=(bench.disk(path),)))
        assert kept.code == "problem.disk.outside"

    bench.run(story)


def test_an_incarnation_is_claimed_on_the_storage_and_a_higher_one_refuses(bench: Bench) -> None:
    vm = bench.vm(disks=(bench.disk(),))
    record = Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json")

    async def story() -> None:
        await prepared(bench)
        assert (await bench.start(vm, incarnation=3)).result is Result.OK
        content = json.loads(record.read_text())
        assert (content["incarnation"], content["host_id"]) == (3, HOST)
        await bench.do(stop(incarnation=Incarnation(3)))
        await bench.until(lambda: len(bench.released()) == 1)
        record.write_text(json.dumps({**content, "incarnation": 9}))
        outcome = await bench.start(vm, incarnation=4)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        # M2: a server that was restored from a backup learns whose start it does not remember.
        assert outcome.fields == {"incarnation": 9, "current": 9, "holder_host": HOST}
        record.write_text(json.dumps({**content, "incarnation": 5, "host_id": "another"}))
        outcome = await bench.start(vm, incarnation=5)
        assert outcome.code == "order.refused.incarnation"
        assert outcome.fields == {"incarnation": 5, "current": 5, "holder_host": "another"}
        record.write_text(json.dumps({**content, "installation_id": "another"}))
        assert (await bench.start(vm, incarnation=6)).code == "order.refused.storage_foreign"
        record.write_text("{")
        assert (await bench.start(vm, incarnation=7)).result is Result.FAILED
        assert qemu(bench) is None
        assert [fact.incarnation for fact in bench.released()] == [3, 4, 5, 6, 7]

    bench.run(story)


@pytest.mark.req("A5")
def test_the_disk_check_refuses_while_something_writes(bench: Bench) -> None:
    bench.properties = type(bench.properties)(
        diskactivity_check=True, diskactivity_quiet_ms=400, diskactivity_timeout_s=1
    )
    vm = bench.vm(disks=(bench.disk(),))
    path = Path(bench.storage.path, "disks", "web1.qcow2")

    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        stop_writing = asyncio.Event()

        async def write() -> None:
            while not stop_writing.is_set():
                with path.open("r+b") as file:
                    file.seek(40)
                    file.write(b"\0")
                await asyncio.sleep(0.05)

        writer = asyncio.create_task(write())
        outcome = await bench.start(vm)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.disk_active")
        assert qemu(bench) is None
        proven = await bench.do(
            StartVm(
                vm=vm, grant=bench.grant(incarnation=2), by="ann", disk_check=DiskCheck.SKIP_PROVEN
            )
        )
        assert proven.result is Result.OK
        await bench.do(stop(incarnation=Incarnation(2)))
        stop_writing.set()
        await writer
        assert (await bench.start(vm, incarnation=3)).result is Result.OK

    bench.run(story)


# Definitions


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
        vm = type(found.vm)(**{**_fields(found.vm), "cluster_id": CLUSTER, "adopted": True})
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


def _fields(value: object) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__struct_fields__}  # type: ignore[attr-defined]


def test_adopting_what_is_not_there(bench: Bench) -> None:
    async def story() -> None:
        outcome = await bench.do(AdoptVm(vm=bench.vm(adopted=True), incarnation=Incarnation(1)))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.not_here")

    bench.run(story)
