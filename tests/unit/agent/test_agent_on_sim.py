"""The whole agent on a simulated hypervisor: real loop, sentinel, disk, hook script."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
from agent_bench import WEB1, WEB2, Bench
from crash_files import FullDisk

from virtha.agent import host_shutdown
from virtha.agent.gate import GrantState, hook_path, read_grant
from virtha.agent.host_clock import read_boot_id
from virtha.model.domain import DomainEventKind
from virtha.model.facts import HostReport, Inventory, Result, StorageReport
from virtha.model.ids import Incarnation, InstallationId, Term
from virtha.model.orders import PrepareStorage, StartVm, StopMode, StopVm
from virtha.sentinel.events import StopAccepted
from virtha.wire.messages import Welcome


@pytest.mark.req("A8", "W6")
def test_a_crashed_vm_runs_again_and_history_tells_it(bench: Bench) -> None:
    async def story() -> None:
        assert (await bench.start()).result is Result.OK
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restarted" in bench.codes())
        grant = read_grant(bench.paths.grant(WEB1))
        assert grant is not None
        assert grant.state is GrantState.HELD
        await bench.until(lambda: bench.state() == "running")

    bench.run(story)
    codes = bench.codes()
    assert codes.index("vm.crashed") < codes.index("vm.restart.ordered")
    assert codes.index("vm.restart.ordered") < codes.index("vm.restarted")
    assert "vm.evidence.kept" in codes


@pytest.mark.req("A8")
def test_a_new_agent_finds_the_vm_running_and_touches_nothing(bench: Bench) -> None:
    async def first() -> None:
        await bench.configured(bench.vm())
        await bench.start()

    bench.run(first)
    pid = bench.hypervisor.libvirt.domain(WEB1).report().pid
    before = bench.codes()

    async def second() -> None:
        await bench.listed()
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restarted" in bench.codes()[len(before) :])

    assert pid is not None
    bench.run(second)
    after = bench.codes()[len(before) :]
    assert after.count("vm.crashed") == 1


@pytest.mark.req("W7")
def test_two_firings_at_once_are_two_and_survive_a_restart(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        bench.hypervisor.libvirt.fire_watchdog(WEB1)
        bench.hypervisor.libvirt.fire_watchdog(WEB1)
        await bench.until(lambda: bench.codes().count("vm.watchdog.fired") == 2)

    bench.run(story)

    async def later() -> None:
        assert bench.codes().count("vm.watchdog.fired") == 2

    bench.run(later)


def test_a_stop_on_purpose_is_not_undone(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.do(
            StopVm(vm_id=WEB1, incarnation=Incarnation(1), mode=StopMode.POWER_OFF, by="ann")
        )
        assert outcome.result is Result.OK
        await bench.until(lambda: bench.state() == "down")
        await bench.until(lambda: bool(bench.released()))
        await bench.until(lambda: read_grant(bench.paths.grant(WEB1)) is None)

    bench.run(story)
    assert "vm.restart.ordered" not in bench.codes()
    assert bench.released()[0].incarnation == 1


def test_a_stop_that_comes_between_crash_and_restart_wins(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        lock = bench.agent.host.locks.of(WEB1)
        async with lock:
            bench.hypervisor.libvirt.kill_qemu(WEB1)
            await bench.until(lambda: "vm.restart.ordered" in bench.codes())
            stop = StopVm(vm_id=WEB1, incarnation=Incarnation(1), mode=StopMode.POWER_OFF, by="ann")
            # The operator's word is in before the restart gets its turn.
            bench.agent.on_order(bench.order(stop))
            await bench.agent.loop.told(StopAccepted(vm_id=WEB1, mode=StopMode.POWER_OFF, by="ann"))
        await bench.until(lambda: bench.state() == "down")
        await bench.over(f"restart {WEB1}")
        assert bench.hypervisor.libvirt.domain(WEB1).qemu is None
        await bench.stepped()

    bench.run(story)
    assert "vm.restarted" not in bench.codes()


def test_a_vm_of_the_records_is_gated_while_the_agent_is_stopped(bench: Bench) -> None:
    async def story() -> None:
        bench.agent.on_settings(bench.settings(bench.vm()))
        await bench.start()
        await bench.do(
            StopVm(vm_id=WEB1, incarnation=Incarnation(1), mode=StopMode.POWER_OFF, by="ann")
        )

    bench.run(story)
    refusal = bench.hypervisor._ask_hook(WEB1)
    assert refusal is not None
    assert "gate.refused.no_grant" in refusal


@pytest.mark.req("A2")
def test_the_host_report_has_overcommit_and_the_proved_gate(bench: Bench) -> None:
    bench.properties = type(bench.properties)(host_overcommit_memory_bytes=1 << 30)

    def reports() -> list[HostReport]:
        return [fact.body for fact in bench.facts() if isinstance(fact.body, HostReport)]

    async def story() -> None:
        await bench.until(lambda: bool(reports()) and reports()[-1].capabilities.gate_in_force)
        found = reports()[-1].capabilities
        assert found.memory_bytes == 9 << 30
        assert found.memory_overcommit_bytes == 1 << 30
        bench.hypervisor.lose()
        await bench.until(lambda: not reports()[-1].capabilities.libvirt_connected)
        assert reports()[-1].capabilities.gate_in_force
        hook_path(bench.paths).unlink()
        bench.hypervisor.heal()
        await bench.until(lambda: not reports()[-1].capabilities.gate_in_force)

    bench.run(story)
    codes = bench.codes()
    assert codes.index("host.gate.proved") < codes.index("host.gate.missing")
    inventories = [fact.body for fact in bench.facts() if isinstance(fact.body, Inventory)]
    assert all(not inventory.domains for inventory in inventories)


@pytest.mark.req("F1")
def test_the_host_report_has_the_addresses_at_which_neighbours_ask(bench: Bench) -> None:
    bench.properties = type(bench.properties)(probe_storage_address="192.0.2.130")

    def told() -> list[dict[str, str]]:
        reports = [fact.body for fact in bench.facts() if isinstance(fact.body, HostReport)]
        probed = (one.capabilities.probed_at or () for one in reports)
        return [{at.network: at.address for at in one} for one in probed]

    async def story() -> None:
        await bench.until(lambda: bool(told()))
        assert told()[-1] == {"storage": "192.0.2.130"}, "there is no session with a server yet"
        bench.agent._link = SimpleNamespace(local_address="192.0.2.11", close=lambda: None)
        welcome = Welcome(
            version_major=1,
            version_minor=0,
            installation_id=bench.agent.host.installation_id,
            server_instance="s",
            term=Term(1),
            fact_sequence_acknowledged=0,
        )
        bench.agent.on_connected(welcome, "server")
        await bench.until(lambda: len(told()[-1]) == 2)
        assert told()[-1] == {"management": "192.0.2.11", "storage": "192.0.2.130"}
        bench.agent._link = None

    bench.run(story)


@pytest.mark.bad_input("libvirtd gone and back")
def test_an_agent_that_loses_libvirt_misses_nothing_that_lasts(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        bench.hypervisor.lose()
        bench.hypervisor.libvirt.end_silently(WEB1, "crashed")
        await bench.until(lambda: "host.libvirt.lost" in bench.codes())
        bench.hypervisor.heal()
        await bench.until(lambda: "vm.restarted" in bench.codes())

    bench.run(story)
    assert "host.libvirt.back" in bench.codes()


def test_nothing_is_restarted_while_the_host_goes_down(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        host_shutdown.mark(bench.paths, read_boot_id())
        await bench.until(lambda: bench.agent.host.shutting_down)
        bench.hypervisor.libvirt.terminate_qemu(WEB1)
        await bench.until(lambda: bench.state() == "down")
        outcome = await bench.start(bench.vm(WEB2, "web2"))
        assert outcome.result is Result.REFUSED
        assert outcome.code == "restart.blocked.host_shutting_down"

    bench.run(story)
    assert "vm.restart.ordered" not in bench.codes()


def test_a_mark_of_another_boot_says_nothing(bench: Bench) -> None:
    bench.paths.shutting_down.write_text("boot-0")
    assert not host_shutdown.is_marked(bench.paths, read_boot_id())


@pytest.mark.req("A8")
@pytest.mark.bad_input("full disk")
def test_a_full_disk_stops_no_restart_but_an_ordered_start(bench: Bench) -> None:
    files = FullDisk()
    bench.files = files

    async def story() -> None:
        await bench.start()
        files.full = True
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(
            lambda: (
                bench.hypervisor.libvirt.domain(WEB1).qemu is not None
                and bench.hypervisor.libvirt.domain(WEB1).reason == "unpaused"
                and bench.agent.outbox.waiting > 0
            )
        )
        order = bench.order(StartVm(vm=bench.vm(WEB2, "web2"), grant=bench.grant(WEB2), by="ann"))
        bench.agent.on_order(order)
        await bench.until(lambda: any("/outcomes/" in path for path in files.refused))
        assert bench.hypervisor.libvirt.domain(WEB2).qemu is None
        files.full = False
        await bench.until(lambda: bool(bench.outcomes(order)))
        assert bench.outcomes(order)[0].result is Result.FAILED
        await bench.until(lambda: "vm.restarted" in bench.codes())

    bench.run(story)
    assert "host.disk.full" in bench.codes()
    assert bench.codes().count("vm.crashed") == 1


def test_settings_older_or_of_another_installation_are_ignored(bench: Bench) -> None:
    async def story() -> None:
        await bench.configured(bench.vm(), revision=5)
        bench.agent.on_settings(bench.settings(revision=4))
        foreign = InstallationId("99999999-0000-4000-8000-000000000001")
        await bench.configured(revision=9, installation_id=foreign)
        assert bench.agent.host.settings is not None
        assert bench.agent.host.settings.revision == 5
        assert bench.agent.hello_state().settings_revision == 5

    bench.run(story)


def test_an_adopted_vm_has_its_grant_before_it_counts_as_managed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []

    async def story() -> None:
        vm = bench.vm(adopted=True)
        libvirt = bench.hypervisor.libvirt
        libvirt.define(f"<domain><name>web1</name><uuid>{WEB1}</uuid></domain>")
        libvirt.start_paused(WEB1)
        libvirt.run(WEB1)
        real = bench.agent.host.gate.write

        def write(*arguments: Any, **keywords: Any) -> bool:
            written.append(read_grant(bench.paths.grant(WEB1)) is not None)
            return real(*arguments, **keywords)

        monkeypatch.setattr(bench.agent.host.gate, "write", write)
        await bench.configured(vm)

    bench.run(story)
    assert written == [True]


def test_grants_without_a_vm_go_and_those_of_running_ones_stay(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        bench.agent.host.gate.hold(WEB2, Incarnation(1))
        bench.hypervisor.lose()
        bench.hypervisor.heal()
        await bench.until(lambda: read_grant(bench.paths.grant(WEB2)) is None)
        assert read_grant(bench.paths.grant(WEB1)) is not None

    bench.run(story)


@pytest.mark.req("A8")
def test_storage_that_hangs_is_unusable_and_stops_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usable() -> list[bool]:
        found = [fact.body for fact in bench.facts() if isinstance(fact.body, StorageReport)]
        return [report.usable for report in found]

    fifo = bench.paths.state.parent / "fifo"
    os.mkfifo(fifo)

    async def story() -> None:
        bench.agent.on_settings(bench.settings(bench.vm()))
        prepared = await bench.do(
            PrepareStorage(domain=bench.storage, installation_id=bench.agent.host.installation_id)
        )
        assert prepared.result is Result.OK
        await bench.until(lambda: usable()[-1:] == [True])
        # A read that never ends, as on a dead NFS server.
        monkeypatch.setattr("virtha.agent.reports.PROBE_DEADLINE_MS", 100)
        monkeypatch.setattr("virtha.agent.reports.probe", lambda *_: fifo.read_bytes())
        bench.agent.on_settings(bench.settings(bench.vm(), revision=2))
        await bench.until(lambda: usable()[-1:] == [False])
        await bench.start()
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restarted" in bench.codes())
        with fifo.open("wb"):
            pass  # the storage answers again, and its worker thread ends its call

    bench.run(story)


def test_a_server_that_knows_more_facts_than_we_do(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        welcome = Welcome(
            version_major=1,
            version_minor=0,
            installation_id=bench.agent.host.installation_id,
            server_instance="s",
            term=Term(4),
            fact_sequence_acknowledged=5_000,
        )
        bench.agent.on_connected(welcome, "server")
        assert bench.agent.outbox.first_sequence == 5_001
        assert bench.agent.hello_state().term_seen == 4

    bench.run(story)


def test_more_events_than_the_inbox_holds_are_told_and_listed_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.agent.loop.INBOX_MAX", 10)

    async def story() -> None:
        await bench.start()
        for _ in range(30):
            bench.hypervisor.libvirt._say(WEB1, DomainEventKind.REBOOTED)
        await bench.until(lambda: "host.agent.overload" in bench.codes())

    bench.run(story)
