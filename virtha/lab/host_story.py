"""A host loses its power: the last part of `make demo`. Every figure comes from outside of the product.

When VMs run again, libvirt of the other hosts says; who wrote to which disk, the kernel says (``disk_witnesses.py``).
"""

import contextlib
import time
from collections.abc import Mapping, Sequence

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.disk_witnesses import DiskWitnesses
from virtha.lab.lab import hosts_not_up
from virtha.lab.node import wait_until
from virtha.lab.progress import Steps
from virtha.lab.records import begin_writing
from virtha.lab.story import BY_IPMI, Story
from virtha.lab.watching import LibvirtWitness
from virtha.model.errors import Failed
from virtha.model.value import Value

RECOVERED_S = 120.0
RETURNED_S = 120.0
PAUSE_S = 0.5
VMS_MIN = 4


class HostLoss(Value, frozen=True, kw_only=True):
    lost: tuple[str, ...]
    """Names of the VMs that ran there."""
    recovered: tuple[str, ...]
    """Those of them that run on another host, once, and were written to from there alone."""
    took_s: float
    """From the cut to the moment when the last of them runs elsewhere."""
    double_runs: int
    """See ``DiskStory``."""


class HostStory:
    def __init__(self, story: Story, steps: Steps) -> None:
        self._story = story
        self._lab = story.lab
        self._steps = steps

    def tell(self, victim: str) -> HostLoss:
        """``victim``: a host where a VM runs. Raises Failed with what did not come about."""
        story, steps = self._story, self._steps
        with steps.step("each host's BMC is set up as its power device, and tested"):
            for host in self._lab.hosts:
                bmc = self._lab.bmc(host.name)
                story.add_power(host.name, {**BY_IPMI, "address": bmc.address}, bmc.password)
        vms = self._four_vms(victim)
        homes = {vm: self._lab.host_of(vm).name for vm in vms}
        lost = tuple(vm for vm in vms if homes[vm] == victim)
        with steps.step(f"{', '.join(vms)} write to their disks without a pause"):
            for vm in vms:
                story.wait_agent(vm)
                begin_writing(story, vm, pause_s=PAUSE_S)
        disks = {vm: str(story.api.vm(vm)["vm"]["disks"][0]["path"]) for vm in vms}
        with DiskWitnesses(self._lab, disks) as witnesses:
            self._wait_written(witnesses, vms)
            took_s = self._cut(victim, lost)
            self._wait_written(witnesses, lost, by_others_than=victim)
            self._wait_answers(victim, lost)
            self._returns(victim)
        self._show_incident(victim)
        self._check_disks(witnesses, victim, homes)
        of = witnesses.of
        return HostLoss(
            lost=lost,
            recovered=tuple(
                vm
                for vm in lost
                if runs_elsewhere_once(self._lab.copies_of(vm), of[vm].writers, victim=victim)
            ),
            took_s=took_s,
            double_runs=sum(disk.double_runs for disk in of.values()),
        )

    def _four_vms(self, victim: str) -> list[str]:
        """Names. What is missing is made where the power will go."""
        vms = [str(item["vm"]["name"]) for item in self._story.api.get("/v1/vms")["items"]]
        made = [f"app{number}" for number in range(1, VMS_MIN + 1 - len(vms))]
        if made:
            with self._steps.step(f"{', '.join(made)}: created, HA, started on {victim}"):
                for vm in made:
                    self._story.create_vm(vm, host=victim)
        return [*vms, *made]

    def _cut(self, victim: str, lost: tuple[str, ...]) -> float:
        """Seconds until the last one runs elsewhere."""
        others = [host for host in self._lab.hosts if host.name != victim]
        with contextlib.ExitStack() as stack:
            witnesses = [stack.enter_context(LibvirtWitness(host)) for host in others]
            self._steps.say(
                f"{victim}: its power goes, silently, with {', '.join(lost)} on it; its BMC lives"
            )
            cut_s = time.monotonic()
            faults.kill_host(self._lab, victim, silent=True)
            runs_s: dict[str, float] = {}

            def all_run() -> bool:
                for witness in witnesses:
                    for seen in witness.since(0):
                        # QEMU is made paused: it runs when its processors do.
                        if seen.vm in lost and seen.kind == "resumed":
                            runs_s.setdefault(seen.vm, seen.at_s - cut_s)
                return set(runs_s) == set(lost)

            wait_until(all_run, f"{', '.join(lost)} run elsewhere", timeout_s=RECOVERED_S)
        for vm, after_s in sorted(runs_s.items()):
            self._steps.say(f"  {vm} runs on {self._lab.host_of(vm).name} after {after_s:.1f} s")
        return max(runs_s.values())

    def _wait_written(
        self, witnesses: DiskWitnesses, vms: tuple[str, ...] | list[str], by_others_than: str = ""
    ) -> None:
        def written() -> bool:
            if witnesses.error is not None:
                raise Failed(f"the witness of the disks ended: {witnesses.error!r}")
            return all(set(witnesses.of[vm].writers) - {by_others_than} for vm in vms)

        wait_until(written, f"{', '.join(vms)} write", timeout_s=RECOVERED_S)

    def _wait_answers(self, victim: str, lost: tuple[str, ...]) -> None:
        with self._steps.step(f"the guest agents of {', '.join(lost)} answer on other hosts"):
            for vm in lost:
                self._story.wait_agent(vm)

                def is_on_record(vm: str = vm) -> bool:
                    ways = self._incident(victim)["vms"]
                    return any(one["vm"] == vm and one["state"] == "answers" for one in ways)

                wait_until(is_on_record, f"the answer of {vm} is on record", timeout_s=RETURNED_S)

    def _returns(self, victim: str) -> None:
        """By its BMC, as an administrator would; it takes VMs again, and what it had stays where it runs."""
        with self._steps.step(f"{victim} is switched on by its BMC, and takes VMs again"):
            self._lab.virtha("host", "power", "on", victim, timeout_s=RETURNED_S)
            wait_until(lambda: not hosts_not_up(self._lab), f"{victim} is up", timeout_s=RETURNED_S)
            wait_until(
                lambda: not self._incident(victim)["incident"]["open"],
                f"the incident of {victim} is closed",
                timeout_s=RETURNED_S,
            )
            self._story.create_vm("back1", ha=False, host=victim)

    def _incident(self, victim: str) -> Json:
        newest = self._story.api.get("/v1/incidents", host=victim)["items"][0]
        return self._story.api.get(f"/v1/incidents/{newest['id']}")

    def _show_incident(self, victim: str) -> None:
        found = self._incident(victim)["incident"]["id"]
        self._steps.say(f"virtha incident show {found}")
        for line in self._lab.virtha("incident", "show", found).splitlines():
            self._steps.say(f"  {line}")

    def _check_disks(self, witnesses: DiskWitnesses, victim: str, homes: Mapping[str, str]) -> None:
        """``homes``: where each VM ran before the cut. Raises Failed where one that had nothing to do with it is not there, or twice; those of
        the lost host are counted."""
        if witnesses.error is not None:
            raise Failed(f"the witness of the disks ended: {witnesses.error!r}")
        for vm, disk in witnesses.of.items():
            copies = self._lab.copies_of(vm)
            self._steps.say(
                f"  disk of {vm}: written by {', then '.join(disk.writers)}; runs on {copies}"
            )
            if homes[vm] != victim and copies != [homes[vm]]:
                raise Failed(f"{vm} runs on {copies}, before the cut on {homes[vm]}")


def runs_elsewhere_once(copies: Sequence[str], writers: Sequence[str], *, victim: str) -> bool:
    """A VM of the lost host. ``copies``: the hosts with a QEMU of it; ``writers``: whose storage wrote to its disk, from before the cut on."""
    if len(copies) != 1 or copies[0] == victim:
        return False
    return set(writers) - {victim} == {copies[0]} and writers[-1] == copies[0]
