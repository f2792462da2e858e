"""`virtha host maintenance` and `confirm-dead`: what goes to the server, and what is asked first."""

from collections.abc import Callable

import pytest
from cli_fake_api import DEATH_TICKET, Answer, Api, Ran

Run = Callable[..., Ran]


@pytest.mark.req("F9")
def test_the_word_that_a_host_is_dead_wants_its_name(api: Api, run: Run) -> None:
    api.on("POST", "/v1/hosts/h1/death-tickets", Answer(DEATH_TICKET, status=201))
    said = {"host_id": "id-of-h1", "host": "h1", "boot": "b1", "incident": 3}
    api.on("POST", "/v1/hosts/h1/confirm-dead", said)
    ran = run("host", "confirm-dead", "h1")
    assert ran.code == 2 and "--yes-it-is-dead: nobody is here" in ran.err
    assert "web1, web2" in ran.err and "runs twice" in ran.err
    assert api.calls("POST", "/v1/hosts/h1/confirm-dead") == []
    ran = run("host", "confirm-dead", "h1", "--yes-it-is-dead", "--force", "I hold its plug")
    assert ran.code == 0, ran.err
    (call,) = api.calls("POST", "/v1/hosts/h1/confirm-dead")
    assert call.body == {"ticket": "t1", "name": "h1", "force_reason": "I hold its plug"}


def test_maintenance_of_a_host(api: Api, run: Run) -> None:
    on = {"host": "h1", "on": True, "by": "admin", "drain": False, "vms": ["web1"]}
    api.on("POST", "/v1/hosts/h1/maintenance", on)
    api.on("GET", "/v1/hosts/h1/maintenance", {**on, "on": False, "by": None, "vms": []})
    ran = run("host", "maintenance", "h1", "--stay")
    assert ran.code == 2 and "--stay: goes with --on only" in ran.err
    ran = run("host", "maintenance", "h1", "--on", "--stay")
    assert ran.code == 0 and "web1" in ran.out + ran.err
    run("host", "maintenance", "h1", "--on")
    run("host", "maintenance", "h1", "--off")
    assert [call.body for call in api.calls("POST")] == [
        {"on": True, "drain": False},
        {"on": True, "drain": True},
        {"on": False, "drain": False},
    ]
    ran = run("host", "maintenance", "h1")
    assert ran.code == 0 and "not in maintenance" in ran.out + ran.err


@pytest.mark.req("F9", "X1")
def test_a_vm_that_is_kept_down_is_freed(api: Api, run: Run) -> None:
    kept = {"code": "problem.vm.state", "title": "web2 is neither", "status": 409, "fix": "look"}
    api.on("POST", "/v1/vms/web1/free", {"vm": {"name": "web1"}})
    api.on("POST", "/v1/vms/web2/free", Answer(kept, status=409))
    ran = run("vm", "free", "web1")
    assert ran.code == 0 and "web1 is free" in ran.out
    assert "virtha explain vm/web1" in ran.out, (
        "a hold, its grade or a lack of room may keep it down"
    )
    ran = run("vm", "free", "web1", "web2")
    assert ran.code != 0 and "web1 is free" in ran.out and "web2 is neither" in ran.err
    assert len(api.calls("POST", "/v1/vms/web1/free")) == 2


@pytest.mark.req("F9")
def test_the_brake_of_a_cluster_is_shown_and_lifted_when_asked_for(api: Api, run: Run) -> None:
    path = "/v1/clusters/default/brake"
    api.on("GET", path, {"cluster": "default", "on": True, "hosts": 3})
    api.on("DELETE", path, {"cluster": "default", "on": False, "hosts": 0})
    assert run("cluster", "brake", "default").out.startswith(
        "3 hosts of cluster default fell silent"
    )
    ran = run("cluster", "brake", "default", "--lift")
    assert ran.code == 2 and "--yes" in ran.err and api.calls("DELETE", path) == []
    ran = run("cluster", "brake", "default", "--lift", "--yes")
    assert ran.code == 0 and len(api.calls("DELETE", path)) == 1
    assert "is not on: it holds back no power order" in ran.out, "a hold or a cap may"
