"""Storage that isn't what it seems, as an administrator meets it: by command against a real server, told by what real looks at real
directories found."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played_host import PlayedHost
from story import Story, join_new, wait_until

from virtha.agent.files import Files
from virtha.agent.storage import prepare_storage
from virtha.agent.storage_probe import Probed, low_space, probe
from virtha.model.facts import StorageReport
from virtha.model.host import StorageDomain
from virtha.model.ids import ClusterId, InstallationId, StorageDomainId

pytestmark = [pytest.mark.req("G7"), pytest.mark.req("X5")]
GIB = 1 << 30


@pytest.fixture(scope="module")
def neighbour(story: Story) -> Iterator[PlayedHost]:
    story.ok("vm", "create", "kept", "--image", "tiny", "--ha")
    made = PlayedHost(join_new(story, "h3"), story.server.ready["gateway"])
    try:
        made.wait_until_usable()
        yield made
    finally:
        made.close()


def seen(root: Path) -> Probed:
    """What an agent finds that has this directory at the domain's path."""
    root.mkdir(exist_ok=True)
    domain = StorageDomain(
        id=StorageDomainId("d"), name="ds1", cluster_id=ClusterId("c"), path=str(root)
    )
    prepare_storage(domain, InstallationId("ours"), Files())
    return probe(domain, InstallationId("ours"), Files())


def tell(story: Story, host: PlayedHost, **told: Any) -> None:
    ident = json.loads(story.ok("storage", "show", "ds1", "-o", "json"))["domain"]["id"]
    report = {"usable": True, "size_bytes": 100 * GIB, "free_bytes": 50 * GIB, **told}
    host.wait_acknowledged(
        host.tell(StorageReport(storage_domain_id=StorageDomainId(ident), **report))
    )


def usable_by(story: Story) -> dict[str, bool | None]:
    found: dict[str, bool | None] = json.loads(story.ok("storage", "show", "ds1", "-o", "json"))[
        "usable_by"
    ]
    return found


def doctor(story: Story, code: str) -> list[tuple[str, str, str]]:
    done = story.run("doctor", "-o", "json")
    view = json.loads(done.stdout)
    assert done.returncode == (1 if view["verdict"] == "not_ready" else 0)
    found = [one for one in view["findings"] if one["code"] == code]
    assert all(one["fix"] for one in found)
    return [(one["about"], one["severity"], one["text"]) for one in found]


@pytest.mark.bad_input("storage that isn't shared", story=True)
def test_two_hosts_with_two_directories_of_one_name(
    story: Story, neighbour: PlayedHost, tmp_path: Path
) -> None:
    tell(story, story.host, mark=seen(tmp_path / "h1").mark)
    tell(story, neighbour, mark=seen(tmp_path / "h3").mark)
    assert usable_by(story) == {"h1": True, "h2": None, "h3": False}
    detail = "it is not the storage that h1 sees there"
    assert detail in story.ok("storage", "show", "ds1")
    ((about, severity, text),) = doctor(story, "ready.storage_other")
    assert (about, severity) == ("host/h3", "error") and detail in text
    (event,) = story.events("storage.unusable")
    assert (event["fields"]["host"], event["fields"]["detail"]) == ("h3", detail)
    tell(story, neighbour, mark=seen(tmp_path / "h1").mark)  # the export is mounted
    assert usable_by(story) == {"h1": True, "h2": None, "h3": True}
    assert doctor(story, "ready.storage_other") == []


@pytest.mark.bad_input("storage that is read-only", story=True)
def test_a_host_that_has_it_read_only(story: Story, neighbour: PlayedHost) -> None:
    """In words of its agent, of real file systems: `tests/unit/agent/test_storage_probe.py`; so is what is told of the next."""
    tell(story, neighbour, usable=False, detail="/srv/ds1 is mounted read-only")
    assert usable_by(story)["h3"] is False
    assert "mounted read-only" in story.ok("storage", "show", "ds1")
    ((about, severity, text),) = doctor(story, "ready.storage_unusable")
    assert (about, severity) == ("host/h3", "warning") and "mounted read-only" in text
    details = [event["fields"]["detail"] for event in story.events("storage.unusable")]
    assert "/srv/ds1 is mounted read-only" in details


@pytest.mark.bad_input("storage that is nearly full", story=True)
def test_storage_that_is_nearly_full(story: Story) -> None:
    low = low_space(100 * GIB, 4 * GIB)
    tell(story, story.host, free_bytes=4 * GIB, detail=low, low_space=low)
    assert usable_by(story)["h1"] is True
    assert "nearly full: 4GiB of 100GiB" in story.ok("storage", "show", "ds1")
    ((about, severity, text),) = doctor(story, "ready.storage_full")
    assert (about, severity) == ("storage/ds1", "warning") and low in text
    tell(story, story.host)
    wait_until(lambda: doctor(story, "ready.storage_full") == [])
