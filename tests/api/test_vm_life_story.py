"""What administrators do wrong with VMs on a usual day: the real command line against a real server, nothing is changed."""

import json
from collections.abc import Iterator

import msgspec
import pytest
from played_host import ABLE, JoinedHost, PlayedHost
from server_process import Done
from story import Story, refused, wait_until

from virtha.agent.identity import load_credentials, load_identity
from virtha.agent.paths import AgentPaths
from virtha.model.facts import HostReport, StorageReport
from virtha.model.orders import MigrateVm, ReceiveVm


def revision(story: Story, vm: str) -> str:
    return str(json.loads(story.ok("vm", "show", vm, "-o", "json"))["vm"]["revision"])


@pytest.mark.req("W5")
@pytest.mark.bad_input(
    "template of a running VM",
    "snapshot of a running VM",
    "device of a VM",
    "disk that is to shrink",
    "deletion of a VM that may run",
    story=True,
)
@pytest.mark.parametrize(
    ("words", "code", "problem", "told"),
    [
        (("template", "create", "web", "--from", "web1"), 4, "problem.vm.state", "web1"),
        (
            ("vm", "snapshot", "create", "web1", "before"),
            4,
            "order.refused.guest_silent",
            "--crash-consistent",
        ),
        (("vm", "disk", "resize", "web1", "disk0", "1MiB"), 2, "problem.disk.shrink", "64MiB"),
        (("vm", "delete", "web1", "--delete-data", "--yes"), 4, "problem.vm.state", "power-off"),
        (("vm", "nic", "add", "web1", "bridge=br0,mac=zz"), 2, "problem.invalid", "mac"),
        (("vm", "nic", "add", "web1", "bridge=br0,model=ne2k"), 2, "problem.invalid", "model"),
        (
            ("vm", "disk", "add", "web1", "--size", "1GiB", "--bus", "ide"),
            2,
            "problem.invalid",
            "bus: ",
        ),
    ],
)
def test_what_a_running_vm_can_not_have(
    story: Story, words: tuple[str, ...], code: int, problem: str, told: str
) -> None:
    if json.loads(story.ok("vm", "show", "web1", "-o", "json"))["status"]["state"] != "running":
        story.ok("vm", "start", "web1")
    before = story.state()
    refused(story.run(*words), code, problem, told)
    assert story.state() == before


@pytest.mark.bad_input("name of a VM or disk", story=True)
@pytest.mark.parametrize("name", ["a/b", "../x", "zwei wörter", "x" * 300, "名前"])
@pytest.mark.parametrize(
    ("words", "said_by"),
    [
        (("vm", "create", "NAME", "--memory", "128MiB"), "name: "),
        (("vm", "edit", "web1", "--name", "NAME"), "name: "),
        (("vm", "disk", "add", "web1", "--size", "1GiB", "--name", "NAME"), "name: "),
    ],
)
def test_a_name_is_never_a_path(
    story: Story, words: tuple[str, ...], said_by: str, name: str
) -> None:
    before = story.state()
    done = story.run(*(name if word == "NAME" else word for word in words))
    refused(done, 2, "problem.invalid", said_by, "allowed: ")
    assert story.state() == before


@pytest.mark.req("W1")
@pytest.mark.bad_input("two edits at once", story=True)
def test_the_second_of_two_edits_must_look_first(story: Story) -> None:
    both_saw = revision(story, "web1")
    story.ok("vm", "edit", "web1", "--description", "first", "--revision", both_saw)
    before = story.state()
    for words in (
        ("vm", "edit", "web1", "--description", "second"),
        ("vm", "nic", "add", "web1", "br0"),
        ("vm", "disk", "add", "web1", "--size", "1GiB"),
    ):
        done = story.run(*words, "--revision", both_saw)
        refused(done, 1, "problem.stale", "If-Match: ", "fix: load it again")
    assert story.state() == before


@pytest.mark.req("W5")
@pytest.mark.bad_input("template in use", story=True)
def test_a_template_stays_as_long_as_a_thin_disk_needs_it(story: Story) -> None:
    story.ok("vm", "create", "golden", "--image", "tiny", "--memory", "128MiB")
    story.ok("template", "create", "base", "--from", "golden")
    story.ok("vm", "create", "web2", "--template", "base", "--thin")
    before = story.state()
    done = story.run("template", "delete", "base", "--yes")
    refused(done, 4, "problem.template.in_use", "web2", "fix: ")
    assert story.state() == before
    story.ok("vm", "delete", "web2", "--yes", "--delete-data")
    story.ok("template", "delete", "base", "--yes")
    story.ok("vm", "delete", "golden", "--yes", "--delete-data")


@pytest.mark.bad_input("cancel of what is done", story=True)
def test_what_is_done_is_not_taken_back(story: Story) -> None:
    newest = json.loads(story.ok("operation", "list", "--limit", "1", "-o", "json"))[0]
    before = story.state()
    done = story.run("operation", "cancel", newest["id"])
    refused(done, 4, "problem.operation.cancel", f"{newest['kind']} is {newest['state']} already")
    assert story.state() == before


@pytest.fixture
def second(story: Story) -> Iterator[PlayedHost]:
    """h2 comes up, and could take what h1 runs."""
    root = story.directory / "h2"
    paths = AgentPaths(root=str(root))
    joined = JoinedHost(load_credentials(paths, load_identity(paths)), root)
    host = PlayedHost(joined, story.server.ready["gateway"])
    try:
        host.wait_until_usable()
        yield host
    finally:
        host.close()


def _to_second(story: Story, told: str) -> Done:
    """Refused for that: on a busy machine h2 may seem silent for a moment."""
    tries: list[Done] = []

    def said() -> bool:
        tries.append(story.run("vm", "migrate", "web1", "--to", "h2"))
        return told in tries[-1].stderr

    wait_until(said)
    return tries[-1]


@pytest.mark.req("X1")
@pytest.mark.bad_input("host that can't take a move", story=True)
def test_a_host_that_can_not_take_it_is_told_with_what_it_lacks(
    story: Story, second: PlayedHost
) -> None:
    if json.loads(story.ok("vm", "show", "web1", "-o", "json"))["status"]["state"] != "running":
        story.ok("vm", "start", "web1", "--host", "h1")
    for host, code, problem, told in (
        ("h1", 2, "problem.invalid", "host: web1 runs on h1 already"),
        ("h9", 3, "problem.not_found", "host: "),
    ):
        refused(story.run("vm", "migrate", "web1", "--to", host), code, problem, told)
    (ds1,) = json.loads(story.ok("storage", "list", "-o", "json"))
    lost = StorageReport(storage_domain_id=ds1["domain"]["id"], usable=False)
    small = HostReport(capabilities=msgspec.structs.replace(ABLE, memory_bytes=1 << 26))
    for facts, told in (
        ((lost,), "(h2: it has no storage domain ds1)"),
        ((small,), "free, it has no storage domain ds1)"),
    ):
        second.wait_acknowledged(second.tell(*facts))
        before = story.state()
        refused(_to_second(story, told), 4, "problem.no_host_fits", told)
        assert story.state() == before
    story.ok("host", "maintenance", "h2", "--on", "--stay")
    told = "(h2: it is in maintenance, "
    refused(_to_second(story, told), 4, "problem.no_host_fits", told)
    story.ok("host", "maintenance", "h2", "--off")
    orders = [type(order.body) for host in (story.host, second) for order in host.orders]
    assert not {MigrateVm, ReceiveVm} & set(orders)
