"""Disks that grow, snapshots of running VMs, operations taken back: what is asked of the server, and what is told."""

from collections.abc import Callable

import pytest
from cli_fake_api import Answer, Api, Ran
from cli_shapes import NOON, accepted, operation

Run = Callable[..., Ran]
DISK = "/v1/vms/web1/disks/data/resize"
CANCEL = "/v1/operations/o-1/cancel"


def test_a_disk_is_asked_to_grow_at_a_revision(api: Api, run: Run) -> None:
    api.on("POST", DISK, accepted(operation(kind="vm.resize")))
    ran = run("vm", "disk", "resize", "web1", "data", "20GiB", "--revision", "7")
    assert ran.code == 0
    assert ran.out.startswith("data of VM web1 has 20GiB")
    assert api.asked[0].body == {"size_bytes": 20 << 30}
    assert api.asked[0].headers["if-match"] == '"7"'


@pytest.mark.parametrize("size", ["20G", "-1GiB", "much", ""])
def test_a_size_that_is_none_is_told_before_anything_is_asked(
    size: str, api: Api, run: Run
) -> None:
    ran = run("vm", "disk", "resize", "web1", "data", "--", size)
    assert ran.code == 2
    assert api.asked == []
    assert "SIZE" in ran.err


def test_how_a_snapshot_was_made_is_asked_and_shown(api: Api, run: Run) -> None:
    path = "/v1/vms/web1/snapshots"
    api.on("POST", path, accepted(operation(kind="vm.snapshot")))
    assert run("vm", "snapshot", "create", "web1", "now", "--crash-consistent").code == 0
    assert api.asked[0].body == {"name": "now", "crash_consistent": True}
    made = {"id": "s-1", "state": "ready", "created": NOON, "disks": ["disk0"], "description": ""}
    items = [
        {**made, "name": name, "frozen": frozen}
        for name, frozen in (("a", None), ("b", True), ("c", False))
    ]
    api.on("GET", path, Answer({"items": items, "revision": 1}))
    shown = [line.split("\t") for line in run("vm", "snapshot", "list", "web1").out.splitlines()]
    assert [line[3] for line in shown[-3:]] == ["down", "frozen", "not frozen"]


def test_an_operation_that_was_taken_back_is_no_failure(api: Api, run: Run) -> None:
    cancelled = operation(kind="vm.create", state="cancelled", code="order.failed.cancelled")
    api.on("POST", CANCEL, accepted(cancelled))
    ran = run("operation", "cancel", "o-1")
    assert (ran.code, ran.out) == (0, "vm.create is cancelled\n")


@pytest.mark.bad_input("cancel of what is done")
def test_why_it_can_not_be_taken_back_is_told(api: Api, run: Run) -> None:
    problem = {
        "code": "problem.operation.cancel",
        "detail": "vm.start can't be taken back",
        "fix": "'virtha vm power-off' ends it",
    }
    api.on("POST", CANCEL, Answer(problem, status=422))
    ran = run("operation", "cancel", "o-1")
    assert ran.code == 4
    assert "power-off" in ran.err
