"""Nouns and verbs: what comes out, for people, pipes and programs."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cli_fake_api import Answer, Api, Ran
from cli_shapes import (
    event,
    host_view,
    incident_view,
    operation,
    page,
    plain,
    status_view,
    vm_view,
)

from virtha.cli import session as session_module
from virtha.model.operation import OperationState

Run = Callable[..., Ran]
RUNNING, FAILED, DONE = OperationState.RUNNING, OperationState.FAILED, OperationState.DONE


@pytest.mark.parametrize(
    ("path", "answer", "argv"),
    [
        ("/v1/vms", page(vm_view("a"), vm_view("b")), ["vm", "list"]),
        ("/v1/vms/web1", plain(vm_view()), ["vm", "show", "web1"]),
        ("/v1/hosts", page(host_view()), ["host", "list"]),
        ("/v1/status", plain(status_view()), ["status"]),
        ("/v1/events", page(event(3)), ["event", "list"]),
        ("/v1/operations", page(operation()), ["operation", "list"]),
        ("/v1/operations/o-1", operation(), ["operation", "show", "o-1"]),
        ("/v1/incidents", page(incident_view().incident), ["incident", "list"]),
        ("/v1/incidents/i-1", plain(incident_view()), ["incident", "show", "i-1"]),
    ],
)
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_json_and_yaml_are_the_api_s_objects(
    path: str, answer: Any, argv: list[str], form: str, api: Api, run: Run
) -> None:
    api.on("GET", path, answer)
    ran = run(*argv, "-o", form)
    wanted = answer["items"] if argv[-1] == "list" else answer
    read: Any = json.loads(ran.out) if form == "json" else yaml.safe_load(ran.out)
    assert (ran.code, read, ran.err) == (0, wanted, "")


def test_pipes_get_tab_separated_text(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view()))
    assert run("vm", "list").out.splitlines() == [
        "NAME\tSTATE\tHOST\tHA\tWATCHDOG\tPROTECTION",
        "web1\trunning\th1\tyes\ti6300esb:reset\tprotected",
    ]


def test_tables_on_request_and_wide_ones(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view()))
    table, wide = run("vm", "list", "-o", "table").out, run("vm", "list", "-o", "wide").out
    assert "web1" in table and "128MiB" not in table
    assert "128MiB" in wide and "id-of-web1" in wide
    assert "\x1b" not in table + wide
    assert len(wide.splitlines()) == 3  # nothing is wrapped or cut in a pipe


def test_show_says_why(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms/web1", vm_view())
    lines = run("vm", "show", "web1").out.splitlines()
    assert "why\truns since it was started by root" in lines
    assert "state\trunning" in lines
    assert any("[vm.watchdog.fired]" in line for line in lines)


def test_names_of_strangers_are_shown_not_obeyed(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view("[red]x\x1b[2J\ty")))
    for form in ([], ["-o", "table"], ["-q"]):
        out = run("vm", "list", *form).out
        assert "\x1b" not in out
        assert "[red]x?[2J y" in out


def test_empty_lists(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page())
    assert run("vm", "list", "-o", "json").out == "[]\n"
    assert run("vm", "list").out.splitlines() == ["NAME\tSTATE\tHOST\tHA\tWATCHDOG\tPROTECTION"]


@pytest.mark.req("X5")
def test_status_begins_with_the_verdict_and_lists_what_is_wrong(api: Api, run: Run) -> None:
    api.on("GET", "/v1/status", status_view(hold="moving racks"))
    lines = run("status").out.splitlines()
    assert lines[0].startswith("DEGRADED: ")
    assert lines[1].startswith("ON HOLD: moving racks")
    shown = "\n".join(lines)
    assert "bare\trunning\th1\tyes\tit has no watchdog" in shown
    assert "\nfine\t" not in shown and "\nplain\t" not in shown
    assert "\nfine\t" in run("status", "--all").out
    assert run("status", "-q").out == "degraded\n"


def test_status_of_an_empty_installation_says_how_to_begin(api: Api, run: Run) -> None:
    empty = {**plain(status_view(verdict="empty")), "hosts": [], "vms": []}
    api.on("GET", "/v1/status", empty)
    out = run("status").out
    assert out.startswith("EMPTY: ") and out.rstrip().endswith("`virtha agent join` on the host")


def test_hold(api: Api, run: Run) -> None:
    api.on("PUT", "/v1/hold", {"reason": "moving racks"})
    api.on("DELETE", "/v1/hold", {"reason": None})
    api.on("GET", "/v1/hold", {"reason": None})
    assert run("hold", "moving racks").out == "automatic action is on hold: moving racks\n"
    assert api.asked[0].body == {"reason": "moving racks"}
    assert run("hold", "--lift").code == 0
    assert run("unhold").code == 0
    assert len(api.calls("DELETE")) == 2
    assert run("hold").out == "automatic action runs\n"
    assert run("hold", "again", "--lift").code == 2


def test_watch_shows_changes_and_ends_with_0(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(asked: Any) -> Any:
        monkeypatch.setattr(session_module.time, "sleep", press_ctrl_c)
        return page(vm_view("a"), vm_view("b"))

    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    api.on("GET", "/v1/vms", page(vm_view("a")), page(vm_view("a")), interrupt)
    ran = run("vm", "list", "--watch", "-q")
    assert ran == Ran(0, "a\na\nb\n", "")


def test_watch_in_a_pipe_ends_when_the_server_is_lost(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view("a")), Answer(cut=True))
    assert run("vm", "list", "--watch", "-q").code == 5
