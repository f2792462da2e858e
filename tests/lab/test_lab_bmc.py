"""The lab's BMCs, through the product: they read, cut and boot their hosts, name their machine, and fail in the ways they are told to."""

from pathlib import Path

import pytest

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.bmc import Bmc, BmcFault, BmcManners
from virtha.lab.lab import Lab
from virtha.lab.namespaces import ProcessId, command_line, processes_in_network
from virtha.lab.node import wait_until
from virtha.lab.story import Story, bmcs
from virtha.model.errors import Failed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400), pytest.mark.req("F5", "F9")]
PATIENCE_S = 90.0


def _switch(story: Story, host: str, action: str) -> Json:
    """The operation, as it ended."""
    begun = story.api.post(f"/v1/hosts/{host}/power", {"action": action, "force": True})
    return story.api.finish(begun, timeout_s=PATIENCE_S)


def _reads(story: Story, host: str) -> str:
    return str(story.api.post(f"/v1/hosts/{host}/power/bmc/status")["state"])


def _processes(lab: Lab) -> list[ProcessId]:
    return processes_in_network(f"{lab.state.id}-{name}" for name in ("s1", "h1", "h2", "sw"))


def test_a_bmc_reads_cuts_and_boots_its_own_host(story: Story) -> None:
    with bmcs(story) as made:
        # Both tell the same UUID (P1).
        tested = story.api.get("/v1/hosts/h2/power")["items"][0]["test"]
        assert (tested["passed"], tested["identity"]) == (True, "match"), tested
        assert _reads(story, "h2") == "on"
        ended = _switch(story, "h2", "off")
        assert ended["state"] == "done", ended
        assert _reads(story, "h2") == "off"
        assert not story.lab.host("h2").is_on() and story.lab.host("h1").is_on()
        _switch(story, "h2", "off")
        assert _switch(story, "h2", "on")["state"] == "done"
        wait_until(lambda: story.lab.host("h2").is_on(), "h2 is on", timeout_s=PATIENCE_S)
        orders = [one for one in made["h2"].requests() if one.order]
        assert [one.order for one in orders] == ["off!", "off", "on"]
        assert orders == sorted(orders, key=lambda one: one.at_ms)
        assert made["h1"].orders() == []
        # Another process would find the same BMC, and the boot that it made.
        again = Lab.open(story.lab.directory)
        assert again.bmc("h2").requests() == made["h2"].requests()
        assert again.host("h2").state == story.lab.host("h2").state


def test_a_cable_that_was_pulled_stays_out_when_a_bmc_switches_its_host_on(story: Story) -> None:
    with bmcs(story):
        faults.cut_net(story.lab, "h2")
        for action in ("off", "on"):
            assert _switch(story, "h2", action)["state"] == "done"
        assert story.lab.host("h2").is_on() and not story.lab.host("h2").state.cable_up


@pytest.mark.req("F6")
def test_the_password_is_in_no_command_line_and_for_nobody_else_to_read(story: Story) -> None:
    with bmcs(story) as made:
        running = _processes(story.lab)
        assert sum(command_line(one)[:1] == ["ipmi_sim"] for one in running) == 2
        for bmc in made.values():
            assert len(bmc.password) >= 16
            said = [command_line(one) for one in running]
            assert not any(bmc.password in word for words in said for word in words)
            assert _mode(bmc.directory) == 0o700
            assert _mode(bmc.directory / "password") == _mode(bmc.directory / "lan.conf") == 0o600


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_bmcs_that_lie_idle_dawdle_or_die(story: Story) -> None:
    with bmcs(story) as made:
        _lies(story)
        _obeys_nothing(story, made["h2"])
        faults.spoil_bmc(story.lab, "h2", BmcManners(fault=BmcFault.SLOW, slow_ms=700))
        took_ms = story.api.post("/v1/hosts/h2/power/bmc/status")["took_ms"]
        assert took_ms >= 700
        faults.spoil_bmc(story.lab, "h2", BmcManners())
        _dies_and_comes_back(story)
        assert story.lab.host("h2").is_on()


def _lies(story: Story) -> None:
    faults.spoil_bmc(story.lab, "h2", BmcManners(fault=BmcFault.LIAR))
    assert _reads(story, "h2") == "off" and story.lab.host("h2").is_on()
    with pytest.raises(Failed, match="failed"):
        story.lab.virtha("host", "power", "test", "h2")


def _obeys_nothing(story: Story, bmc: Bmc) -> None:
    faults.spoil_bmc(story.lab, "h2", BmcManners(fault=BmcFault.IDLE))
    before = len(bmc.requests())
    assert _switch(story, "h2", "off")["state"] == "failed"
    assert set(bmc.orders(before)) == {"off!"} and story.lab.host("h2").is_on()
    assert not any(one.done for one in bmc.requests()[before:])


def _dies_and_comes_back(story: Story) -> None:
    faults.kill_bmc(story.lab, "h2")
    assert _reads(story, "h2") == "unknown"
    faults.start_bmc(story.lab, "h2")
    wait_until(lambda: _reads(story, "h2") == "on", "h2's BMC is back", timeout_s=PATIENCE_S)
