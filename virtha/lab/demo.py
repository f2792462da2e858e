"""`make demo`: the main job on real hosts and real guests, told step by step.

    python -m virtha.lab.demo        environment: KEEP=1 leaves it running; VIRTHA_LAB=DIR

Three hosts, a highly available VM with a watchdog. Its watchdog daemon is killed, its QEMU is killed,
a second one is powered off by its card, the kernel panics: each is recorded, each is handled. Then the
power of a host is cut: its VMs run elsewhere, once, and it comes back. Every figure is measured from
outside the product. In the end the engine's journal is replayed, and has to be decided the same. The last
line is one JSON object. The exit code is 0 only if every part holds.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from virtha.lab import faults, lab
from virtha.lab.host_story import HostStory
from virtha.lab.journals import Journals, replay_and_tell
from virtha.lab.node import Node
from virtha.lab.progress import Steps
from virtha.lab.state import lab_directory
from virtha.lab.story import AGENT_TIMEOUT_S, EVENT_TIMEOUT_S, Story, Twin
from virtha.lab.watching import LibvirtWitness, StreamWitness
from virtha.model.errors import Failed, VirthaError
from virtha.model.value import Value

DIRECTORY = Path("/var/lib/virtha-demo")
HOSTS = 3
HOST_LOSS_S = 15.0
"""The balanced profile's worst for one VM is 10 s, and the last of 16 within 5 s of it."""
CARD_TIMEOUT_S = 45.0
"""The card fires 6 s after its last feeding in guest time; emulated guests' time may lag."""


class Figure(Value, frozen=True, kw_only=True):
    key: str
    what: str
    value: float | bool
    holds: bool


