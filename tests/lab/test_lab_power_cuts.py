"""What a power cut looks like from outside, and what its host may do when it comes back."""

import pytest
from captured import Goodbyes

from virtha.lab import faults
from virtha.lab.disk_witnesses import DiskWitnesses
from virtha.lab.node import wait_until
from virtha.lab.records import begin_writing
from virtha.lab.story import Story, bmcs

pytestmark = [pytest.mark.lab, pytest.mark.timeout(500)]
PATIENCE_S = 150.0


def _is_missed(story: Story, host: str) -> bool:
    return bool(story.api.get(f"/v1/hosts/{host}")["status"]["state"] == "unreachable")


@pytest.mark.req("F1")
def test_a_silent_power_cut_says_no_goodbye(story: Story) -> None:
    """Else noticing it would be free, and every figure of it too good."""
    host = story.lab.host("h2")
    with Goodbyes(story.lab, host.address) as silent:
        wait_until(lambda: silent.segments > 0, "its beats are heard", timeout_s=PATIENCE_S)
        faults.kill_host(story.lab, "h2", silent=True)
        wait_until(lambda: _is_missed(story, "h2"), "h2 is missed", timeout_s=PATIENCE_S)
        # Its kernel tries its goodbyes again and again meanwhile.
        before = silent.segments
    assert silent.heard == []
    assert before > 0
    faults.boot_host(story.lab, "h2")
    wait_until(lambda: not _is_missed(story, "h2"), "h2 is back", timeout_s=PATIENCE_S)
    # The other kind does say goodbye, so the listener would have heard one.
    with Goodbyes(story.lab, host.address) as polite:
        faults.kill_host(story.lab, "h2")
        wait_until(lambda: polite.heard, "a goodbye", timeout_s=PATIENCE_S)


@pytest.mark.long
@pytest.mark.req("F9")
def test_a_host_that_returns_with_autostart_and_without_its_agent_starts_nothing_twice(
    story: Story,
) -> None:
    """Power returns, libvirt is first, and its autostart finds a VM that runs elsewhere by now (G3)."""
    with bmcs(story):
        view = story.create_vm("web1", host="h1")
        story.wait_agent("web1")
        story.lab.host("h1").run_checked(["virsh", "autostart", "web1"])
        begin_writing(story, "web1", pause_s=0.2)
        revision = story.revision()
        with DiskWitnesses(story.lab, {"web1": str(view["vm"]["disks"][0]["path"])}) as disks:
            disk = disks.of["web1"]
            wait_until(lambda: "h1" in disk.writers, "it writes", timeout_s=PATIENCE_S)
            faults.kill_host(story.lab, "h1", silent=True)
            wait_until(
                lambda: story.lab.copies_of("web1") == ["h2"], "it runs on h2", timeout_s=PATIENCE_S
            )
            wait_until(lambda: "h2" in disk.writers, "it writes on h2", timeout_s=PATIENCE_S)
            host = faults.press_power(story.lab, "h1", ["storage", "virtlogd", "libvirtd"])
            host.wait_ready()
            wait_until(
                lambda: "gate.refused" in (host.logs / "libvirtd.log").read_text(errors="replace"),
                "libvirt's autostart was refused",
                timeout_s=PATIENCE_S,
            )
            assert host.qemu_of("web1") is None
            for service in ("guardian", "agent"):
                host.start_service(service)

            def is_back() -> bool:
                codes = [event["code"] for event in story.api.events(after=revision)]
                assert codes.count("vm.recovery_started") == 1, codes
                return "host.returned" in codes and "vm.start_refused" in codes

            wait_until(is_back, "h1 is back and has told", timeout_s=PATIENCE_S, pause_s=0.2)
            story.wait_agent("web1")
        assert disks.error is None
        assert (disk.writers, disk.twice) == (["h1", "h2"], [])
        assert story.lab.copies_of("web1") == ["h2"]
        assert story.api.vm("web1")["status"]["incarnation"] == 2
