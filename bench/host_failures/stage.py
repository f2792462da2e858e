"""A lab of three hosts with BMCs, between two rounds: all well again, and the VMs back on the host that is to fail.

The lab stays: what a round broke is mended, which takes a host's boot and a guest's. It is always the same host that fails, for a
VM that was on two hosts which died within a minute is held back for an operator (M5).
"""

import os
import time
from collections.abc import Mapping, Sequence

from host_failures.cases import Case
from virtha.lab import faults, guest, lab
from virtha.lab.api import Json
from virtha.lab.bmc import Bmc
from virtha.lab.lab import Lab
from virtha.lab.namespaces import ProcessId
from virtha.lab.node import Node, wait_until
from virtha.lab.progress import Steps
from virtha.lab.records import begin_writing
from virtha.lab.story import Story
from virtha.model.errors import Failed, NotFound

VICTIM = "h1"
PATIENCE_S = 180.0
CALM_S = 300.0
"""40 guests boot for a minute and a half here."""
WRITE_PAUSE_S = 0.5
AT_ONCE = 4
"""Orders of people know no limit: of 16 starts at once on one host the last take too long, and their VMs come up elsewhere. So many
start and boot before the next: a dozen that boot at once have cost a host its lease."""
BOOTS_MAX = 3


class Stage:
    def __init__(self, story: Story, bmcs: Mapping[str, Bmc], steps: Steps) -> None:
        self.story = story
        self.bmcs = bmcs
        self.steps = steps

    @property
    def lab(self) -> Lab:
        return self.story.lab

    @property
    def victim(self) -> Node:
        return self.lab.host(VICTIM)

    @property
    def victim_process(self) -> ProcessId:
        return self.victim.require_on()

    @property
    def others(self) -> list[Node]:
        return [host for host in self.lab.hosts if host.name != VICTIM]

    def vms(self, case: Case) -> list[str]:
        return [f"web{number}" for number in range(1, case.vms + 1)]

    def disks(self, case: Case) -> dict[str, str]:
        """VM to its disk's path below the storage domain."""
        return {vm: self.story.api.vm(vm)["vm"]["disks"][0]["path"] for vm in self.vms(case)}

    # Before a case

    def prepare(self, case: Case) -> None:
        """Its policy, its VMs, and the failing host booted under that policy: a watchdog that runs keeps its time until then."""
        self._all_down()
        self.story.set_policy(case.policy)
        for host in self.others:
            host.set_firmware_wait(case.boots_later_ms)
        wanted = self.vms(case)
        for name in self._names():
            if name not in wanted:
                self.story.delete_vm(name)
        for name in wanted:
            if name not in self._names():
                self.story.create_vm(name, watchdog=None, start=False)
        if self.victim.is_on():
            faults.kill_host(self.lab, VICTIM)

    def _names(self) -> list[str]:
        return [item["vm"]["name"] for item in self.story.api.get("/v1/vms", limit=500)["items"]]

    def _all_down(self) -> None:
        self._power_off(self._names())

    # Between rounds

    def rest(self, case: Case) -> None:
        """Until all is well, for the next round."""
        self._mend()
        self._boot_as_told(case)
        self._bring_home(case)
        for vm in self.vms(case):
            guest.wait_for_agent(self.victim, vm, timeout_s=CALM_S)
        if case.vms == 1:
            self._wait_writing(self.vms(case)[0])
        self._wait_calm()

    def _wait_writing(self, vm: str) -> None:
        """A guest that is in use. One that did not boot since the last round writes already."""
        if not self._writes(vm):
            begin_writing(self.story, vm, pause_s=WRITE_PAUSE_S)
        wait_until(lambda: self._writes(vm), f"{vm} writes", timeout_s=PATIENCE_S, pause_s=0.1)

    def _writes(self, vm: str) -> bool:
        command = "[ -e /tmp/last ] && echo yes || true"
        return guest.execute(self.victim, vm, command, timeout_s=PATIENCE_S).strip() == "yes"

    def _mend(self) -> None:
        for name, bmc in self.bmcs.items():
            if self.lab.host(name).state.bmc is None:
                faults.start_bmc(self.lab, name)
            bmc.begin_anew()
        for host in self.lab.hosts:
            if not host.is_on():
                faults.boot_host(self.lab, host.name)
            elif not host.state.cable_up:
                faults.heal_net(self.lab, host.name)
            if "agent" not in self.lab.host(host.name).running_services():
                faults.start_agent(self.lab, host.name)
        lab.wait_hosts(self.lab)
        lab.wait_storage(self.lab)

    def _boot_as_told(self, case: Case) -> None:
        """A host boots with the policy that it had last, and a watchdog that runs is not armed anew: the first boot of a case may be
        one too early."""
        for _ in range(BOOTS_MAX):
            if self._is_armed_as_told(case):
                return
            faults.kill_host(self.lab, VICTIM)
            self._mend()
        raise Failed(f"the watchdog of {VICTIM} is not as its policy says: {self._armed_ms()} ms")

    def _is_armed_as_told(self, case: Case) -> bool:
        lease = case.policy["lease"]
        if not lease["enabled"]:
            return self._armed_ms() == 0
        wait_until(
            lambda: self._armed_ms() > 0, f"{VICTIM} arms its watchdog", timeout_s=PATIENCE_S
        )
        return self._armed_ms() == lease["watchdog_ms"]

    def _armed_ms(self) -> int:
        """Of the present boot: what its watchdog was last told; 0: nothing."""
        booted_ms = self.victim_process.start_ticks * 1_000 // os.sysconf("SC_CLK_TCK")
        armed_ms = 0
        for line in self.victim.last_words("watchdog").splitlines():
            at_ms, _, said = line.partition(" armed ")
            if said and int(at_ms) >= booted_ms:
                armed_ms = int(said)
        return armed_ms

    def _bring_home(self, case: Case) -> None:
        """Powered off where they came back, and started where the next failure is to be."""
        here = self.victim.qemus()
        away = [vm for vm in self.vms(case) if vm not in here]
        self._power_off(away)
        for first in range(0, len(away), AT_ONCE):
            batch = away[first : first + AT_ONCE]
            self._start_at_home(batch)
            for vm in batch:
                guest.wait_for_agent(self.victim, vm, timeout_s=CALM_S)
        for vm in self.vms(case):
            self.story.wait_state(vm, "running", timeout_s=PATIENCE_S)
        if set(self.victim.qemus()) != set(self.vms(case)):
            raise Failed(f"on {VICTIM}: {self.victim.qemus().keys()}, wanted {self.vms(case)}")

    def _start_at_home(self, vms: Sequence[str]) -> None:
        """Refused for as long as the host that has just come back may still be struck by an order (J7)."""
        api, deadline_s = self.story.api, time.monotonic() + PATIENCE_S
        left, said = list(vms), ""
        while left:
            if time.monotonic() > deadline_s:
                raise Failed(f"{', '.join(left)} can't be started on {VICTIM}: {said}")
            asked = {
                vm: api.request("POST", f"/v1/vms/{vm}/start", json={"host": VICTIM}) for vm in left
            }
            for vm, answer in asked.items():
                said = answer.text[:1_000]
                if answer.status_code >= 400:
                    continue
                ended = api.finish(answer.json(), timeout_s=PATIENCE_S)
                said = str(ended)
                if ended["state"] in ("done", "succeeded"):
                    left.remove(vm)
            if left:
                time.sleep(0.2)

    def _power_off(self, vms: list[str]) -> None:
        """All at once, for that takes as long as one."""
        api = self.story.api
        running = [vm for vm in vms if api.vm(vm)["status"]["state"] != "down"]
        for operation in [api.post(f"/v1/vms/{vm}/power-off") for vm in running]:
            api.finish(operation)
        for vm in running:
            self.story.wait_state(vm, "down")

    def _wait_calm(self) -> None:
        """Nothing is suspected, and no incident is open."""
        said: list[str] = []

        def is_calm() -> bool:
            said[:] = self._restless()
            return not said

        try:
            wait_until(is_calm, "all is well", timeout_s=PATIENCE_S, pause_s=0.2)
        except Failed as error:
            raise Failed(f"{error.message}: {'; '.join(said)}") from error

    def _restless(self) -> list[str]:
        api = self.story.api
        found = lab.hosts_not_up(self.lab)
        for item in api.get("/v1/hosts")["items"]:
            if item["verdict"] != "alive" or item["engine"]:
                found.append(f"{item['host']['name']}: {item['verdict']} {item['engine_text']}")
        found += [
            f"open incident {one['id']}" for one in api.get("/v1/incidents", open=True)["items"]
        ]
        return found

    # During a round

    def orders(self) -> tuple[str, ...]:
        return tuple(f"{name} {order}" for name, bmc in self.bmcs.items() for order in bmc.orders())

    def events(self, after: int) -> list[Json]:
        return self.story.api.events(after=after)

    def last_incident(self, after: int) -> Json:
        """Of the failing host, opened by an event after that revision. Raises NotFound."""
        told = [one for one in self.events(after) if one["fields"].get("incident_id")]
        if not told:
            raise NotFound("no incident was opened")
        return self.story.api.get(f"/v1/incidents/{told[-1]['fields']['incident_id']}")

    def why(self) -> str:
        """What the product says of itself now, after a round that did not come to its end."""
        api = self.story.api
        hosts = [
            f"{item['host']['name']}: {item['verdict']} {item['engine_text']}"
            for item in api.get("/v1/hosts")["items"]
        ]
        vms = [f"{item['vm']['name']}: {item['status']}" for item in api.get("/v1/vms")["items"]]
        told = [f"{one['code']} {one['fields']}" for one in api.events()[-30:]]
        return "\n  ".join(["as it is:", *hosts, *vms, f"BMCs: {self.orders()}", *told])