class Demo:
    def __init__(self, made: lab.Lab, steps: Steps) -> None:
        self.lab = made
        self.steps = steps
        self.story = Story(made)
        self.figures: list[Figure] = []
        self.failures: list[str] = []

    def tell(self) -> None:
        """All parts, in order. A part that fails is told and does not stop the next one, but for the first: all others need its VM."""
        try:
            self._tell_parts()
        except VirthaError as error:
            self.failures.append(str(error))
            self.steps.say(f"FAILED: {error}")

    def _tell_parts(self) -> None:
        with StreamWitness(self.lab.api) as stream:
            host = self._begin()
            with LibvirtWitness(host) as libvirt:
                for part in (self.watchdog_resets, self.qemu_dies, self.kernel_panics):
                    self._try(part, host, libvirt, stream)
            self._try(self.watchdog_powers_off, host, None, stream)
            self._try(self.host_loses_power, host, None, stream)

    def replay_journal(self) -> bool:
        """Before it goes with its lab. Whether all was decided the same."""
        journals = Journals(self.lab)
        holds = replay_and_tell(journals, self.steps)
        turns = 0 if journals.replayed is None else journals.replayed.turns
        what = "turns of the engine's journal, replayed, all decided the same"
        self._figure("replayed_turns", what, turns, holds=holds)
        return holds

    def _begin(self) -> Node:
        with self.steps.step("web1: created from image tiny, HA, watchdog i6300esb:reset, started"):
            self.lab.virtha(
                *("vm", "create", "web1", "--image", "tiny", "--memory", "128MiB"),
                *("--watchdog", "i6300esb:reset", "--ha", "--nic", "bridge=br0", "--start"),
                timeout_s=120,
            )
            host = self.story.wait_running("web1")
        with self.steps.step(f"web1 boots on {host.name}, its guest agent answers"):
            self.story.wait_agent("web1")
        return host

    def _try(
        self,
        part: Callable[[Node, LibvirtWitness | None, StreamWitness], None],
        host: Node,
        libvirt: LibvirtWitness | None,
        stream: StreamWitness,
    ) -> None:
        try:
            part(host, libvirt, stream)
        except VirthaError as error:
            self.failures.append(f"{part.__name__}: {error}")
            self.steps.say(f"FAILED: {error}")

    def _figure(self, key: str, what: str, value: float | bool, *, holds: bool) -> None:
        shown = round(value, 3) if isinstance(value, float) else value
        self.figures.append(Figure(key=key, what=what, value=shown, holds=holds))
        self.steps.say(f"  {what}: {shown}{'' if holds else '   <-- does not hold'}")

    def watchdog_resets(
        self, host: Node, libvirt: LibvirtWitness | None, stream: StreamWitness
    ) -> None:
        assert libvirt is not None
        vm_id = self.story.api.vm("web1")["vm"]["id"]
        before, mark, seen = self.story.look("web1"), stream.mark(), libvirt.mark()
        self.steps.say("web1: the guest's watchdog daemon is killed with -9; the card fires in 6 s")
        faults.hang_guest(self.lab, "web1")
        fired = libvirt.wait_for("web1", "watchdog", after=seen, timeout_s=CARD_TIMEOUT_S)
        event = stream.wait_for(
            "vm.watchdog.fired",
            vm_id=vm_id,
            after=mark,
            timeout_s=EVENT_TIMEOUT_S,
            action="reset",
        )
        self._figure("watchdog_recorded", "watchdog event recorded", True, holds=True)
        delay_ms = (event["_seen"] - fired.at_s) * 1000
        self._figure(
            "watchdog_event_ms",
            "libvirt's event to event stream, ms",
            delay_ms,
            holds=delay_ms <= 250,
        )
        self.story.wait_agent("web1")
        back_s = time.monotonic() - fired.at_s
        after = self.story.look("web1")
        again = after.boots == before.boots + 1 and bool(after.bootstatus)
        self._figure(
            "agent_back_s",
            "firing to guest agent answering, s",
            back_s,
            holds=again and back_s < AGENT_TIMEOUT_S,
        )

    def qemu_dies(self, host: Node, libvirt: LibvirtWitness | None, stream: StreamWitness) -> None:
        assert libvirt is not None
        twin = Twin(host, "web1")
        virsh_s = min(twin.start_s() for _ in range(3))
        twin.remove()
        vm_id = self.story.api.vm("web1")["vm"]["id"]
        before, mark, seen = self.story.look("web1"), stream.mark(), libvirt.mark()
        self.steps.say("web1: its QEMU is killed with -9")
        _, _, killed_at = faults.kill_qemu(self.lab, "web1")
        runs = libvirt.wait_for("web1", "resumed", after=seen, timeout_s=EVENT_TIMEOUT_S)
        stream.wait_for("vm.crashed", vm_id=vm_id, after=mark, timeout_s=EVENT_TIMEOUT_S)
        stream.wait_for("vm.restarted", vm_id=vm_id, after=mark, timeout_s=EVENT_TIMEOUT_S)
        taken = runs.at_s - killed_at
        self._figure("crash_restart_s", "killed to running again, s", taken, holds=taken <= 2.0)
        self._figure("virsh_start_s", "the same by 'virsh start', s", virsh_s, holds=True)
        self.story.wait_agent("web1")
        self._one_copy("web1", before.boots)

    def kernel_panics(
        self, host: Node, libvirt: LibvirtWitness | None, stream: StreamWitness
    ) -> None:
        vm_id = self.story.api.vm("web1")["vm"]["id"]
        before, mark = self.story.look("web1"), stream.mark()
        self.steps.say("web1: its kernel panics")
        faults.panic_guest(self.lab, "web1")
        stream.wait_for("vm.panicked", vm_id=vm_id, after=mark, timeout_s=EVENT_TIMEOUT_S)
        self._figure("panic_recorded", "panic recorded", True, holds=True)
        stream.wait_for("vm.restarted", vm_id=vm_id, after=mark, timeout_s=EVENT_TIMEOUT_S)
        self.story.wait_agent("web1")
        self._one_copy("web1", before.boots)

    def watchdog_powers_off(
        self, host: Node, libvirt: LibvirtWitness | None, stream: StreamWitness
    ) -> None:
        with self.steps.step("web2: created, HA, watchdog i6300esb:poweroff, started"):
            vm_id = self.story.create_vm("web2", watchdog="i6300esb:poweroff")["vm"]["id"]
            self.story.wait_agent("web2")
        home = self.lab.host_of("web2")
        before, mark = self.story.look("web2"), stream.mark()
        with LibvirtWitness(home) as witness:
            self.steps.say("web2: the guest's watchdog daemon is killed; the card powers it off")
            faults.hang_guest(self.lab, "web2")
            fired = witness.wait_for("web2", "watchdog", timeout_s=CARD_TIMEOUT_S)
            stream.wait_for(
                "vm.watchdog.fired",
                vm_id=vm_id,
                after=mark,
                timeout_s=EVENT_TIMEOUT_S,
                action="poweroff",
            )
            self._figure("poweroff_recorded", "power-off by watchdog recorded", True, holds=True)
            runs = witness.wait_for("web2", "resumed", timeout_s=EVENT_TIMEOUT_S)
        taken = runs.at_s - fired.at_s
        self._figure("poweroff_restart_s", "firing to running again, s", taken, holds=taken <= 5.0)
        self.story.wait_agent("web2")
        self._one_copy("web2", before.boots)

    def host_loses_power(
        self, host: Node, libvirt: LibvirtWitness | None, stream: StreamWitness
    ) -> None:
        loss = HostStory(self.story, self.steps).tell(self.lab.host_of("web1").name)
        self._figure(
            "host_power_loss_s",
            f"power cut to the last of {len(loss.lost)} VMs running elsewhere, s",
            loss.took_s,
            holds=loss.took_s <= HOST_LOSS_S,
        )
        self._figure(
            "host_vms_recovered",
            f"of {len(loss.lost)} VMs of the lost host run elsewhere, once",
            len(loss.recovered),
            holds=len(loss.recovered) == len(loss.lost) > 0,
        )
        self._figure(
            "double_runs", "disks with two writers", loss.double_runs, holds=loss.double_runs == 0
        )

    def _one_copy(self, vm: str, boots_before: int) -> None:
        """It was booted once more, and exactly one QEMU of it runs."""
        copies, boots = self.lab.copies_of(vm), self.story.look(vm).boots
        if len(copies) != 1 or boots != boots_before + 1:
            raise Failed(f"{vm}: copies on {copies}, boots {boots_before} -> {boots}")


