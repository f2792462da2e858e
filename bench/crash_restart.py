"""How long an HA VM is gone when its QEMU dies: `kill -9` to running again, over `virsh start`.

A real host, a real guest. An independent libvirt listener says when its processors run again. The
yardstick is `virsh start` of the same configuration on the same host, measured in turn with the
crashes while the guest is idle, so that what else the machine does weighs on both. 20 runs.
"""

import sys

from report import at_most, finish, quantile, shown

from virtha.lab import faults
from virtha.lab.progress import Steps
from virtha.lab.story import EVENT_TIMEOUT_S, Twin, temporary_lab
from virtha.lab.watching import LibvirtWitness

RUNS = 20


def main() -> int:
    steps = Steps()
    restarts: list[float] = []
    starts: list[float] = []
    with temporary_lab("bench-crash", hosts=1, steps=steps) as story:
        story.create_vm("web1")
        story.wait_agent("web1")
        host = story.lab.host_of("web1")
        twin = Twin(host, "web1")
        with LibvirtWitness(host) as libvirt:
            for number in range(1, RUNS + 1):
                # Idle, not booting: else the yardstick alone would share its processor.
                story.wait_agent("web1")
                starts.append(twin.start_s())
                revision, seen = story.revision(), libvirt.mark()
                _, _, killed_at = faults.kill_qemu(story.lab, "web1")
                runs = libvirt.wait_for("web1", "resumed", after=seen, timeout_s=EVENT_TIMEOUT_S)
                restarts.append(runs.at_s - killed_at)
                # The next crash comes when this one's history is complete, as in life.
                story.wait_event("web1", "vm.restarted", after=revision)
                story.wait_event("web1", "vm.evidence.kept", after=revision)
                steps.say(f"run {number}: {restarts[-1]:.3f} s, virsh start {starts[-1]:.3f} s")
    yardstick = quantile(starts, 0.5)
    ratios = [taken / yardstick for taken in restarts]
    return finish(
        "crash_restart",
        {
            "restart_p50_ratio": at_most(1.5, quantile(ratios, 0.5), "x", "killed → running again"),
            "restart_p95_ratio": at_most(2.5, quantile(ratios, 0.95), "x", "over `virsh start`"),
            "restart_p50_s": shown(quantile(restarts, 0.5), "s"),
            "restart_worst_s": shown(max(restarts), "s"),
            "virsh_start_p50_s": shown(yardstick, "s", "the same domain, not managed"),
            "virsh_start_worst_s": shown(max(starts), "s"),
            "runs": shown(RUNS, ""),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
