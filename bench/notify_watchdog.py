"""How soon people are told of a watchdog: libvirt's event until the mail and the SNMP notification have arrived.

A real guest lets its card fire, 20 times. The mail server is aiosmtpd, the SNMP manager net-snmp's snmptrapd with our
MIB (version 3, informs), both on the loopback of the lab's server. All three witnesses are outside the product and
stamp with one clock: a libvirt listener on the host, the mail server when it accepts, and a reader of snmptrapd's
log. The card's action is `none`, so that the guest needs no boot between two firings; the way of the event is the same
for all.
"""

import sys
from pathlib import Path

from report import Figure, at_least, at_most, finish, quantile, shown
from watchdog_latency import VM, fire

from virtha.lab.progress import Steps
from virtha.lab.story import Story, temporary_lab
from virtha.lab.watching import LibvirtWitness

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lab"))
from told_receivers import MailWitness, TrapWitness, told

FIRINGS = 20
CODE = "vm.watchdog.fired"
TOLD_TIMEOUT_S = 30.0
WITHIN_MS = 1_000.0
"""Issue 4: within a second, median of 20."""


def measure(
    story: Story, mails: MailWitness, traps: TrapWitness, steps: Steps
) -> dict[str, Figure]:
    mail_ms, trap_ms = [], []
    with LibvirtWitness(story.lab.host_of(VM)) as libvirt:
        for number in range(1, FIRINGS + 1):
            mail_mark, trap_mark = mails.mark(), traps.mark()
            fired_at = fire(story.lab.host_of(VM), libvirt)
            mail = mails.wait_for(CODE, after=mail_mark, timeout_s=TOLD_TIMEOUT_S)
            trap = traps.wait_for(CODE, after=trap_mark, timeout_s=TOLD_TIMEOUT_S)
            mail_ms.append((mail.at_s - fired_at) * 1_000)
            trap_ms.append((trap.at_s - fired_at) * 1_000)
            steps.say(f"firing {number}: mail {mail_ms[-1]:.0f} ms, SNMP {trap_ms[-1]:.0f} ms")
    arrived = [str(told_mail.mail["X-Virtha-Event"]) for told_mail in mails.since(0)]
    notices = [notice.objects["virthaNoticeId"] for notice in traps.since(0)]
    return {
        "mail_median": at_most(WITHIN_MS, quantile(mail_ms, 0.5), "ms", "libvirt to accepted"),
        "mail_worst": shown(max(mail_ms), "ms"),
        "snmp_median": at_most(WITHIN_MS, quantile(trap_ms, 0.5), "ms", "libvirt to decoded"),
        "snmp_worst": shown(max(trap_ms), "ms", "the first loads the SNMP library"),
        "mails": at_least(FIRINGS, len(set(arrived)), ""),
        "notifications": at_least(FIRINGS, len(set(notices)), ""),
        "twice": at_most(
            0, len(arrived) + len(notices) - len(set(arrived)) - len(set(notices)), ""
        ),
    }


def main() -> int:
    steps = Steps()
    with (
        temporary_lab("bench-notify", hosts=1, steps=steps) as story,
        told(story, CODE) as (mails, traps),
    ):
        story.create_vm(VM, watchdog="i6300esb:none")
        story.wait_agent(VM)
        return finish("notify_watchdog", measure(story, mails, traps, steps))


if __name__ == "__main__":
    sys.exit(main())