KEYS = (
    "watchdog_recorded",
    "watchdog_event_ms",
    "crash_restart_s",
    "virsh_start_s",
    "poweroff_recorded",
    "poweroff_restart_s",
    "panic_recorded",
    "agent_back_s",
    "host_power_loss_s",
    "host_vms_recovered",
    "double_runs",
    "replayed_turns",
)


def report(demo: Demo) -> bool:
    """The table, then the JSON line; whether all of it holds."""
    measured = {figure.key: figure for figure in demo.figures}
    table = Table("FIGURE", "MEASURED", "HOLDS", "WHAT", box=None)
    for key in KEYS:
        figure = measured.get(key)
        if figure is None:
            table.add_row(key, "-", "NO", "not reached")
        else:
            shown = str(figure.value).lower() if isinstance(figure.value, bool) else figure.value
            table.add_row(key, str(shown), "yes" if figure.holds else "NO", figure.what)
    Console().print(table)
    for failure in demo.failures:
        Console().print(f"failed: {failure}", markup=False)
    missing = {key: False if key.endswith("_recorded") else None for key in KEYS}
    line = {**missing, **{figure.key: figure.value for figure in demo.figures}}
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()
    return not demo.failures and all(key in measured and measured[key].holds for key in KEYS)


def main() -> int:
    keep = os.environ.get("KEEP", "") not in ("", "0")
    directory = lab_directory(None if os.environ.get("VIRTHA_LAB") else DIRECTORY)
    steps = Steps(sys.stdout)
    lab.down(directory, steps=steps)
    keep_files = False
    try:
        steps.say(f"a lab with {HOSTS} hosts in {directory}")
        demo = Demo(lab.up(directory, hosts=HOSTS, steps=steps), steps)
        demo.tell()
        keep_files = not demo.replay_journal()
        demo.story.close()
        if keep:  # before the report: the JSON line is the last one
            sys.stdout.write(f"{_how_to_look_around(directory, demo.lab)}\n")
        holds = report(demo)
        return 0 if holds else 1
    except VirthaError as error:
        steps.say(f"the demo failed: {error}")
        return error.exit_code
    finally:
        if not keep:
            lab.down(directory, keep_files=keep_files, steps=steps)


def _how_to_look_around(directory: Path, made: lab.Lab) -> str:
    return "\n".join(
        (
            "\nIt goes on running. Look around:",
            f"  export VIRTHA_ROOT={made.server.root} VIRTHA_LAB={directory}",
            "  export PATH=$PWD/.venv/bin:$PATH",
            "  virtha status",
            "  virtha vm show web1",
            "  virtha vm events web1 --follow",
            "  virtha lab hang-guest web1      # kill its watchdog daemon",
            "  virtha lab kill-qemu web1       # kill -9 of its QEMU",
            "  virtha lab panic-guest web1     # crash its kernel",
            "  virtha lab exec h1 -- virsh list",
            f"  REST: https://127.0.0.1:{made.state.forward_port}",
            "  make lab-clean                  # stop it all\n",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
