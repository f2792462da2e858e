"""VMs that a real QEMU pauses because its storage answers with EIO: resumed by their host, or left, as they say (S6)."""

import time
from collections.abc import Iterator

import pytest
from failing_storage import FailingStorage, failing_storage
from moving_guest import PATIENCE_S, begin_writing, last_record, records

from virtha.lab import faults, guest
from virtha.lab.node import wait_until
from virtha.lab.story import Story, no_restart_limit

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(900), pytest.mark.req("S6")]
VM = "eio1"


@pytest.fixture(scope="module")
def its_storage(session_story: Story) -> Iterator[FailingStorage]:
    with failing_storage(session_story) as made:
        yield made


@pytest.fixture
def storage(its_storage: FailingStorage) -> Iterator[FailingStorage]:
    """Works again after each test."""
    yield its_storage
    its_storage.mend_on("h1")


def writing(story: Story, storage: FailingStorage, **changes: object) -> None:
    storage.create_vm(VM, host="h1", **changes)
    guest.wait_for_agent(story.lab.host("h1"), VM, timeout_s=PATIENCE_S)
    begin_writing(story, VM, pause_s=0.1)
    wait_until(lambda: (last_record(story, VM) or 0) > 0, "it writes", timeout_s=60.0, pause_s=0.2)


def reasons(story: Story) -> list[str]:
    return [why["code"] for why in story.api.vm(VM)["status"]["reasons"]]


def libvirt_says(story: Story) -> str:
    return story.lab.host("h1").run_checked(["virsh", "domstate", VM, "--reason"]).strip()


def test_it_goes_on_when_its_storage_is_back_without_server_and_over_an_agents_restart(
    story: Story, storage: FailingStorage
) -> None:
    writing(story, storage)
    revision = story.revision()
    storage.break_on("h1")
    story.wait_event(VM, "vm.io_error.paused", after=revision)
    assert libvirt_says(story) == "paused (I/O error)"
    wait_until(
        lambda: "io_error.waiting.storage" in reasons(story),
        "it says what it waits for",
        timeout_s=60.0,
    )
    # Nobody moves what has requests in flight.
    answer = story.api.request("POST", f"/v1/vms/{VM}/migrate", json={"host": "h2"})
    assert answer.json()["code"] == "problem.vm.state", answer.text
    faults.kill_agent(story.lab, "h1")
    faults.kill_server(story.lab)
    faults.start_agent(story.lab, "h1")
    # For the new agent to look at storage that fails still: there is no server that it could tell, and ``paused_ms`` counts it.
    time.sleep(3.0)
    assert libvirt_says(story) == "paused (I/O error)"
    storage.mend_on("h1")
    wait_until(
        lambda: libvirt_says(story).startswith("running"), "it runs", timeout_s=60.0, pause_s=0.1
    )
    faults.start_server_again(story.lab)
    resumed = story.wait_event(VM, "vm.io_error.resumed", after=revision)
    assert resumed["fields"]["paused_ms"] > 3_000
    before = last_record(story, VM)
    assert before is not None, "the guest booted"
    wait_until(lambda: (last_record(story, VM) or 0) > before + 5, "it writes on", timeout_s=60.0)
    found = records(story, VM)
    assert (found.lost, found.is_older_than_its_disk) == (frozenset(), False)


def test_leave_paused_waits_for_a_person(story: Story, storage: FailingStorage) -> None:
    writing(story, storage, on_io_error="leave_paused")
    revision = story.revision()
    storage.break_on("h1")
    story.wait_event(VM, "vm.io_error.paused", after=revision)
    storage.mend_on("h1")
    wait_until(lambda: "io_error.left_paused" in reasons(story), "it says so", timeout_s=60.0)
    time.sleep(8.0)  # twice what a resume would take: only time shows that none comes
    assert libvirt_says(story) == "paused (I/O error)"
    story.api.operate(f"/v1/vms/{VM}/resume")
    story.wait_running(VM)
    assert records(story, VM).lost == frozenset()


@pytest.fixture
def quick_kill(story: Story) -> Iterator[None]:
    story.set_policy({**no_restart_limit(), "io_error": {"kill_after_ms": 10_000}})
    yield
    story.set_policy(no_restart_limit())


@pytest.mark.usefixtures("quick_kill")
def test_kill_starts_it_on_a_host_whose_storage_works(
    story: Story, storage: FailingStorage
) -> None:
    """Its QEMU is really ended where its storage fails, and what its guest had written is there on the other host."""
    writing(story, storage, on_io_error="kill")
    before = last_record(story, VM)
    assert before is not None
    revision = story.revision()
    storage.break_on("h1")
    story.wait_event(VM, "vm.io_error.paused", after=revision)
    killing = story.wait_event(VM, "vm.io_error.killing", after=revision)
    assert killing["fields"]["paused_ms"] >= 10_000
    stopped = story.wait_event(VM, "vm.stopped_unexpectedly", after=revision)
    assert stopped["fields"]["cause"] == "io_error"
    recovered = story.wait_event(VM, "vm.recovered", after=revision)
    assert recovered["fields"]["host"] != "h1"
    assert VM not in story.lab.host("h1").run_checked(["virsh", "list", "--name"]).split()
    guest.wait_for_agent(story.lab.host_of(VM), VM, timeout_s=PATIENCE_S)
    assert records(story, VM).newest >= before
    storage.mend_on("h1")
    time.sleep(
        3.0
    )  # h1 has it back, and brings nothing back there: only time shows what does not come
    assert VM not in story.lab.host("h1").run_checked(["virsh", "list", "--name"]).split()
