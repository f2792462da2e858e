"""A watchdog fires in a real guest, and people are told: a mail in a real mail server, a notification in snmptrapd."""

import pytest
from told_receivers import told

from virtha.lab import faults
from virtha.lab.node import wait_until
from virtha.lab.story import Story
from virtha.lab.watching import LibvirtWitness

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
FIRES_WITHIN_S = 120.0
TOLD_WITHIN_S = 60.0
"""Generous: the machine may have other work. How soon it is, `make bench NAME=notify_watchdog` measures."""


@pytest.mark.req("W7", "F4")
def test_a_watchdog_that_fires_is_told_by_mail_and_by_snmp(story: Story) -> None:
    with told(story, "vm.watchdog.*") as (mails, traps):
        vm_id = story.create_vm("bell", watchdog="i6300esb:reset")["vm"]["id"]
        story.wait_agent("bell")
        revision = story.revision()
        with LibvirtWitness(story.lab.host_of("bell")) as libvirt:
            faults.hang_guest(story.lab, "bell")
            libvirt.wait_for("bell", "watchdog", timeout_s=FIRES_WITHIN_S)
        mail = mails.wait_for("vm.watchdog.fired", timeout_s=TOLD_WITHIN_S).mail
        notice = traps.wait_for("vm.watchdog.fired", timeout_s=TOLD_WITHIN_S).objects
        event = story.wait_event("bell", "vm.watchdog.fired", after=revision)

        host = story.lab.host_of("bell").name
        body = mail.get_body(("plain",))
        assert body is not None
        said = body.get_content().replace("\r\n", "\n")
        assert "WARNING" in mail["Subject"] and event["message"] in said
        assert mail["X-Virtha-Event"] == str(event["revision"])
        assert mail["References"].startswith(f"<vm.{vm_id}@")
        assert f" {host}\n" in said
        # Decoded with our MIB by net-snmp: names, not numbers.
        assert notice["notification"] == "virthaProblem"
        assert (notice["virthaVm"], notice["virthaHost"]) == ("bell", host)
        assert notice["virthaSeverity"] == "warning"
        assert notice["virthaMessage"] == event["message"]

        # Each once, and the queue says so as soon as it has heard that they were accepted.
        def all_sent() -> bool:
            items = story.api.get("/v1/deliveries", event=event["revision"])["items"]
            return [one["delivery"]["state"] for one in items] == ["sent", "sent"]

        wait_until(all_sent, "both messages are known as sent", timeout_s=TOLD_WITHIN_S)
        assert len(mails.since(0)) == len(traps.since(0)) == 1
