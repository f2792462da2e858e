"""Sequences that would end in two writers, in a killed VM, or in one that nobody restarts."""

import shutil
from collections.abc import Iterator

import msgspec
import pytest
from agent_bench import WEB1, WEB2, Bench, SimHost, qemu, run_foreign, runs

from virtha.agent import host_shutdown
from virtha.agent.gate import GateRecords, GrantState, read_grant
from virtha.agent.process_table import QemuWatch, look
from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import Outcome, Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import AdoptVm, ReleaseVm, StartVm
from virtha.model.vm import VmState
from virtha.ports.hypervisor import GateRefused, HypervisorTimeout
from virtha.sentinel import restart
from virtha.sentinel.guardian import QemuProcess


def ungranted(bench: Bench) -> set[VmId] | None:
    """Whom the guardian would kill, were they running; None: it can't tell and kills nobody."""
    seen = look(bench.paths, bench.boot)
    if seen.managed is None or seen.granted is None:
        return None
    return set(seen.managed - seen.granted)


# Releases (G1, P5)


@pytest.mark.req("A8")
def test_nothing_is_released_while_libvirt_hangs_over_a_copy_that_may_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: `cont` reached QEMU, libvirtd hangs and says nothing, the operator starts it once more."""
    monkeypatch.setattr("virtha.agent.order_power.FIRST_LIST_MS", 200)
    real = SimHost.domains

    async def hang(_host: SimHost) -> tuple[DomainReport, ...]:
        raise HypervisorTimeout("no answer")

    async def run(host: SimHost, vm_id: VmId) -> None:
        domain = host.libvirt.domain(vm_id)
        assert domain.qemu is not None
        domain.qemu.running, domain.state = True, DomainState.RUNNING
        monkeypatch.setattr(SimHost, "domains", hang)
        raise HypervisorTimeout("no answer; it may yet happen")

    monkeypatch.setattr(SimHost, "run", run)

    async def story() -> None:
        await bench.listed()
        assert (await bench.start()).result is Result.UNKNOWN
        await bench.until(lambda: "host.libvirt.lost" in bench.codes())
        again = await bench.start(incarnation=2)
        # C1: with the incarnation that may run, so that the server counts back to it.
        assert (again.code, again.fields) == ("order.refused.running", {"current": 1})
        assert runs(bench)
        assert bench.released() == []
        grant = read_grant(bench.paths.grant(WEB1))
        assert grant is not None
        assert grant.incarnation == 1
        monkeypatch.setattr(SimHost, "domains", real)
        await bench.until(lambda: bench.state() == "running")
        assert bench.released() == []

    bench.run(story)


@pytest.mark.req("A8")
def test_a_start_refused_without_libvirt_is_released_by_the_list(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.agent.order_power.FIRST_LIST_MS", 200)

    async def story() -> None:
        await bench.listed()
        bench.hypervisor.lose()
        await bench.until(lambda: "host.libvirt.lost" in bench.codes())
        outcome = await bench.start()
        assert outcome.code == "host.unfit.libvirt"
        assert bench.released() == []
        bench.hypervisor.heal()
        await bench.until(lambda: [fact.incarnation for fact in bench.released()] == [1])

    bench.run(story)


@pytest.mark.req("A8")
def test_a_start_that_was_released_is_not_carried_out_when_it_comes_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: the agent died before it kept its answer; by now the VM may run elsewhere."""
    orders = []

    def killed_here(_outcome: Outcome) -> None:
        raise OSError(28, "no outcome is kept")

    async def first() -> None:
        await bench.listed()
        order = bench.order(StartVm(vm=bench.vm(), grant=bench.grant(duration_ms=-1), by="ann"))
        orders.append(order)
        monkeypatch.setattr(bench.agent.host.outcomes, "save", killed_here)
        assert (await bench.give(order)).code == "order.refused.grant_expired"
        await bench.until(lambda: len(bench.released()) == 1)

    async def second() -> None:
        await bench.listed()
        body = msgspec.structs.replace(orders[0].body, grant=bench.grant())
        outcome = await bench.give(msgspec.structs.replace(orders[0], body=body))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        assert bench.hypervisor.libvirt.find(WEB1) is None

    bench.run(first)
    bench.run(second)


