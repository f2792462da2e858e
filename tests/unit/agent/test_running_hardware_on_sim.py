"""What a running copy has is told after each start, whatever was defined since."""

from agent_bench import WEB1, Bench, prepared

from virtha.domainxml.running import read_hardware
from virtha.model.facts import RunsWith
from virtha.model.orders import DefineVm


def told(bench: Bench) -> list[RunsWith]:
    return [fact.body for fact in bench.facts() if isinstance(fact.body, RunsWith)]


def test_a_definition_changes_what_runs_only_at_a_restart(bench: Bench) -> None:
    async def story() -> None:
        await prepared(bench)
        await bench.listed()
        await bench.start(bench.vm(vcpus=1))
        await bench.until(lambda: len(told(bench)) == 1)
        first = told(bench)[0]
        assert (first.vm_id, first.incarnation, first.hardware.vcpus) == (WEB1, 1, 1)
        assert first.hardware.watchdog == bench.vm().watchdog
        assert first.hardware.memory_bytes == bench.vm().memory_bytes
        await bench.do(DefineVm(vm=bench.vm(vcpus=4)))
        bench.agent._running.tell_again()
        await bench.until(lambda: len(told(bench)) == 2)
        assert told(bench)[1].hardware.vcpus == 1
        # The sentinel restarts it: from the definition.
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: told(bench)[-1].hardware.vcpus == 4)
        assert told(bench)[-1].incarnation == 1

    bench.run(story)


def test_what_is_no_machine_of_ours_is_not_told(bench: Bench) -> None:
    xml = f"<domain type='qemu'><name>a</name><uuid>{WEB1}</uuid></domain>"
    bench.make_agent()
    assert read_hardware(xml, bench.vm(), bench.agent.host.host_defaults()) is None
