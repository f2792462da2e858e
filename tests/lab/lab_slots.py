"""Hosts' places in the heartbeat file of the lab's storage, read past every mount of it."""

from pathlib import Path

from virtha.agent.identity import load_identity
from virtha.agent.paths import AgentPaths
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.lab.node import STORAGE_NAME, Node
from virtha.lab.story import Story, no_restart_limit
from virtha.model.ids import StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import Slot
from virtha.model.slot_round import slot_index

LAB_LEASE = LeasePolicy(**no_restart_limit()["lease"])
"""What hosts promise where no test said otherwise."""


class Slots:
    def __init__(self, story: Story) -> None:
        self._lab = story.lab
        found = story.api.get(f"/v1/storage-domains/{STORAGE_NAME}")
        self._id = StorageDomainId(found["domain"]["id"])

    def of(self, host: Node) -> Slot | None:
        identity = load_identity(AgentPaths(root=str(host.root)))
        blocks = DirectoryDomain(
            str(Path(self._lab.directory, "storage", STORAGE_NAME)),
            installation_id=identity.installation_id,
            domain_id=self._id,
        )
        try:
            found = blocks.read_slot(slot_index(identity.number))
        finally:
            blocks.close()
        return found if isinstance(found, Slot) else None

    def counter(self, host: Node) -> int:
        slot = self.of(host)
        assert slot is not None
        return slot.counter

    def is_armed(self, host: Node, policy: LeasePolicy) -> bool:
        """And promises what the policy says, in this boot."""
        slot = self.of(host)
        boot = (host.directory / "boot-id").read_text().strip()
        if slot is None or slot.boot != boot:
            return False
        said = slot.declaration
        return (
            said.armed
            and said.direct_io
            and not said.waived
            and said.self_fence_after_ms == policy.self_fence_after_ms
        )


def boots(story: Story) -> dict[str, str]:
    return {host.name: (host.directory / "boot-id").read_text() for host in story.lab.hosts}
