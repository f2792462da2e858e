"""How soon a watchdog's firing can be read by a client: libvirt's event to the server's event stream.

A real guest arms its card and lets it fire, 50 times. Two witnesses, both outside the product, stamp
with one clock: a libvirt listener on the host, and a reader of the event stream. The card's action is
`none`, so that the guest needs no boot between two firings; the way of the event is the same for all.

A second run of 50 has the server killed after 25 firings and started again 10 firings later: all 50
must come, each once, in order, those that happened meanwhile within 2 s of the server being ready.
"""

import sys
import time

from report import Figure, at_least, at_most, finish, quantile, shown

from virtha.lab import faults, guest
from virtha.lab.node import Node
from virtha.lab.progress import Steps
from virtha.lab.story import Story, temporary_lab
from virtha.lab.watching import LibvirtWitness, StreamWitness

FIRINGS = 50
VM = "web1"
FIRE_TIMEOUT_S = 30.0
EVENT_TIMEOUT_S = 30.0
# busybox's watchdog opens the card and feeds it; killed with -9 it leaves the card armed, unfed. The
# stop before (TERM) is for the guest's driver: after a firing it still believes that the card runs.
ARM = """
for round in stop run; do
  killall -9 watchdog; watchdog -T 1 -t 1 /dev/watchdog; sleep 0.1
  [ $round = stop ] && killall -TERM watchdog && sleep 0.1
done 2>/dev/null
lab-hang
"""


def fire(host: Node, libvirt: LibvirtWitness) -> float:
    """One firing; the moment when libvirt told of it."""
    mark = libvirt.mark()
    guest.execute(host, VM, ARM)
    return libvirt.wait_for(VM, "watchdog", after=mark, timeout_s=FIRE_TIMEOUT_S).at_s


def steady(
    story: Story, host: Node, libvirt: LibvirtWitness, vm_id: str, steps: Steps
) -> list[float]:
    """Milliseconds from libvirt's event to the stream's, per firing."""
    delays = []
    with StreamWitness(story.lab.api) as stream:
        for number in range(1, FIRINGS + 1):
            mark = stream.mark()
            fired_at = fire(host, libvirt)
            event = stream.wait_for(
                "vm.watchdog.fired", vm_id=vm_id, after=mark, timeout_s=EVENT_TIMEOUT_S
            )
            delays.append((event["_seen"] - fired_at) * 1000)
            steps.say(f"firing {number}: {delays[-1]:.1f} ms")
    return delays


def with_restart(
    story: Story, host: Node, libvirt: LibvirtWitness, vm_id: str, steps: Steps
) -> dict[str, Figure]:
    """The same with the server killed and started again midway."""
    after = story.revision()
    before = int(story.api.vm(VM)["status"]["watchdog_count"])
    ready_at = 0.0
    with StreamWitness(story.lab.api, after=after) as stream:
        for number in range(1, FIRINGS + 1):
            fire(host, libvirt)
            if number == 25:
                steps.say("the server is killed")
                faults.kill_server(story.lab)
            if number == 35:
                faults.start_server_again(story.lab)
                ready_at = time.monotonic()
                steps.say("the server is ready again")
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        while True:
            events = [
                event
                for event in stream.since(0)
                if event["code"] == "vm.watchdog.fired" and event["vm_id"] == vm_id
            ]
            if len(events) >= FIRINGS or time.monotonic() > deadline:
                break
            time.sleep(0.02)
    counts = [event["fields"].get("count") for event in events]
    sequences = [event["host_sequence"] for event in events]
    in_order = (
        sum(count == before + place for place, count in enumerate(counts, 1))
        if sequences == sorted(set(sequences))
        else 0
    )
    late = max((event["_seen"] - ready_at for event in events[25:35]), default=float("inf"))
    return {
        "restarted_events": at_least(FIRINGS, len(set(sequences)), "", "each once, of 50"),
        "restarted_in_order": at_least(FIRINGS, in_order, "", "with the right count"),
        "restarted_catch_up_s": at_most(2.0, late, "s", "from the server's readiness"),
    }


def main() -> int:
    steps = Steps()
    with temporary_lab("bench-watchdog", hosts=1, steps=steps) as story:
        vm_id = story.create_vm(VM, watchdog="i6300esb:none")["vm"]["id"]
        story.wait_agent(VM)
        host = story.lab.host_of(VM)
        with LibvirtWitness(host) as libvirt:
            delays = steady(story, host, libvirt, vm_id, steps)
            restarted = with_restart(story, host, libvirt, vm_id, steps)
    return finish(
        "watchdog_latency",
        {
            "event_p50_ms": at_most(100, quantile(delays, 0.5), "ms", "libvirt to event stream"),
            "event_worst_ms": at_most(250, max(delays), "ms"),
            "event_p95_ms": shown(quantile(delays, 0.95), "ms"),
            "firings": shown(len(delays), ""),
            **restarted,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
