"""A directory in whose heartbeat file another cluster's hosts have their places, on real hosts: refused, told, and left as it is."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_slots import LAB_LEASE, Slots, boots

from virtha.agent.identity import load_identity
from virtha.agent.paths import AgentPaths
from virtha.agent.storage import slot_index
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.lab import faults
from virtha.lab.node import wait_until
from virtha.lab.story import Story
from virtha.model.errors import Failed
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId
from virtha.model.slot import Declaration, Slot

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
NAME = "theirs"
RENEWALS = 2 * LAB_LEASE.watchdog_ms // LAB_LEASE.renew_ms
"""Twice as many as a host gets out of its storage when nobody feeds its watchdog."""
THEIRS, DOMAIN = InstallationId("another-installation"), StorageDomainId("their-domain")


@pytest.fixture
def heartbeats(story: Story) -> Iterator[Path]:
    """Their file: a host of theirs beats in each place that one of ours would take."""
    directory = Path(story.lab.directory, "storage", NAME)
    directory.mkdir()
    blocks = DirectoryDomain(str(directory), installation_id=THEIRS, domain_id=DOMAIN)
    for host in story.lab.hosts:
        index = slot_index(load_identity(AgentPaths(root=str(host.root))).number)
        theirs = HostId(f"their-{host.name}")
        blocks.prepare(index, theirs)
        slot = Slot(
            installation_id=THEIRS,
            domain_id=DOMAIN,
            index=index,
            host_id=theirs,
            boot=BootId("their-boot"),
            counter=7,
            declaration=Declaration(armed=True, watchdog_ms=5_000),
        )
        blocks.write_slot(slot)
    file = blocks.file
    blocks.close()
    yield file
    if any(one["domain"]["name"] == NAME for one in story.api.get("/v1/storage-domains")["items"]):
        story.lab.virtha("storage", "remove", NAME, "--yes")
    shutil.rmtree(directory)


@pytest.mark.req("F1", "F2")
@pytest.mark.bad_input("slot of a foreign cluster", story=True)
def test_a_domain_where_another_clusters_hosts_beat_is_refused_told_and_left_alone(
    story: Story, heartbeats: Path
) -> None:
    slots = Slots(story)
    wait_until(
        lambda: all(slots.is_armed(host, LAB_LEASE) for host in story.lab.hosts),
        "each host's watchdog runs",
        timeout_s=60.0,
    )
    _guardians_begin_anew(story, slots)
    booted = boots(story)
    revision, before = story.revision(), heartbeats.read_bytes()
    seen = story.lab.hosts[0].shared / NAME
    with pytest.raises(Failed, match="another installation or domain") as failed:
        story.lab.virtha("storage", "add", NAME, "--path", str(seen))
    assert "use another directory" in failed.value.message, "the way out is named"
    told = story.api.events(after=revision, code="storage.foreign")
    assert {one["fields"]["name"] for one in told} == {NAME}
    hosts = {host.name for host in story.lab.hosts}

    def said() -> bool:
        detail = story.api.get(f"/v1/storage-domains/{NAME}")["detail"]
        return {one for one, why in detail.items() if "so no VM is started" in why} == hosts

    wait_until(said, f"each host says what is wrong with {NAME}", timeout_s=60.0)
    _renew_on(story, slots, booted)
    assert heartbeats.read_bytes() == before, "their hosts beat on"


def _guardians_begin_anew(story: Story, slots: Slots) -> None:
    """One that knew no other domain when its host was booted and one that begins in the middle are not of the same mind."""
    for host in story.lab.hosts:
        faults.kill_guardian(story.lab, host.name)
        counter = slots.counter(host)
        faults.start_guardian(story.lab, host.name)
        wait_until(
            lambda host=host, counter=counter: slots.counter(host) > counter,
            f"the new guardian of {host.name} renews",
            timeout_s=60.0,
        )


def _renew_on(story: Story, slots: Slots, booted: dict[str, str]) -> None:
    """So long that the watchdog of a host whose guardian feeds nothing would have bitten it."""
    until = {host.name: slots.counter(host) + RENEWALS for host in story.lab.hosts}
    wait_until(
        lambda: all(slots.counter(host) >= until[host.name] for host in story.lab.hosts),
        f"{RENEWALS} renewals of each host beside {NAME}",
        timeout_s=120.0,
    )
    assert not [host.name for host in story.lab.hosts if host.was_bitten()]
    assert boots(story) == booted
