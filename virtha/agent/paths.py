"""Where everything lies on a host. ``--root DIR`` / ``VIRTHA_ROOT`` moves all of it."""

import os
from pathlib import Path

from virtha.model.ids import VmId
from virtha.model.value import Value

LIBVIRT_HOOKS = Path("/etc/libvirt/hooks")
"""Compiled into libvirt, so ``--root`` does not move it; ``VIRTHA_LIBVIRT_HOOKS`` does (tests)."""

KERNEL_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class AgentPaths(Value, frozen=True, kw_only=True):
    """All paths of agent and guardian below one root."""

    root: str = "/"

    @property
    def properties(self) -> Path:
        return Path(self.root, "etc/virtha/agent.properties")

    @property
    def state(self) -> Path:
        return Path(self.root, "var/lib/virtha/agent")

    @property
    def run(self) -> Path:
        """On a tmpfs: it must vanish at boot. Grants carry the boot id anyway."""
        return Path(self.root, "run/virtha")

    @property
    def identity(self) -> Path:
        return self.state / "identity"

    @property
    def migration(self) -> Path:
        """Certificates and key of live migration, as QEMU and libvirt want them to be named."""
        return Path(self.root, "etc/virtha/migration")

    @property
    def renewed_certificate(self) -> Path:
        """What the agent was given since the host booted: the guardian reads no disk."""
        return self.run / "host.crt"

    @property
    def movers(self) -> Path:
        return self.run / "movers"

    @property
    def outbox(self) -> Path:
        return self.state / "outbox"

    @property
    def records(self) -> Path:
        return self.state / "records"

    @property
    def settings(self) -> Path:
        return self.state / "settings.json"

    @property
    def outcomes(self) -> Path:
        return self.state / "outcomes"

    @property
    def gate(self) -> Path:
        return self.state / "gate"

    @property
    def adopted(self) -> Path:
        return self.state / "adopted"

    @property
    def frozen(self) -> Path:
        """Guests that may be frozen for a snapshot."""
        return self.state / "frozen"

    @property
    def evidence(self) -> Path:
        return self.state / "evidence"

    @property
    def serial(self) -> Path:
        return self.state / "serial"

    @property
    def journal(self) -> Path:
        return self.state / "journal"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    @property
    def guardian_kills(self) -> Path:
        return self.state / "guardian-kills"

    @property
    def refusals(self) -> Path:
        """What the start gate refused, until the agent has told it; the hook makes it where need be."""
        return self.run / "refusals"

    @property
    def grants(self) -> Path:
        return self.run / "grants"

    @property
    def grants_complete(self) -> Path:
        """In that directory, so that it goes with the grants; holds the boot id."""
        return self.grants / "complete"

    @property
    def guardian_socket(self) -> Path:
        return self.run / "guardian.sock"

    @property
    def lease_memory(self) -> Path:
        """What guardians of this boot did with leases; of another boot once the boot id in it is another."""
        return self.run / "guardian-lease.json"

    @property
    def start_permits(self) -> Path:
        """Until when VMs with disks on which domain may start, by the guardian."""
        return self.run / "start-permits.json"

    @property
    def shutting_down(self) -> Path:
        """Its existence tells the agent that the whole host goes down."""
        return self.run / "shutting-down"

    @property
    def hooks(self) -> Path:
        return Path(os.environ.get("VIRTHA_LIBVIRT_HOOKS", LIBVIRT_HOOKS))

    def grant(self, vm_id: VmId) -> Path:
        return self.grants / f"{vm_id}.json"

    def serial_log(self, vm_id: VmId) -> Path:
        return self.serial / f"{vm_id}.log"

    def make_directories(self, *, grants: bool = True) -> None:
        """Create what is missing, readable by root only where it holds secrets.

        ``grants``: the guardian leaves them to the agent, who knows what belongs there.
        """
        for directory in (
            self.properties.parent,
            self.state,
            self.run,
            self.outbox,
            self.records,
            self.outcomes,
            self.gate,
            self.adopted,
            self.evidence,
            self.journal,
            self.cache,
            self.guardian_kills,
            *((self.grants,) if grants else ()),
        ):
            directory.mkdir(parents=True, exist_ok=True)
        # libvirt's QEMU may run as another user, who writes the serial logs through virtlogd (root).
        self.serial.mkdir(parents=True, exist_ok=True)
        self.identity.mkdir(mode=0o700, parents=True, exist_ok=True)


def boot_id_file() -> Path:
    """Lab hosts share one kernel and so one boot id: each gets a file of its own."""
    return Path(os.environ.get("VIRTHA_BOOT_ID_FILE", KERNEL_BOOT_ID_FILE))
