"""Operations: how their progress and their end are told."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from cli_fake_api import Answer, Api, Ran
from cli_shapes import (
    accepted,
    operation,
    page,
    vm_view,
)

from virtha.cli import progress as progress_module
from virtha.model.operation import OperationState
from virtha.model.vm import VmState

Run = Callable[..., Ran]
RUNNING, FAILED, DONE = OperationState.RUNNING, OperationState.FAILED, OperationState.DONE


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("order.refused.running", 4),
        ("problem.no_host_fits", 4),
        ("problem.failed", 1),
        (None, 1),
        ("a.code.of.a.newer.server", 1),
    ],
)
def test_failed_operations(code: str | None, exit_code: int, api: Api, run: Run) -> None:
    failed = operation(FAILED, code=code, message="it runs already")
    api.on("POST", "/v1/vms/web1/start", accepted(operation(RUNNING)))
    api.on("GET", "/v1/operations/o-1", failed)
    ran = run("vm", "start", "web1")
    assert (ran.code, ran.out) == (exit_code, "")
    assert "error: vm.start failed: it runs already" in ran.err
    assert f"code: {code or 'problem.failed'}" in ran.err
    ran = run("vm", "start", "web1", "-o", "json")
    assert (ran.code, json.loads(ran.out)) == (exit_code, failed)


def test_no_wait_prints_the_id(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms/web1/start", accepted(operation(RUNNING)))
    ran = run("vm", "start", "web1", "--no-wait")
    assert (ran.code, ran.out) == (0, "o-1\n")
    assert "virtha operation wait o-1" in ran.err
    assert len(api.asked) == 1


def test_each_step_is_told_once(api: Api, run: Run) -> None:
    def at(first: OperationState, second: OperationState) -> dict[str, Any]:
        return operation(RUNNING, steps=(("create disk", first), ("start on h1", second)))

    pending = OperationState.PENDING
    api.on("POST", "/v1/vms/web1/start", accepted(at(RUNNING, pending)))
    finished = operation(steps=(("create disk", DONE), ("start on h1", DONE)))
    api.on("GET", "/v1/operations/o-1", at(RUNNING, pending), at(DONE, RUNNING), finished)
    assert run("vm", "start", "web1").err.splitlines() == [
        "create disk: running",
        "create disk: done",
        "start on h1: running",
        "start on h1: done",
    ]
    assert run("vm", "start", "web1", "-q").err == ""


def test_waiting_outlives_a_server_restart(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms/web1/start", accepted(operation(RUNNING)))
    busy = Answer({"code": "problem.unavailable", "detail": "stopping"}, status=503)
    api.on("GET", "/v1/operations/o-1", Answer(cut=True), busy, operation())
    ran = run("vm", "start", "web1")
    assert ran.code == 0
    assert len(api.calls("POST")) == 1  # asked for once, whatever happened on the way


def test_waiting_has_an_end(api: Api, run: Run) -> None:
    api.on("GET", "/v1/operations/o-1", operation(RUNNING))
    ran = run("operation", "wait", "o-1", "--timeout", "20ms")
    assert ran.code == 5
    assert "it goes on; wait more: virtha operation wait o-1" in ran.err
    assert run("operation", "wait", "o-1", "--timeout", "soon").code == 2


def test_several_names_each_get_their_turn(api: Api, run: Run) -> None:
    taken = Answer({"code": "problem.vm.state", "detail": "runs already"}, status=409)
    api.on("POST", "/v1/vms/a/start", accepted(operation()))
    api.on("POST", "/v1/vms/b/start", taken)
    api.on("POST", "/v1/vms/c/start", accepted(operation()))
    ran = run("vm", "start", "a", "b", "nope", "c")
    assert ran.code == 1  # the first that failed decides
    assert ran.out.splitlines() == ["VM a runs (2.5 s)", "VM c runs (2.5 s)"]
    assert "b: error: runs already" in ran.err
    assert "nope: error: no route" in ran.err


def test_several_names_stop_when_the_server_is_gone(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms/a/start", Answer(cut=True))
    assert run("vm", "start", "a", "b").code == 5
    assert [asked.path for asked in api.asked] == ["/v1/vms/a/start"]


def test_vm_state_filter_is_checked_here(api: Api, run: Run) -> None:
    assert run("vm", "list", "--state", "flying").code == 2
    api.on("GET", "/v1/vms", page(vm_view(state=VmState.PAUSED)))
    assert run("vm", "list", "--state", "paused").code == 0
    assert api.asked[0].query == {"state": "paused"}


def test_ctrl_c_while_waiting_says_that_it_goes_on(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress_module.time, "sleep", press)
    api.on("GET", "/v1/operations/o-1", operation(RUNNING), Answer(cut=True))
    ran = run("operation", "wait", "o-1")
    assert ran.code == 130
    assert "it goes on all the same; see: virtha operation wait o-1" in ran.err
