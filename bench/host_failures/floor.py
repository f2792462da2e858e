"""What a recovery can't be quicker than, by hand and without virtha: is it off? off! is it off now? `virsh start`."""

import os
import subprocess
import time

from host_failures.played import Round
from host_failures.stage import Stage
from virtha.lab import bmc, faults
from virtha.lab.node import wait_until
from virtha.lab.story import Twin
from virtha.model.errors import Failed

OFF_S = 60.0


class Floor:
    """On a host that holds no VM, so that nobody else does anything about it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._host = stage.others[-1].name
        self._bmc = stage.bmcs[self._host]

    def measure(self) -> Round:
        began_s = time.monotonic()
        if self._ask("status") != "Chassis Power is on":
            raise Failed(f"the BMC of {self._host} does not say on")
        status_s = time.monotonic() - began_s
        began_s = time.monotonic()
        self._ask("off")
        wait_until(
            lambda: self._ask("status") == "Chassis Power is off",
            f"{self._host} is read off",
            timeout_s=OFF_S,
        )
        off_s = time.monotonic() - began_s
        faults.boot_host(self._stage.lab, self._host)
        victim = self._stage.victim
        twin = Twin(victim, next(iter(victim.qemus())))
        try:
            start_s = twin.start_s()
        finally:
            twin.remove()
        return Round(
            measured={
                "status_s": round(status_s, 4),
                "off_s": round(off_s, 4),
                "start_s": round(start_s, 4),
            }
        )

    def _ask(self, what: str) -> str:
        """With the words of the ipmi driver."""
        server = self._stage.lab.server
        words = ["nsenter", f"--net=/run/netns/{server.namespace}", "ipmitool", "-I", "lanplus"]
        words += ["-C", "3", "-N", "1", "-R", "1", "-L", "OPERATOR", "-E", "-U", bmc.USER]
        words += ["-H", self._bmc.address, "chassis", "power", what]
        done = subprocess.run(
            words,
            env={**os.environ, "IPMI_PASSWORD": self._bmc.password},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=OFF_S,
            check=False,
        )
        if done.returncode != 0:
            raise Failed(f"ipmitool chassis power {what}: {done.stderr.strip()}")
        return done.stdout.strip()
