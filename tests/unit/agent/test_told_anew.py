"""What the server is told of VMs and libvirt without a change of theirs: to a new server, after a refusal, in an outage."""

import pytest
from agent_bench import INSTALLATION, Bench, SimHost

from virtha.model.domain import DomainReport
from virtha.model.facts import Fact, HostReport, VmReport
from virtha.model.vm import VmState
from virtha.ports.hypervisor import HypervisorTimeout
from virtha.sentinel.events import HostStaysUp
from virtha.wire.messages import Welcome


def vm_reports(facts: tuple[Fact, ...]) -> list[VmReport]:
    return [fact.body for fact in facts if isinstance(fact.body, VmReport)]


@pytest.mark.req("X1")
def test_a_new_server_is_told_every_vm_again(bench: Bench) -> None:
    def welcome(instance: str) -> Welcome:
        return Welcome(
            version_major=1,
            version_minor=0,
            installation_id=INSTALLATION,
            server_instance=instance,
            term=bench.settings().term,
        )

    async def story() -> None:
        await bench.configured(bench.vm())
        bench.agent.on_connected(welcome("one"), "192.0.2.1:8250")
        await bench.start()
        told = len(vm_reports(bench.facts()))
        bench.agent.on_connected(welcome("two"), "192.0.2.1:8250")
        await bench.until(lambda: len(vm_reports(bench.facts())) > told)
        assert vm_reports(bench.facts())[-1].state is VmState.RUNNING
        told = len(vm_reports(bench.facts()))
        bench.agent.on_connected(welcome("two"), "192.0.2.1:8250")
        await bench.agent.loop.told(HostStaysUp())  # the next step, whatever it is
        assert len(vm_reports(bench.facts())) == told

    bench.run(story)


@pytest.mark.req("X1")
def test_a_start_refused_because_it_runs_tells_what_runs_after_the_answer(bench: Bench) -> None:
    async def story() -> None:
        await bench.configured(bench.vm())
        await bench.start()
        outcome = await bench.start(incarnation=2)
        assert (outcome.code, outcome.fields) == ("order.refused.running", {"current": 1})

        def told_after() -> bool:
            bodies = [fact.body for fact in bench.facts()]
            return any(isinstance(b, VmReport) for b in bodies[bodies.index(outcome) :])

        await bench.until(told_after)

    bench.run(story)


@pytest.mark.req("X1")
def test_a_libvirt_that_lists_nothing_counts_as_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_host: SimHost) -> tuple[DomainReport, ...]:
        raise HypervisorTimeout("no answer")

    def connected() -> bool:
        reports = [f.body for f in bench.facts() if isinstance(f.body, HostReport)]
        return bool(reports) and reports[-1].capabilities.libvirt_connected

    async def story() -> None:
        await bench.listed()
        await bench.until(connected)
        with monkeypatch.context() as patch:
            patch.setattr(SimHost, "domains", hang)
            bench.agent._on_connection(True)
            await bench.until(lambda: not connected())
        await bench.until(connected)

    bench.run(story)
