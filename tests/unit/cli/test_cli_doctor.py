"""`virtha doctor` and `virtha explain`: what is asked, what is shown, how it ends."""

from collections.abc import Callable

import pytest
from cli_fake_api import Api, Ran

Run = Callable[..., Ran]
FOUND = {
    "about": "host/h1",
    "verdict": "not_ready",
    "findings": [
        {
            "about": "host/h1",
            "code": "ready.power.none",
            "severity": "error",
            "text": "h1 has no power device",
            "fix": "Set one up",
            "fields": {"host": "h1"},
        }
    ],
    "hosts": 1,
    "vms": 2,
    "not_looked_at": ["the moon"],
}


@pytest.mark.req("X5")
def test_what_would_fail_is_shown_with_its_fix_and_in_the_exit_code(api: Api, run: Run) -> None:
    api.on("GET", "/v1/hosts/h1/readiness", FOUND)
    ran = run("doctor", "host/h1")
    assert ran.code == 1
    for text in ("NOT READY", "h1 has no power device", "-> Set one up", "the moon", "2 VMs"):
        assert text in ran.out
    assert '"ready.power.none"' in run("doctor", "host/h1", "-o", "json").out
    risk = {**FOUND, "verdict": "at_risk", "findings": []}
    api.on("GET", "/v1/readiness", risk)
    assert run("doctor").code == 0
    assert run("doctor", "--strict").code == 1
    for kind, path in (("vm/web1", "/v1/vms/web1"), ("cluster/c", "/v1/clusters/c")):
        api.on("GET", f"{path}/readiness", {**risk, "verdict": "ready"})
        assert run("doctor", kind, "--strict").code == 0


@pytest.mark.bad_input
@pytest.mark.parametrize("about", ["h1", "host", "host/", "rack/1", "host/a/b", "/h1"])
def test_what_is_neither_host_nor_vm_is_refused_before_anything_is_asked(
    about: str, api: Api, run: Run
) -> None:
    for command in ("doctor", "explain"):
        ran = run(command, about)
        assert ran.code == 2 and "ABOUT" in ran.err, ran
    assert run("explain", "cluster/c").code == 2
    assert api.calls() == []


@pytest.mark.req("X1")
def test_reasons_are_explained_with_what_to_do(api: Api, run: Run) -> None:
    reasons = [
        {"code": "fence.blocked.no_device", "fields": {}},
        {"code": "of.the.future", "fields": {}},
    ]
    texts = ["it has no power device", "something new"]
    host = {"verdict": "dead_unproven", "status": {"state": "unreachable"}}
    api.on("GET", "/v1/hosts/h1", {**host, "engine": reasons, "engine_text": texts})
    ran = run("explain", "host/h1")
    assert ran.code == 0 and "host/h1: dead_unproven" in ran.out
    assert "it has no power device (fence.blocked.no_device)" in ran.out
    assert "-> Configure one" in ran.out and "something new" in ran.out
    vm = {
        "vm": {},
        "status": {"state": "down", "reasons": reasons[1:]},
        "reason_text": texts[1:],
        "engine": reasons[:1],
        "engine_text": texts[:1],
        "protection": [{"code": "protection.no_ha", "fields": {}}],
        "protection_text": ["not marked as highly available"],
    }
    api.on("GET", "/v1/vms/web1", vm)
    out = run("explain", "vm/web1").out
    order = [out.index(text) for text in (texts[1], texts[0], "not marked")]
    assert order == sorted(order)