def test_an_order_for_another_boot_releases_nothing_that_runs(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        body = StartVm(vm=bench.vm(), grant=bench.grant(), by="ann")
        outcome = await bench.do(body, host_boot="boot-0")
        assert outcome.code == "order.refused.boot"
        assert bench.released() == []
        assert runs(bench)

    bench.run(story)


@pytest.mark.parametrize(
    ("held", "grant", "released", "stays"),
    [
        (True, 1, 2, True),
        (False, 1, 2, False),
        (True, 2, 2, False),
        (True, 3, 2, True),
        (False, 3, 2, True),
    ],
)
def test_a_release_takes_back_no_grant_of_a_copy_that_may_run(
    bench: Bench, held: bool, grant: int, released: int, stays: bool
) -> None:
    gate = GateRecords(bench.paths, bench.files, boot=bench.boot)
    if held:
        gate.hold(WEB1, Incarnation(grant))
    else:
        gate.grant(WEB1, Incarnation(grant), until_ms=1)
    gate.released(WEB1, Incarnation(released))
    assert (read_grant(bench.paths.grant(WEB1)) is not None) == stays


class Kernel:
    """QEMUs as /proc would show them."""

    def __init__(self) -> None:
        self.running: set[VmId] = set()

    def __call__(self) -> tuple[QemuProcess, ...]:
        return tuple(QemuProcess(pid=7, start_ticks=1, vm_id=vm_id) for vm_id in self.running)


@pytest.fixture
def kernel(bench: Bench) -> Iterator[Kernel]:
    kernel = Kernel()
    bench.qemus = kernel
    yield kernel


@pytest.mark.req("A8")
def test_a_qemu_that_hangs_in_the_kernel_holds_back_restart_and_release(
    bench: Bench, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 3: libvirt calls it ended, yet a write of it may still be outstanding."""
    monkeypatch.setattr("virtha.agent.loop.RETRY_MS", 50)
    asked: list[VmId] = []
    may_run = QemuWatch.may_run

    async def counted(watch: QemuWatch, vm_id: VmId) -> bool:
        asked.append(vm_id)
        return await may_run(watch, vm_id)

    monkeypatch.setattr(QemuWatch, "may_run", counted)
    other = bench.vm(WEB2, "web2", ha=False)

    async def story() -> None:
        await bench.start()
        await bench.start(other)
        kernel.running = {WEB1, WEB2}
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        bench.hypervisor.libvirt.kill_qemu(WEB2)
        await bench.until(lambda: bench.state(WEB2) == "down")
        await bench.until(lambda: "vm.restart.ordered" in bench.codes())
        asked.clear()
        await bench.until(lambda: min(asked.count(WEB1), asked.count(WEB2)) > 3)
        assert bench.hypervisor.libvirt.domain(WEB1).qemu is None
        assert bench.released() == []
        kernel.running = set()
        await bench.until(lambda: "vm.restarted" in bench.codes())
        await bench.until(lambda: [fact.vm_id for fact in bench.released()] == [WEB2])

    bench.run(story)


# Grants (section 3: the guardian kills a managed QEMU that has none)


@pytest.mark.req("A8")
def test_a_vm_that_is_being_adopted_is_held_though_libvirt_hangs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_host: SimHost, _vm_id: VmId) -> DomainReport:
        raise HypervisorTimeout("busy")

    async def story() -> None:
        await bench.listed()
        await bench.configured()
        run_foreign(bench)
        monkeypatch.setattr(SimHost, "domain", hang)
        await bench.configured(bench.vm(WEB2, "old", adopted=True), revision=2)
        assert WEB2 not in (ungranted(bench) or ())
        grant = read_grant(bench.paths.grant(WEB2))
        assert grant is not None
        assert grant.state is GrantState.HELD

    bench.run(story)


@pytest.mark.req("A8")
@pytest.mark.parametrize("agent_runs", [False, True])
def test_an_emptied_run_directory_condemns_no_vm(bench: Bench, agent_runs: bool) -> None:
    async def first() -> None:
        await bench.configured(bench.vm())
        await bench.start()
        assert ungranted(bench) == set()
        if agent_runs:
            shutil.rmtree(bench.paths.grants)
            assert ungranted(bench) is None
            await bench.until(lambda: ungranted(bench) is not None)
            assert ungranted(bench) == set()

    bench.run(first)
    shutil.rmtree(bench.paths.run)
    bench.paths.make_directories()
    assert ungranted(bench) is None  # until the agent has seen libvirt's list

    async def second() -> None:
        await bench.listed()
        await bench.until(lambda: ungranted(bench) is not None)
        assert ungranted(bench) == set()
        assert runs(bench)

    bench.run(second)


@pytest.mark.req("A8")
def test_a_released_vm_gets_no_grant_back(bench: Bench) -> None:
    async def story() -> None:
        await bench.configured(bench.vm(ha=False))
        await bench.start(bench.vm(ha=False))
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: len(bench.released()) == 1)
        shutil.rmtree(bench.paths.grants)
        await bench.until(lambda: ungranted(bench) is not None)
        assert ungranted(bench) == {WEB1}

    bench.run(story)


def test_a_vm_given_back_lives_on_under_settings_that_still_name_it(bench: Bench) -> None:
    async def story() -> None:
        await bench.listed()
        await bench.configured()
        run_foreign(bench)
        vm = bench.vm(WEB2, "old", adopted=True)
        await bench.do(AdoptVm(vm=vm, incarnation=Incarnation(1)))
        await bench.configured(vm, revision=2)
        assert (await bench.do(ReleaseVm(vm_id=WEB2))).result is Result.OK
        assert read_grant(bench.paths.grant(WEB2)) is not None  # for settings half applied by now
        await bench.configured(vm, revision=3)
        assert WEB2 not in (ungranted(bench) or ())

    bench.run(story)


# Restarts (G5)


@pytest.mark.req("W7")
def test_a_grant_that_can_not_be_kept_ends_the_start_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_gate: GateRecords, _vm_id: VmId, _incarnation: Incarnation) -> None:
        raise OSError(28, "No space left on device")

    async def story() -> None:
        await bench.listed()
        with monkeypatch.context() as patch:
            patch.setattr(GateRecords, "hold", full)
            outcome = await bench.start()
        assert outcome.result is Result.FAILED
        assert "the grant can't be kept" in outcome.message
        assert bench.hypervisor.libvirt.domain(WEB1).qemu is None
        await bench.until(lambda: len(bench.released()) == 1)
        assert (await bench.start(incarnation=2)).result is Result.OK

    bench.run(story)


@pytest.mark.req("W7")
def test_a_start_that_breaks_is_never_left_starting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(_host: SimHost, _vm_id: VmId) -> None:
        raise GateRefused("no")

    real, errors = GateRecords.revoke, [OSError(5, "Input/output error")]

    def broken(gate: GateRecords, vm_id: VmId) -> None:
        if errors:
            raise errors.pop()
        real(gate, vm_id)

    async def story() -> None:
        await bench.listed()
        with monkeypatch.context() as patch:
            patch.setattr(SimHost, "start_paused", refuses)
            patch.setattr(GateRecords, "revoke", broken)
            assert (await bench.start()).result is Result.UNKNOWN
            await bench.until(lambda: bench.agent.loop.record(WEB1) is not None)
        record = bench.agent.loop.record(WEB1)
        assert record is not None
        assert record.state is not VmState.STARTING

    bench.run(story)


@pytest.mark.req("W7", "A8")
@pytest.mark.parametrize("what", ["shutdown", "hold", "unwanted"])
def test_a_restart_looks_again_before_its_processors_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = SimHost.start_paused

    async def meanwhile(host: SimHost, vm_id: VmId) -> None:
        await real(host, vm_id)
        match what:
            case "shutdown":
                host_shutdown.mark(bench.paths, bench.boot)
            case "hold":
                await bench.configured(bench.vm(), revision=2, hold="maintenance")
            case "unwanted":
                settings = bench.settings(bench.vm(), revision=2)
                held = tuple(msgspec.structs.replace(h, wanted_up=False) for h in settings.vms)
                bench.agent.on_settings(msgspec.structs.replace(settings, vms=held))
                await bench.agent.host.settled.wait()

    async def story() -> None:
        await bench.configured(bench.vm())
        await bench.start()
        monkeypatch.setattr(SimHost, "start_paused", meanwhile)
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restart.failed" in bench.codes())
        assert bench.hypervisor.libvirt.domain(WEB1).qemu is None
        assert "vm.restarted" not in bench.codes()

    bench.run(story)


@pytest.mark.req("A8")
def test_an_ordered_start_that_outlives_its_release_is_not_let_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2: libvirt had asked the gate before it hung, and thaws after the VM was given back."""
    monkeypatch.setattr(restart, "ATTEMPT_DEADLINE_MS", 50)
    libvirt, ran = bench.hypervisor.libvirt, []

    async def hangs(vm_id: VmId) -> None:
        libvirt.start_paused(vm_id)  # by hand
        libvirt.run(vm_id)
        await bench.until(lambda: bench.state() == "running")
        libvirt.guest_shutdown(vm_id)
        await bench.until(lambda: bool(bench.released()))
        hook, bench.hypervisor.hook = bench.hypervisor.hook, bench.paths.grant(VmId("none"))
        libvirt.start_paused(vm_id)
        bench.hypervisor.hook = hook

    async def run(vm_id: VmId) -> None:
        ran.append(vm_id)

    monkeypatch.setattr(bench.hypervisor, "start_paused", hangs)
    monkeypatch.setattr(bench.hypervisor, "run", run)

    async def story() -> None:
        await bench.configured(bench.vm())
        assert (await bench.start()).result is Result.REFUSED
        assert qemu(bench) is None and ran == []

    bench.run(story)


@pytest.mark.req("W7")
def test_a_host_shutdown_that_was_called_off_blocks_nothing(bench: Bench) -> None:
    async def story() -> None:
        await bench.configured(bench.vm())
        await bench.start()
        host_shutdown.mark(bench.paths, bench.boot)
        await bench.until(lambda: bench.agent.host.shutting_down)
        host_shutdown.unmark(bench.paths)
        await bench.until(lambda: not bench.agent.host.shutting_down)
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restarted" in bench.codes())

    bench.run(story)


@pytest.mark.req("A8")
@pytest.mark.parametrize("damage", ["damaged", "lost"])
def test_lost_settings_hold_until_the_server_sends_them(bench: Bench, damage: str) -> None:
    async def first() -> None:
        await bench.configured(bench.vm(), hold="maintenance")
        await bench.start()

    bench.run(first)
    if damage == "lost":
        bench.paths.settings.unlink()
    else:
        bench.paths.settings.write_text("{damaged")

    async def second() -> None:
        await bench.listed()
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restart.blocked" in bench.codes())
        assert "vm.restart.ordered" not in bench.codes()
        await bench.configured(bench.vm(), revision=2)
        await bench.until(lambda: "vm.restarted" in bench.codes())

    bench.run(second)
