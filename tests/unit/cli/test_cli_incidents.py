"""`virtha incident`: what is asked, and what somebody reads who was woken by it."""

from collections.abc import Callable

import pytest
from cli_fake_api import Answer, Api, Ran
from cli_shapes import incident_view, page, plain

Run = Callable[..., Ran]
pytestmark = pytest.mark.req("X4")


def test_one_incident_worst_first_then_how_it_came_to_that(api: Api, run: Run) -> None:
    api.on("GET", "/v1/incidents/i-1", plain(incident_view()))
    ran = run("incident", "show", "i-1")
    lines = ran.out.splitlines()
    assert ran.code == 0 and lines[0] == "h1: RECOVERING: its VMs are not all settled", lines[0]
    assert lines[2] == "opened   2026-01-01 12:00:12Z, 12.0s after the last sign of life"
    assert "proof    power_off" in lines and "VMs      2: 1 run, 1 down" in lines
    web1 = "  web1: answers on h2, after 14.0s (its start took 2.0s), guest agent ~0.9s later"
    assert web1 in lines and "  db1: down" in lines
    assert any(line.endswith("(vm.recovery_given_up)") for line in lines)
    assert any(line.startswith("    now: ") for line in lines), "why it still waits"
    took = [line.split(maxsplit=2) for line in lines]
    assert ["detect", "12.0s", "last sign of life to verdict"] in took
    judged = next(n for n, line in enumerate(lines) if line.endswith("[host.judged_dead]"))
    assert lines[judged].split()[:5] == ["12:00:12Z", "+12.0", "h1", "is", "judged"]
    assert lines[judged + 1].strip() == "h2, management: silent (0.3s ago)"
    assert lines[judged + 2].strip().startswith("because: silent for")
    assert run("incident", "show", "i-1", "-q").out == "recovering\n"


def test_the_list_asks_for_what_was_said_and_shows_a_line_each(api: Api, run: Run) -> None:
    view = incident_view()
    api.on("GET", "/v1/incidents", page(view.incident))
    ran = run("incident", "list", "--open", "--host", "h1", "--vm", "db1", "--cluster", "c")
    assert api.asked[-1].query == {
        "open": "true",
        "host": "h1",
        "vm": "db1",
        "cluster": "c",
        "limit": "50",
    }
    head, line = ran.out.splitlines()
    assert head == "ID\tHOST\tSTAGE\tOPENED\tCLOSED\tVMS\tPROOF"
    assert line.split("\t")[1:3] == ["h1", "recovering"] and "2: 1 run, 1 down" in line
    assert run("incident", "list", "-q").out == f"{view.incident.id}\n"


@pytest.mark.bad_input("incident that is none")
@pytest.mark.parametrize(("status", "code"), [(404, 3), (400, 2)])
def test_none_with_that_id(api: Api, run: Run, status: int, code: int) -> None:
    problem = {"title": "no", "status": status, "code": "problem.x", "detail": "no incident"}
    api.on("GET", "/v1/incidents/i-9", Answer(problem, status=status))
    ran = run("incident", "show", "i-9")
    assert ran.code == code and "no incident" in ran.err and ran.out == ""


def test_explain_leads_to_it(api: Api, run: Run) -> None:
    host = {"verdict": "dead_proven", "status": {"state": "unreachable"}}
    api.on("GET", "/v1/hosts/h1", {**host, "engine": [], "engine_text": []})
    summary = incident_view().incident
    api.on("GET", "/v1/incidents", page(summary))
    out = run("explain", "host/h1").out
    assert api.asked[-1].query == {"host": "h1", "limit": "1"}
    assert "incident: recovering, opened 2026-01-01 12:00:12Z" in out
    assert f"-> virtha incident show {summary.id}" in out
    api.on("GET", "/v1/incidents", page())
    assert "incident" not in run("explain", "host/h1").out
