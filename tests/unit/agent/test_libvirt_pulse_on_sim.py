"""A host whose libvirt hangs is told to be no place for VMs before its connections break."""

import pytest
from agent_bench import Bench, prepared

from virtha.agent import libvirt_pulse
from virtha.model.facts import HostReport
from virtha.ports.hypervisor import HypervisorError, HypervisorTimeout, HypervisorUnavailable


@pytest.mark.req("F9")
def test_a_libvirt_that_hangs_is_told_and_so_is_one_that_answers_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_pulse, "PULSE_S", 0.01)
    asked: list[HypervisorError | None] = []

    def told() -> list[bool]:
        reports = [fact.body for fact in bench.facts() if isinstance(fact.body, HostReport)]
        return [one.capabilities.libvirt_connected for one in reports]

    async def finds(wrong: HypervisorError | None) -> None:
        """Twice at least: the first time may have begun before."""
        bench.hypervisor.pulse = wrong
        asked.clear()
        await bench.until(lambda: asked.count(wrong) > 1)

    async def story() -> None:
        bench.hypervisor.pulses = asked
        await prepared(bench)
        await bench.until(lambda: told()[-1:] == [True])
        await finds(HypervisorTimeout("no answer"))
        await bench.until(lambda: not told()[-1])
        # The question before hangs still: that is no answer.
        await finds(HypervisorUnavailable("earlier calls hang"))
        assert not told()[-1]
        await finds(None)
        await bench.until(lambda: told()[-1])
        # A connection that is only begun anew says nothing of libvirt.
        before = len(told())
        await finds(HypervisorUnavailable("not connected"))
        assert len(told()) == before

    bench.run(story)
